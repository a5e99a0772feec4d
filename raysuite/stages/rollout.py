"""prompt -> rollout -> reward: sample a block, then score it. Two functions, so that an actor can overlap them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool

import numpy as np
import torch
from torch import Tensor

from raysuite import rewards
from raysuite.config import Credit, Reward, RunConfig
from raysuite.errors import UserError
from raysuite.families.policy import Policy
from raysuite.kernel import transition
from raysuite.kernel.credit import preview_credit, terminal_credit
from raysuite.kernel.diversity import thumbnails
from raysuite.kernel.schedule import Schedule
from raysuite.rng import Stage, torch_generator
from raysuite.types import Block, Cost, Drawn, Rollouts


@torch.no_grad()
def sample(
    policy: Policy,
    block: Block,
    config: RunConfig,
    *,
    version: int,
    draws_N: Tensor | None = None,
    check: Callable[[], None] = lambda: None,
) -> Drawn:
    """Draw a block's pictures, with the trajectories and their densities unless it is for evaluation.

    Where the policy draws prompts, `draws_N` are labels in place of those of the samples' coordinates. `check` is called before every
    step; what it raises ends the drawing.
    """
    size, prompts_N = block.size, block.prompt_of_N
    schedule, table = policy.schedule.windowed(block.window), policy.table.windowed(block.window)
    stochastic_K = table.stochastic_K.tolist()  # read here and not at every step, which would wait for the device
    first, end = block.window or (0, schedule.steps)
    x, noise_KN = _noise(policy, block, config, first, end)
    if draws_N is None and policy.draws_prompts:
        draws_N = _draws(block, config)
    # an objective of the forward process wants finished pictures only: their trajectories need not travel
    whole = config.rollouts.keep or config.built_objective.process == "reverse"
    latents, logps, kl_N, predictions = [], [], torch.zeros(size, dtype=torch.float32, device=policy.device), 0
    preview_at = () if block.evaluation else config.credit.previews
    previews: list[Tensor] = []
    for step in range(schedule.steps):
        check()
        t_N = table.timesteps_K[step].expand(size)
        if whole and first <= step <= end and not block.evaluation:
            latents.append(x)
        output = policy.predict(x, t_N, prompts_N, draws_N=draws_N)
        predictions += 1
        if step in preview_at:
            clean, spent = _preview(policy, step, x, output, prompts_N, draws_N, config.credit)
            previews.append(clean)
            predictions += spent
        mean = transition.mean(schedule, step, x, output)
        if block.measure_kl:
            reference = policy.predict(x, t_N, prompts_N, reference=True, draws_N=draws_N)
            predictions += 1
            kl_N += transition.kl(schedule, step, mean, transition.mean(schedule, step, x, reference))
        x = transition.draw(schedule, step, mean, noise_KN[step - first]) if first <= step < end else mean
        if not block.evaluation:
            scored = stochastic_K[step]
            logps.append(
                transition.log_density(schedule, step, mean, x) if scored else torch.zeros_like(x.flatten(1)[:, 0])
            )
    latents.append(x)
    images = [policy.decode(clean) for clean in (*previews, x)]
    return Drawn(
        block=block,
        version=version,
        latents_NK=None if block.evaluation else torch.stack(latents, dim=1).cpu().numpy(),
        logp_NK=None if block.evaluation else torch.stack(logps, dim=1).cpu().numpy(),
        kl_N=kl_N.cpu().numpy() if block.measure_kl else None,
        previews_JN=tuple(images),
        cost=Cost(forward=size * predictions * policy.evaluations_per_prediction, images_decoded=size * len(images)),
        draws_N=None if draws_N is None else draws_N.numpy(),
    )


def check_noise(config: RunConfig, schedule: Schedule) -> None:
    """Refuse a sampler without noise in the steps that are to be learned, or without the noise levels that the objective asks for.

    Raises:
        UserError: a window, in one of its places, holds only steps that end at or below the noise floor; or the objective's levels
            are not there.
    """
    config.built_objective.check_schedule(schedule)
    window = config.sampler.window
    spans = [(first, first + window.size) for first in window.places(schedule.steps)] if window else [None]
    for span in spans:
        if config.built_objective.process == "reverse" and not schedule.windowed(span).stochastic_K.any():
            where = f"steps {span[0]} to {span[1] - 1} (sampler.window)" if span else "some step"
            raise UserError(
                f"expected noise in {where} for {config.objective['name']}, found none: they end at or below the floor, where no "
                "noise is added; lower sampler.noise.floor, or move the window towards the first steps"
            )


def _noise(policy: Policy, block: Block, config: RunConfig, first: int, end: int) -> tuple[Tensor, Tensor]:
    """The first latent (N, ...) and the noise of steps first to end - 1, from each sample's own coordinates.

    A step's noise does not depend on where a window lies.
    """
    if block.evaluation:  # the same noise at every evaluation of every run
        seed, update = config.evaluation.seed, 0
        stages = (Stage.EVALUATION_INITIAL_NOISE, Stage.EVALUATION_STEP_NOISE)
    else:
        seed, update = config.seed, block.update
        stages = (Stage.INITIAL_NOISE, Stage.STEP_NOISE)
    shapes = (policy.latent_shape, (policy.schedule.steps, *policy.latent_shape))
    kept = (slice(None), slice(first, end))
    own = range(block.first_sample, block.first_sample + block.samples_per_prompt)
    window = config.sampler.window
    shared = window is not None and window.shared_start and not block.evaluation
    numbers = ([0] * len(own) if shared else own, own)
    starts, steps = (
        [
            torch.randn(
                shape,
                generator=torch_generator(seed=seed, stage=stage, update=update, prompt=prompt, sample=s),
                dtype=torch.float32,  # whatever a reward in another thread has made the default
            )[part]
            for prompt in block.prompt_ids
            for s in samples
        ]
        for stage, shape, part, samples in zip(stages, shapes, kept, numbers, strict=True)
    )
    return torch.stack(starts).to(policy.device), torch.stack(steps, dim=1).to(policy.device)


def _draws(block: Block, config: RunConfig) -> Tensor:
    """The label of each sample's draw of its prompt, (N,) int64, from its coordinates."""
    if block.evaluation:
        seed, stage, update = config.evaluation.seed, Stage.EVALUATION_PROMPT_DRAW, 0
    else:
        seed, stage, update = config.seed, Stage.PROMPT_DRAW, block.update
    labels = [
        torch_generator(
            seed=seed, stage=stage, update=update, prompt=prompt, sample=0 if block.one_draw else block.first_sample + s
        ).initial_seed()
        for prompt in block.prompt_ids
        for s in range(block.samples_per_prompt)
    ]
    return torch.tensor(labels, dtype=torch.int64)


def _preview(
    policy: Policy,
    step: int,
    x: Tensor,
    output: Tensor,
    prompts_N: Sequence[str],
    draws_N: Tensor | None,
    credit: Credit,
) -> tuple[Tensor, int]:
    """The clean latent predicted at a step, after some deterministic steps, and the predictions that took."""
    schedule = policy.schedule
    levels = np.unique(np.linspace(step, schedule.steps - 1, credit.preview_steps + 1).round().astype(int))
    x0, eps = transition.predicted(schedule, step, x, output)
    for k in levels[1:].tolist():
        x = schedule.alpha_K1[k] * x0 + schedule.sigma_K1[k] * eps
        output = policy.predict(x, policy.table.timesteps_K[k].expand(len(x)), prompts_N, draws_N=draws_N)
        x0, eps = transition.predicted(schedule, k, x, output)
    return x0, len(levels) - 1


Ask = Callable[[Reward, np.ndarray, Block, Callable[[UserError], None]], np.ndarray]
"""Scores (N,) of a reward from pictures (N, H, W, 3) of a block; failures that were followed by another try are told."""


def ask_here(
    reward: Reward,
    images_N: np.ndarray,
    block: Block,
    told: Callable[[UserError], None],
    *,
    thread: ThreadPool | None = None,
) -> np.ndarray:
    """Scores of a reward that runs in this process.

    It is held to its time only where there is a `thread` to run it in, of a process that may be replaced.

    Raises:
        RewardHung: it took longer than its limit.
        UserError: it raised to the end, or gave no scores.
    """
    return rewards.score(
        reward.name,
        images_N,
        block.asked_of_N,
        block.metadata_of_N,
        model=reward.model,
        options=reward.options,
        retries=reward.retries,
        limit=rewards.Limit(reward.seconds, thread) if thread else None,
        told=told,
    )


def score(drawn: Drawn, config: RunConfig, *, ask: Ask = ask_here) -> Rollouts:
    """Score a block: the trained reward of every preview, and at the end every reward that is watched.

    Raises:
        RewardHung: a reward took longer than its limit.
        UserError: a reward raised to the end, or gave no scores.
    """
    block, evaluation = drawn.block, drawn.block.evaluation
    failures: list[UserError] = []
    began = time.monotonic()

    def scored(settings: Reward, images_N: np.ndarray) -> np.ndarray:
        return ask(settings, images_N, block, failures.append)

    final = {r.name: scored(r, drawn.previews_JN[-1]) for r in config.rewards}
    reward_N = _total(final, config.rewards)
    scores = dict(final)
    credit_NK = None
    if evaluation:
        scores |= {r.name: scored(r, drawn.previews_JN[-1]) for r in config.watched}
    elif config.credit.kind == "terminal":
        credit_NK = terminal_credit(reward_N, steps=config.sampler.steps)
    else:
        values = [
            _total({r.name: scored(r, images) for r in config.rewards}, config.rewards)
            for images in drawn.previews_JN[:-1]
        ]
        at = [*config.credit.previews, config.sampler.steps]
        credit_NK = preview_credit(np.stack([*values, reward_N], axis=1), at=at, steps=config.sampler.steps)
    return Rollouts(
        block=block,
        version=drawn.version,
        latents_NK=drawn.latents_NK,
        logp_NK=drawn.logp_NK,
        scores=scores,
        reward_N=reward_N,
        credit_NK=credit_NK,
        pictures=drawn.previews_JN[-1][: block.pictures] if block.pictures else None,
        thumbnails_N=thumbnails(drawn.previews_JN[-1]),
        kl_N=drawn.kl_N,
        draws_N=drawn.draws_N,
        cost=drawn.cost + Cost(images_scored=block.size * len(drawn.previews_JN)),
        redone=Cost(images_scored=block.size * len(failures)),
        scoring_seconds=time.monotonic() - began,
    )


def refuse_scale(config: RunConfig, what: str) -> None:
    """Refuse `reward_scale` where blocks are scored for anything but an update.

    Raises:
        UserError: it is set.
    """
    if config.reward_scale != "given":
        raise UserError(
            f"expected reward_scale=given for {what}, got {config.reward_scale}: rewards are read block by block, without the batch "
            "of an update; leave it out"
        )


def _total(scores: dict[str, np.ndarray], terms: Sequence[Reward]) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum([term.weight * scores[term.name] for term in terms], axis=0)
    if not np.isfinite(total).all():
        each = ", ".join(f"{t.weight:g} x {t.name} (up to {np.abs(scores[t.name]).max():.3g})" for t in terms)
        raise UserError(
            f"expected a finite sum of rewards, got {total[~np.isfinite(total)][0]} from {each}: lower the weights"
        )
    return np.asarray(total)
