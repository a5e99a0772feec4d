"""What a study keeps of every unit's gradients, block by block, and the inner products that come of it.

A block's file holds, for each objective, the gradients of its units in up to three spaces:

    parameters   (units, T, size)   sketches by timestep bin
    adam         (units, T, size)   the same after every coordinate was scaled as the run's optimiser would
    prediction   (units, 1, D)      what a step along the gradient changes at the probes, per unit of step
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from raysuite.config import RunConfig
from raysuite.families.policy import Policy
from raysuite.kernel.credit import PromptTracker, terminal_credit
from raysuite.kernel.directions import Gram
from raysuite.kernel.objectives import Objective
from raysuite.kernel.objectives.ddpo import Ddpo
from raysuite.kernel.sketch import Sketch, parameter_blocks
from raysuite.places import replacing
from raysuite.rng import Stage, numpy_generator, torch_generator
from raysuite.stages.checkpoint import moments_by_name
from raysuite.stages.learn import Batch, advantages, transitions
from raysuite.stages.optimizer import in_float32, put_together
from raysuite.stages.preference_set import PreferenceSet
from raysuite.stages.preferences import compared, rankings, rows_of_set
from raysuite.stages.prompts import evaluation_blocks, load_prompts, training_blocks
from raysuite.stages.rollout import sample
from raysuite.stages.stored import read_block
from raysuite.study.declared import Rung, Study
from raysuite.study.gradients import unit_gradients
from raysuite.types import Block, Cost, Preferences, Rollouts, Transitions

FIRST_UPDATE = 1_000_000
"""Units are drawn at coordinates beyond those of any run's updates: the policy has not learned from them."""
REWARD = "(reward)"
"""Stands for the trained reward itself: the policy gradient of E[r], in units of reward. Needed to predict gains."""
SPACES = ("parameters", "adam", "prediction")

Advantages = Mapping[str, np.ndarray]
"""(N, K) of one block: `reverse` and `forward` as objectives of that process take them, `reward` in units of reward."""


def study_blocks(study: Study, rung: Rung) -> list[Block]:
    """The blocks whose prompts are the study's units, in order."""
    config, rounds = rung.config, range(rung.rounds(study.units))
    if config.rollouts.replay:  # which prompts the source drew is a matter of its own seed
        source, indices = Path(config.rollouts.replay), range(config.rollouts.blocks)
        blocks = [read_block(source, update, index) for update in rounds for index in indices]
    else:
        prompts = load_prompts(config.prompts)
        # independent, as inner products of different units take them to be
        updates = [FIRST_UPDATE + r for r in rounds]
        blocks = [block for u in updates for block in training_blocks(config, prompts, u, independent=True)]
    # a unit is for objectives that compare and for those that do not
    return [replace(block, one_draw=True) for block in blocks]


def asked_prompts(study: Study, rung: Rung) -> list[str]:
    """All prompts that measuring a rung draws or learns from, and that steps are evaluated on; those of a set come with it."""
    config = rung.config
    blocks = study_blocks(study.model_copy(update={"units": study.sizes[-1]}), rung)
    if study.probes:
        blocks.append(_probed(config))
    if study.gain:
        known = load_prompts(config.prompts)
        blocks += [block for of in evaluation_blocks(config, known, 0, final=True).values() for block in of]
    return [prompt for block in blocks for prompt in block.prompts]


def block_advantages(
    configs: Mapping[str, RunConfig], rollouts: Sequence[Rollouts], trackers: Mapping[str, PromptTracker], *, steps: int
) -> list[Advantages]:
    """Of every block of one round, as training takes them, and centred rewards.

    Args:
        configs: a run that learns from rewards, by its objective's process: what rewards are worth there.
        rollouts: the blocks.
        trackers: for each of `configs`.
        steps: of a trajectory.
    """
    prompts = {r.block.index: [str(number) for number in r.block.number_of_N] for r in rollouts}
    trained = {}
    for process, config in configs.items():
        if config.credit.kind == "terminal":  # though previews may have been scored for another objective
            credits = {r.block.index: terminal_credit(r.reward_N, steps=steps) for r in rollouts}
        else:
            credits = {r.block.index: r.credit_NK for r in rollouts if r.credit_NK is not None}
        trained[process] = advantages(config, credits, prompts, trackers[process])
    return [
        {process: by_block[r.block.index] for process, by_block in trained.items()} | {"reward": _centred(r, steps)}
        for r in rollouts
    ]


def _centred(rollouts: Rollouts, steps: int) -> np.ndarray:
    """(N, K) r - mean of the others of the prompt, at every step: a baseline that leaves the policy gradient unbiased."""
    size = rollouts.block.samples_per_prompt
    reward_PS = rollouts.reward_N.reshape(-1, size)
    centred_PS = (reward_PS - reward_PS.mean(1, keepdims=True)) * size / max(1, size - 1)
    return np.repeat(centred_PS.reshape(-1, 1), steps, axis=1)


class Measurement:
    """Everything that measuring a block needs, opened once a process."""

    def __init__(self, study: Study, rung: Rung, policy: Policy, scale: Mapping[str, Tensor] | None) -> None:
        """Prepare.

        Args:
            study: declared.
            rung: which of its measurements.
            policy: with the weights and the reference of the rung's checkpoint.
            scale: of the run's optimiser (see `adam_scale`), or None without one.
        """
        self.study, self.rung, self.policy, self.scale = study, rung, policy, scale
        self.objectives: dict[str, Objective[Any]] = {
            label: config.built_objective for label, config in rung.configs.items()
        }
        if study.gain:
            self.objectives[REWARD] = Ddpo(clip=None, advantage_clip=float("inf"), per_dimension=False)
        comparing = [c for c in rung.configs.values() if c.built_objective.consumes == "preferences"]
        self.comparing = comparing[0] if comparing else None
        """A run that learns from preferences: all of a rung's compare the same, in the same way."""
        source = self.comparing.preferences.source if self.comparing else None
        self.set = PreferenceSet(Path(source)) if source else None
        self.sketch = study_sketch(study, rung.config.seed, policy)
        self.probes = Probes(policy, rung.config, study.probes) if study.probes else None

    def block(self, block: Block, rollouts: Rollouts | None, advantage: Advantages | None, directory: Path) -> None:
        """Measure a block's units and write them to `directory`, whole or not at all."""
        arrays: dict[str, list[Tensor]] = defaultdict(list)
        sums: dict[str, Tensor] = {}
        cost, counts = Cost(), {"rankings": 0}
        seen, of_unit = self._seen(block, rollouts, advantage)
        for place in range(len(block.prompts)):
            batches = {label: unit for label, units in seen.items() if (unit := units[place]) is not None}
            counts["rankings"] += max((len(b) for b in batches.values() if isinstance(b, Preferences)), default=0)
            cost += self._gradients(block, place, batches, of_unit, arrays, sums)
        number = block_number(self.rung.config, block)
        metadata = {"cost": json.dumps(asdict(cost)), "counts": json.dumps(counts)}
        if sums:
            with replacing(directory / "sums" / f"{number:06d}.safetensors") as temporary:
                safetensors.torch.save_file(sums, temporary)
        with replacing(directory / "units" / f"{number:06d}.safetensors") as temporary:
            safetensors.torch.save_file(
                {name: torch.stack(units) for name, units in arrays.items()}, temporary, metadata=metadata
            )

    def _seen(
        self, block: Block, rollouts: Rollouts | None, advantage: Advantages | None
    ) -> tuple[dict[str, Sequence[Batch | None]], float | None]:
        """A block's units as each objective sees them, None where there is nothing to learn from; and how many rankings units have."""
        seen: dict[str, Sequence[Batch | None]] = {}
        of_unit = None
        if self.comparing is not None:
            seen["preferences"], of_unit = self._preferences(self.comparing, block, rollouts)
        kinds = {
            label: "preferences" if of.consumes == "preferences" else "reward" if label == REWARD else of.process
            for label, of in self.objectives.items()
        }
        for kind in set(kinds.values()) - {"preferences"}:
            assert rollouts is not None and advantage is not None
            # an objective's mean is over steps, where the policy gradient sums over them
            steps = int(self.policy.schedule.windowed(block.window).stochastic_K.sum()) if kind == "reward" else 1
            seen[kind] = _by_prompt(transitions(rollouts, steps * advantage[kind]), block)
        return {label: seen[kind] for label, kind in kinds.items()}, of_unit

    def _preferences(
        self, config: RunConfig, block: Block, rollouts: Rollouts | None
    ) -> tuple[list[Preferences | None], float]:
        """Rankings of every unit, and how many it would have without ties, or in a set has on average.

        Rankings of a set have their prompts' text states with them.
        """
        if self.set is not None:
            # in a random order, in which none comes twice before all have
            numbers = rows_of_set(config, len(self.set.units), update=0, block=block_number(self.rung.config, block))
            of_unit = float(np.mean([len(rows[: self.rung.rankings]) for rows in self.set.units]))
            return [self._unit_of_set(self.set, config, number) for number in numbers], of_unit
        assert rollouts is not None
        indices_RM, ties = rankings(config, block, rollouts.reward_N)
        place_R = indices_RM[:, 0] // block.samples_per_prompt
        units = [indices_RM[place_R == place] for place in range(len(block.prompts))]
        of_unit = (len(indices_RM) + ties) / len(units)
        return [compared(rollouts, unit_RM) if len(unit_RM) else None for unit_RM in units], of_unit

    def _unit_of_set(self, held: PreferenceSet, config: RunConfig, number: int) -> Preferences:
        """All rankings of a prompt, or as many as are wanted at most: rankings that share pictures share noise, too."""
        rng = numpy_generator(seed=config.seed, stage=Stage.PREFERENCES, prompt=number)
        rows = np.sort(rng.permutation(held.units[number])[: self.rung.rankings]).tolist()
        self.policy.remember(held.texts(rows))
        return held.rows(rows)

    def _gradients(
        self,
        block: Block,
        place: int,
        batches: Mapping[str, Batch],
        of_unit: float | None,
        arrays: dict[str, list[Tensor]],
        sums: dict[str, Tensor],
    ) -> Cost:
        study, policy = self.study, self.policy
        kept = {label: torch.zeros(study.bins, self.sketch.size) for label in self.objectives}
        scaled = {label: torch.zeros(study.bins, self.sketch.size) for label in self.objectives if self.scale}
        whole = {label: torch.zeros(sum(self._sizes())) for label in self.objectives if self.probes or study.gain}

        def add(label: str, number: int, gradients: dict[str, Tensor]) -> None:
            kept[label][number] += self.sketch(gradients)
            if self.scale:
                scaled[label][number] += self.sketch({n: g.cpu() * self.scale[n] for n, g in gradients.items()})
            if label in whole:
                whole[label] += torch.cat([g.detach().flatten().float().cpu() for g in gradients.values()])

        seed, prompt = self.rung.config.seed, block.prompt_ids[place]
        cost = unit_gradients(
            self.objectives,
            policy,
            batches,
            add,
            generator=lambda: torch_generator(seed=seed, stage=Stage.OBJECTIVE, update=block.update, prompt=prompt),
            bins=study.bins,
            microbatch=self.rung.config.learn.microbatch,
            rankings=of_unit,
        )
        for label in self.objectives:
            arrays[f"parameters/{label}"].append(kept[label])
            if self.scale and label != REWARD:
                arrays[f"adam/{label}"].append(scaled[label])
            if self.probes and label != REWARD:
                response, spent = self.probes.response(whole[label])
                arrays[f"prediction/{label}"].append(response[None])
                cost += spent
            if study.gain and label != REWARD:
                sums[label] = sums[label] + whole[label] if label in sums else whole[label]
        return cost

    def _sizes(self) -> list[int]:
        return [p.numel() for p in self.policy.trainable().values()]


def _by_prompt(batch: Transitions, block: Block) -> list[Transitions]:
    """Each prompt's share of a block."""
    size = block.samples_per_prompt
    return [
        replace(
            batch,
            latents_NK=batch.latents_NK[samples],
            logp_NK=batch.logp_NK[samples],
            advantage_NK=batch.advantage_NK[samples],
            prompts_N=batch.prompts_N[samples],
            draws_N=None if batch.draws_N is None else batch.draws_N[samples],
        )
        for samples in (slice(start, start + size) for start in range(0, block.size, size))
    ]


def study_sketch(study: Study, seed: int, policy: Policy) -> Sketch:
    """The projection that all processes of a study share."""
    sizes = {name: p.numel() for name, p in policy.trainable().items()}
    return Sketch(
        sizes,
        parameter_blocks(list(sizes)),
        width=study.width,
        generator=lambda number: torch_generator(seed=seed, stage=Stage.SKETCH, sample=number),
    )


def block_number(config: RunConfig, block: Block) -> int:
    """Place of a block among all of a rung."""
    first = 0 if config.rollouts.replay else FIRST_UPDATE
    return (block.update - first) * config.rollouts.blocks + block.index


def adam_scale(checkpoint: Path, policy: Policy, config: RunConfig) -> dict[str, Tensor] | None:
    """What AdamW at this checkpoint multiplies each coordinate of a gradient with, 1 / (sqrt(v) + epsilon), v without its bias.

    The second moments are those of the run's own objective. None where it has made no step yet.
    """
    if not (checkpoint / "optimizer.safetensors").is_file():
        return None
    moments = moments_by_name(checkpoint)
    out = {}
    for name, parameter in policy.trainable().items():
        entry = put_together(moments.get(name, {}))
        if "exp_avg_sq" not in entry:
            return None
        bias = 1 - config.learn.betas[1] ** float(entry["step"])
        second = in_float32(entry["exp_avg_sq"]).view_as(parameter)
        out[name] = 1 / ((second / bias).sqrt() + config.learn.epsilon)
    return out


def _probed(config: RunConfig) -> Block:
    """The block that probes are points of."""
    return training_blocks(config, load_prompts(config.prompts), FIRST_UPDATE - 1)[0]


class Probes:
    """Points of sampled trajectories at which a change of the weights is looked at: J g by central differences."""

    STEP = 1e-4
    """Length of a step as a share of that of the weights (or of 1, if these are smaller)."""

    def __init__(self, policy: Policy, config: RunConfig, count: int) -> None:
        """Draw the points: steps spread evenly over the chain, each of another sample where there are as many."""
        block = _probed(config)
        drawn = sample(policy, block, config, version=0)
        assert drawn.latents_NK is not None
        first, end = block.window or (0, policy.schedule.steps)
        k = first + torch.arange(count) * (end - first) // count
        n = torch.arange(count) % block.size
        self.x = torch.from_numpy(drawn.latents_NK)[n, k - first].to(policy.device)
        self.t = policy.schedule.timesteps_K[k.to(policy.device)]
        self.prompts = [block.prompt_of_N[i] for i in n.tolist()]
        self.draws = None if drawn.draws_N is None else torch.from_numpy(drawn.draws_N)[n]
        self.policy, self.weights = policy, policy.weights()

    @torch.no_grad()
    def response(self, gradient: Tensor) -> tuple[Tensor, Cost]:
        """(D,) change of all predictions per unit of step along the gradient, and what that cost."""
        size = float(gradient.norm())
        if size == 0:
            return torch.zeros(self.x.numel()), Cost()
        step = self.STEP * max(1.0, float(np.linalg.norm(self.weights))) / size
        sides = []
        for sign in (1, -1):
            self.policy.set_weights(self.weights + sign * step * gradient.numpy())
            sides.append(self.policy.predict(self.x, self.t, self.prompts, draws_N=self.draws))
        self.policy.set_weights(self.weights)
        spent = 2 * len(self.x) * self.policy.evaluations_per_prediction
        return ((sides[0] - sides[1]) / (2 * step)).flatten().cpu(), Cost(forward=spent)


Products = Mapping[tuple[str, str], tuple[Gram, Gram]]
"""K of every pair of objectives, by bin (T, T) and by block of layers (L)."""


def inner_products(directory: Path, space: str, labels: Sequence[str], spans: Mapping[str, slice]) -> Products:
    """K of every pair of objectives in float64, from all units' files. One block of layers is held in memory at a time."""
    files = sorted((directory / "units").glob("[0-9]*.safetensors"))
    pairs = [(a, b) for i, a in enumerate(labels) for b in labels[i:]]
    by_block: dict[tuple[str, str], list[Gram]] = defaultdict(list)
    by_bin: dict[tuple[str, str], Gram] = {}
    for span in spans.values():
        held = {}
        for label in labels:
            parts = []
            for file in files:
                with safetensors.safe_open(file, framework="numpy") as stored:
                    parts.append(stored.get_slice(f"{space}/{label}")[:, :, span].astype(np.float64))
            held[label] = np.concatenate(parts)
        for a, b in pairs:
            product = Gram.of(held[a], held[b])
            by_bin[a, b] = by_bin[a, b] + product if (a, b) in by_bin else product
            by_block[a, b].append(product.over_bins())
    return {pair: (by_bin[pair], Gram.stacked(by_block[pair])) for pair in pairs}
