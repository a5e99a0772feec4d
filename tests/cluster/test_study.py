"""A study through real Ray actors: the same every time, whoever works; it goes on where it was stopped."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import safetensors.numpy
from rich.console import Console

from raysuite.cluster import session
from raysuite.cluster.directions import study
from raysuite.errors import UserError
from raysuite.progress import Counting
from raysuite.results.study.read import read_study
from raysuite.results.study.report import study_summary
from raysuite.study.declared import Study, declare
from raysuite.study.estimates import widest

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray's processes warn of their own affairs

OBJECTIVES = ["ddpo", "trajectory_dpo", "diffusion_dpo", "dspo", "forward_rl"]
FILES = ["estimates.parquet", "gains.parquet", "rung-00/inner_products-parameters.safetensors"]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    session.connect()
    yield
    ray.shutdown()


def counting(what: str, unit: str) -> Counting:
    return Counting(what, unit, Console(quiet=True))


class Stops(Counting):
    """Is interrupted at the third step of some kind of work."""

    def advance(self) -> None:
        super().advance()
        if self._bar.tasks[0].completed == 3:
            raise KeyboardInterrupt


def toy(**settings: str) -> Study:
    own = {"sampler.steps": "6", "cluster.actor_cpus": "0.5", "cluster.threads": "1", "rollouts.samples": "8"}
    return declare(
        "toy-ddpo",
        objectives=OBJECTIVES,
        units=8,
        gain={"kl": 0.1},
        settings={**own, **{path.replace("__", "."): value for path, value in settings.items()}},
    )


def tables(directory: Path) -> list[Any]:
    return [pq.read_table(directory / name) for name in ("estimates.parquet", "gains.parquet")]


@pytest.mark.slow
def test_two_actors_and_an_interrupted_study_find_what_one_actor_finds(tmp_path: Path) -> None:
    """Bit for bit, with one thread each; and nothing that could be drawn again is left."""
    study(toy(), tmp_path / "one", ["test"], counting)
    two = toy(cluster__actors="2")
    for kind in ("drawing", "measuring", "taking steps"):
        with pytest.raises(KeyboardInterrupt):
            study(
                two,
                tmp_path / "two",
                ["test"],
                lambda w, u, k=kind: (Stops if w == k else Counting)(w, u, Console(quiet=True)),
            )
        (tmp_path / "two" / "rung-00" / f".half-written.{uuid.uuid4().hex}").touch()
    study(two, tmp_path / "two", ["test"], counting)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    left = {path.name for path in (tmp_path / "two" / "rung-00").iterdir()}
    assert left == {
        "estimates.parquet",
        "facts.json",
        "gains.parquet",
        "inner_products-parameters.safetensors",
        "inner_products-prediction.safetensors",
    }
    facts = json.loads((tmp_path / "two" / "facts.json").read_text())
    assert facts["blocks"] == {"perturbation": 60}
    assert facts["exact"]
    assert facts["rungs"][0]["rankings"] == 8
    one = json.loads((tmp_path / "one" / "facts.json").read_text())
    assert facts["rungs"][0]["step_evaluations"] == one["rungs"][0]["step_evaluations"] > 0
    assert set(facts["rungs"][0]["seconds"]) == {"draw", "measure", "estimate", "steps"}
    other = declare("toy-ddpo", objectives=OBJECTIVES[::-1], units=16, gain={"kl": 0.1})
    expected = r"hold this study, got one that differs in order .*; run.rollouts.samples \(8 there, 16 here\)"
    with pytest.raises(UserError, match=expected):
        study(other, tmp_path / "two", [], counting)
    gains_are_those_of_the_policy_gradient(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "why"),
    [
        ("tests.stages.rewards:hundred", "unknown along ddpo: its gradient is 0"),
        ("redness", "unknown along ddpo: no step of KL 0.1 was found in 1 trials, and the last had "),
    ],
)
def test_a_study_without_a_step_to_take_ends_and_is_read(
    reward: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysuite.study.gains.TRIALS", 1)
    settings = {"sampler.steps": "4", "rollouts.samples": "2", "cluster.threads": "1", "rewards": f"['{reward}']"}
    wanted = declare("toy-ddpo", objectives=["ddpo"], units=8, probes=0, gain={"kl": 0.1}, settings=settings)

    class NoTime(Counting):
        def begin(self, total: int, *, done: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(
            wanted,
            tmp_path,
            [""],
            lambda w, u: (NoTime if w == "taking steps" else Counting)(w, u, Console(quiet=True)),
        )
    assert read_study(tmp_path).estimates and not read_study(tmp_path).gains
    study(wanted, tmp_path, [""], counting)
    gains = read_study(tmp_path).gains
    assert {gain.objective for gain in gains} == {"ddpo"} and all(np.isnan(gain.realised.estimate) for gain in gains)
    assert all(gain.note.startswith(why) for gain in gains if gain.reward == reward)
    assert f"The gain is {why}" in " ".join(study_summary(tmp_path, 400).split())


def gains_are_those_of_the_policy_gradient(directory: Path) -> None:
    rows = pq.read_table(directory / "gains.parquet").to_pylist()
    assert {row["objective"] for row in rows} == set(OBJECTIVES)
    assert all(abs(row["kl"] / 0.1 - 1) <= 0.1 for row in rows)
    of_ddpo = [row for row in rows if row["objective"] == "ddpo" and np.isfinite(row["predicted"])]
    assert of_ddpo and all(row["predicted"] > 0 for row in of_ddpo)
    assert max(row["realised"] for row in of_ddpo) > 0  # a step along the policy gradient of the toy's reward raises it


@pytest.mark.slow
def test_a_study_goes_on_until_it_knows_enough_or_has_the_most_units(tmp_path: Path) -> None:
    """Its 16 units are those of a study of 16, bit for bit, though it looked at 8 first and was interrupted after that."""
    own = {"sampler.steps": "6", "cluster.actor_cpus": "0.5", "cluster.threads": "1", "rollouts.samples": "8"}

    def declared(units: int, **options: Any) -> Study:
        return declare("toy-ddpo", objectives=["ddpo", "sft"], units=units, probes=0, settings=own, **options)

    class StopsLate(Counting):
        """Is interrupted when more units than at first are being measured."""

        def begin(self, total: int, *, done: int) -> None:
            super().begin(total, done=done)
            self.stop_at = done + 3 if done else 0

        def advance(self) -> None:
            super().advance()
            if self._bar.tasks[0].completed == self.stop_at:
                raise KeyboardInterrupt

    study(declared(16), tmp_path / "plain", [], counting)
    never = declared(8, until=1e-6, most=16)
    with pytest.raises(KeyboardInterrupt):
        study(
            never,
            tmp_path / "grown",
            [],
            lambda w, u: (StopsLate if w == "measuring" else Counting)(w, u, Console(quiet=True)),
        )
    study(never, tmp_path / "grown", [], counting)
    products = "rung-00/inner_products-parameters.safetensors"
    assert (tmp_path / "plain" / products).read_bytes() == (tmp_path / "grown" / products).read_bytes()
    study(declared(8, until=2.0, most=800), tmp_path / "soon", [], counting)
    found = [
        json.loads((tmp_path / name / "facts.json").read_text())["rungs"][0]["units"] for name in ("grown", "soon")
    ]
    assert found[0] == 16 and found[1] < 800
    rows = pq.read_table(tmp_path / "soon" / "estimates.parquet").to_pylist()
    assert widest(rows) <= 2.0


@pytest.mark.slow
def test_a_ladder_with_replayed_rollouts_and_a_set(tmp_path: Path) -> None:
    """Off-line pairs beside on-policy ones; what a source cannot feed is said before anything is drawn."""
    from raysuite.cluster.pairs import make_pairs
    from raysuite.config import load

    config = load(
        "toy-ddpo", {"sampler.steps": "6", "credit": "null", "objective": "{name: sft}", "cluster.threads": "1"}
    )
    made = make_pairs(
        config, tmp_path / "set", prompts=24, trajectories=False, command=[], counting=counting("pairs", "blocks")
    )
    assert made["rankings"] >= 16
    settings = {"sampler.steps": "6", "cluster.threads": "1"}
    ladder = declare(
        "toy-ddpo",
        objectives=["ddpo", "sft", "dspo"],
        units=8,
        probes=0,
        settings={**settings, "preferences": "{choose: random, limit: 2}"},
        along={"preferences.source": f"[null, {tmp_path / 'set'}]"},
    )
    study(ladder, tmp_path / "study", ["test"], counting)
    rows = pq.read_table(tmp_path / "study" / "estimates.parquet").to_pylist()
    assert {(row["rung"], row["along"]) for row in rows} == {(0, "preferences.source"), (1, "preferences.source")}
    norms = {
        (r["rung"], r["a"]): r["estimate"] for r in rows if (r["quantity"], r["part"]) == ("squared_norm", "whole")
    }
    assert norms[0, "ddpo"] == norms[1, "ddpo"]  # drawn either way
    assert norms[0, "sft"] != norms[1, "sft"]
    products = [
        safetensors.numpy.load_file(tmp_path / "study" / f"rung-0{n}" / "inner_products-parameters.safetensors")
        for n in range(2)
    ]
    assert all(np.isfinite(a).all() for p in products for a in p.values())
    with pytest.raises(UserError, match=r"sft cannot learn from .* expected at least 32 units in .*, got 24"):
        study(
            declare(
                "toy-ddpo",
                objectives=["sft"],
                units=32,
                settings={"preferences.source": str(tmp_path / "set")},
            ),
            tmp_path / "wrong",
            [],
            counting,
        )
    wrong = {"preferences.source": str(tmp_path / "set")}
    with pytest.raises(
        UserError, match="trajectory_dpo cannot learn from what this study measures it on: expected traj"
    ):
        study(
            declare("toy-ddpo", objectives=["trajectory_dpo"], units=8, settings={**settings, **wrong}),
            tmp_path / "wrong",
            [],
            counting,
        )
    with pytest.raises(UserError, match="expected --gain-kl with ddpo or forward_rl"):
        study(
            declare("toy-ddpo", objectives=["dspo"], units=8, gain={"kl": 1.0}, settings=settings),
            tmp_path / "wrong",
            [],
            counting,
        )
    assert not (tmp_path / "wrong").exists()
