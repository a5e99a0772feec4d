"""Networks that are laid out otherwise, or compiled, are the same networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import SD3Transformer2DModel

from raysuite.config import Model, RunConfig, load, validate
from raysuite.errors import UserError
from raysuite.families import compiled, open_policy
from raysuite.families.pipeline import PipelinePolicy
from raysuite.stages import checkpoint
from raysuite.stages.learn import learn, transitions
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.stages.rollout import sample, score
from raysuite.stages.warm import blank, shapes, warm_drawing, warm_learning

CPU = torch.device("cpu")
Opener = Callable[..., PipelinePolicy]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What was collected to be compiled: it is run as it is, since generating code takes a minute."""
    found: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", backend)
    yield found
    torch._dynamo.reset()


def predicted(policy: PipelinePolicy, rows: int = 2, **who: bool) -> torch.Tensor:
    x = torch.randn(rows, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    return policy.predict(x, policy.table.timesteps_K[1].expand(rows), ["a photo of a red cat"] * rows, **who)


def test_channels_last_changes_no_more_than_rounding(open_tiny: Opener) -> None:
    plain, laid = open_tiny("sd15"), open_tiny("sd15", model={"channels_last": True})
    kernels = [p for p in laid.trained.network.parameters() if p.ndim == 4 and p.shape[2:] != (1, 1) and p.shape[1] > 1]
    assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert np.array_equal(plain.weights(), laid.weights())
    with torch.no_grad():
        torch.testing.assert_close(predicted(laid), predicted(plain), rtol=0, atol=1e-5)


def test_a_checkpoint_is_the_same_however_weights_lie(open_tiny: Opener) -> None:
    """Moments are put back as their parameters lie, which a step as one kernel needs."""
    policy = open_tiny("sd15", model={"channels_last": True}, parameters={"kind": "all", "rank": 16})
    parameters = list(policy.trainable().values())

    def stepped(optimizer: torch.optim.Optimizer) -> np.ndarray:
        optimizer.zero_grad()
        predicted(policy).square().sum().backward()
        optimizer.step()
        return policy.weights()

    whole = torch.optim.AdamW(parameters, lr=1e-3)
    stepped(whole)
    before, told = policy.weights(), checkpoint.Snapshot(whole).take()
    told = {n: {key: value.contiguous() for key, value in entry.items()} for n, entry in told.items()}
    after = stepped(whole)
    policy.set_weights(before)
    again = torch.optim.AdamW(parameters, lr=1e-3)
    checkpoint.restore_moments(again, told)
    assert all(again.state[p]["exp_avg"].stride() == p.stride() for p in parameters)
    assert np.array_equal(stepped(again), after)


def small(path: str, **model: Any) -> RunConfig:
    return validate(
        {
            "updates": 2,
            "model": {"path": path, "size": 16, "compile": True, **model},
            "sampler": {"steps": 3},
            "parameters": {"rank": 2},
            "prompts": {"training": "scenes", "held_out": None},
            "rewards": [{"name": "redness"}],
            "rollouts": {"prompts": 1, "samples": 2, "prompts_per_block": 1},
            "objective": {"name": "ddpo", "clip": 0.2, "advantage_clip": 5.0, "kl_weight": 0.1},
            "learn": {"microbatch": 2, "learning_rate": 1e-2},
            "evaluation": {"prompts": 2, "final_samples": 1},
        }
    )


def test_as_many_shapes_are_compiled_in_other_threads(graphs: list[Any]) -> None:
    """Rollout actors draw in another thread than the one in which they open the network."""

    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    network = compiled.prepared(Network(), "unet", Model(path="toy", compile=True))

    def called() -> None:
        for rows in range(1, 13):
            network(torch.zeros(rows, 2))

    with ThreadPool(1) as pool:
        pool.apply(called)
    assert len(graphs) == 12


@pytest.mark.parametrize(
    ("pipeline", "code"),
    [
        ("sd3", False),
        pytest.param("sd15", False, marks=pytest.mark.exhaustive),
        pytest.param("sd3", True, marks=pytest.mark.exhaustive),
    ],
    ids=["blocks", "whole", "blocks-compiled"],
)
def test_a_compiled_network_draws_and_learns(
    pipeline: str, code: bool, tiny: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    """All is compiled before the first update: turning the adapter off for the reference, and on again, compiles nothing anew.
    The numbers are those of the plain network, but for rounding.
    """
    if not code:
        request.getfixturevalue("graphs")
    config = small(str(tiny(pipeline)))
    policy, prompts = open_policy(config, CPU), load_prompts(config.prompts)
    weights = policy.weights()
    torch._dynamo.utils.counters.clear()
    warm_drawing(policy, shapes(config, prompts))
    warm_learning(policy, config, blank(policy, config, prompts))
    assert np.array_equal(policy.weights(), weights) and all(p.grad is None for p in policy.trainable().values())
    compiled_once = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled_once >= 3  # the policy without gradients and with them, and the reference

    def updates(policy: Any) -> list[dict[str, float]]:
        optimizer, told = torch.optim.AdamW(policy.trainable().values(), lr=1e-2), []
        for update in range(2):
            (block,) = training_blocks(config, prompts, update)
            rollouts = score(sample(policy, block, config, version=update), config)
            batches = {0: transitions(rollouts, np.array([[1.0] * 3, [-1.0] * 3]))}
            metrics, _ = learn(config, policy, optimizer, batches, update=update, accelerator=Accelerator(cpu=True))
            told.append(metrics)
        return told

    told = updates(policy)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled_once
    assert [each["learn/ratio"] for each in told] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert told[1]["learn/kl_reference"] > 10 * abs(told[0]["learn/kl_reference"])
    plain = updates(open_policy(config, CPU, compiled=False))
    for ours, theirs in zip(told, plain, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_blocks_that_a_transformer_repeats_are_compiled(open_tiny: Opener, graphs: list[Any]) -> None:
    """One graph serves all blocks of a class: SD3's differ in the last, which leaves the text where it is."""
    policy = open_tiny("sd3", model={"compile": True}, sampler={"guidance": 1})
    network = policy.trained.network
    assert isinstance(network, SD3Transformer2DModel) and compiled.repeated_blocks(network) == ["JointTransformerBlock"]
    plain = open_tiny("sd3", sampler={"guidance": 1})
    with torch.no_grad():
        assert torch.equal(predicted(policy), predicted(plain))
        assert 1 <= len(graphs) <= 4
        before = len(graphs)
        predicted(policy)
    assert len(graphs) == before


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("sd3", {"channels_last": True}, r"model.channels_last=false with SD3Transformer2DModel, which is no U-Net"),
    ],
)
def test_what_is_not_for_a_network(name: str, settings: dict[str, Any], sentence: str, open_tiny: Opener) -> None:
    with pytest.raises(UserError, match=sentence):
        open_tiny(name, model=settings)


def test_a_network_that_repeats_nothing() -> None:
    with pytest.raises(UserError, match=r"model.compile=false with Linear, of which .* leave it out"):
        compiled.prepared(torch.nn.Linear(1, 1), "transformer", Model(path="somewhere", compile=True))


def test_a_compiler_is_looked_for_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setattr("raysuite.families.pipeline.load_pipeline", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match=r"C\+\+ compiler for model.compile .* install g\+\+"):
        open_policy(load("scenes-ddpo", {"model.compile": "true"}), CPU)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.path": "toy", "prompts": "{training: toy, held_out: toy}"}, "no model.compile with model.path=toy"),
        (
            {"cluster.shard": "true", "cluster.workers": "2", "learn.minibatches": "1"},
            "no model.compile with cluster.shard",
        ),
    ],
)
def test_settings_that_do_not_go_with_it(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load("scenes-ddpo", {"model.compile": "true", **changes})
