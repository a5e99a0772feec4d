"""A study is declared from a run, a recipe or a file, and refuses what it cannot measure with a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raysuite.config import load
from raysuite.errors import UserError
from raysuite.study.declared import STANDARD, declare
from tests.own import Own


def test_objectives_come_from_the_run_a_recipe_or_the_standard() -> None:
    study = declare("scenes-ddpo", objectives=["ddpo", "scenes-dspo", "sft"])
    assert study.objectives["ddpo"] == load("scenes-ddpo").objective
    assert study.objectives["scenes-dspo"] == load("scenes-dspo").objective
    assert study.objectives["sft"] == {"name": "sft", **STANDARD["sft"]}
    configs = study.rungs[0].configs
    assert configs["ddpo"].credit.discount == load("scenes-ddpo").credit.discount
    assert configs["scenes-dspo"].preferences.choose == "best_worst"


def test_an_objective_of_ones_own_is_called_by_its_class() -> None:
    study = declare(
        "toy-ddpo", objectives=["ddpo", "tests.own:Own"], units=16, settings={"objectives.Own.patience": "3"}
    )
    assert study.objectives["Own"] == {"name": "tests.own:Own", "patience": 3}
    assert study.rungs[0].configs["Own"].built_objective == Own(patience=3)
    with pytest.raises(UserError, match=r"got Own again"):
        declare("toy-ddpo", objectives=["tests.own:Own", "elsewhere:Own"], units=16)


@pytest.mark.parametrize("name", STANDARD)
def test_every_objective_has_standard_settings(name: str) -> None:
    assert declare("scenes-ddpo", objectives=[name]).rungs[0].configs[name].built_objective is not None


def test_settings_reach_objectives_credit_and_preferences_alike() -> None:
    study = declare(
        "toy-ddpo",
        objectives=["ddpo", "dspo"],
        units=16,
        settings={
            "objectives.dspo.beta": "0.5",
            "credit.discount": "0.9",
            "preferences": "{label: bradley_terry, temperature: 0.3}",
            "sampler.steps": "7",
        },
    )
    ddpo, dspo = study.rungs[0].configs.values()
    assert (ddpo.credit.discount, dspo.preferences.temperature, dspo.objective["beta"]) == (0.9, 0.3, 0.5)
    assert ddpo.sampler.steps == dspo.sampler.steps == 7
    assert study.rungs[0].config.built_objective.consumes == "advantages"  # credit is known to it alone


LADDERS = {
    "preferences.temperature": "[0.1, 1]",
    "sampler.eta": "[0.3, 1.0]",
    "sampler.steps": "[5, 10]",
    "credit.kind": "[terminal, previews]",
    "credit.discount": "[0.9, 1]",
    "objectives.dspo.beta": "[0.01, 1e-3]",
    "objectives.trajectory_dpo.discount": "[0.9, 1]",
    "objectives.diffusion_dpo.beta": "[100, 1000]",
    "preferences.source": "[null, some/set]",
}


@pytest.mark.parametrize("path", LADDERS)
def test_every_rung_of_the_ladder_has_a_key(path: str) -> None:
    study = declare(
        "toy-ddpo",
        objectives=["ddpo", "trajectory_dpo", "diffusion_dpo", "dspo"],
        units=16,
        settings={"credit.previews": "[3, 6]", "preferences.label": "bradley_terry"},
        along={path: LADDERS[path]},
    )
    if path == "credit.kind":
        assert [rung.configs["ddpo"].credit.previews for rung in study.rungs] == [(), (3, 6)]
    assert [(rung.along, rung.number) for rung in study.rungs] == [(path, 0), (path, 1)]
    assert json.loads(json.dumps(study.canonical()["along"])) == {path: list(study.along[path])}


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("learn.learning_rate", "[1e-4, 1e-2]"),
        ("learn.minibatches", "[1, 2]"),
        ("reference.refresh", "[0, 1]"),
        ("budget", "[10, 20]"),
        ("preferences.temperature", "[0.1, 1]"),
        ("preferences.limit", "[1, 2]"),
        ("credit.decay", "[0.5, 1]"),
        ("credit.discount", "[0.9, 0.90]"),
    ],
)
def test_a_ladder_whose_rungs_measure_the_same_is_refused(path: str, values: str) -> None:
    same, unread = f"expected rungs along {path} that measure different things, got the same", f"measures, got {path}:"
    with pytest.raises(UserError, match=f"{same}|{unread}"):
        declare("toy-ddpo", objectives=["ddpo", "diffusion_dpo"], units=16, along={path: values})


def test_ladders_are_walked_one_after_the_other_at_every_checkpoint(tmp_path: Path) -> None:
    run = fake_run(tmp_path, checkpoints=(2, 4))
    along = {"sampler.eta": "[0.5, 1]", "credit.discount": "[0.8, 0.9, 1]"}
    study = declare(str(run), objectives=["ddpo"], checkpoint="all", units=16, along=along)
    assert [rung.checkpoint for rung in study.rungs] == [0] * 5 + [2] * 5 + [4] * 5
    assert [rung.value for rung in study.rungs[:5]] == [0.5, 1, 0.8, 0.9, 1]
    last = study.rungs[-1].configs["ddpo"]
    assert (last.sampler.noise.level, last.credit.discount) == (1.0, 1.0)
    assert declare(str(run), objectives=["ddpo"], units=16).checkpoints == (4,)


def fake_run(directory: Path, checkpoints: tuple[int, ...] = ()) -> Path:
    (directory / "config.json").write_text(json.dumps(load("toy-ddpo").canonical()))
    for number in checkpoints:
        (directory / "checkpoints" / f"{number:06d}").mkdir(parents=True)
    return directory


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"objectives": ["dpo"]}, "expected --objectives from ddpo, .*, got 'dpo'"),
        ({"objectives": ["ddpo", "dspo", "ddpo"]}, "expected every objective of --objectives once, got ddpo again"),
        ({"objectives": ["dpso"]}, r"got 'dpso': did you mean dspo\?"),
        ({"units": 6}, "expected --units of at least 8, got 6"),
        ({"units": 15}, r"expected --units as a multiple of rollouts.prompts=2, got 15"),
        ({"until": 0.1, "most": 45}, r"expected --most as a multiple of rollouts.prompts=2, got 45"),
        ({"until": 0.1, "most": 8}, r"expected --most of at least --units=16, got 8"),
        ({"most": 32}, r"expected --until with --most, got none"),
        ({"until": 0.1, "gain": {"kl": 1.0}}, r"expected no --gain-kl with --until, got both"),
        ({"checkpoint": "3"}, "expected a checkpoint of a recipe, which has none, got '3'"),
        ({"checkpoint": "last"}, "got 'last'"),
        (
            {"settings": {"objective.clip": "1"}},
            r"expected objectives.<one of ddpo>.<field> in a study, got 'objective.clip'",
        ),
        ({"settings": {"objectives.dspo.beta": "1"}}, "name an objective of this study"),
        ({"settings": {"objectives.ddpo.betta": "1"}}, "expected a setting of ddpo"),
        ({"settings": {"sampler.etta": "1"}}, "did you mean sampler.eta"),
        ({"settings": {"sampler.eta": "0"}}, "expected sampler.noise.level above 0 for ddpo"),
        ({"along": {"sampler.eta": "0.5"}}, "expected a list of at least two values for sampler.eta"),
        ({"along": {"sampler.eta": "[0.5, 2]"}}, "expected sampler.noise.level between 0 and 1"),
        ({"settings": {"reference.refresh": "3"}}, r"measures, got reference.refresh: .* leave it out"),
        ({"settings": {"reference": "{refresh: 3}"}}, "measures, got reference.refresh:"),
        ({"settings": {"learn.learning_rate": "0.1"}}, "measures, got learn.learning_rate:"),
        ({"settings": {"rollouts.staleness": "1"}}, "measures, got rollouts.staleness:"),
        ({"settings": {"learn": "{microbatch: 8, learning_rate: 3}"}}, "measures, got learn.learning_rate:"),
        ({"settings": {"guards.kl": "ignore"}}, "measures, got guards.kl:"),
        ({"along": {"evaluation.every": "[1, 2]"}}, "measures, got evaluation.every:"),
        ({"settings": {"preferences.label": "argmin"}}, "expected an objective that learns from preferences with"),
        (
            {"objectives": ["sft"], "settings": {"credit.discount": "0.5"}},
            "expected an objective that learns from rewards with",
        ),
        (
            {"source": "scenes-ddpo", "settings": {"model.precision": "bfloat16"}, "gain": {"kl": 1.0}, "probes": 0},
            "expected model.precision=float32 with --gain-kl",
        ),
        (
            {"source": "scenes-ddpo", "settings": {"model.precision": "bfloat16"}},
            "expected model.precision=float32 with --probes above 0",
        ),
    ],
)
def test_what_cannot_be_studied_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        declare(**{"source": "toy-ddpo", "objectives": ["ddpo"], "units": 16, **options})


def test_what_contradicts_itself_in_a_runs_guards_is_none_of_a_studys() -> None:
    settings = {"evaluation.kl": "false", "evaluation.rewards": "[]"}
    study = declare("toy-ddpo", objectives=["ddpo"], units=16, settings=settings)
    run = {**study.run, "guards": {"kl": "stop", "watched": "stop"}, "checkpoints": {"best": "nobody"}}
    assert study.model_copy(update={"run": run}).rungs[0].config.guards.kl == "warn"


def test_a_ladder_goes_from_low_rank_to_all_weights() -> None:
    along = {"parameters.kind": "[lora, all]"}
    study = declare("scenes-ddpo", objectives=["ddpo"], units=16, settings={"parameters": "{rank: 8}"}, along=along)
    assert [rung.config.parameters.rank for rung in study.rungs] == [8, 16]


def test_running_means_of_a_run_do_not_matter_to_a_study(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    settings = {"learn.ema": "0.99", "evaluation.ema": "true"}
    (run / "config.json").write_text(json.dumps(load("toy-ddpo", settings).canonical()))
    study = declare(str(run), objectives=["ddpo"], units=16)
    assert not study.rungs[0].config.evaluation.ema


def test_a_study_that_may_grow_doubles_its_units() -> None:
    def sizes(**options: Any) -> tuple[int, ...]:
        return declare("toy-ddpo", objectives=["ddpo"], units=16, **options).sizes

    assert sizes() == (16,)
    assert sizes(until=0.1, most=100) == (16, 32, 64, 100)
    assert sizes(until=0.1) == (16, 32, 64, 128, 256)
    plain = declare("toy-ddpo", objectives=["ddpo"], units=16)
    assert not {"until", "most"} & plain.canonical().keys()  # what was begun before there were any goes on


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a run in .*, found no config.json"):
        declare(str(tmp_path), objectives=["ddpo"])


@pytest.mark.parametrize(
    "options",
    [
        {"settings": {"parameters.kind": "lora"}},
        {"along": {"parameters.kind": "[all, lora]"}},
        {"along": {"model.path": "[toy, toy-flow]"}},
    ],
    ids=str,
)
def test_a_checkpoint_holds_another_parametrisation(tmp_path: Path, options: dict[str, Any]) -> None:
    run = fake_run(tmp_path, checkpoints=(2,))
    for checkpoint in (None, "all"):
        with pytest.raises(UserError, match="expected the model and the parametrisation of"):
            declare(str(run), objectives=["ddpo"], units=16, checkpoint=checkpoint, **options)
    declare(str(run), objectives=["ddpo"], units=16, checkpoint="0", **options)
