"""`StableDiffusionPipeline` (SD 1.x, 2.x, the bundled scenes) without its own call around the network.

Its U-Net is small, so that what a pipeline does around each step would show. docs/architecture.md says how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysuite.config import Sampler
from raysuite.devices import sent
from raysuite.families import tables
from raysuite.families.pipeline import PipelinePolicy
from raysuite.families.text import TextStates
from raysuite.kernel.schedule import Schedule


class StableDiffusionPolicy(PipelinePolicy):
    """The same policy as `PipelinePolicy`, with a table whose steps are spaced as DDIM's.

    With `model.arguments` the pipeline's own call is asked after all, since it alone knows what they mean.
    """

    def _schedule(self, sampler: Sampler) -> Schedule:
        return tables.spaced(self.pipeline.scheduler, sampler)

    def _output(self, network: Any, x_N: Tensor, t_N: Tensor, prompts_N: Sequence[str], guidance: float) -> Tensor:
        """The guided output e_uncond + w (e_cond - e_uncond), or e_cond."""
        if self.model.arguments:
            return super()._output(network, x_N, t_N, prompts_N, guidance)
        states_N, t_N = self._states_of(prompts_N), sent(t_N, x_N.device)
        with self._autocast():
            if guidance == 1:
                return network(x_N, t_N, states_N, return_dict=False)[0].float()
            negative_N = self._states_of([self.driver.negative or ""]).expand_as(states_N)
            both = network(
                torch.cat([x_N, x_N]), torch.cat([t_N, t_N]), torch.cat([negative_N, states_N]), return_dict=False
            )[0]
        unconditional, conditional = both.float().chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def _states_of(self, prompts_N: Sequence[str]) -> Tensor:
        """(N, tokens, width)."""
        return self.driver.encoded(prompts_N)[0]

    def _states(self, prompt: str) -> TextStates:
        if self.model.arguments:
            return super()._states(prompt)
        prompts = (prompt, self.driver.negative or "") if self.guidance > 1 else (prompt,)
        return {
            question: self.driver.memory.get(question)
            for question in self.driver.asked_by(lambda: [self.driver.encoded([each]) for each in prompts])
        }

    @torch.no_grad()
    def _pictures(self, latents_N: Tensor) -> np.ndarray:
        """Through the VAE in float32, rounded as diffusers' image processor does."""
        images = self.pipeline.vae.decode(latents_N / self.pipeline.vae.config.scaling_factor, return_dict=False)[0]
        return ((images / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
