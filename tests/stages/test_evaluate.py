"""What an evaluation writes down: numbers that are not finite, prompts of one text, splits that come and go."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from raysuite.results.page import picture_with_marks
from raysuite.results.run import read_run
from raysuite.stages.evaluate import record
from raysuite.stages.files import RunDirectory
from raysuite.stages.prompts import Prompt, PromptSet
from raysuite.types import Block, Cost, Rollouts

SIGNS = PromptSet((Prompt("a shop sign", 0, {"text": "OPEN"}), Prompt("a shop sign", 1, {"text": "CLOSED"})), ())


def evaluated(update: int, *, split: str = "training", scores: tuple[float, float] = (1.0, 0.0), **drawn: Any) -> Any:
    """Both signs, a picture each."""
    block = Block(
        update=update,
        index=0,
        prompts=tuple(prompt.text for prompt in SIGNS.training),
        prompt_ids=(0, 1),
        metadata=tuple(prompt.metadata for prompt in SIGNS.training),
        samples_per_prompt=1,
        evaluation=True,
        pictures=2,
    )
    given = {
        "version": update,
        "latents_NK": None,
        "logp_NK": None,
        "scores": {"ocr": np.array(scores)},
        "reward_N": np.array(scores),
        "credit_NK": None,
        "pictures": np.zeros((2, 8, 8, 3), np.uint8),
        "kl_N": None,
        "cost": Cost(),
    }
    return split, Rollouts(block=block, **(given | drawn))


def opened(directory: Path) -> RunDirectory:
    config = {"seed": 0, "updates": 10, "rewards": [{"name": "ocr", "weight": 1.0}], "evaluation": {"rewards": []}}
    (directory / "config.json").write_text(json.dumps(config))
    for file, content in (("provenance.json", "{}"), ("ledger.json", "{}"), ("metrics.jsonl", "")):
        (directory / file).write_text(content)
    return RunDirectory(directory)


def test_a_kl_that_is_not_finite_is_written_down_for_the_guard(tmp_path: Path) -> None:
    run = opened(tmp_path)
    found = record(run, 3, [evaluated(3, kl_N=np.array([math.nan, 3.0]))], SIGNS.names, seed=0)
    assert math.isnan(found["evaluation/kl"]) and "evaluation/kl_low" not in found
    assert found["evaluation/training/ocr"] == 0.5
    assert list((tmp_path / "scores").iterdir())
    finite = record(run, 4, [evaluated(4, kl_N=np.array([1.0, 3.0]))], SIGNS.names, seed=0)
    assert finite["evaluation/kl_low"] <= finite["evaluation/kl"] == 2.0 <= finite["evaluation/kl_high"]
    one = record(run, 5, [evaluated(5, kl_N=np.array([3.0]))], SIGNS.names, seed=0)
    assert one["evaluation/kl"] == 3.0 and "evaluation/kl_low" not in one


def test_pictures_of_prompts_with_one_text_have_their_own_scores(tmp_path: Path) -> None:
    record(opened(tmp_path), 0, [evaluated(0)], SIGNS.names, seed=0)
    run = read_run(tmp_path)
    marks = {picture.prompt: picture_with_marks(run, picture)["marks"] for picture in run.pictures}
    assert marks == {"a shop sign": [("ocr", 1.0, True)], "a shop sign (no. 2)": [("ocr", 0.0, True)]}


def test_pictures_of_a_split_stay_when_another_evaluation_has_none_of_it(tmp_path: Path) -> None:
    run = opened(tmp_path)
    for update in (0, 10):
        record(run, update, [evaluated(update), evaluated(update, split="test")], SIGNS.names, seed=0)
    record(run, 5, [evaluated(5)], SIGNS.names, seed=0)  # of a checkpoint between them
    shown = {(picture.update, picture.split) for picture in read_run(tmp_path).pictures}
    assert shown == {(0, "training"), (0, "test"), (5, "training"), (10, "training"), (10, "test")}
