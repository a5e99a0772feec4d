"""A preference set from a model and a reward: rollouts of the model as it came, ranked as `preferences` says."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from raysuite.cluster import session
from raysuite.cluster.actors import RayCollector
from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.families import encoder_digests, open_policy
from raysuite.progress import Counting
from raysuite.stages import preference_set
from raysuite.stages.files import inputs
from raysuite.stages.preferences import compared, rankings
from raysuite.stages.prompts import distinct_blocks, load_prompts
from raysuite.stages.rewrites import refuse_writer
from raysuite.stages.rollout import refuse_scale
from raysuite.types import Preferences


def make_pairs(
    config: RunConfig, directory: Path, *, prompts: int, trajectories: bool, command: Sequence[str], counting: Counting
) -> dict[str, Any]:
    """Make a set, or go on with one that was stopped, and return its summary.

    Args:
        config: its model, sampler, prompts, rewards, rollouts and preferences count; what it trains does not.
        directory: where to.
        prompts: number of prompts to draw pictures of, a multiple of rollouts.prompts.
        trajectories: keep whole trajectories, for objectives of the reverse process.
        command: for the provenance.
        counting: is told of every block.

    Raises:
        UserError: the configuration cannot make a set, or the directory holds something else.
    """
    preference_set.check_place(directory)
    rounds, rest = divmod(prompts, config.rollouts.prompts)
    if rest or not rounds:
        raise UserError(
            f"expected --prompts as a multiple of rollouts.prompts={config.rollouts.prompts}, got {prompts}: correct one of them"
        )
    if config.preferences.source or config.rollouts.replay:
        raise UserError(
            "expected a configuration that draws rollouts, got one with preferences.source or rollouts.replay"
        )
    refuse_scale(config, "a set of preferences")
    if config.parameters.kind == "prompts":
        raise UserError(
            "expected parameters.kind=lora or all, got prompts: a set is drawn with prompts as they are, and holds no draws; set it"
        )
    if trajectories and config.sampler.window is not None:
        raise UserError(
            "expected no sampler.window with --trajectories, whose sets hold whole trajectories: leave one of them out"
        )
    refuse_writer(config, "a set of preferences")
    policy = open_policy(config, torch.device("cpu"), weights=not config.cluster.encode_once)
    sections = ("model", "prompts", "rewards", "rollouts", "preferences", "seed")
    canonical = config.identity()
    identity = {
        "model": config.model.path,
        "encoders": encoder_digests(config.model),
        "latent_shape": policy.latent_shape,
        "members": config.preferences.members,
        "steps": config.sampler.steps if trajectories else None,
        "sampler": canonical["sampler"],
        "source": {
            "kind": "rollouts",
            "read": inputs(config),
            "blocks": rounds * config.rollouts.blocks,
            **{s: canonical[s] for s in sections},
        },
    }
    preference_set.claim(directory, identity, command)
    done, known = preference_set.finished_blocks(directory), load_prompts(config.prompts)
    blocks = distinct_blocks(config, known, rounds)
    missing = [b for b in blocks if b.update * config.rollouts.blocks + b.index not in done]
    counting.begin(len(blocks), done=len(blocks) - len(missing))
    if missing:
        config = config.with_actors()
        drawing = config.model_copy(update={"rollouts": config.rollouts.model_copy(update={"keep": trajectories})})
        asked = [prompt for block in blocks for prompt in block.prompts]
        with session.drawing_actors(drawing, directory, prompts=asked) as (actors, texts):
            if texts is not None:  # until here it had encoders and no network, from here on the other way round
                policy = open_policy(config, torch.device("cpu"), texts=texts)
            for drawn in RayCollector.of(config, actors).start(missing, policy.weights(), 0):
                block = drawn.block
                indices_RM, ties = rankings(config, block, drawn.reward_N)
                ranked = compared(drawn, indices_RM)
                if not trajectories:
                    ranked = Preferences(latents_RMK=ranked.latents_RMK[:, :, -1:], prompts_R=ranked.prompts_R)
                number = block.update * config.rollouts.blocks + block.index
                preference_set.write_block(
                    directory,
                    number,
                    ranked,
                    rows_R=[number * block.size + int(row[0]) for row in indices_RM],
                    texts=policy.text_states(dict.fromkeys(ranked.prompts_R)),
                    read=len(indices_RM) + ties,
                    ties=ties,
                )
                counting.advance()
    shutil.rmtree(directory / "texts", ignore_errors=True)  # blocks hold theirs
    return preference_set.summarise(directory)
