"""What every picture of an evaluation is drawn and scored with: pinned, so that numbers which stand beside each other may be compared.

Guidance, steps and size alone can move a score by more than methods differ. So nothing here is left to a run: runs that would be drawn
otherwise than the first are refused, and a directory that was begun with another protocol is, too.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from raysuite import config as configuration
from raysuite.config import Reward, RunConfig
from raysuite.config.sections import Judge
from raysuite.errors import UserError
from raysuite.families import located
from raysuite.rewards import REWARDS, resolve
from raysuite.stages import checkpoint, files
from raysuite.stages.files import RunDirectory, differences, digest, versions_of
from raysuite.stages.prompts import Prompt, evaluation_block
from raysuite.suites.declared import Suite, categories_of
from raysuite.types import Block

VERSIONS = ("raysuite", "torch", "diffusers", "transformers", "peft")
"""Packages on which pictures and scores depend."""
PACKAGES = {"ocr": ("rapidocr", "onnxruntime")}
"""Packages that bring a reward's network."""
CHANGEABLE = ("sampler", "model.size", "model.precision", "model.arguments", "cluster")
"""Settings that an evaluation may have others of than the training had, and the sections of such."""
DECIDED = ("sampler.steps", "sampler.guidance")
"""Settings without which nobody knows how a model that is no run's is drawn."""
NOTHING_LEARNED = {"name": "diffusion_dpo", "beta": 1.0}
"""An objective that goes with any sampler."""
SHOWN = 48
"""Prompts of which the first picture is kept in any case, spread evenly over the suite."""
content = cache(files.content)
"""Of a base it is asked for every run."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A model that is evaluated."""

    label: str
    """`run@updates`, `base-model`, or the name of a model that is no run's."""
    base: str
    """The label of the model as it came."""
    config: RunConfig
    """With which pictures are drawn and scored: the protocol's, with the model and the parameters of the run."""
    checkpoint: Path | None
    """None is the model as it came."""
    ema: bool = False
    """Whether the average of the weights is meant."""

    @property
    def opened(self) -> tuple[Any, ...]:
        """What decides how a process opens it: members that have this in common differ in weights that are handed over."""
        drawn_first = self.config.seed if self.config.parameters.kind == "prompts" else None
        return self.config.model, self.config.parameters, drawn_first

    def settings(self) -> dict[str, Any]:
        """What decides its weights."""
        (model, parameters, drawn_first), start = self.opened, self.config.parameters.start
        return {
            "base": self.base,
            "model": content(located(model).path),
            "variant": model.variant,
            "start": content(start) if start else None,
            "prompts": None
            if drawn_first is None
            else {"seed": drawn_first, **parameters.prompts.model_dump(mode="json")},
            "checkpoint": digest(self.checkpoint / "state.json") if self.checkpoint else None,
            "ema": self.ema,
        }


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """An evaluation: a suite's prompts, how they are drawn, and what scores the pictures."""

    suite: Suite
    prompts: tuple[Prompt, ...]
    members: tuple[Member, ...]
    """Each run after its base, then models that are no run's."""
    samples: int
    """Pictures a prompt."""
    seed: int
    """Of the noise. The noise of a picture depends on it, the prompt's number and the picture's, and on no member."""
    batch: int
    """Pictures that go through a network at once, on which their last bits depend."""
    all_images: bool
    """Keep every picture."""

    @property
    def config(self) -> RunConfig:
        """In which everything but model and parameters is that of all members."""
        return self.members[0].config

    def settings(self) -> dict[str, Any]:
        """All of it as JSON: what `protocol.json` holds."""
        return {
            "suite": {
                "name": self.suite.name,
                "source": self.suite.source,
                "overall": self.suite.overall,
                "categories": list(categories_of(self.prompts)),
            },
            "prompts": {"number": len(self.prompts), "sha256": _digest_of(self.prompts)},
            "samples": self.samples,
            "seed": self.seed,
            "batch": self.batch,
            "images": "all" if self.all_images else "some",
            **drawn(self.config),
            "rewards": {
                reward.name: known(reward, self.config.cluster.judges.get(reward.name))
                for reward in self.config.rewards
            },
            "order": [reward.name for reward in self.config.rewards],  # the first is what a page is about
            "versions": versions_of(VERSIONS),
        }

    @cached_property
    def shown(self) -> frozenset[int]:
        """Numbers of the prompts whose first picture is kept in any case."""
        number = min(SHOWN, len(self.prompts))
        return frozenset(place * len(self.prompts) // number for place in range(number))

    def kept(self, prompt: int, sample: int) -> bool:
        """Whether a picture is kept."""
        return self.all_images or (sample == 0 and prompt in self.shown)

    def blocks(self) -> list[Block]:
        """Everything that is to be drawn of one member. A block has one picture of each of its prompts."""
        blocks: list[Block] = []
        for sample in range(self.samples):
            for first in range(0, len(self.prompts), self.batch):
                part = self.prompts[first : first + self.batch]
                wanted = any(self.kept(prompt.number, sample) for prompt in part)
                pictures = len(part) if wanted else 0
                blocks.append(
                    evaluation_block(self.config, part, index=len(blocks), first_sample=sample, pictures=pictures)
                )
        return blocks


def declare(
    suite: Suite,
    prompts: tuple[Prompt, ...],
    runs: Sequence[Path],
    *,
    models: Sequence[str] = (),
    file: Path,
    rewards: Sequence[str],
    settings: Mapping[str, str],
    updates: int | None,
    ema: bool,
    samples: int | None,
    seed: int,
    batch: int,
    all_images: bool,
) -> Protocol:
    """An evaluation of runs and of what they began with, and of other models.

    Args:
        suite: which.
        prompts: of it.
        runs: directories.
        models: directories or hub ids, or `{path: DIR, lora: FILE, variant: fp16, name: LABEL}` as YAML, with
            `kind: all` for a class that takes no LoRA.
        file: where the prompts will lie for whoever encodes them.
        rewards: names, or entries of a run's `rewards`, as YAML; none for the suite's own.
        settings: by path, in place of the runs' own.
        updates: of the checkpoints; None for the last of each run.
        ema: whether the average of the weights is meant.
        samples: pictures a prompt; None for as many as the suite's authors draw.
        seed: of the noise.
        batch: pictures at once.
        all_images: keep every picture.

    Raises:
        UserError: a run or checkpoint is not there, or runs would not be drawn alike.
    """
    if not runs and (ema or updates is not None):
        raise UserError(
            f"expected a RUN with {'--ema' if ema else '--checkpoint'}, got models alone, which have none: leave it out"
        )
    owns = [RunDirectory(run).config() for run in runs]
    like = owns[0] if owns else _without_runs(suite, rewards, settings)

    def asked(own: RunConfig) -> RunConfig:
        return _config(own, suite, rewards, settings, seed, file)

    configs = [asked(own) for own in owns]
    others = [(label, asked(own)) for label, own in (_published(text, like) for text in models)]
    for run, config in zip(runs, configs, strict=True):
        if found := list(differences(_shared(config), _shared(configs[0]))):
            raise UserError(
                f"expected runs that are drawn and scored alike, {run.name} (there) and {runs[0].name} (here) differ in {found[0]}: "
                "say with --set, or --reward, what it is to be for all"
            )
    members: dict[str, Member] = {}

    def add(member: Member) -> None:
        if member.label in members:
            raise UserError(
                f"expected models that their names tell apart, got {member.label} twice: leave one out, rename a run's directory, or "
                "give a --model a name"
            )
        members[member.label] = member

    if updates == 0:
        raise UserError(
            "expected --checkpoint of a trained model, got 0: the model as it came is evaluated in any case; leave it out"
        )
    for run, config in zip(runs, configs, strict=True):
        path = checkpoint.find(run, updates)
        checkpoint.weights(path, ema=ema)
        number = checkpoint.read_state(path).updates
        label = f"base-{_name(config)}"
        base = Member(label=label, base=label, config=config, checkpoint=None)
        if label not in members or members[label].settings() != base.settings():
            add(base)
        label = f"{run.name}@{number}{'-ema' if ema else ''}"
        add(Member(label=label, base=base.label, config=config, checkpoint=path, ema=ema))
    for label, config in others:
        add(Member(label=label, base=label, config=config, checkpoint=None))
    return Protocol(
        suite=suite,
        prompts=prompts,
        members=tuple(members.values()),
        samples=samples or suite.samples,
        seed=seed,
        batch=batch,
        all_images=all_images,
    )


def _without_runs(suite: Suite, rewards: Sequence[str], settings: Mapping[str, str]) -> RunConfig:
    """What models that are no run's have where a run's sampler and rewards would be: what was said, and no guess."""
    if missing := [path for path in DECIDED if path not in settings]:
        raise UserError(
            f"expected {' and '.join(missing)} where there is no RUN whose sampler decides how pictures are drawn: say them with --set"
        )
    if not (suite.rewards or rewards):
        raise UserError(
            f"expected --reward with the suite {suite.name} where there is no RUN, got none: name what scores"
        )
    return configuration.validate(
        {"model": {"path": "scenes"}, "rewards": ["redness"], "updates": 1, "objective": NOTHING_LEARNED}
    )


def _published(text: str, like: RunConfig) -> tuple[str, RunConfig]:
    """The label and the configuration of a model that is no run's: that of a run, with the model in place of its own."""
    said = configuration.parse("--model", text)
    entry = {"path": said} if isinstance(said, str) else said
    if not isinstance(entry, dict) or "path" not in entry or entry.keys() - {"path", "lora", "variant", "name", "kind"}:
        raise UserError(f"expected a directory, a hub id or {{path: DIR, lora: FILE}} with --model, got {text!r}")
    tree = like.canonical()
    tree["model"] |= {"path": entry["path"], "variant": entry.get("variant")}
    tree["parameters"] = {"kind": entry.get("kind", "lora"), "start": entry.get("lora")}
    config = configuration.validate(tree)
    label = str(entry.get("name", _name(config)))
    if label != Path(label).name:
        raise UserError(f"expected a name that a directory can have with --model, got {label!r}: choose another")
    return label, config


def _config(
    own: RunConfig, suite: Suite, rewards: Sequence[str], settings: Mapping[str, str], seed: int, file: Path
) -> RunConfig:
    """A run's configuration as it is for an evaluation."""
    entries = [_entry(own, text) for text in rewards] or [_own(own, name) for name in suite.rewards or own.reward_names]
    tree = own.canonical()
    judges = tree["cluster"]["judges"]
    named = {entry.get("name") for entry in entries}
    tree["cluster"] |= {"judges": {n: j for n, j in judges.items() if n in named}, "workers": 1, "shard": False}
    for path, value in settings.items():
        if not any(path == known or path.startswith(f"{known}.") for known in CHANGEABLE):
            raise UserError(
                f"expected a setting of {', '.join(CHANGEABLE)}, got {path}: an evaluation changes how pictures are drawn, nothing "
                "else of a run; --seed, --samples and --reward are options of their own"
            )
        configuration.put(tree, path, configuration.parse(path, value))
    return configuration.validate(
        {
            **{section: tree[section] for section in ("model", "sampler", "parameters", "cluster") if section in tree},
            "updates": 1,
            "seed": own.seed,
            "prompts": {"training": str(file), "held_out": None},
            "rewards": entries,
            "evaluation": {"seed": seed, "kl": False},
            "objective": NOTHING_LEARNED,
        }
    )


def _entry(own: RunConfig, text: str) -> dict[str, Any]:
    """What an option `--reward` says; a name alone is what the run knows by it."""
    said = configuration.parse("--reward", text)
    if isinstance(said, str):
        return _own(own, said)
    if not isinstance(said, dict) or "name" not in said:
        raise UserError(
            f"expected a reward's name, or an entry such as {{name: hps_v2, model: DIR}}, with --reward, got {text!r}"
        )
    return dict(said)


def _own(own: RunConfig, name: str) -> dict[str, Any]:
    """The entry that a run has of a reward, with its model and options, or the reward as it is by itself."""
    return {**own.reward(name).model_dump(mode="json"), "weight": 1.0}


def _shared(config: RunConfig) -> dict[str, Any]:
    """What has to be alike in all that is compared."""
    rewards = {r.name: {"model": r.model, "options": r.options} for r in config.rewards}
    return {**drawn(config), "rewards": rewards}


def drawn(config: RunConfig) -> dict[str, Any]:
    """How pictures are drawn, whatever the model."""
    tree = config.canonical()
    return {"sampler": tree["sampler"], **{name: tree["model"][name] for name in ("size", "precision", "arguments")}}


def _name(config: RunConfig) -> str:
    """Of the model that a run began with."""
    start = config.parameters.start
    label = f"{Path(config.model.path).name}{f'+{Path(start).stem}' if start else ''}"
    return f"{label}+prompts{config.seed}" if config.parameters.kind == "prompts" else label


def known(reward: Reward, judge: Judge | None) -> dict[str, Any]:
    """What decides a reward's scores."""
    there = reward.model is not None and Path(reward.model).exists()
    sha256 = content(reward.model) if there and reward.model else None
    found = {"model": reward.model, "options": reward.options, "sha256": sha256}
    beside = reward.options.get("clip")
    if isinstance(beside, str) and Path(beside).exists():
        found["clip"] = content(beside)
    if reward.name in PACKAGES:
        found["versions"] = versions_of(PACKAGES[reward.name])
    if reward.name not in REWARDS:
        found["source"] = _source(reward.name)
    if judge and judge.environment:
        found["environment"] = judge.environment
    return found


def _source(name: str) -> str | None:
    """Digest of the file in which a user's own reward is written; None where it is in none."""
    resolve(name)  # which imports it
    file = sys.modules[name.partition(":")[0]].__file__
    return content(file) if file else None


def _digest_of(prompts: Sequence[Prompt]) -> str:
    lines = [json.dumps([p.stratum, p.text, dict(p.metadata)], sort_keys=True, default=str) for p in prompts]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
