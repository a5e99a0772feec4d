"""What the README promises of its own commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from raysuite.config import RunConfig, load

README = (Path(__file__).parents[1] / "README.md").read_text()


def commands(section: str) -> list[list[str]]:
    """The commands of a section's first block, as words."""
    block = README.partition(f"## {section}\n")[2].split("```")[1].replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]


def declared(words: list[str]) -> RunConfig:
    settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    return load(words[2], {path: value for path, _, value in (setting.partition("=") for setting in settings)})


def test_the_command_for_a_model_of_ones_own_gets_to_the_checkpoint_that_is_named() -> None:
    (train,) = (words for words in commands("Your own model") if words[:2] == ["raysuite", "train"])
    config = declared(train)
    named = re.search(rf'"{train[-1]}/checkpoints/(\d+)/model"', README)
    assert named
    assert config.budget is None
    assert config.updates >= int(named[1]) and int(named[1]) % config.checkpoints.every == 0
    kept = config.updates - config.checkpoints.every * config.checkpoints.keep
    assert int(named[1]) > kept  # later ones have not pushed it out
