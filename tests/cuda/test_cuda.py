"""What must hold on a GPU as it does on CPUs. Left out where there is none; RAYSUITE_TEST_DEVICE=cpu tries the tests themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline

from raysuite.config import Model, Parameters, RunConfig, Sampler, validate
from raysuite.families import open_policy
from raysuite.families.pipeline import PipelinePolicy
from raysuite.stages.checkpoint import completed
from raysuite.stages.collect import LocalCollector
from raysuite.stages.files import RunDirectory
from raysuite.stages.learn import learn, transitions
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.stages.rollout import sample, score
from raysuite.stages.train import Training
from tests.families.pipelines import build
from tests.processes import HANG_GUARD, free_port

DEVICE = torch.device(os.environ.get("RAYSUITE_TEST_DEVICE", "cuda"))
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no GPU with CUDA"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
PIPELINES = ("sd15", "sd3")
PROMPTS = ("a photo of a red cat", "a drawing of a large blue house")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("cuda")

    def give(name: str) -> Path:
        if not (root / name).exists():
            build(name, root / name)
        return root / name

    return give


def run_of(path: Path, **changes: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "updates": 2,
        "model": {"path": str(path), "size": 32},
        "sampler": {"steps": 3, "guidance": 2.0},
        "parameters": {"rank": 2},
        "prompts": {"training": "scenes", "held_out": None},
        "rewards": [{"name": "redness"}],
        "rollouts": {"prompts": 2, "samples": 4, "prompts_per_block": 1},
        "objective": {"name": "ddpo", "clip": 0.2, "advantage_clip": 5.0},
        "learn": {"microbatch": 4, "learning_rate": 1e-2},
        "evaluation": {"prompts": 2, "final_samples": 1, "every": 2},
        "checkpoints": {"every": 1, "keep": 3},
        **changes,
    }
    return validate(tree)


def accelerator() -> Accelerator:
    return Accelerator(cpu=DEVICE.type == "cpu")


def trained(config: RunConfig, out: Path) -> Training:
    RunDirectory(out).claim(config, ["test"])
    policy = open_policy(config, DEVICE)
    run = Training(config, out, policy, LocalCollector(policy, config), accelerator())
    run.train()
    return run


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_first_ratio_is_1(directory: Callable[[str], Path], pipeline: str, precision: str) -> None:
    """A microbatch has the size of a block, so that the same kernels see the same numbers."""
    config = run_of(directory(pipeline), model={"path": str(directory(pipeline)), "size": 32, "precision": precision})
    policy = open_policy(config, DEVICE)
    blocks = training_blocks(config, load_prompts(config.prompts), 0)
    rollouts = [score(sample(policy, block, config, version=0), config) for block in blocks]
    batches = {r.block.index: transitions(r, np.ones(r.logp_NK.shape)) for r in rollouts if r.logp_NK is not None}
    optimizer = torch.optim.AdamW(policy.trainable().values())
    told, _ = learn(config, policy, optimizer, batches, update=0, accelerator=accelerator())
    assert told["learn/ratio"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_policy_gradient_is_the_slope_of_the_density(directory: Callable[[str], Path], pipeline: str) -> None:
    """A central difference along the gradient is its length."""
    policy = open_policy(run_of(directory(pipeline)), DEVICE)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, *policy.latent_shape, generator=draw).to(DEVICE)
    weight = torch.randn(2, *policy.latent_shape, generator=draw).to(DEVICE)
    t = policy.schedule.timesteps_K[1].expand(2)
    parameters = list(policy.trainable().values())
    with torch.no_grad():  # a fresh adapter has a saddle at zero
        for parameter in parameters:
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw).to(DEVICE)

    def value() -> torch.Tensor:
        return (policy.predict(x, t, PROMPTS) * weight).sum()

    slopes = torch.autograd.grad(value(), parameters)
    length = torch.sqrt(sum(((slope**2).sum() for slope in slopes), torch.zeros((), device=DEVICE)))
    step = (
        1e-3
        / float(length)
        * float(torch.sqrt(sum(((p**2).sum() for p in parameters), torch.zeros((), device=DEVICE))).detach())
    )
    ends = []
    with torch.no_grad():
        for side in (1, -2, 1):
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter += side * step * slope
            ends.append(float(value()))
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(length) ** 2, rel=0.03)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_lora_that_began_from_a_file_has_its_reference_where_it_learns(
    directory: Callable[[str], Path], pipeline: str, tmp_path: Path
) -> None:
    trained(run_of(directory(pipeline)), tmp_path / "run")
    file = str(completed(tmp_path / "run" / "checkpoints")[-1] / "model")
    policy = open_policy(run_of(directory(pipeline), parameters={"start": file}), DEVICE)
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    t = policy.schedule.timesteps_K[1].expand(2)
    with torch.no_grad():
        own, reference, base = (
            policy.predict(x, t, PROMPTS, **who) for who in ({}, {"reference": True}, {"base": True})
        )
    torch.testing.assert_close(reference, own, rtol=0, atol=1e-5)
    torch.testing.assert_close(base, own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_lora_file_draws_the_same_in_plain_diffusers(
    directory: Callable[[str], Path], pipeline: str, tmp_path: Path
) -> None:
    run = trained(run_of(directory(pipeline)), tmp_path / "run")
    policy = run.policy
    assert isinstance(policy, PipelinePolicy)
    plain = DiffusionPipeline.from_pretrained(directory(pipeline), safety_checker=None).to(DEVICE)
    before = _network(plain, policy)
    plain.load_lora_weights(completed(tmp_path / "run" / "checkpoints")[-1] / "model")
    assert not torch.allclose(_network(plain, policy), before, atol=1e-4)  # it was trained away
    t = policy.schedule.timesteps_K[1].expand(2)
    with torch.no_grad():
        ours = policy.predict(torch.ones(2, *policy.latent_shape, device=DEVICE), t, PROMPTS, guided=False)
        own, policy.trained.network = policy.trained.network, getattr(plain, policy.part)
        theirs = policy.predict(torch.ones(2, *policy.latent_shape, device=DEVICE), t, PROMPTS, guided=False)
        policy.trained.network = own
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def _network(plain: Any, policy: PipelinePolicy) -> torch.Tensor:
    """What a pipeline's network predicts, through the policy's road."""
    own, policy.trained.network = policy.trained.network, getattr(plain, policy.part)
    try:
        with torch.no_grad():
            t = policy.schedule.timesteps_K[1].expand(2)
            return policy.predict(torch.ones(2, *policy.latent_shape, device=DEVICE), t, PROMPTS, guided=False)
    finally:
        policy.trained.network = own


def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(directory: Callable[[str], Path], tmp_path: Path) -> None:
    """Weights after two updates, in one go and with a checkpoint read in between."""
    config = run_of(directory("sd15"))
    whole = trained(config, tmp_path / "whole")
    half = run_of(directory("sd15"))
    RunDirectory(tmp_path / "half").claim(half, ["test"])
    policy = open_policy(half, DEVICE)
    first = Training(half, tmp_path / "half", policy, LocalCollector(policy, half), accelerator())
    first.resume()
    first.evaluate()
    first.update()
    first.save()
    policy = open_policy(half, DEVICE)
    second = Training(half, tmp_path / "half", policy, LocalCollector(policy, half), accelerator())
    second.train()
    np.testing.assert_allclose(policy.weights(), whole.policy.weights(), rtol=0, atol=1e-6)
    assert [m["name"] for m in metrics(tmp_path / "half")] == [m["name"] for m in metrics(tmp_path / "whole")]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_bfloat16_is_the_plain_pipelines(directory: Callable[[str], Path], pipeline: str) -> None:
    """One prediction beside that of the plain pipeline's network loaded in bfloat16."""
    model = Model(path=str(directory(pipeline)), size=32, precision="bfloat16")
    policy = PipelinePolicy(model=model, sampler=Sampler(steps=3), parameters=Parameters(rank=2), seed=0, device=DEVICE)
    plain = DiffusionPipeline.from_pretrained(directory(pipeline), safety_checker=None, dtype=torch.bfloat16).to(DEVICE)
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    t = policy.schedule.timesteps_K[1].expand(2)
    with torch.no_grad():
        ours = policy.predict(x, t, PROMPTS)
        with torch.autocast(DEVICE.type, enabled=False):
            theirs = policy.driver.step(_Cast(getattr(plain, policy.part)), x, t, PROMPTS, 1.0)
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05


class _Cast(torch.nn.Module):
    """A network in bfloat16 that takes what float32 there is."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.config, self.dtype, self.device = network, network.config, network.dtype, network.device

    def forward(self, *args: Any, **options: Any) -> Any:
        def cast(value: Any) -> Any:
            return value.bfloat16() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value

        return self.network(*map(cast, args), **{name: cast(value) for name, value in options.items()})


SUM = """
import sys, numpy as np, torch
from pathlib import Path
from accelerate import Accelerator
from raysuite.families import open_policy
from raysuite.stages.collect import LocalCollector
from raysuite.stages.files import RunDirectory
from raysuite.stages.train import Training
out = Path(sys.argv[1])
config, accelerator = RunDirectory(out).config(), Accelerator()
policy = open_policy(config, accelerator.device)
Training(config, out, policy, LocalCollector(policy, config), accelerator).train()
np.save(out / f"weights{accelerator.process_index}.npy", policy.weights())
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_two_learners_learn_what_one_does(directory: Callable[[str], Path], tmp_path: Path) -> None:
    """Gradients are summed by NCCL, in another order than one learner sums them."""
    smooth = {"microbatch": 4, "learning_rate": 1e-2, "epsilon": 1e-2}
    one = trained(run_of(directory("sd15"), learn=smooth), tmp_path / "one")
    two = run_of(directory("sd15"), learn=smooth, cluster={"workers": 2})
    RunDirectory(tmp_path / "two").claim(two, ["test"])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SUM, str(tmp_path / "two")],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=HANG_GUARD) for worker in workers] == [0, 0]
    first, second = (np.load(tmp_path / "two" / f"weights{rank}.npy") for rank in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, one.policy.weights(), rtol=0, atol=1e-3)
