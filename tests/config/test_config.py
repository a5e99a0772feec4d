"""Configurations: what ships loads, overrides take, and whatever is wrong is said in one sentence."""

from __future__ import annotations

import copy
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysuite.config import Cluster, Credit, Learn, Noise, RunConfig, Window, load, put, recipes, validate
from raysuite.config.sections import Judge, Wandb
from raysuite.errors import UserError
from raysuite.kernel.objectives.ddpo import Ddpo
from raysuite.sweeps.declared import load as load_sweep
from tests.own import Own

SMALL: dict[str, Any] = {
    "updates": 1,
    "model": {"path": "toy"},
    "prompts": {"training": "toy", "held_out": "toy"},
    "rewards": [{"name": "redness"}],
    "rollouts": {"prompts": 2, "samples": 2, "prompts_per_block": 1},
    "objective": {"name": "ddpo", "clip": 0.1, "advantage_clip": 5.0},
}

OWN = {"objective": "{name: 'tests.own:Own'}", "credit": "null"}
FORWARD_RL = {"name": "forward_rl", "contrast": 1.0, "advantage_limit": 2.0, "draws": 1, "noise_range": [0.0, 1.0]}


def small(changes: Mapping[str, Any]) -> dict[str, Any]:
    """`SMALL` with values at dotted paths; None removes."""
    tree = copy.deepcopy(SMALL)
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        if value is None:
            del section[leaf]
        else:
            section[leaf] = value
    return tree


def sentence(error: pytest.ExceptionInfo[UserError]) -> str:
    """The message, after checking that it is one line that says what was expected."""
    text = str(error.value)
    assert text.startswith("expected ")
    assert "\n" not in text
    assert "pydantic" not in text.lower() and "Traceback" not in text
    return text


# what works


def test_an_objective_of_ones_own_is_named_by_its_import_path() -> None:
    config = load("toy-ddpo", {"objective": "{name: 'tests.own:Own', draws: 2, patience: 0.5}", "credit": "null"})
    assert config.built_objective == Own(draws=2, patience=0.5)
    assert load("toy-ddpo", {**OWN, "objective.patience": "3"}).built_objective == Own(patience=3)
    assert validate(config.canonical()).identity() == config.identity()
    with pytest.raises(
        UserError, match=r"expected no credit settings with tests\.own:Own, which learns from preferences"
    ):
        load("toy-ddpo", {**OWN, "credit": "{kind: terminal, discount: 0.5}"})


@pytest.mark.parametrize(
    ("cluster", "actors"),
    [
        ({}, 1),
        ({"worker_gpus": "1"}, 0),
        ({"worker_gpus": "0.6", "actor_gpus": "0.4"}, 1),
        ({"worker_gpus": "1", "actors": "2"}, 2),
    ],
)
def test_learners_on_gpus_draw_for_themselves_unless_there_are_actors(cluster: dict[str, str], actors: int) -> None:
    given = {f"cluster.{name}": value for name, value in cluster.items()}
    assert load("scenes-ddpo", given).cluster.actors == actors


def test_work_without_learners_puts_actors_in_their_places() -> None:
    drawing = Cluster(workers=2, worker_cpus=3, worker_gpus=1).with_actors()
    assert (drawing.actors, drawing.actor_cpus, drawing.actor_gpus) == (2, 3, 1)
    assert Cluster(actors=3, actor_cpus=0.5).with_actors() == Cluster(actors=3, actor_cpus=0.5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"learn.decline": "cosine"},
            r"learn\.decline_until of at least updates=\d+ with learn\.decline=cosine, got none",
        ),
        ({"learn.decline": "linear", "learn.decline_until": "4", "updates": "5"}, "at least updates=5 .* got 4"),
        ({"learn.decline_until": "500"}, r"no learn\.decline_until with learn\.decline=constant"),
        (
            {"learn.decline": "linear", "learn.decline_until": "5", "updates": "5", "learn.warmup": "5"},
            r"learn\.warmup below learn\.decline_until=5, got 5",
        ),
        ({"learn.fused": "true"}, r"cluster\.worker_gpus above 0 with learn\.fused"),
        ({"evaluation.ema": "true"}, r"learn\.ema with evaluation\.ema, got none"),
    ],
)
def test_a_learning_rate_that_would_be_nothing_is_refused(settings: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load("toy-ddpo", settings)


@pytest.mark.parametrize("name", recipes())
def test_recipes_load(name: str) -> None:
    config = load(name)
    assert isinstance(config, RunConfig)
    assert recipes()[name]  # each says what it is
    assert config.built_objective.consumes in ("advantages", "preferences")
    assert validate(config.canonical()) == config
    assert json.loads(json.dumps(config.canonical())) == config.canonical()


def test_values_are_set_by_path() -> None:
    overrides = {
        "updates": "7",
        "learn.learning_rate": "3e-5",  # which YAML 1.1 reads as text
        "learn.betas": "[0.8, 0.9]",
        "sampler.spacing": "trailing",
        "rewards": "[{name: redness, weight: 2}, {name: jpeg_compressibility}]",
        "objective.clip": "null",
        "objective.kl_weight": "0.5",
        "evaluation.kl": "false",
        "prompts.held_out": "null",
    }
    config = load("toy-ddpo", overrides)
    assert load("sdxl-ddpo", {"parameters.targets": "[to_q]"}).parameters.targets == ("to_q",)
    assert config.updates == 7
    assert config.learn.learning_rate == 3e-5
    assert config.learn.betas == (0.8, 0.9)
    assert config.sampler.spacing == "trailing"
    assert [(r.name, r.weight) for r in config.rewards] == [("redness", 2.0), ("jpeg_compressibility", 1.0)]
    objective = config.built_objective
    assert isinstance(objective, Ddpo) and objective.clip is None and objective.kl_weight == 0.5
    assert config.evaluation.kl is False
    assert config.prompts.held_out is None
    plain = load("toy-ddpo")
    assert config.checkpoints == plain.checkpoints and config.rollouts == plain.rollouts


def test_a_reward_may_be_a_name_alone() -> None:
    assert (
        load("toy-ddpo", {"rewards": "[redness]"}).rewards == load("toy-ddpo", {"rewards": "[{name: redness}]"}).rewards
    )
    with pytest.raises(UserError, match=r"expected rewards to be a list, such as \[a, b\], got 'redness'"):
        load("toy-ddpo", {"rewards": "redness"})
    with pytest.raises(
        UserError, match=r"expected trackers.wandb to be settings by name, such as {name: value}, got 'on'"
    ):
        load("toy-ddpo", {"trackers.wandb": "'on'"})


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("seed", "010", 10),
        ("seed", "1_000", 1000),
        ("updates", "1e3", 1000),
        ("learn.learning_rate", "1e-3", 0.001),
        ("learn.learning_rate", ".5", 0.5),
        ("trackers.mlflow.experiment", "2024", "2024"),
        ("trackers.mlflow.experiment", "'2024'", "2024"),
        ("trackers.mlflow.experiment", '"2024"', "2024"),
        ("trackers.mlflow.experiment", "2024-01-31", "2024-01-31"),
        ("trackers.wandb.project", "007", "007"),
        ("trackers.wandb.project", "true", "true"),
        ("trackers.wandb.project", "no", "no"),
        ("trackers.wandb.project", "1e3", "1e3"),
        ("trackers.wandb.project", "12:30", "12:30"),
        ("trackers.wandb.group", "null", None),
        ("rollouts.keep", "yes", True),
    ],
)
def test_a_value_is_what_a_person_means(path: str, text: str, value: object, tmp_path: Path) -> None:
    found = functools.reduce(getattr, path.split("."), load("toy-ddpo", {path: text}))
    assert found == value and type(found) is type(value)
    file = tmp_path / "mine.yaml"
    tree = f"{path.split('.')[-1]}: {text}"
    for parent in reversed(path.split(".")[:-1]):
        tree = f"{parent}: {{{tree}}}"
    file.write_text(f"extends: toy-ddpo\n{tree}\n")
    if text not in ("007", "true", "1e3"):  # a number in a file has lost its digits
        assert functools.reduce(getattr, path.split("."), load(str(file))) == value


def test_files_load_as_recipes_do(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    assert load(str(file)) == validate(SMALL)
    assert load(str(file), {"seed": "3"}).seed == 3


def test_configurations_are_frozen() -> None:
    config = validate(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    assert config == validate(SMALL) and hash(config.sampler) == hash(validate(SMALL).sampler)


def test_loading_does_not_change_what_is_loaded() -> None:
    load("toy-ddpo", {"updates": "99"})
    assert load("toy-ddpo").updates != 99
    tree = copy.deepcopy(SMALL)
    validate(tree)
    assert tree == SMALL


# what is wrong


@pytest.mark.parametrize(
    ("name", "mentions"),
    [
        ("scene-ddpo", "did you mean scenes-ddpo?"),
        ("toyddpo", "did you mean toy-ddpo?"),
        ("something", "scenes-ddpo, "),
        ("", "`raysuite recipes` lists them"),
        ("missing.yaml", "found nothing at missing.yaml"),
    ],
)
def test_unknown_recipes(name: str, mentions: str) -> None:
    with pytest.raises(UserError) as error:
        load(name)
    assert mentions in sentence(error)


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("a: [1, 2", "expected YAML in"),
        ("- 1\n- 2\n", "got list"),
        ("", "got NoneType"),
        ("just words", "got str"),
        ("a: \tb: c\n", "expected YAML in"),
    ],
)
def test_files_that_are_not_configurations(text: str, mentions: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load(str(file))
    assert mentions in sentence(error) and str(file) in sentence(error)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "binary.yaml"
    file.write_bytes(bytes(range(128, 256)))
    with pytest.raises(UserError) as error:
        load(str(file))
    assert str(file) in sentence(error)


@pytest.mark.parametrize(
    ("path", "mentions"),
    [
        ("learn.lerning_rate", "did you mean learn.learning_rate?"),
        ("sampler.learning_rate", "did you mean learn.learning_rate?"),
        ("objective.clp", "did you mean objective.clip?"),
        ("clip", "did you mean objective.clip?"),
        ("objective.kl", "did you mean objective.kl_weight?"),
        ("learn.lr", "learn.betas"),
        ("nonsense", "got 'nonsense'"),
        ("learn", "expected learn to be"),
        ("seed.deeper", "got 'seed.deeper'"),
        ("", "got ''"),
    ],
)
def test_unknown_paths(path: str, mentions: str) -> None:
    with pytest.raises(UserError) as error:
        load("toy-ddpo", {path: "1"})
    assert mentions in sentence(error)


@pytest.mark.parametrize(
    ("path", "value", "mentions"),
    [
        ("updates", "true", "expected updates to be a number, got True"),
        ("seed", "false", "expected seed to be a number, got False"),
        ("learn.learning_rate", "true", "expected learn.learning_rate to be a number"),
        ("learn.betas", "[0.9, false]", "expected learn.betas to be a number"),
        ("rewards", "[{name: redness, weight: true}]", "expected rewards.0.weight to be a number"),
        ("objective.clip", "true", "expected objective.clip to be a number"),
        ("updates", "many", "expected updates to be a valid integer"),
        ("updates", "1.5", "expected updates to be a valid integer"),
        ("updates", "0", "expected updates to be greater than 0, got 0"),
        ("updates", "null", "expected updates"),
        ("seed", "-1", "expected seed to be greater than or equal to 0"),
        ("sampler.eta", "1.5", "expected sampler.noise.level between 0 and 1 with ddim, got 1.5"),
        ("sampler.guidance", "0.5", "expected sampler.guidance to be greater than or equal to 1"),
        ("sampler.spacing", "even", "expected sampler.spacing to be 'leading', 'trailing' or 'linspace'"),
        ("parameters.kind", "some", "expected parameters.kind to be 'lora', 'all' or 'prompts'"),
        ("credit.decay", "2", "expected credit.decay"),
        ("credit.discount", "0", "expected credit.discount"),
        ("learn.learning_rate", "-1e-4", "expected learn.learning_rate to be greater than 0"),
        ("learn.learning_rate", ".nan", "expected learn.learning_rate"),
        ("learn.learning_rate", ".inf", "expected learn.learning_rate"),
        ("learn.betas", "[0.9]", "expected a value for learn.betas.1"),
        ("learn.betas", "[0.9, 1.0]", "expected learn.betas.1 to be less than 1"),
        ("rewards", "[{name: redness, weight: .nan}]", "expected rewards.0.weight"),
        ("rollouts.staleness", "5", "expected rollouts.staleness to be less than or equal to 4"),
        ("rewards", "[]", "expected rewards"),
        ("rewards", "[{nome: redness}]", "rewards.0"),
        ("evaluation.kl", "perhaps", "expected evaluation.kl to be a valid boolean"),
        ("objective.clip", "0", "expected objective.clip above 0"),
        ("objective.clip", "wide", "expected objective.clip to be a valid number"),
        ("objective.step_fraction", "2", "expected objective.step_fraction"),
        ("objective.name", "ddop", "did you mean ddpo?"),
        ("learn.minibatches", "[", "expected a YAML value for learn.minibatches"),
    ],
)
def test_bad_values(path: str, value: str, mentions: str) -> None:
    with pytest.raises(UserError) as error:
        load("toy-ddpo", {path: value})
    assert mentions in sentence(error)


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"updates": None}, "expected a value for updates, found none"),
        ({"model": None}, "expected a value for model, found none"),
        ({"model.path": None}, "expected a value for model.path, found none"),
        ({"rewards": None}, "expected a value for rewards, found none"),
        ({"objective": None}, "expected a value for objective, found none"),
        ({"objective.name": None}, "expected objective.name to be "),
        ({"objective.advantage_clip": None}, "expected a value for objective.advantage_clip, found none"),
        ({"objective.klip": 1}, "did you mean clip?"),
        ({"sampler.step": 5}, "did you mean sampler.steps?"),
        ({"samplr": {}}, "got 'samplr'"),
        ({"model": "toy"}, "expected model to be"),
        ({"objective": "ddpo"}, "expected objective to be"),
        ({"objective": {"name": "dpo"}}, "did you mean diffusion_dpo, or trajectory_dpo for steps of the sampler?"),
        ({"objective": {"name": "Flow-GRPO"}}, "did you mean ddpo, with credit.normalise=group_mean?"),
        ({"objective": {"name": "tests.own.Own"}}, "did you mean tests.own:Own?"),
        ({"objective": {"name": "tests.own:Own", "patient": 1}}, "did you mean patience?"),
        ({"objective": {"name": "tests.own:Own", "patience": "x"}}, "expected objective.patience to be a valid number"),
        ({"objective": {"name": "tests.own:"}}, "or a class of your own as package.module:Class"),
        ({"objective": {"name": "tests.own:Missing"}}, "tests.own has none of that name"),
        ({"objective": {"name": "tests.nowhere:Own"}}, "could not import it: ModuleNotFoundError"),
        (
            {"objective": {"name": "tests.own:function"}},
            "a dataclass that extends raysuite.kernel.objectives.Objective",
        ),
        ({"objective": {"name": "tests.own:Unfinished"}}, "with loss, needs_reference, queries, consumes, found none"),
    ],
)
def test_missing_and_unknown_settings(changes: dict[str, Any], mentions: str) -> None:
    with pytest.raises(UserError) as error:
        validate(small(changes))
    assert mentions in sentence(error)


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"sampler.eta": 0}, "expected sampler.noise.level above 0 for ddpo, got 0"),
        (
            {"sampler.window": {"size": 51}},
            "expected a window within the 50 steps, got sampler.window.size=51 from step 0:",
        ),
        ({"sampler.window": {"size": 2, "first": 49}}, "sampler.window.size=2 from step 49:"),
        (
            {"sampler.window": {"size": 2, "first": 5, "until": 4, "move": "random"}},
            "sampler.window.size=2 from step 5 to 4: lower size, first or until",
        ),
        (
            {"sampler.window": {"size": 2, "every": 2}},
            "expected no sampler.window.until, every or stride with move=fixed",
        ),
        (
            {"sampler.window": {"size": 2, "move": "random", "stride": 2}},
            "expected no sampler.window.stride with move=random",
        ),
        (
            {
                "sampler": {"window": {"size": 2}, "noise": {"level": 0}},
                "objective": {"name": "sft"},
            },
            "expected sampler.noise.level above 0 with sampler.window",
        ),
        ({"rollouts.prompts_per_block": 2, "rollouts.prompts": 3}, "expected rollouts.prompts to be a multiple of"),
        ({"learn.minibatches": 3}, "learn.minibatches x cluster.workers = 3"),
        ({"cluster.workers": 2, "learn.minibatches": 2}, "learn.minibatches x cluster.workers = 4"),
        ({"rollouts.samples": 1}, "expected rollouts.samples of at least 2 with credit.normalise=group"),
        (
            {"credit.normalise": "tracked", "credit.tracker_size": 4, "credit.tracker_minimum": 5},
            "expected credit.tracker_minimum of at most credit.tracker_size, got 5 and 4",
        ),
        (
            {"credit.normalise": "tracked", "reward_scale": "running"},
            "expected reward_scale=given with credit.normalise=tracked, got running",
        ),
        (
            {
                "objective": {"name": "trajectory_dpo", "strength": 5.0, "discount": 0.9},
                "preferences": {"choose": "random", "limit": 8, "members": 5},
                "rollouts.samples": 48,
            },
            "expected at most 1000000 tuples of a prompt to choose from, got 1712304 of 5 members among 48 samples",
        ),
        (
            {"model.path": "scenes", "parameters": {"kind": "prompts", "prompts": {"draw": "member", "spread": 0.5}}},
            "expected no parameters.prompts.spread with draw=member, which has no noise to widen, got 0.5",
        ),
        ({"credit.kind": "previews"}, "expected credit.previews to name numbers of steps below sampler.steps=50"),
        ({"credit.kind": "previews", "credit.previews": [10, 50]}, "below sampler.steps=50, got [10, 50]"),
        ({"credit.kind": "previews", "credit.previews": [20, 10]}, "expected credit.previews in ascending order"),
        ({"credit.kind": "previews", "credit.previews": [10, 10]}, "expected credit.previews in ascending order"),
        (
            {"credit.kind": "previews", "credit.previews": [10], "credit.normalise": "tracked"},
            "expected credit.normalise of group",
        ),
        ({"credit.previews": [10]}, "expected no credit.previews with credit.kind=terminal"),
        ({"rewards": [{"name": "redness"}, {"name": "redness"}]}, "expected every reward once"),
        (
            {"objective": FORWARD_RL, "reference.refresh": 1, "credit": {"kind": "previews", "previews": [2]}},
            "expected credit.kind=terminal with forward_rl, got previews",
        ),
        (
            {"objective": FORWARD_RL, "reference.refresh": 1, "credit.discount": 0.9},
            "expected credit.discount=1 with forward_rl, got 0.9",
        ),
        (
            {"objective": FORWARD_RL, "reference.refresh": 1, "rollouts.staleness": 1},
            "expected rollouts.staleness=0 with forward_rl",
        ),
        ({"trackers.wandb": {"mode": "offline"}}, "expected trackers.wandb.project, which turns the tracker on"),
        (
            {"checkpoints.best": "ocr"},
            "expected checkpoints.best of true, false or the name of a reward of the run (redness), got 'ocr'",
        ),
        ({"evaluation.rewards": ["ocr", {"name": "ocr"}]}, "expected every reward of evaluation.rewards once"),
        (
            {"evaluation.rewards": [{"name": "redness", "options": {"a": 1}}]},
            "expected evaluation.rewards to leave out redness, which is trained",
        ),
        (
            {"evaluation.rewards": [{"name": "jpeg_compressibility", "weight": -1}]},
            "expected no weight in evaluation.rewards, whose scores are watched as they are, got -1 for jpeg_compressibility",
        ),
        (
            {"evaluation.rewards": [{"name": "redness", "seconds": 1}]},
            "expected evaluation.rewards to leave out redness, which is trained",
        ),
        ({"objective.advantage_clip": math.inf}, "expected finite numbers in objective, got inf"),
        (
            {"rewards": [{"name": "redness", "options": {"limits": [0, math.nan]}}]},
            "expected finite numbers in the options of redness, got nan",
        ),
        (
            {"guards.kl": "stop", "evaluation.kl": False},
            "expected evaluation.kl=true and noise in the sampler with guards.kl=stop",
        ),
        ({"guards.kl_limit": 9, "guards.kl": "ignore"}, "expected guards.kl of warn or stop with guards.kl_limit"),
        (
            {"guards.held_out": "stop", "prompts": {"training": "toy", "held_out": None}},
            "expected prompts.held_out with guards.held_out=stop",
        ),
        ({"guards.watched": "stop"}, "expected evaluation.rewards besides the trained ones with guards.watched=stop"),
        (
            {"trackers.mlflow.uri": "http://localhost"},
            "expected trackers.mlflow.experiment, which turns the tracker on",
        ),
        *(
            ({"objective": {"name": "dspo", "beta": 0, **settings}}, "expected objective.beta above 0 with variant")
            for settings in ({"variant": "released_sdxl"}, {"winner_margin": 0.9})
        ),
        ({"prompts.training": "scenes"}, "with model.path=toy: it knows three prompts"),
        ({"prompts.held_out": "scenes"}, "with model.path=toy: it knows three prompts"),
        ({"prompts.held_out": "scenes-users"}, "with model.path=toy: it knows three prompts"),
        (
            {"cluster": {"workers": 2, "worker_gpus": 0.5}},
            "expected cluster.worker_gpus above 0.5 with several workers",
        ),
        (
            {"preferences.members": 1, "objective": {"name": "sft"}},
            "expected preferences.members of at least 2, got 1 with sft: only sft on a set of pictures",
        ),
        (
            {"cluster": {"workers": 2, "shard": True, "actors": 0}, "parameters.kind": "all"},
            "expected cluster.actors of at least 1 with cluster.shard, got 0",
        ),
        *(
            (
                {
                    "objective": {"name": "trajectory_dpo", "strength": 5.0, "discount": 0.9, **settings},
                    "preferences.members": 3,
                    "rollouts.samples": 3,
                },
                "expected preferences.members=2 with objective.link, label_smoothing or winner_margin, got 3: set it",
            )
            for settings in ({"link": "ipo"}, {"link": "hinge"}, {"label_smoothing": 0.1}, {"winner_margin": 0.9})
        ),
        ({"cluster": {"actors": 0, "actor_gpus": 1}}, "expected no cluster.actor_gpus with cluster.actors=0, got 1"),
        ({"cluster.actor_gpus": 1.5}, "cluster.actor_gpus"),
        ({"cluster.worker_gpus": 2}, "cluster.worker_gpus"),
        *(
            ({setting: value}, f"expected no {setting} with model.path=toy, which is a formula: leave it out")
            for setting, value in {
                "model.size": 64,
                "model.compile": True,
                "sampler.guidance": 5.0,
                "parameters.rank": 4,
                "prompts.writer": "scenes-writer",
            }.items()
        ),
        ({"parameters": {"kind": "prompts"}}, "expected a model with text encoders for parameters.kind=prompts, got"),
        ({"parameters.prompts": {"tokens": 2}}, "expected no settings of parameters.prompts with parameters.kind="),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], mentions: str) -> None:
    with pytest.raises(UserError) as error:
        validate(small(changes))
    assert mentions in sentence(error)


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        (
            {"parameters.rank": 4},
            "expected no parameters.rank with parameters.kind=prompts, which does not read it: set parameters.kind=lora, or leave "
            "rank out (where a recipe has it, parameters=null before your own settings of parameters does)",
        ),
        ({"parameters.start": "a"}, "set parameters.kind=lora or all, or leave start out"),
        ({"parameters": {"kind": "all", "alpha": 4}}, "expected no parameters.alpha with parameters.kind=all"),
        ({"parameters.prompts.count": 1}, "expected parameters.prompts.count of at least 2 with draw=independent"),
        ({"parameters.prompts.words": " "}, "expected words in parameters.prompts.words, got ' ': write some"),
        (
            {"parameters.prompts": {"count": 1, "draw": "member"}},
            "expected parameters.prompts.orthogonality=0 with one soft prompt",
        ),
        ({"cluster.encode_once": True}, "expected cluster.encode_once=false with parameters.kind=prompts"),
        (
            {"objective": {"name": "sft", "prompt_dropout": 0.1}},
            "expected objective.prompt_dropout=0 with parameters.kind=prompts",
        ),
        ({"parameters.kind": "lora", "preferences.across_draws": True, "objective": {"name": "sft"}}, "across_draws"),
    ],
)
def test_settings_that_contradict_a_distribution_of_prompts(changes: dict[str, Any], mentions: str) -> None:
    soft = {
        "model.path": "scenes",
        "prompts": {"training": "scenes", "held_out": "scenes"},
        "parameters.kind": "prompts",
    }
    validate(small(soft))
    with pytest.raises(UserError) as error:
        validate(small({**soft, **changes}))
    assert mentions in sentence(error)


def test_settings_that_agree_after_all() -> None:
    """The remedies that the sentences name."""
    for changes in (
        {"rollouts.samples": 1, "credit.normalise": "global"},
        {"credit.kind": "previews", "credit.previews": [25]},
        {"cluster.workers": 2, "rollouts.prompts": 4, "learn.minibatches": 2},
        {"credit.normalise": "tracked"},
    ):
        assert isinstance(validate(small(changes)), RunConfig)


def test_every_setting_says_what_it_is_or_is_named_so_that_it_need_not() -> None:
    """The JSON schema is complete: every section forbids what it does not know."""
    schema = RunConfig.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        assert section["additionalProperties"] is False
        assert all(re.fullmatch(r"[a-z_]+", name) for name in section["properties"])


# recipes that build on others, whole sections, what belongs together


@pytest.mark.parametrize(
    ("changes", "overrides", "budget"),
    [
        ("seed: 1", {}, 36864),
        ("sampler: {steps: 6}", {}, 36864),
        ("model: {path: /mine}", {}, None),
        ("model: {path: /mine}\nbudget: 7", {}, 7),
        ("seed: 1", {"model.path": "/mine"}, None),
        ("seed: 1", {"model": "{path: /mine}"}, None),
        ("seed: 1", {"model.path": "/mine", "budget": "7"}, 7),
        ("seed: 1", {"budget": "7", "model.path": "/mine"}, 7),
        ("budget: 9", {"seed": "2"}, 9),
    ],
)
def test_a_budget_is_inherited_with_its_model(
    changes: str, overrides: dict[str, str], budget: int | None, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: scenes-ddpo\n{changes}\n")
    assert load(str(file), overrides).budget == budget


def test_extending_changes_only_what_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: toy-ddpo\nupdates: 3\nsampler: {eta: 0.5}\nlearn: null\n")
    mine, base = load(str(file)), load("toy-ddpo")
    assert mine.updates == 3
    assert mine.sampler == base.sampler.model_copy(update={"noise": Noise(level=0.5)})
    assert mine.learn == Learn()
    assert mine.objective == base.objective


def test_extending_a_section_within_a_section_changes_only_what_is_named(tmp_path: Path) -> None:
    base, mine = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text(
        "extends: scenes-prompts-ddpo\n"
        "parameters: {prompts: {count: 8, draw: member, start: plain}}\n"
        "sampler: {noise: {kind: cps, level: 0.8, floor: 0.1}, window: {size: 4, first: 2}}\n"
        "cluster: {judges: {scenes: {actors: 2, cpus: 0.5}}}\n"
        "trackers: {wandb: {project: tests, mode: offline}}\n"
    )
    mine.write_text(
        f"extends: {base}\n"
        "parameters: {prompts: {tokens: 2}}\n"
        "sampler: {noise: {level: 0.5}, window: null}\n"
        "cluster: {judges: {scenes: {actors: 3}}}\n"
        "trackers: {wandb: {mode: null}}\n"
    )
    below, read = load(str(base)), load(str(mine))
    assert below.parameters.prompts.scale == 0.033 and below.sampler.window == Window(size=4, first=2)
    assert read.parameters.prompts == below.parameters.prompts.model_copy(update={"tokens": 2})
    assert read.sampler.noise == Noise(level=0.5)  # of another kind, it would mean something else
    assert read.sampler.window is None
    assert read.cluster.judges == {"scenes": Judge(actors=3)}
    assert read.trackers.wandb == Wandb(project="tests")


def test_eta_is_short_for_noise(tmp_path: Path) -> None:
    """At the command line, in a file and over another file's noise in either form."""
    short, long = load("toy-ddpo", {"sampler.eta": "0.3"}), load("toy-ddpo", {"sampler.noise.level": "0.3"})
    assert short == long and short.sampler.noise == Noise(kind="ddim", level=0.3)
    assert load("toy-ddpo", {"sampler.noise.kind": "cps", "sampler.eta": "0.3"}) == short
    base, mine = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text("extends: toy-ddpo\nsampler: {noise: {kind: cps, level: 0.8}}\n")
    mine.write_text(f"extends: {base}\nsampler: {{eta: 0.3}}\n")
    assert load(str(mine)) == short
    mine.write_text("extends: toy-ddpo\nsampler: {noise: {kind: cps, level: 0.8}}\n")
    assert load(str(mine)).sampler.noise == Noise(kind="cps", level=0.8)
    assert "eta" not in short.canonical()["sampler"]


def test_a_window_is_set_and_unset() -> None:
    windowed = load("toy-ddpo", {"sampler.window.size": "3", "sampler.window.move": "random"})
    assert windowed.sampler.window == Window(size=3, move="random")
    again = windowed.canonical()
    put(again, "sampler.window.first", 2)
    assert validate(again).sampler.window == Window(size=3, first=2, move="random")
    put(again, "sampler.window", None)
    assert validate(again) == load("toy-ddpo")
    put(again, "sampler.window", {"size": 1})
    assert validate(again).sampler.window == Window(size=1)


def test_noise_has_one_form_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: toy-ddpo\nsampler: {eta: 0.5, noise: {level: 0.4}}\n")
    with pytest.raises(UserError, match=r"got both: leave sampler\.eta out"):
        load(str(file))


def test_an_objective_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: toy-ddpo\ncredit: null\nobjective: {name: sft}\n")
    assert load(str(file)).objective == {"name": "sft"}


def test_whole_sections_are_set() -> None:
    config = load("toy-ddpo", {"objective": "{name: sft, draws: 3}", "credit": "null"})
    assert config.objective == {"name": "sft", "draws": 3}
    assert config.credit == Credit()


def test_forward_rl_compares_with_the_policy_that_drew() -> None:
    with pytest.raises(
        UserError, match=r"expected reference\.refresh of at least 1 with forward_rl.*objective\.base_weight"
    ):
        load("toy-ddpo", {"objective": "{name: forward_rl, contrast: 1, advantage_limit: 2}"})
    held = {
        "objective": "{name: forward_rl, contrast: 1, advantage_limit: 2, base_weight: 2e-5}",
        "reference.refresh": "1",
    }
    assert load("toy-ddpo", held).built_objective.needs_base


DPO = {"objective": "{name: diffusion_dpo, beta: 100}", "credit": "null"}
DENSE = {"objective": "{name: trajectory_dpo, strength: 5, discount: 0.9}", "credit": "null"}


@pytest.mark.parametrize(
    ("settings", "mentions"),
    [
        ({**DPO, "credit": None}, "expected no credit settings with diffusion_dpo"),
        ({"preferences.members": "3"}, "expected no preferences settings with ddpo"),
        ({**DPO, "preferences.members": "3"}, "rankings are for trajectory_dpo"),
        ({**DENSE, "preferences.members": "17"}, "of at most rollouts.samples"),
        ({**DENSE, "sampler.eta": "0"}, "expected sampler.noise.level above 0 for trajectory_dpo"),
        ({**DENSE, "preferences.choose": "random"}, "say how many rankings a prompt"),
        ({**DENSE, "preferences.choose": "spread", "preferences.kept": "1"}, "expected preferences.kept from"),
        ({**DPO, "preferences.source": "set", "rollouts.replay": "run"}, "leave one out"),
        ({**DPO, "preferences.source": "set", "preferences.noise": "0.1"}, "in a set it is settled"),
        ({**DPO, "rollouts.replay": "run", "rollouts.keep": "true"}, "a run that draws none"),
        (
            {**DPO, "preferences.temperature": "0.1"},
            "expected no preferences.temperature with preferences.label=argmax",
        ),
        ({**DPO, "preferences.kept": "3"}, "expected no preferences.kept with preferences.choose=best_worst"),
        ({**DPO, "preferences.limit": "4"}, "expected no preferences.limit with preferences.choose=best_worst"),
        ({"credit.decay": "0.5"}, "expected no credit.decay with credit.kind=terminal"),
        ({"credit.preview_steps": "3"}, "expected no credit.preview_steps with credit.kind=terminal"),
        ({"credit.tracker_size": "64"}, "expected no credit.tracker_size with credit.normalise=group"),
        ({"credit.tracker_minimum": "8"}, "set credit.normalise=tracked, or leave tracker_minimum out"),
        ({"reference.refresh": "1"}, "expected no reference settings with ddpo"),
        ({**DPO, "reference.decay": "0.5"}, "expected reference.refresh above 0"),
        (
            {**DPO, "reference.refresh": "2", "preferences.held_out": "a/set"},
            "expected reference.refresh=0 with preferences.held_out, got 2",
        ),
        (
            {
                "reward_scale": "running",
                "rewards": "[{name: redness}, {name: jpeg_compressibility}]",
                "checkpoints.best": "true",
            },
            "expected the name of a reward as checkpoints.best with reward_scale=running, got true",
        ),
        (
            {"budget": "9000", "learn.decline": "linear", "learn.decline_until": "3"},
            "got 3: set it, or updates to what the budget allows; from there on",
        ),
        ({**DPO, "objective.beta": "-1"}, "expected objective.beta of at least 0"),
        ({**DPO, "objective.beta": "0"}, "expected objective.beta above 0, where there is something to learn, got 0"),
        ({**DPO, "objective": "{name: dmpo, beta: 0}"}, "expected objective.beta above 0"),
        ({**DPO, "objective": "{name: cal_dpo, beta: 0, share: 0.1}"}, "expected objective.beta above 0"),
        ({**DPO, "objective.link": "probit"}, "expected objective.link to be 'logistic', 'hinge' or 'ipo'"),
    ],
)
def test_what_does_not_belong_together(settings: dict[str, str | None], mentions: str) -> None:
    with pytest.raises(UserError) as error:
        load("toy-ddpo", {path: value for path, value in settings.items() if value is not None} | _credit(settings))
    assert mentions in sentence(error)


def _credit(settings: dict[str, str | None]) -> dict[str, str]:
    """Credit that is not the default, where a case sets none itself."""
    return {"credit.discount": "0.5"} if settings.get("credit", "") is None else {}


@pytest.mark.parametrize(
    "settings",
    [
        DPO,
        {**DPO, "objective": "{name: dspo, beta: 0}"},
        DENSE,
        {**DPO, "sampler.eta": "0"},
        {**DENSE, "preferences.members": "3"},
    ],
)
def test_what_does(settings: dict[str, str]) -> None:
    assert load("toy-ddpo", settings).built_objective.consumes == "preferences"


@pytest.mark.parametrize(
    ("files", "mentions"),
    [
        ({"a": "extends: a.yaml"}, "expected `extends` to come to an end, got a.yaml -> a.yaml"),
        ({"a": "extends: b.yaml", "b": "extends: ./a.yaml"}, "got a.yaml -> b.yaml -> ./a.yaml"),
        (
            {"a": "extends: [toy-ddpo]"},
            "expected the name of one recipe or file as `extends` in a.yaml, got ['toy-ddpo']",
        ),
        ({"a": "extends: toy-ddpo\nlearn:\n  epochs: 1\n  epochs: 2"}, "epochs is given twice, in lines 3 and 4"),
        ({"a": "extends: toy-ddpo\n? [a, b]\n: 1"}, "found unhashable key (line 2)"),
        ({"a": "extends: toy-ddpo\n1: 2"}, "expected names of sections such as `model:` in a.yaml, got 1"),
        ({"a": "a: " + "[" * 5_000}, "expected YAML in a.yaml"),
        ({"a": "a: 1\n" * 50_000}, "a.yaml, got 250 kB: this is another file"),
    ],
    ids=["itself", "circle", "list", "twice", "unhashable", "number", "deep", "large"],
)
@pytest.mark.parametrize("of", [load, load_sweep], ids=["run", "sweep"])
def test_yaml_that_is_no_settings(
    files: dict[str, str],
    mentions: str,
    of: Callable[[str], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        of("a.yaml")
    assert mentions in str(refused.value)


def test_a_value_with_a_key_twice() -> None:
    with pytest.raises(UserError, match=r"objective.*name is given twice"):
        load("toy-ddpo", {"objective": "{name: ddpo, name: dspo}"})


@pytest.mark.parametrize(
    "path", ["model.path", "prompts.training", "prompts.held_out", "rollouts.replay", "trackers.mlflow.uri"]
)
def test_settings_that_name_places_mean_the_same_in_every_process(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()

    def read(given: str) -> object:
        value: object = load("toy-ddpo", {"trackers.mlflow.experiment": "one", path: given})
        for name in path.split("."):
            value = getattr(value, name)
        return value

    assert read("here") == str(tmp_path / "here")
    assert read("~/model") == str(tmp_path / "home" / "model")
    assert read("someone/model") == "someone/model"  # on a hub, or nowhere
    assert read("/somewhere") == "/somewhere"


def test_what_comes_with_a_submitted_job_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "working_dir_files" / "package"
    (job / "model").mkdir(parents=True)
    monkeypatch.chdir(job)
    assert load("toy-ddpo", {"model.path": "model"}).model.path == "model"


def test_a_run_must_have_something_to_learn_from() -> None:
    with pytest.raises(UserError, match="expected a reward to learn from, got weight 0 for redness"):
        load("toy-ddpo", {"rewards": "[{name: redness, weight: 0}]"})


@pytest.mark.parametrize(
    "name",
    [
        "sdxl-ddpo",
        "sdxl-diffusion-dpo",
        "sd35-medium-grpo",
        "sd35-medium-nft",
        "flux1-dev-grpo",
        "flux2-klein-grpo",
        "qwen-image-grpo",
        "z-image-grpo",
    ],
)
def test_recipes_of_large_models_say_what_they_are(name: str) -> None:
    """Their places are those that docs/models.md speaks of, and nobody may think that they were run."""
    config = load(name)
    assert "Not run on its weights" in recipes()[name]
    assert config.cluster.worker_gpus + config.cluster.actor_gpus == 1
    assert config.model.precision == "bfloat16" and config.parameters.checkpointing
    assert config.learn.microbatch == config.rollouts.prompts_per_block * (
        1 if config.preferences.source else config.rollouts.samples
    )
    assert f"`{name}`" in (Path(__file__).parents[2] / "docs" / "models.md").read_text()


def test_networks_of_rewards_are_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a cluster may run in other directories; what is on a hub keeps its name."""
    (tmp_path / "head").mkdir()
    (tmp_path / "clip").mkdir()
    monkeypatch.chdir(tmp_path)
    here = load("toy-ddpo", {"rewards": "[redness, {name: aesthetic, model: head, options: {clip: clip, batch: 8}}]"})
    reward = here.rewards[1]
    assert (reward.model, reward.options) == (str(tmp_path / "head"), {"clip": str(tmp_path / "clip"), "batch": 8})
    there = load("toy-ddpo", {"rewards": "[redness, {name: aesthetic, model: head, options: {clip: openai/clip}}]"})
    assert there.rewards[1].options == {"clip": "openai/clip"}
