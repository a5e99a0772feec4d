"""The models that ship with the package, opened by name."""

from __future__ import annotations

import pytest
import torch

from raysuite.config import Model, load
from raysuite.families import open_model, open_policy
from raysuite.families.pipeline import PipelinePolicy
from raysuite.families.policy import Policy
from raysuite.worlds.scenes.bundled import BUNDLED, Flow

PROMPTS = ["two red circles", "a blue square above a black circle"]


@pytest.fixture(scope="module")
def flow() -> Policy:
    return open_policy(load("scenes-flow-grpo"), torch.device("cpu"))


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_opens_by_its_name(name: str) -> None:
    policy = open_model(Model(path=name), torch.device("cpu"))
    assert policy.latent_shape == (4, 8, 8)
    assert isinstance(policy, PipelinePolicy)
    network = getattr(policy.pipeline, policy.part)
    assert {p.data_ptr() for p in network.parameters()} != set() and all(
        not any(p.stride()) for p in network.parameters()
    )
    assert policy.image_size == (32, 32)


def test_the_flow_model_is_called_with_the_text_length_that_it_was_trained_with(flow: Policy) -> None:
    """Without a T5 the pipeline puts 256 rows of zeros in its place, unless it is told how many."""
    plain = BUNDLED["scenes-flow"].open(Flow.directory)
    x_N, t_N = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([900.0, 300.0])

    def velocity(length: int) -> torch.Tensor:
        states, _, pooled, _ = plain.encode_prompt(
            PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
        with torch.no_grad():
            return plain.transformer(x_N, states, pooled, t_N).sample

    def predicted(policy: Policy) -> torch.Tensor:
        with torch.no_grad():
            return policy.predict(x_N, t_N, PROMPTS)

    assert flow.schedule.prediction == "velocity"
    torch.testing.assert_close(predicted(flow), velocity(1), rtol=0, atol=1e-5)
    told = load("scenes-flow-grpo", {"model.arguments": "{max_sequence_length: 3}"})
    longer = open_policy(told, torch.device("cpu"))
    torch.testing.assert_close(predicted(longer), velocity(3), rtol=0, atol=1e-5)
    assert (velocity(3) - velocity(1)).abs().max() > 1e-3
