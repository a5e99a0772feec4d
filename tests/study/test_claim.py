"""A study and its directory: what is refused before it is measured, and what may change while it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raysuite.cluster.directions import claim, study
from raysuite.errors import UserError
from raysuite.progress import Counting
from raysuite.stages.files import write_json
from raysuite.study.declared import Study, declare


def declared(gain: dict[str, float] | None, **settings: str) -> Study:
    return declare("toy-ddpo", objectives=["ddpo"], units=8, gain=gain, settings=settings)


def nothing_slow(what: str, unit: str) -> Counting:
    pytest.fail(f"{what} was begun")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"evaluation.kl": "false"}, r"expected evaluation.kl=true with --gain-kl, got false"),
        (
            {"rollouts.samples": "1", "credit.normalise": "global"},
            r"expected rollouts.samples of at least 2 with --gain-kl, got 1",
        ),
    ],
)
def test_gains_that_cannot_be_measured_are_refused_before_anything_is(
    settings: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    wanted = declared({"kl": 0.1}, **settings)
    with pytest.raises(UserError, match=sentence):
        study(wanted, tmp_path / "study", ["test"], nothing_slow)
    assert not (tmp_path / "study").exists()


def test_a_command_that_was_killed_between_the_files_of_a_claim_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, value: object) -> None:
        write_json(path, value)
        raise KeyboardInterrupt

    monkeypatch.setattr("raysuite.cluster.directions.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        claim(declared(None), tmp_path, ["test"])
    monkeypatch.undo()
    claim(declared(None), tmp_path, ["test"])
    assert json.loads((tmp_path / "provenance.json").read_text())["command"] == ["test"]


def test_what_estimates_and_gains_made_needless_is_removed_though_a_command_was_killed_before_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysuite.cluster.directions.collect", lambda *of: None)
    wanted = declared({"kl": 0.1})
    claim(wanted, tmp_path, ["test"])
    (rung,) = (tmp_path / rung.name for rung in wanted.rungs)
    for kept in ("units", "rollouts", "sums"):
        (rung / kept).mkdir(parents=True)
    for kept in ("drawn.json", "seconds.json", "totals.safetensors", "estimates.parquet", "gains.parquet"):
        (rung / kept).touch()
    study(wanted, tmp_path, ["test"], nothing_slow)
    assert {path.name for path in rung.iterdir()} == {"estimates.parquet", "gains.parquet"}


def test_another_length_of_steps_may_be_wanted_until_some_were_taken(tmp_path: Path) -> None:
    """What was measured does not depend on it."""

    def kept() -> Any:
        return json.loads((tmp_path / "study.json").read_text())["gain"]

    claim(declared({"kl": 0.1}), tmp_path, ["test"])
    (tmp_path / "rung-00").mkdir()
    claim(declared({"kl": 0.2}), tmp_path, ["test"])
    assert kept() == {"kl": 0.2}
    with pytest.raises(UserError, match=r"differs in gain \(\{\"kl\": 0.2\} there, null here\)"):
        claim(declared(None), tmp_path, ["test"])  # without steps less is measured
    (tmp_path / "rung-00" / "gains.parquet").touch()
    with pytest.raises(UserError, match=r"differs in gain.kl \(0.2 there, 0.1 here\)"):
        claim(declared({"kl": 0.1}), tmp_path, ["test"])
    assert kept() == {"kl": 0.2}
