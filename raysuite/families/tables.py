"""A pipeline's sampler as the kernel's table: read from its own scheduler, never computed anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raysuite.config import Sampler
from raysuite.errors import UserError
from raysuite.families.driver import Driver
from raysuite.kernel.schedule import Levels, PredictionType, Schedule, noisy_schedule, variance_preserving_schedule

NO_SIGNAL = 2.0**-24
"""What some schedulers store as the squared signal level of the last timestep where it is 0 in truth."""


def prediction_of(scheduler: Any) -> PredictionType:
    """What a network of this scheduler predicts.

    Raises:
        UserError: the network predicts something else, or noise where there is no signal.
    """
    name, config = type(scheduler).__name__, scheduler.config
    said = config.get("prediction_type", "flow_prediction" if name.startswith("FlowMatch") else None)
    known: dict[str | None, PredictionType] = {
        "epsilon": "epsilon",
        "v_prediction": "v_prediction",
        "flow_prediction": "velocity",
    }
    if said not in known:
        raise UserError(
            f"expected a network that predicts noise, v or a velocity, got prediction_type={said} in the configuration of its "
            f"{name}: such a model is not supported"
        )
    if known[said] != "velocity" and getattr(scheduler, "alphas_cumprod", None) is None:
        raise UserError(f"expected a scheduler with alphas_cumprod, got {name}: such a model is not supported")
    if said == "epsilon" and float(scheduler.alphas_cumprod[-1]) <= NO_SIGNAL:
        raise UserError(
            "expected some signal at the last timestep of a noise-predicting model, got a schedule with zero terminal "
            f"signal-to-noise ratio ({name}): such models predict v; correct prediction_type in the scheduler's configuration"
        )
    return known[said]


def spaced(scheduler: Any, sampler: Sampler) -> Schedule:
    """The table of a variance-preserving model whose steps we space ourselves, on the CPU, float32.

    Raises:
        UserError: see `prediction_of`, or the sampler's settings do not suit.
    """
    return variance_preserving_schedule(
        scheduler.alphas_cumprod.double(),
        steps=sampler.steps,
        spacing=sampler.spacing or scheduler.config.get("timestep_spacing", "leading"),
        offset=scheduler.config.get("steps_offset", 0),
        prediction=prediction_of(scheduler),
        dtype=torch.float32,
        **sampler.noise.model_dump(),
    )


def read(driver: Driver, sampler: Sampler) -> Schedule:
    """The table that a pipeline's own scheduler has when the pipeline asks it for the sampler's steps, on the CPU, float32.

    Of variance-preserving models that is the timesteps; the last step goes to the level of the first training timestep.

    Raises:
        UserError: see `prediction_of`, or the sampler's settings do not suit.
    """
    prediction = prediction_of(driver.scheduler)
    if prediction != "velocity" and sampler.spacing is not None:
        return spaced(driver.scheduler, sampler)
    if sampler.spacing is not None:
        raise UserError(
            f"expected no sampler.spacing with {driver.name}, whose scheduler spaces by noise levels: leave it out"
        )
    asked = driver.asked_for(sampler.steps)
    timesteps_K = asked.timesteps.cpu()
    noise = sampler.noise.model_dump()
    if prediction == "velocity":
        sigma_K1 = asked.sigmas.cpu().double()
        return noisy_schedule(
            timesteps_K=timesteps_K,
            alpha_K1=1 - sigma_K1,
            sigma_K1=sigma_K1,
            training=_flow_levels(driver, timesteps_K, sigma_K1[:-1]),
            prediction=prediction,
            dtype=torch.float32,
            **noise,
        )
    if not torch.equal(timesteps_K.round(), timesteps_K):
        raise UserError(
            f"expected whole timesteps from {type(asked).__name__}, got {timesteps_K[:3].tolist()}, ...: set sampler.spacing"
        )
    timesteps_K, alpha_bar_T = timesteps_K.long(), asked.alphas_cumprod.cpu().double()
    alpha_bar_K1 = alpha_bar_T[torch.cat([timesteps_K, torch.zeros(1, dtype=torch.int64)])]
    return noisy_schedule(
        timesteps_K=timesteps_K,
        alpha_K1=alpha_bar_K1.sqrt(),
        sigma_K1=(1 - alpha_bar_K1).sqrt(),
        training=Levels.variance_preserving(alpha_bar_T.float()),
        prediction=prediction,
        dtype=torch.float32,
        **noise,
    )


def _flow_levels(driver: Driver, timesteps_K: Tensor, sigma_K: Tensor) -> Levels:
    """The levels of training: the fresh scheduler's, where the network is told its noise level.

    Where it is told another time (CogView4 unshifted ones, some schedulers whole ones), these are the levels that the pipeline
    would visit in as many steps as there are of training.
    """
    scheduler, count = driver.scheduler, driver.scheduler.config.num_train_timesteps
    if not torch.equal((sigma_K * count).float(), timesteps_K.float()) or len(scheduler.timesteps) != count:
        scheduler = driver.asked_for(count)
    return Levels.flow(scheduler.timesteps.cpu(), scheduler.sigmas.cpu()[:count].float())
