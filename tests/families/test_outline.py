"""What is planned without weights is what calls with weights take, counted by PyTorch's own profiler."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile

from raysuite.config import Model, Parameters, RunConfig, Sampler
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.families.allocated import Allocated
from raysuite.families.loading import modules_of
from raysuite.families.outline import Outline
from raysuite.stages.learn import Batch, ask, learn
from raysuite.stages.plan import plan
from raysuite.stages.prompts import latents_kept
from raysuite.stages.rollout import sample
from raysuite.types import Block, Preferences, Queries, Transitions
from tests.families.conftest import SIDE, WITHOUT_GUIDANCE, WITHOUT_LORA
from tests.families.pipelines import ARGUMENTS, BUILDERS, plain_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

BY_CONTENT = {"lumina2", "hidream"}
"""Networks whose shapes depend on what is in their inputs."""
TOLERANCE = 0.15


class Measured:
    peak = 0


@contextmanager
def measured() -> Iterator[Measured]:
    """The peak of what PyTorch's allocator gave out within and did not get back."""
    found = Measured()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        found.peak = max(found.peak, now)


def run_of(
    tiny_run: Callable[..., RunConfig], pipeline: str, kind: str, checkpointing: bool, **changes: Any
) -> RunConfig:
    return tiny_run(
        pipeline,
        "ddpo",
        **{
            "model": {"path": tiny_run(pipeline, "ddpo").model.path, "size": 128, "arguments": ARGUMENTS[pipeline]},
            "parameters": {"kind": kind, "checkpointing": checkpointing, **({"rank": 2} if kind == "lora" else {})},
            "rollouts": {"prompts": 2, "samples": 4, "prompts_per_block": 1},
            "learn": {"microbatch": 4, "minibatches": 2},
            **changes,
        },
    )


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(("pipeline", "kind"), [("sd15", "all"), ("sd15", "lora"), ("sd3", "all"), ("sd3", "lora")])
def test_an_update_takes_what_was_planned(
    tiny_run: Callable[..., RunConfig], pipeline: str, kind: str, checkpointing: bool
) -> None:
    config = run_of(tiny_run, pipeline, kind, checkpointing)
    learner = plan(config).processes[0].device
    policy = open_policy(config, torch.device("cpu"))
    optimizer = torch.optim.AdamW(policy.trainable().values())
    blocks = {}
    for number in range(config.rollouts.blocks):
        latents = torch.randn(4, config.sampler.steps + 1, *policy.latent_shape)
        blocks[number] = Transitions(
            latents_NK=latents,
            logp_NK=torch.zeros(4, config.sampler.steps),
            advantage_NK=torch.ones(4, config.sampler.steps),
            prompts_N=("a photo of a red cat",) * 4,
            window=None,
        )
    with measured() as found:
        learn(config, policy, optimizer, blocks, update=0, accelerator=Accelerator(cpu=True))
    planned = learner["gradients"] + learner["moments"] + learner["activations"]
    assert planned == pytest.approx(found.peak, rel=TOLERANCE)
    weights = bytes_of_parts(policy.pipeline)
    assert learner["network"] == weights[policy.part]
    assert learner["VAE"] == weights["vae"]
    assert learner["text encoders"] == sum(size for name, size in weights.items() if name.startswith("text_encoder"))


@pytest.mark.parametrize("name", ["ddpo", "trajectory_dpo", "diffusion_dpo", "forward_rl"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_minibatch_takes_what_was_planned(tiny_run: Callable[..., RunConfig], name: str, workers: int) -> None:
    """Latents in main memory, of a learner's share of the blocks and of what the objective asks of a minibatch."""
    rollouts = {"prompts": 4, "samples": 2, "prompts_per_block": 1}
    changes: dict[str, Any] = {"learn": {"minibatches": 2}, "cluster": {"workers": workers}}
    if name == "forward_rl":
        changes["reference"] = {"refresh": 1}
    config = tiny_run("sd15", name, rollouts=rollouts, **changes)
    planned = plan(config).processes[0].main
    objective, policy = config.built_objective, open_policy(config, torch.device("cpu"))
    latents = torch.randn(2, latents_kept(config, None), *policy.latent_shape)
    steps = torch.zeros(2, config.sampler.steps)
    prompts = ("a photo of a red cat",)
    batch: Batch = (
        Preferences(latents_RMK=latents[None], prompts_R=prompts)
        if objective.consumes == "preferences"
        else Transitions(latents_NK=latents, logp_NK=steps, advantage_NK=steps, prompts_N=prompts * 2)
    )
    blocks = 4 // workers
    assert planned["latents of an update"] == blocks * latents.nbytes
    queries = ask(objective, policy, batch, torch.Generator().manual_seed(0))
    shared = 1.2 if name == "diffusion_dpo" else 1  # a pair's one noise is also its target
    assert planned["copies for a minibatch"] == pytest.approx(blocks // 2 * shared * bytes_of(queries), rel=0.01)


def bytes_of_parts(pipeline: Any) -> dict[str, int]:
    """Of the weights of each of its networks."""
    return {name: sum(v.nbytes for v in (*m.parameters(), *m.buffers())) for name, m in modules_of(pipeline).items()}


def bytes_of(queries: Queries) -> int:
    """Of its latents."""
    tensors = (queries.x_UM, *queries.extra.values())
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor.dim() > 3)


@pytest.mark.parametrize("pipeline", ["sd15", "sd3"])
def test_drawing_takes_what_was_planned(tiny_run: Callable[..., RunConfig], pipeline: str) -> None:
    config = run_of(tiny_run, pipeline, "lora", False)
    actor = plan(config).processes[1].device
    policy = open_policy(config, torch.device("cpu"))
    block = Block(
        update=0, index=0, prompts=("a photo of a red cat",), prompt_ids=(0,), metadata=({},), samples_per_prompt=4
    )
    policy.text_states(block.prompts)
    with measured() as found:
        sample(policy, block, config, version=0)
    assert actor["activations"] == pytest.approx(found.peak, rel=TOLERANCE)


@pytest.mark.parametrize("pipeline", sorted(BUILDERS))
def test_every_class_is_planned_from_configurations_alone(
    tiny: Callable[[str], Path], tmp_path: Path, pipeline: str
) -> None:
    """Bytes of weights are those of the files, which are not there any more."""
    whole, bare = tiny(pipeline), tmp_path / pipeline
    shutil.copytree(whole, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    assert not list(bare.rglob("*.safetensors"))

    def outline() -> Outline:
        return Outline(
            model=Model(path=str(bare), size=SIDE.get(pipeline, 32), arguments=ARGUMENTS[pipeline]),
            sampler=Sampler(steps=4, guidance=1 if pipeline in WITHOUT_GUIDANCE else 3),
            parameters=Parameters(kind="all" if pipeline in WITHOUT_LORA else "lora", rank=2),
            prompt="a photo of a red cat",
            gpu=True,
        )

    found = outline()
    files = bytes_of_parts(plain_pipeline(whole, pipeline))
    assert found.weights == {**files, found.part: files[found.part] + found.lora * 4 * found.trained}
    if pipeline in BY_CONTENT:
        with pytest.raises(UserError, match="cannot be planned"):
            found.drawing(2)
        return
    drawing, learning = found.drawing(2), found.learning(2, guided=True)
    assert 0 < drawing < learning
    assert found.learning(4, guided=True) > 1.5 * learning
    assert found.image_size == (SIDE.get(pipeline, 32),) * 2
    assert found.decoding(2) > 0 and found.text > 0


def test_allocations_are_counted_as_they_come_and_go() -> None:
    before = torch.ones(1000)
    with Allocated() as counted:
        one = before + 1  # 4,000 bytes
        view = one[:10]
        two = one * 2
        del one
        assert counted.bytes == 8000  # the view holds it
        del view
        assert counted.bytes == 4000
        before.add_(two)
        three = before[:5]
        assert (counted.bytes, counted.peak) == (4000, 8000)
        del three
