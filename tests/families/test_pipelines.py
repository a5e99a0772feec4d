"""Every pipeline class that is promised, against what users run: the plain pipeline of diffusers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raysuite.families.pipeline import PipelinePolicy
from raysuite.kernel import transition
from tests.families.conftest import SIDE, WITHOUT_GUIDANCE, WITHOUT_LORA
from tests.families.pipelines import ARGUMENTS, BUILDERS, plain_pipeline

pytestmark = [
    pytest.mark.parametrize("pipeline", BUILDERS),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

Opener = Callable[..., PipelinePolicy]

PROMPTS = ("a photo of a red cat", "a drawing of a blue house")
RENORMALISED = {"qwen_image", "lumina2"}
"""Classes that scale what guidance gives."""
VARIANCE_PRESERVING = {"sd15", "sdxl", "pixart"}
"""Whose schedulers go to a clean picture at the end, where ours ends at the level of the first training timestep."""

TOLD_ANOTHER_TIME = {"cogview4", "sana", "wan"}
"""Whose networks are told another time than their noise level."""


def latents(policy: PipelinePolicy, count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


def few(pipeline: str) -> int:
    """Rows of a batch, or the one that there is time for: HiDream takes two seconds a picture."""
    return 1 if pipeline == "hidream" else 2


def rows(policy: PipelinePolicy, count: int) -> tuple[Tensor, list[str]]:
    """The time of a step in the middle for each row, and prompts."""
    return policy.schedule.timesteps_K[1].expand(count), [PROMPTS[row % 2] for row in range(count)]


def draw(policy: PipelinePolicy, x: Tensor, prompts: tuple[str, ...]) -> np.ndarray:
    """Pictures without noise along the way, floats in grey levels."""
    schedule = policy.schedule.windowed((0, 0))
    with torch.no_grad():
        for step in range(schedule.steps):
            k = torch.tensor(step)
            output = policy.predict(x, schedule.timesteps_K[k].expand(len(x)), prompts)
            x = transition.mean(schedule, k, x, output)
    return policy.driver.finish(x) * 255


def plainly(found: Any, pipeline: str, prompts: tuple[str, ...], *, guided: bool = True, steps: int = 4) -> Any:
    """What a user calls for the same pictures: each class with its own words for guidance 3. Draws from the global generator."""
    words: dict[str, dict[str, Any]] = {
        **{name: {"true_cfg_scale": 3.0, "negative_prompt": [""] * len(prompts)} for name in ("flux",)},
        **{name: {"true_cfg_scale": 3.0, "negative_prompt": [" "] * len(prompts)} for name in ("qwen_image",)},
        **{name: {"guidance_scale": 2.0} for name in ("z_image", "krea2")},
        "flux2": {},
    }
    none = {"qwen_image": {"true_cfg_scale": 1.0}, "flux": {}, "flux2": {}}
    none |= {name: {"guidance_scale": 0.0} for name in ("z_image", "krea2")}
    asked = words.get(pipeline, {"guidance_scale": 3.0}) if guided else none.get(pipeline, {"guidance_scale": 1.0})
    own: dict[str, Any] = {"wan": {"num_frames": 1}}.get(pipeline, {})
    own |= {"use_resolution_binning": False, "clean_caption": False} if pipeline in ("sana", "pixart") else {}
    side = SIDE.get(pipeline, 32)
    torch.manual_seed(5)
    return found(
        prompt=list(prompts),
        height=side,
        width=side,
        num_inference_steps=steps,
        output_type="np",
        return_dict=False,
        **ARGUMENTS[pipeline],
        **own,
        **asked,
    )[0]


def watched(found: Any) -> list[Tensor]:
    """The first latents of calls to come, in units of standard deviations."""
    seen: list[Tensor] = []
    prepare = found.prepare_latents

    def prepared(*args: Any, **options: Any) -> Any:
        made = prepare(*args, **options)
        first = made[0] if isinstance(made, tuple) else made
        seen.append(first.clone() / getattr(found.scheduler, "init_noise_sigma", 1.0))
        return made

    found.prepare_latents = prepared
    return seen


def frames(pictures: Any) -> np.ndarray:
    found = np.asarray(pictures) * 255
    return found[:, 0] if found.ndim == 5 else found


# the same pictures


def test_pictures_are_the_plain_pipelines(pipeline: str, policy: PipelinePolicy, tiny: Callable[[str], Path]) -> None:
    """From the same first latents; prompt and guidance move them, so that neither can be lost unseen."""
    found = plain_pipeline(tiny(pipeline), pipeline)
    seen = watched(found)
    prompts = PROMPTS[:1] if pipeline == "hidream" else PROMPTS
    theirs = frames(plainly(found, pipeline, prompts))
    ours = draw(policy, seen[0], prompts)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= (1.0 if pipeline in VARIANCE_PRESERVING else 0.01)
    moved = draw(policy, seen[0], prompts[::-1] if len(prompts) == 2 else PROMPTS[1:])
    assert np.abs(moved - theirs).max() > 1
    if pipeline not in WITHOUT_GUIDANCE and pipeline != "hidream":
        unguided = frames(plainly(found, pipeline, prompts, guided=False))
        assert np.abs(unguided - theirs).max() > 1


@pytest.mark.parametrize(("side", "steps"), [(32, 3), (64, 5)])
def test_tables_are_the_schedulers_own(
    pipeline: str, side: int, steps: int, open_tiny: Opener, tiny: Callable[[str], Path]
) -> None:
    """Equal to the bit, at two sizes and numbers of steps: whatever shifts it, once or twice, by size or not."""
    side = SIDE.get(pipeline, side)
    policy = open_tiny(pipeline, model={"size": side}, sampler={"steps": steps})
    scheduler = policy.driver.asked_for(steps)
    found = plain_pipeline(tiny(pipeline), pipeline)
    stop = copy.deepcopy(found.scheduler)
    asked: list[Any] = []

    def first_step(*_: Any, **__: Any) -> None:
        asked.append((stop.timesteps.clone(), stop.sigmas.clone() if hasattr(stop, "sigmas") else None))
        raise KeyboardInterrupt  # which no pipeline catches

    stop.step = first_step
    found.scheduler = stop
    with pytest.raises(KeyboardInterrupt):
        found(
            prompt=PROMPTS[0],
            height=side,
            width=side,
            num_inference_steps=steps,
            **ARGUMENTS[pipeline],
            **policy.facts.call,
        )
    (timesteps, sigmas) = asked[0]
    assert torch.equal(scheduler.timesteps, timesteps)
    schedule = policy.schedule
    assert torch.equal(schedule.timesteps_K.float(), timesteps.float())
    if pipeline in VARIANCE_PRESERVING:
        torch.testing.assert_close(schedule.alpha_K1[:-1] ** 2, found.scheduler.alphas_cumprod[timesteps.long()])
    else:
        assert torch.equal(schedule.sigma_K1, sigmas)
        assert torch.equal(schedule.alpha_K1, (1 - sigmas.double()).float())


def test_levels_of_training_are_the_fresh_schedulers_own(
    pipeline: str, policy: PipelinePolicy, tiny: Callable[[str], Path]
) -> None:
    """Those that the pipeline would visit in as many steps are other ones wherever it shifts levels when it asks for steps."""
    fresh, training = plain_pipeline(tiny(pipeline), pipeline).scheduler, policy.schedule.training
    if pipeline in VARIANCE_PRESERVING:
        assert torch.equal(training.sigma_T, (1 - fresh.alphas_cumprod).sqrt())
    elif pipeline not in TOLD_ANOTHER_TIME:
        assert torch.equal(training.sigma_T, fresh.sigmas[:1000].flip(0))
        assert torch.equal(training.timesteps_T, fresh.timesteps.flip(0))
        shift = 1 if fresh.config.use_dynamic_shifting else fresh.config.shift
        assert training.sigma_T.median() == pytest.approx(shift / (1 + shift), abs=1e-3)
    else:
        assert torch.equal(training.sigma_T, policy.driver.asked_for(1000).sigmas[:1000].flip(0))


# one network call


def test_a_prediction_is_repeated_to_the_bit(pipeline: str, policy: PipelinePolicy) -> None:
    x = latents(policy)
    t, prompts = rows(policy, 2)
    with torch.no_grad():
        first = policy.predict(x, t, prompts)
        policy.predict(latents(policy, seed=1), t, prompts[::-1], guided=False)
        assert torch.equal(policy.predict(x, t, prompts), first)


def test_the_first_ratio_is_exactly_1(pipeline: str, policy: PipelinePolicy) -> None:
    """And no prediction depends on whether a gradient is wanted."""
    x = latents(policy)
    t, prompts = rows(policy, 2)
    k = torch.tensor(1)
    with torch.no_grad():
        drawn = transition.mean(policy.schedule, k, x, policy.predict(x, t, prompts))
    after = transition.draw(policy.schedule, k, drawn, latents(policy, seed=2))
    assert not torch.equal(after, drawn)
    scored = transition.mean(policy.schedule, k, x, policy.predict(x, t, prompts))
    assert not transition.log_ratio(policy.schedule, k, scored, drawn, after).any()


def test_gradients_are_those_of_the_prediction(pipeline: str, policy: PipelinePolicy) -> None:
    """A central difference along the gradient gives its length."""
    count = few(pipeline)
    x, weight = latents(policy, count), latents(policy, count, seed=3)
    t, prompts = rows(policy, count)

    def value() -> Tensor:
        return (policy.predict(x, t, prompts).double() * weight).sum()

    value().backward()
    parameters = policy.trainable()
    gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    length = float(sum(g.double().square().sum() for g in gradients.values()) ** 0.5)
    assert length > 0
    step, values = 1e-3 if pipeline in WITHOUT_LORA else 1e-2, []
    with torch.no_grad():
        for sign in (1, -2):
            for name, g in gradients.items():
                parameters[name].add_(g, alpha=sign * step / length)
            values.append(float(value()))
    assert 0.99 < (values[0] - values[1]) / (2 * step) / length < 1.01


def test_prompts_of_a_batch_do_not_see_each_other(pipeline: str, policy: PipelinePolicy) -> None:
    """Of unlike lengths, too."""
    prompts = ("a cat", "a drawing of a large blue house", "a photo of a green car")
    x, t = latents(policy, 3), policy.schedule.timesteps_K[1].expand(3)
    with torch.no_grad():
        together = policy.predict(x, t, prompts)
        alone = torch.cat([policy.predict(x[n : n + 1], t[n : n + 1], prompts[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("guided", [True, False])
def test_rows_at_times_of_their_own(pipeline: str, guided: bool, policy: PipelinePolicy) -> None:
    """As objectives of the forward process ask."""
    count = 2 if pipeline == "hidream" else 3
    x, t = latents(policy, count), policy.schedule.timesteps_K[torch.tensor([2, 0, 1])[:count]]
    prompts = (*PROMPTS, PROMPTS[0])[:count]
    with torch.no_grad():
        together = policy.predict(x, t, prompts, guided=guided)
        alone = [policy.predict(x[[n]], t[[n]], [prompts[n]], guided=guided) for n in range(count)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5 * float(together.abs().max()))


def test_guidance_means_the_same_everywhere(pipeline: str, open_tiny: Opener) -> None:
    """Guidance w leads from the negative prompt to the prompt and beyond: away + w (towards - away)."""
    if pipeline in RENORMALISED | WITHOUT_GUIDANCE:
        pytest.skip("scales the result, or has none")
    negative = "" if pipeline == "flux2_klein" else "a small apple"
    more = {} if pipeline == "flux2_klein" else {"negative_prompt": negative}
    policy = open_tiny(pipeline, sampler={"guidance": 2.5, **more})
    x, (t, prompts) = latents(policy), rows(policy, 2)
    with torch.no_grad():
        towards = policy.predict(x, t, prompts, guided=False)
        away = policy.predict(x, t, [negative] * 2, guided=False)
        guided = policy.predict(x, t, prompts)
    expected = away + 2.5 * (towards - away)
    assert float((expected - towards).abs().max()) > 1e-4 * float(towards.abs().max())
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_checkpointing_changes_no_bit(pipeline: str, policy: PipelinePolicy) -> None:
    if policy.facts.no_checkpointing:
        pytest.skip("refused: see test_refusals")
    count = few(pipeline)
    x, (t, prompts) = latents(policy, count), rows(policy, count)
    found = []
    for checkpointing in (False, True):
        network = policy.trained.network
        network.enable_gradient_checkpointing() if checkpointing else network.disable_gradient_checkpointing()
        for p in policy.trainable().values():
            p.grad = None
        output = policy.predict(x, t, prompts)
        output.square().sum().backward()
        found.append([output.detach(), *(p.grad.clone() for p in policy.trainable().values() if p.grad is not None)])
    policy.trained.network.disable_gradient_checkpointing()
    assert len(found[0]) > 1 and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_bfloat16(pipeline: str, policy: PipelinePolicy, open_tiny: Opener) -> None:
    """Near float32's answers, handed over in float32, and the same bits whether a gradient is wanted or not."""
    count = few(pipeline)
    half = open_tiny(pipeline, model={"precision": "bfloat16"})
    x, (t, prompts) = latents(policy, count), rows(policy, count)
    with torch.no_grad():
        whole, drawn = policy.predict(x, t, prompts), half.predict(x, t, prompts)
    learned = half.predict(x, t, prompts)
    assert drawn.dtype == torch.float32 and torch.equal(learned, drawn)
    most = 0.35 if pipeline == "chroma" else 0.15  # it is 0.25, and 0.11 and less for all others
    assert 0 < float((drawn - whole).norm() / whole.norm()) < most
    learned.square().sum().backward()
    trained = half.trainable().values()
    assert all(p.dtype == torch.float32 for p in trained)
    assert all(bool(p.grad.isfinite().all()) for p in trained if p.grad is not None)


def test_the_reference_in_bfloat16_is_the_policy_before_training(pipeline: str, open_tiny: Opener) -> None:
    """At every step to the bit: FLUX.2 rounds times to its network's type, which half of a copy had been."""
    count = few(pipeline)
    half = open_tiny(pipeline, model={"precision": "bfloat16"}, parameters={"kind": "all"})
    x, (_, prompts) = latents(half, count), rows(half, count)
    for t in half.schedule.timesteps_K:
        with torch.no_grad():
            found = [half.predict(x, t.expand(count), prompts, reference=reference) for reference in (False, True)]
        assert torch.equal(*found)


# text, latents, files


def test_encoders_may_be_left_out(pipeline: str, policy: PipelinePolicy, open_tiny: Opener, tmp_path: Path) -> None:
    """A process that was given text states has the same predictions and pictures without an encoder."""
    count = few(pipeline)
    writer = open_tiny(pipeline, texts=tmp_path, weights=False)
    writer.text_states(["", *PROMPTS])
    bare = open_tiny(pipeline, texts=tmp_path, encoders=False)
    assert not [name for name, part in bare.pipeline.components.items() if "text_encoder" in name and part is not None]
    x, (t, prompts) = latents(policy, count), rows(policy, count)
    with torch.no_grad():
        for guided in (True, False):
            expected = policy.predict(x, t, prompts, guided=guided)
            assert torch.equal(bare.predict(x, t, prompts, guided=guided), expected)
    np.testing.assert_array_equal(bare.decode(x), policy.decode(x))


def test_latents_of_the_vae_in_the_form_of_the_loop(pipeline: str, policy: PipelinePolicy) -> None:
    """`encode` ends where `decode` begins: latents of the VAE, packed, decode to what the VAE makes of them."""
    vae = policy.pipeline.vae
    side = SIDE.get(pipeline, 32)
    pictures = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    encoded = policy.encode(pictures)
    assert encoded.shape == (1, *policy.latent_shape)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        found = vae.encode(pixels[:, :, None] if pipeline in ("qwen_image", "krea2", "wan") else pixels)
        z = found.latent if hasattr(found, "latent") else found.latent_dist.mode()
        expected = (vae.decode(z, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
    expected = expected[:, :, 0] if expected.ndim == 5 else expected
    np.testing.assert_allclose(policy.driver.finish(encoded), expected.permute(0, 2, 3, 1).numpy(), atol=1e-4)


def test_what_was_trained_loads_in_plain_diffusers(
    pipeline: str, policy: PipelinePolicy, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """The picture of the trained pipeline, from the files alone, is the same to the bit; and not the one from before."""
    prompts = PROMPTS[:1]
    before = plainly(policy.pipeline, pipeline, prompts, steps=2) if pipeline != "hidream" else None
    draw_of = np.random.default_rng(0)
    flat = policy.weights()
    policy.set_weights(flat + (0.3 * draw_of.standard_normal(flat.shape)).astype(np.float32))
    trained = plainly(policy.pipeline, pipeline, prompts, steps=2)
    assert before is None or np.abs(np.asarray(trained) - np.asarray(before)).max() > 1 / 255
    policy.save(tmp_path, policy.weights())
    if pipeline in WITHOUT_LORA:
        loaded = plain_pipeline(tmp_path, pipeline)
    else:
        loaded = plain_pipeline(tiny(pipeline), pipeline)
        loaded.load_lora_weights(tmp_path)
    np.testing.assert_array_equal(plainly(loaded, pipeline, prompts, steps=2), trained)
    saved = policy.weights()
    policy.set_weights(np.zeros_like(saved))
    policy.load(tmp_path)
    np.testing.assert_array_equal(policy.weights(), saved)
