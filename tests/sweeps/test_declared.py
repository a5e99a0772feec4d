"""Sweeps, declared: what a file may say, what its runs are, and that draws are reproducible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from raysuite.config import load as load_run
from raysuite.errors import UserError
from raysuite.sweeps.declared import Sweep, load, sweeps

TOY: dict[str, Any] = {
    "recipe": "toy-ddpo",
    "objectives": ["toy-ddpo", {"name": "sft", "draws": 2}],
    "budget": 1500,
}


def declare(directory: Path, **fields: Any) -> Sweep:
    file = directory / "sweep.yaml"
    file.write_text(yaml.safe_dump({**TOY, **fields}))
    return load(str(file))


@pytest.mark.parametrize("name", sweeps())
def test_shipped_sweeps_are_valid(name: str) -> None:
    sweep = load(name)
    assert {config.budget for run in sweep.runs if (config := sweep.config(run, {}))} == {sweep.budget}


def test_the_race_is_of_the_recipes_own_methods_on_common_ground() -> None:
    sweep = load("scenes-race")
    assert len(sweep.runs) == 5 * 3 and [run.objective for run in sweep.runs[:5]] == list(sweep.labels)
    for run in sweep.runs:
        config, recipe = sweep.config(run, {}), load_run(run.objective)
        placed = {"cluster": recipe.cluster}  # which decides no number
        assert (
            config.model_copy(update={"seed": 0, "updates": recipe.updates, **placed}) == recipe
        )  # of the scenes recipes, which share all else


@pytest.mark.parametrize("name", ["scenes-race", "scenes-contest", "scenes-flow-contest", "scenes-flow-contest-lora"])
def test_shipped_runs_take_one_core_each(name: str) -> None:
    """So that as many go on at once as there are cores: with an actor each, two cores would have one run at a time."""
    sweep = load(name)
    for run in sweep.runs:
        config = sweep.config(run, sweep.drawn(run.objective, run.trial or 0))
        assert config.cluster.alone and config.cluster.threads == config.cluster.worker_cpus == 1


def test_runs_end_by_the_budget_alone(tmp_path: Path) -> None:
    file = tmp_path / "race.yaml"
    file.write_text("recipe: toy-ddpo\nobjectives: [toy-ddpo]\nbudget: 3000\n")  # the recipe has 5 updates of 336
    sweep = load(str(file))
    config = sweep.config(sweep.runs[0], {})
    assert config.budget == 3000 and config.updates >= 3000  # an update costs at least one evaluation
    declining = {"learn.decline": "cosine", "learn.decline_until": 4}
    assert sweep.config(sweep.runs[0], declining).updates == 4  # or where its learning rate has come to 0


def test_what_is_trained_may_be_searched_beside_the_rank(tmp_path: Path) -> None:
    space = {"parameters.kind": {"grid": ["all", "lora"]}, "parameters.rank": {"choice": [4, 8]}}
    sweep = declare(tmp_path, recipe="scenes-ddpo", objectives=["scenes-ddpo"], space=space, trials=2, settings={})
    kinds = [sweep.config(run, sweep.drawn(run.objective, run.trial or 0)).parameters for run in sweep.runs]
    assert {(of.kind, of.rank in (4, 8)) for of in kinds} == {("all", False), ("lora", True)}


def test_what_wins_is_run_again_on_test_prompts(tmp_path: Path) -> None:
    sweep = declare(tmp_path, confirm={"seeds": [7, 8], "test": "some.txt"})
    assert [run.name for run in sweep.runs] == [
        "toy-ddpo-00-seed0",
        "sft-00-seed0",
        "toy-ddpo-best-seed7",
        "sft-best-seed7",
        "toy-ddpo-best-seed8",
        "sft-best-seed8",
    ]
    for run in sweep.runs:
        config = sweep.config(run, {})
        assert config.seed == run.seed and (config.prompts.test is not None) == (run.trial is None)
    assert sweep.canonical()["confirm"] == {"seeds": [7, 8], "test": "some.txt"}
    assert "confirm" not in declare(tmp_path).canonical()  # what was begun before there were any goes on


def test_a_small_race_overrides_what_it_names() -> None:
    small, race = load("scenes-race-small"), load("scenes-race")
    assert small.labels == race.labels and {*small.seeds} < {*race.seeds} and small.budget < race.budget
    assert {small.config(run, {}).evaluation.every for run in small.runs} == {small.settings["evaluation.every"]}


def test_the_demo_is_three_of_the_race_at_once() -> None:
    demo, race = load("scenes-demo"), load("scenes-race")
    assert {*demo.labels} < {*race.labels} and demo.budget == race.budget and demo.concurrent == len(demo.runs) == 3
    for run in demo.runs:
        config, same = demo.config(run, {}), race.config(run, {})
        assert config.identity() == same.identity()  # placement decides no number
        assert config.cluster.alone and config.cluster.threads == 1


def test_an_objective_drops_what_only_others_know(tmp_path: Path) -> None:
    sweep = declare(tmp_path)
    configs = {run.objective: sweep.config(run, {}) for run in sweep.runs}
    assert configs["toy-ddpo"].credit.normalise == "group"
    assert configs["sft"].objective == {"name": "sft", "draws": 2}
    assert configs["sft"].rollouts == configs["toy-ddpo"].rollouts


def test_an_objective_of_ones_own_is_called_by_its_class(tmp_path: Path) -> None:
    own = {"name": "tests.own:Own", "draws": 2}
    sweep = declare(tmp_path, objectives=["toy-ddpo", own], space={"objectives.Own.patience": {"choice": [3, 4]}})
    (run,) = (run for run in sweep.runs if run.objective != "toy-ddpo")
    assert run.name == "Own-00-seed0"
    assert sweep.config(run, {"objectives.Own.patience": 3}).objective == {**own, "patience": 3}


def test_draws_are_a_function_of_seed_and_number_alone(tmp_path: Path) -> None:
    space = {
        "learn.learning_rate": {"loguniform": [1e-5, 1e-2]},
        "sampler.eta": {"uniform": [0.5, 1.0]},
        "rollouts.samples": {"integers": [4, 6]},
        "objectives.sft.draws": {"choice": [1, 2]},
    }
    sweep = declare(tmp_path, space=space, trials=40)
    drawn = [sweep.drawn("sft", number) for number in range(40)]
    assert drawn == [sweep.drawn("sft", number) for number in range(40)]
    assert drawn[:3] == [declare(tmp_path, space=space, trials=3).drawn("sft", number) for number in range(3)]
    assert drawn[0] != declare(tmp_path, space=space, trials=3, seed=1).drawn("sft", 0)
    # every objective tries the same values of what they have in common
    common = [{path: value for path, value in d.items() if not path.startswith("objectives.")} for d in drawn]
    assert common == [sweep.drawn("toy-ddpo", number) for number in range(40)]
    rates = np.log10([d["learn.learning_rate"] for d in drawn])
    assert rates.min() >= -5 and rates.max() <= -2 and abs(rates.mean() + 3.5) < 4 * np.sqrt(9 / 12 / 40)
    assert {d["rollouts.samples"] for d in drawn} == {4, 5, 6} and {d["objectives.sft.draws"] for d in drawn} == {1, 2}
    config = sweep.config(sweep.runs[1], drawn[0])
    assert config.objective["draws"] == drawn[0]["objectives.sft.draws"]
    assert config.learn.learning_rate == drawn[0]["learn.learning_rate"]


def test_every_point_of_a_grid_meets_every_draw(tmp_path: Path) -> None:
    space = {
        "learn.epochs": {"grid": [1, 2]},
        "objectives.sft.draws": {"grid": [1, 2, 4]},
        "learn.learning_rate": {"uniform": [0.1, 0.2]},
    }
    sweep = declare(tmp_path, space=space, trials=2)
    assert (sweep.trials_of("toy-ddpo"), sweep.trials_of("sft")) == (4, 12)
    assert len(sweep.runs) == 16 and len({run.name for run in sweep.runs}) == 16
    drawn = [sweep.drawn("sft", number) for number in range(12)]
    assert len({tuple(d.values()) for d in drawn}) == 12
    assert len({d["learn.learning_rate"] for d in drawn}) == 2


def test_what_is_not_searched_is_tried_once(tmp_path: Path) -> None:
    space = {
        "objectives.toy-ddpo.clip": {"uniform": [0.1, 0.3]},
        "objectives.toy-ddpo.advantage_clip": {"grid": [5.0, 10.0]},
    }
    sweep = declare(tmp_path, space=space, trials=3)
    assert (sweep.trials_of("toy-ddpo"), sweep.trials_of("sft")) == (6, 1)
    assert sum(run.objective == "sft" for run in sweep.runs) == 1


def test_a_name_may_begin_with_another_one(tmp_path: Path) -> None:
    for name in ("mine", "mine.v2"):
        (tmp_path / f"{name}.yaml").write_text("extends: toy-ddpo\n")
    files = [str(tmp_path / "mine.yaml"), str(tmp_path / "mine.v2.yaml")]
    space = {"objectives.mine.v2.clip": {"uniform": [0.1, 0.3]}}
    sweep = declare(
        tmp_path, objectives=files, space=space, trials=2, settings={"objectives.mine.v2.advantage_clip": 7.0}
    )
    assert list(sweep.drawn("mine.v2", 1)) == ["objectives.mine.v2.clip"] and not sweep.drawn("mine", 0)
    configs = {run.objective: sweep.config(run, sweep.drawn(run.objective, run.trial or 0)) for run in sweep.runs}
    assert configs["mine.v2"].objective["advantage_clip"] == 7.0 != configs["mine"].objective.get("advantage_clip")


def test_fields_and_settings_are_overridden_at_the_command_line(tmp_path: Path) -> None:
    declare(tmp_path)
    sweep = load(str(tmp_path / "sweep.yaml"), {"seeds": "[3, 4]", "learn.learning_rate": "3e-5"})
    assert [run.seed for run in sweep.runs] == [3, 3, 4, 4]
    assert sweep.config(sweep.runs[0], {}).learn.learning_rate == 3e-5
    assert Sweep.model_validate(sweep.canonical()) == sweep


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"trails": 3}, "did you mean trials?"),
        ({"objectives": []}, "objectives"),
        ({"objectives": ["toy-dpo"]}, "did you mean toy-ddpo?"),
        ({"objectives": [{"name": "sftt"}]}, "did you mean sft?"),
        ({"objectives": ["toy-ddpo", "toy-ddpo"]}, "expected different objectives"),
        ({"seeds": [1, 1]}, "expected different seeds"),
        ({"budget": 0}, "expected budget to be greater than 0"),
        ({"space": {"learn.rate": {"choice": [1, 2]}}}, "expected a setting's path"),
        ({"space": {"learn.epochs": [1, 2]}}, "expected one of choice, grid, uniform, loguniform, integers"),
        ({"space": {"learn.epochs": {"choice": [1]}}}, "at least two values for choice"),
        ({"space": {"learn.epochs": {"integers": [1, 2.5]}}}, "two whole numbers"),
        ({"space": {"learn.epochs": {"uniform": [2, 1]}}}, "expected uniform: [lowest, highest]"),
        ({"space": {"learn.learning_rate": {"loguniform": [0, 1]}}}, "begin above 0"),
        ({"space": {"objectives.dspo.beta": {"choice": [1, 2]}}}, "expected objectives.<one of toy-ddpo, sft>.<field>"),
        ({"space": {"seed": {"choice": [1, 2]}}}, "expected seed in one place only"),
        ({"space": {"sampler.eta": {"choice": [0.0, 1.0]}}, "trials": 9}, "toy-ddpo, trial"),
        *(
            ({"space": {path: {"choice": [1, 2]}}}, f"expected no {path} in space, got it, by which trials are judged")
            for path in ("rewards", "evaluation", "evaluation.seed", "prompts", "prompts.held_out", "prompts.test")
        ),
        ({"space": {"model.path": {"choice": ["toy", "toy-flow"]}}}, "expected no model.path in space"),
        ({"settings": {"learn": {"epochs": 2}}}, "got the whole section learn"),
        ({"settings": {"learn": {"epochs": 2}}}, "name learn.epochs"),
        ({"settings": ["learn.epochs"]}, "expected settings by dotted path"),
        ({"seed": 5}, "the runs' are seeds=[5]"),
        (
            {"recipe": "scenes-ddpo", "objectives": ["scenes-ddpo", "scenes-diffusion-dpo-offline"]},
            "all learn on-line or all from a set",
        ),
        ({"space": {"cluster.actors": {"choice": [1, 2]}}}, "expected no cluster.actors in space"),
        ({"trials": 2}, "they would all be the same"),
        ({"settings": {"learn.decline": "cosine", "learn.decline_until": "sixty"}}, "learn.decline_until"),
        ({"searcher": "optuna"}, "expected a space without grids"),
        ({"scheduler": "asha", "seeds": [0, 1]}, "expected one seed with scheduler=asha"),
        ({"scheduler": "asha"}, "expected several trials with scheduler=asha, got one of each objective"),
        (
            {"scheduler": "asha", "settings": {"prompts.held_out": None}, "space": {"learn.epochs": {"grid": [1, 2]}}},
            "expected prompts.held_out",
        ),
        ({"settings": {"updates": 2}}, "expected no updates in a sweep, got 2"),
        ({"space": {"updates": {"choice": [1, 2]}}}, "expected no updates in a sweep"),
        ({"space": {"learn": {"choice": [{"epochs": 1}, None]}}}, "got the whole section learn"),
        ({"space": {"learn.epochs": {"grid": [2, 1, 2]}}}, "expected different values of learn.epochs in space"),
        ({"space": {"guards.kl_limit": {"choice": [1, 2]}}}, "trials that differ in it learn the same"),
        ({"confirm": {"seeds": [7, 7]}}, "expected different confirm.seeds"),
        ({"confirm": {"seeds": [7]}, "settings": {"prompts.held_out": None}}, "expected prompts.held_out"),
        (
            {"space": {"learn.epochs": {"grid": [1, 2]}}, "settings": {"prompts.held_out": None}},
            "expected prompts.held_out in a sweep with several trials",
        ),
        ({"confirm": {"seeds": [7, 0]}}, "expected other confirm.seeds than the trials', got 0 in both"),
        ({"confirm": {"seeds": []}}, "confirm.seeds"),
        (
            {"settings": {"prompts.writer": "scenes-writer", "prompts.best_of": 2}, "recipe": "scenes-users-ddpo"},
            "expected no prompts.best_of in a sweep, got 2",
        ),
        ({"confirm": {"seeds": [7]}, "settings": {"prompts.test": "some.txt"}}, "name them in confirm.test"),
    ],
)
def test_what_a_sweep_may_not_say(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        declare(tmp_path, **fields)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UserError, match="did you mean scenes-race"):
        load("scene-race")
