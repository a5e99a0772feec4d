"""A distribution of soft prompts before real pipelines: the states of textual inversion to the bit, and a start at the reference."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from raysuite.config import RunConfig, validate
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.families.pipeline import PipelinePolicy
from raysuite.families.soft_prompts import FILE
from raysuite.stages.learn import gradient, transitions
from raysuite.stages.preferences import compared, rankings
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.stages.rollout import sample, score
from tests.families.conftest import settings_of

TEXT = "a photo of a red cat"
PIPELINES = ("sd15", "sdxl", "sd3", "flux", "pixart")
"""CLIP alone, two CLIPs with a pooled vector, two CLIPs and a T5, a pooled CLIP and a T5, a T5 with masks."""
SMALL = {"count": 3, "tokens": 2}

Opener = Callable[..., PipelinePolicy]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def opened(open_tiny: Opener, name: str, **settings: Any) -> PipelinePolicy:
    others = {section: settings.pop(section, {}) for section in ("sampler", "model")}
    return open_tiny(name, parameters={"kind": "prompts", "rank": 16, "prompts": {**SMALL, **settings}}, **others)


def points(policy: PipelinePolicy, rows: int = 2) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    return x, policy.schedule.timesteps_K[:1].expand(rows)


def labels(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def nudge(policy: PipelinePolicy) -> None:
    weights = policy.weights()
    policy.set_weights(weights + 0.5 * np.random.default_rng(0).normal(size=weights.shape).astype(np.float32))


@pytest.mark.parametrize("name", PIPELINES)
def test_every_row_has_its_own_draw_and_gradients_flow(name: str, open_tiny: Opener) -> None:
    policy = opened(open_tiny, name)
    x, t = points(policy, 3)
    x = x[:1].expand_as(x)
    output = policy.predict(x, t, [TEXT] * 3, draws_N=labels(5, 6, 5))
    assert torch.allclose(output[0], output[2], atol=1e-6) and not torch.allclose(output[0], output[1], atol=1e-4)
    output.square().sum().backward()
    for parameter in policy.trainable().values():
        assert parameter.grad is not None and (parameter.grad.flatten(1).abs().sum(1) > 0).all()
        parameter.grad = None
    assert not any(p.requires_grad for p in policy.trained.network.parameters())
    with torch.no_grad():
        alone = policy.predict(x[:1], t[:1], [TEXT], draws_N=labels(6))
    torch.testing.assert_close(alone[0], output[1].detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", PIPELINES)
def test_reference_and_base_are_the_distribution_as_it_began(name: str, open_tiny: Opener) -> None:
    policy = opened(open_tiny, name)
    x, t = points(policy)
    about, own = (x, t, [TEXT, "a drawing of a blue dog"]), {"draws_N": labels(1, 2)}
    with torch.no_grad():
        start = policy.predict(*about, **own)
        assert policy.predict(*about, reference=True, **own).equal(start)
        nudge(policy)
        moved = policy.predict(*about, **own)
        assert not torch.allclose(moved, start, atol=1e-4)
        assert policy.predict(*about, reference=True, **own).equal(start)
        policy.set_reference(policy.weights())
        assert policy.predict(*about, reference=True, **own).equal(moved)
        assert policy.predict(*about, base=True, **own).equal(start)
        assert policy.predict(*about, **own).equal(moved)


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_members_have_the_states_of_textual_inversion_to_the_bit(
    name: str, placement: str, open_tiny: Opener, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    policy = opened(open_tiny, name, placement=placement, draw="member", sampler={"guidance": 1})
    nudge(policy)
    policy.save(tmp_path, policy.weights())
    pipe = diffusers.DiffusionPipeline.from_pretrained(tiny(name))
    state = torch.random.get_rng_state()  # diffusers draws from it as it makes a table of embeddings larger
    for file in sorted((tmp_path / "textual_inversion").iterdir()):
        if name == "sd15":
            pipe.load_textual_inversion(file)
            continue
        found = safetensors.torch.load_file(file)
        token = f"<soft-{file.stem}>"
        pipe.load_textual_inversion({token: found["clip_l"]}, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
        pipe.load_textual_inversion(
            {token: found["clip_g"]}, text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
        )
    torch.random.set_rng_state(state)
    assert policy.soft is not None
    question = policy.driver.question(policy.soft.marked(TEXT))
    with torch.no_grad():
        encoded = policy.soft.encoded(*question)
        for member in range(3):
            token = f"<soft-{member:02d}>"
            text = f"{token} {TEXT}" if placement == "before" else f"{TEXT} {token}"
            theirs = pipe.encode_prompt(
                prompt=text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            states_K, *pooled_K = encoded.distribution.states_K
            assert torch.equal(states_K[member], theirs[0][0])
            for own in pooled_K:  # a projection, which rounds otherwise for one row than for several
                torch.testing.assert_close(own[member], theirs[2][0], atol=1e-6, rtol=1e-6)


def test_after_the_text_its_words_stay_as_they_are(open_tiny: Opener) -> None:
    policy = opened(open_tiny, "sd15", placement="after")
    assert policy.soft is not None
    words = len(policy.pipeline.tokenizer(TEXT).input_ids) - 1  # with the first token, without the end's
    plain = policy.driver.encoded([TEXT])[0]
    question = policy.driver.question(policy.soft.marked(TEXT))
    with torch.no_grad():
        (states_K,) = policy.soft.encoded(*question).distribution.states_K
    assert torch.equal(states_K[:, :words], plain[:, :words].expand(3, -1, -1))
    assert (states_K[0, words:] != states_K[1, words:]).any(1).all()


def test_soft_prompts_that_would_hide_the_text_from_a_pooled_vector_are_refused(
    open_tiny: Opener, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Released CLIPs have the old entry, for which the pooled vector is read at the token of the highest number."""

    def with_old_entry(name: str, encoder: str) -> dict[str, str]:
        config = shutil.copytree(tiny(name), tmp_path / name) / encoder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": 2}))
        return {"path": str(tmp_path / name)}

    model = with_old_entry("sdxl", "text_encoder_2")
    x, t = points(open_tiny("sdxl"), 1)
    with pytest.raises(UserError, match="got eos_token_id 2 in the config of text_encoder_2, for which it is read at"):
        opened(open_tiny, "sdxl", model=model).predict(x, t, [TEXT], draws_N=labels(1))
    after = opened(open_tiny, "sdxl", model=model, placement="after")
    assert after.predict(x, t, [TEXT], draws_N=labels(1)).isfinite().all()
    unpooled = opened(open_tiny, "sd15", model=with_old_entry("sd15", "text_encoder"))
    assert unpooled.predict(*points(unpooled, 1), [TEXT], draws_N=labels(1)).isfinite().all()


def test_a_text_without_room_after_it_is_refused(open_tiny: Opener) -> None:
    policy = opened(open_tiny, "sd15", placement="after")
    x, t = points(policy, 1)
    with pytest.raises(
        UserError, match="expected prompts that leave room for 2 soft tokens, got one that a text encoder cuts"
    ):
        policy.predict(x, t, ["cat " * 75], draws_N=labels(1))
    before = opened(open_tiny, "sd15")
    assert before.predict(x, t, ["cat " * 75], draws_N=labels(1)).isfinite().all()


@pytest.mark.parametrize("name", PIPELINES)
def test_a_plain_start_is_the_model_as_it_came(name: str, open_tiny: Opener) -> None:
    policy, untouched = opened(open_tiny, name, start="plain"), open_tiny(name)
    x, t = points(policy)
    prompts = [TEXT, "a drawing of a blue dog"]
    with torch.no_grad():
        wanted = untouched.predict(x, t, prompts)
        assert policy.predict(x, t, prompts, draws_N=labels(1, 2)).equal(wanted)
        nudge(policy)
        assert policy.predict(x, t, prompts, reference=True, draws_N=labels(1, 2)).equal(wanted)
        assert not torch.allclose(policy.predict(x, t, prompts, draws_N=labels(1, 2)), wanted, atol=1e-4)


def test_guidances_other_branch_has_no_soft_tokens(open_tiny: Opener) -> None:
    """output = u + w (c - u), with u the model's own for the empty prompt."""
    policy, untouched = opened(open_tiny, "sd15"), open_tiny("sd15")
    x, t = points(policy)
    own = {"draws_N": labels(1, 2)}
    with torch.no_grad():
        empty = untouched.predict(x, t, [""] * 2, guided=False)
        conditional = policy.predict(x, t, [TEXT] * 2, guided=False, **own)
        guided = policy.predict(x, t, [TEXT] * 2, **own)
    torch.testing.assert_close(guided, empty + 3 * (conditional - empty), atol=1e-5, rtol=1e-4)


def test_what_is_saved_comes_back(open_tiny: Opener, tmp_path: Path) -> None:
    policy = opened(open_tiny, "sdxl")
    nudge(policy)
    policy.save(tmp_path, policy.weights())
    other = opened(open_tiny, "sdxl")
    other.load(tmp_path)
    assert np.array_equal(other.weights(), policy.weights())
    stored = safetensors.torch.load_file(tmp_path / FILE)
    assert {name: tuple(value.shape) for name, value in stored.items()} == {
        name: tuple(value.shape) for name, value in policy.trainable().items()
    }
    with pytest.raises(UserError, match=r"expected embeddings .* set parameters.prompts and model.path as they were"):
        opened(open_tiny, "sdxl", count=4).load(tmp_path)


@pytest.mark.parametrize("name", ["qwen_image", "sana"])
def test_encoders_that_are_language_models_are_refused(name: str, open_tiny: Opener) -> None:
    with pytest.raises(UserError, match="expected text encoders of CLIP or T5"):
        opened(open_tiny, name)


def test_words_are_what_the_tokens_begin_around(open_tiny: Opener) -> None:
    policy = opened(open_tiny, "sd15", words="cat", scale=1e-6)
    table, ids = policy.pipeline.text_encoder.get_input_embeddings().weight, policy.pipeline.tokenizer("cat").input_ids
    value = policy.trainable()["context"].detach()
    torch.testing.assert_close(value, table[ids[1]].expand_as(value), atol=1e-5, rtol=0)


# learning


def config_of(path: str | Path, objective: str, **changes: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "updates": 2,
        "model": {"path": str(path)},
        "sampler": {"steps": 3, "guidance": 2.0},
        "parameters": {"kind": "prompts", "prompts": {**SMALL, "orthogonality": 0.1}},
        "rewards": [{"name": "redness"}],
        "rollouts": {"prompts": 2, "samples": 4, "prompts_per_block": 2},
        "objective": settings_of(objective),
        "evaluation": {"prompts": 2, "final_samples": 1, "every": 2},
    }
    if objective == "forward_rl":
        tree["reference"] = {"refresh": 1}
    return validate({**tree, **changes})


@pytest.mark.parametrize(
    ("objective", "metric", "value"),
    [
        ("ddpo", "ratio", 1.0),
        ("trajectory_dpo", "loss", math.log(2)),
        ("diffusion_dpo", "loss", math.log(2)),
        ("dspo", "reward_margin", 0.0),
        ("cal_dpo", "reward_margin", 0.0),
        ("forward_rl", "old_distance", 0.0),
        ("sft", "prompt_spread", 1.0),
    ],
)
def test_every_objective_begins_at_the_reference(
    objective: str, metric: str, value: float, pipelines: dict[str, Path]
) -> None:
    config = config_of(pipelines["epsilon"], objective)
    policy = open_policy(config, torch.device("cpu"))
    (block,) = training_blocks(config, load_prompts(config.prompts), 0)
    rollouts = score(sample(policy, block, config, version=0), config)
    if config.built_objective.consumes == "preferences":
        batch: Any = compared(rollouts, rankings(config, block, rollouts.reward_N)[0])
    else:
        batch = transitions(rollouts, np.random.default_rng(0).normal(size=(block.size, 3)))
    taken = []
    for microbatch in (8, 3):
        for parameter in policy.trainable().values():
            parameter.grad = None
        seeded = torch.Generator().manual_seed(1)
        found, _ = gradient(config.built_objective, policy, [(batch, seeded)], microbatch=microbatch)
        if microbatch == 8:
            assert found[metric] == (value if value in (0, 1) else pytest.approx(value, abs=1e-6))
        taken.append(policy.trainable()["context"].grad)
    assert taken[0] is not None and taken[0].abs().sum() > 0
    torch.testing.assert_close(taken[0], taken[1], atol=1e-5, rtol=1e-3)
