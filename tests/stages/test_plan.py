"""Processes, GPUs and verdicts, from numbers worked out by hand; what calls take is tested beside `families.outline`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from raysuite.config import RunConfig, load
from raysuite.errors import UserError
from raysuite.stages import plan as planning
from raysuite.stages.plan import GB, Plan, Process, as_text, memory_of, plan, verdict

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def planned(learner_gpus: float, actor_gpus: float, *, learners: int = 1, actors: int = 1) -> Plan:
    """Learners of 40 GB and actors of 25 GB."""
    return Plan(
        model="",
        processes=(
            Process("learner", learners, learner_gpus, {"network": 30 * GB, "moments": 10 * GB}, {"text states": GB}),
            Process("actor", actors, actor_gpus, {"network": 25 * GB}, {}),
        ),
    )


@pytest.mark.parametrize(
    ("of", "where", "gigabytes"),
    [
        (planned(0.6, 0.4), {"learner": 1, "actor": 1}, 65),
        (planned(0.6, 0.4, learners=2, actors=2), {"learner": 1, "actor": 1}, 65),
        (planned(0.6, 0.2, actors=2), {"learner": 1, "actor": 2}, 90),
        (planned(1, 1, actors=3), {"learner": 1}, 40),
        (planned(1, 0.5, actors=2), {"actor": 2}, 50),
        (planned(1, 0), {"learner": 1}, 40),
        (planned(0, 0.3, actors=4), {"actor": 3}, 75),
        (planned(0, 0), {}, 0),
    ],
)
def test_fullest_gpu(of: Plan, where: dict[str, int], gigabytes: int) -> None:
    assert of.on_one_gpu() == where
    assert of.fullest == gigabytes * GB


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("H100 80GB", 80),
        ("h200", 141),
        ("NVIDIA A100-SXM4-40GB", 40),
        ("L4", 24),
        ("L40S", 48),
        ("RTX 4090", 24),
        ("96 GiB", 96),
    ],
)
def test_memory_of_gpus(name: str, size: int) -> None:
    assert memory_of(name) == size


@pytest.mark.parametrize("name", ["A100", "a fast one", "V100"])
def test_a_gpu_of_two_sizes_or_none_is_asked_about(name: str) -> None:
    with pytest.raises(UserError, match="say its memory"):
        memory_of(name)


def test_verdicts(run_config: Callable[..., RunConfig]) -> None:
    config, of = run_config("toy"), planned(0.6, 0.4)
    assert list(verdict(config, of, 80)) == ["it fits: on the fullest GPU, 1 learner and 1 actor: 65.0 of 80 GB"]
    assert "name one" in next(iter(verdict(config, of, None)))
    assert next(iter(verdict(config, planned(0, 0), 80))) == (
        "all on CPUs: 66.0 GB of main memory, beside what Python and its libraries take in each process"
    )


def test_bytes_follow_from_shapes() -> None:
    """The bundled U-Net has 2,765,540 weights."""
    config = load("scenes-dspo", {})
    learner, actor = plan(config).processes
    weights = 4 * 2_765_540
    assert learner.device["network"] == weights == learner.device["gradients"] == actor.device["reference"]
    assert learner.device["moments"] == 2 * weights
    assert learner.device["reference"] == weights
    shared = plan(load("scenes-dspo", {"cluster.workers": "2", "cluster.shard": "true", "learn.minibatches": "1"}))
    assert shared.processes[0].device["moments"] == weights
    table = as_text(shared)
    assert "2 learners" in table and "1 actor" in table and table.splitlines()[1].startswith("MB each")


def test_every_noise_level_of_a_picture_is_a_row() -> None:
    """Two pictures at 8 levels go through the network as 16 at one level do."""

    def activations(*, samples: int, draws: int) -> int:
        block = {"rollouts.prompts_per_block": "1", "rollouts.samples": str(samples)}
        learner, _ = plan(load("scenes-forward-rl", {**block, "objective.draws": str(draws)})).processes
        return learner.device["activations"]

    assert activations(samples=2, draws=8) == activations(samples=16, draws=1) > activations(samples=2, draws=1)


def test_no_microbatch_crosses_a_block() -> None:
    """One prompt's best and worst picture at one level are two points, however large a microbatch may be; all pairs of 8 are 56."""

    def activations(**settings: str) -> int:
        block = {"rollouts.prompts_per_block": "1", "objective.draws": "1"}
        given = {name.replace("__", "."): value for name, value in settings.items()}
        learner, *_ = plan(load("scenes-diffusion-dpo", {**block, **given})).processes
        return learner.device["activations"]

    two = activations(preferences="{choose: best_worst}", learn__microbatch="2")
    assert activations(preferences="{choose: best_worst}", learn__microbatch="64") == two
    every = activations(preferences="{choose: all}", learn__microbatch="64")
    assert every == activations(preferences="{choose: all}", learn__microbatch="56") > 10 * two


def test_main_memory_holds_the_model_as_it_loads_and_the_texts_that_a_run_may_draw(
    tmp_path: Path,
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"{n} red circles" for n in range(20, 60)))
    files = {"prompts.training": str(tmp_path / "prompts.txt"), "prompts.held_out": "null"}
    small = {
        "rollouts.prompts": "8",
        "rollouts.prompts_per_block": "4",
        "learn.minibatches": "1",
        "updates": "1",
        "budget": "null",
    }
    options = {**files, **small, "parameters.kind": "lora", "evaluation.prompts": "8", "cluster.encode_once": "true"}
    found = plan(
        load(
            "scenes-diffusion-dpo",
            {**options, "cluster.worker_gpus": "0.5", "cluster.actor_gpus": "0", "cluster.actors": "1"},
        )
    )
    learner, actor = found.processes
    assert learner.main[planning.LOADED] == learner.device["network"] + learner.device["VAE"]
    assert actor.main[planning.LOADED] == 0
    more = plan(load("scenes-diffusion-dpo", {**options, "updates": "20", "evaluation.prompts": "40"}))
    counts = [
        int(re.findall(r"in texts/ of the run: .* text states of (\d+) prompts", as_text(p))[0]) for p in (found, more)
    ]
    assert 8 <= counts[0] <= 16 and counts[1] == 40
    texts = [p.processes[0].main["text states"] for p in (found, more)]
    assert texts[0] * counts[1] == texts[1] * counts[0] > 0


def test_what_is_never_loaded_is_not_counted() -> None:
    """Evaluations without noise measure no KL, so that actors need no second network."""
    silent = {"parameters.kind": "all", "sampler.noise.level": "0"}
    assert plan(load("scenes-forward-rl", silent)).processes[1].device["reference"] == 0
    assert plan(load("scenes-forward-rl", {"parameters.kind": "all"})).processes[1].device["reference"] > 0


@pytest.mark.parametrize(
    ("settings", "sets"),
    [
        ({}, 1),
        ({"rollouts.staleness": "2"}, 3),
        ({"learn.ema": "0.9"}, 2),
        ({"reference.refresh": "1"}, 2),
        ({"reference.refresh": "1", "cluster.actors": "0"}, 3),
    ],
    ids=["policy", "versions", "average", "reference", "the model as it came"],
)
def test_whole_sets_of_weights_are_counted(settings: dict[str, str], sets: int) -> None:
    """In main memory, beside the two moments of each weight."""
    learner, *_ = plan(load("scenes-diffusion-dpo", settings)).processes
    assert learner.main["weights and moments"] == (sets + 2) * learner.device["gradients"]


@pytest.mark.slow
def test_settings_are_named_with_which_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU as large as the run with checkpointing: that is the first setting that helps."""
    config = load("scenes-ddpo", {"cluster.worker_gpus": "1", "cluster.actor_gpus": "1"})
    saving = plan(
        load("scenes-ddpo", {"cluster.worker_gpus": "1", "cluster.actor_gpus": "1", "parameters.checkpointing": "true"})
    )
    before = plan(config)
    assert saving.fullest < before.fullest
    found = planning.fitting(config, saving.fullest)
    assert found is not None
    assert found[0] == {"parameters.checkpointing": True} and found[1].fullest == saving.fullest
    monkeypatch.setattr(planning, "GB", saving.fullest / planning.ROOM)  # one GB of such a unit is what it may hold
    said = list(verdict(config, before, 1))
    assert said[0].startswith("it does not fit: on the fullest GPU, 1 learner")
    assert said[1].startswith("with --set parameters.checkpointing=true the fullest GPU has")
    assert planning.fitting(config, 1) is None


def test_toys_are_not_planned() -> None:
    with pytest.raises(UserError, match="few kilobytes"):
        plan(load("toy-ddpo", {}))


def test_a_checkpoint_of_all_weights_takes_main_memory_as_it_is_written() -> None:
    """The network once more, and text encoders in float32 where they had been rounded; a LoRA is not worth counting."""
    row = "checkpoint being written"
    plain, rounded, lora = (
        plan(load("scenes-ddpo", settings)).processes[0]
        for settings in ({}, {"model.precision": "bfloat16"}, {"parameters.kind": "lora"})
    )
    assert plain.main[row] == plain.device["gradients"] > 0
    assert rounded.main[row] == rounded.device["gradients"] + 2 * rounded.device["text encoders"]
    assert lora.main[row] == 0
