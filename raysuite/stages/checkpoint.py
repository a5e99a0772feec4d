"""update -> checkpoint: everything that a run needs to go on, bit for bit. Safetensors and JSON only."""

from __future__ import annotations

import filecmp
import hashlib
import json
import math
import shutil
import uuid
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError

from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.families.policy import Policy
from raysuite.families.sharding import is_share, share_of, whole
from raysuite.places import replacing
from raysuite.stages.files import RunDirectory, digest
from raysuite.stages.optimizer import in_parts, put_together
from raysuite.types import Cost

EMA = "ema"
"""The directory of the exponential moving average in a checkpoint, in the same form as `model`."""
Moments = dict[int, dict[str, torch.Tensor]]
"""What an optimiser remembers of each parameter, by its number: whole tensors."""


@dataclass
class State:
    """Where a run stands after `updates` updates."""

    updates: int = 0
    training: Cost = field(default_factory=Cost)
    evaluation: Cost = field(default_factory=Cost)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("rollout", "learn", "evaluate", "checkpoint"), 0.0)
    )
    tracker: dict[str, list[float]] = field(default_factory=dict)
    """Rewards remembered per prompt."""
    behaviour: dict[int, np.ndarray] = field(default_factory=dict)
    """Flat weights of the policy versions that rollouts may still be drawn from, by version."""
    reference: np.ndarray | None = None
    """Flat weights of the reference, where it is not the model as it came."""
    ema: np.ndarray | None = None
    """Flat weights of the exponential moving average, where one is kept."""
    scale: dict[str, list[float]] = field(default_factory=dict)
    """Running statistics of the terms of the reward; see `RewardScale`."""
    moments: Moments = field(default_factory=dict)
    """A copy of what the optimiser remembers (`Snapshot`), in the process that writes checkpoints: a stop in the middle of an update
    has it, though the optimiser has gone on and the other workers are not asked."""
    redone: Cost = field(default_factory=Cost)
    """What was done in vain and again; see `count_lost`."""
    redone_seconds: float = 0.0
    underway: Cost = field(default_factory=Cost)
    """Of the update or evaluation that is not finished, as far as the first worker knows."""
    underway_seconds: float = 0.0
    scoring_seconds: float = 0.0
    """That drawn blocks waited for scores, summed over blocks. Others are drawn meanwhile: it is no part of `seconds`."""
    evaluated: int | None = None
    """Updates of the policy that the run itself evaluated last. `raysuite evaluate` writes metrics, too, and the run pays for none."""

    def finished(self, config: RunConfig) -> bool:
        """Whether the run has had all its updates, or spent its budget."""
        spent = self.training.network_evaluations
        return self.updates >= config.updates or (config.budget is not None and spent >= config.budget)

    def final(self, config: RunConfig) -> bool:
        """Whether the policy is the first or the last, which are evaluated with more pictures, and on test prompts."""
        return not self.updates or self.finished(config)

    def is_evaluated(self, config: RunConfig, run: RunDirectory) -> bool:
        """Whether the run has evaluated its policy to the end."""
        return self.evaluated == self.updates and run.evaluated(config, self.updates, final=self.final(config))

    def expected_updates(self, config: RunConfig) -> int | None:
        """How many updates the run will probably have; None before the first where a budget decides."""
        if config.budget is None:
            return config.updates
        if not self.updates:
            return None
        if not self.training.network_evaluations:
            return config.updates
        return min(config.updates, math.ceil(config.budget * self.updates / self.training.network_evaluations))

    def average(self, weights: np.ndarray, *, decay: float) -> None:
        """Let the exponential moving average follow, after `updates` updates.

        The bound on the decay is that of Flow-GRPO and, one update later, of diffusers' `EMAModel`.
        """
        if self.ema is not None:
            share = min(decay, (1 + self.updates) / (10 + self.updates))
            self.ema = share * self.ema + (1 - share) * weights

    def ledger(self) -> dict[str, Any]:
        """What ledger.json holds."""
        return {
            "training": asdict(self.training),
            "evaluation": asdict(self.evaluation),
            "seconds": dict(self.seconds),
            "redone": {**asdict(self.redone), "seconds": self.redone_seconds},
            "underway": {**asdict(self.underway), "seconds": self.underway_seconds},
            "scoring": {"seconds": self.scoring_seconds},
        }

    def count_lost(self, ledger: Mapping[str, Any]) -> None:
        """Count as redone what the ledger of an attempt that ended knows beyond this state: it will be done again."""
        if not ledger:
            return
        (before, underway), seconds = (dict(ledger[of]) for of in ("redone", "underway")), ledger["seconds"]
        lost_seconds = sum(seconds.values()) - sum(self.seconds.values())
        self.redone_seconds = before.pop("seconds") + underway.pop("seconds") + lost_seconds
        spent = Cost(**ledger["training"]) + Cost(**ledger["evaluation"]) + Cost(**underway)
        self.redone = Cost(**before) + (spent - self.training - self.evaluation)


def save(directory: Path, policy: Policy, state: State, *, keep: int, best: int | None = None) -> Path:
    """Write `directory/<updates>`, complete or not at all, and drop all but the last `keep` and the one of the best policy.

    Args:
        directory: of a run's checkpoints.
        policy: whose weights `state.behaviour` has.
        state: of the run.
        keep: at least 1.
        best: updates of the policy whose checkpoint stays in any case.

    Raises:
        UserError: it could not be written (the disk is full, say); what was there before still is.
    """
    final = directory / f"{state.updates:06d}"
    for left in directory.glob(".[0-9]*"):  # by a process that was killed, or by `_drop`
        shutil.rmtree(left, ignore_errors=True)
    try:
        if final in completed(directory):
            # a run goes on that was stopped as this policy was evaluated: what it paid for that is all that is new
            _describe(final, state, _opened((final / "state.json").read_bytes())["sha256"])
        else:
            with replacing(final) as temporary:
                _write(temporary, policy, state)
                for earlier in completed(directory)[-1:]:
                    _share(temporary / "model", earlier / "model")
                if state.ema is not None:
                    _share(temporary / EMA, temporary / "model")
    except (OSError, SafetensorError) as error:
        before = completed(directory)
        stands = f"{before[-1]} stands" if before else "there is none before it"
        raise UserError(
            f"expected to write the checkpoint {final}, could not ({error}): {stands}; make room there, and give the same "
            "command again"
        ) from error
    for old in [path for path in completed(directory)[:-keep] if int(path.name) != best]:
        _drop(old)
    return final


def _drop(old: Path) -> None:
    """Remove a checkpoint, which is none from the first moment on; what cannot be removed yet is left to the next `save`.

    On NFS a file that a process of this machine still has open gets another name in place of going, and its directory stays.
    """
    gone = old.with_name(f".{old.name}.{uuid.uuid4().hex}")
    with suppress(OSError):
        old.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _write(temporary: Path, policy: Policy, state: State) -> None:
    for name, flat in {"model": state.behaviour[state.updates], EMA: state.ema}.items():
        if flat is not None:
            (temporary / name).mkdir(parents=True)
            policy.save(temporary / name, flat)
    names = list(policy.trainable())
    named = {
        f"{names[index]}/{key}": value.contiguous()
        for index, entry in state.moments.items()
        for key, value in entry.items()
    }
    safetensors.torch.save_file(named, temporary / "optimizer.safetensors")
    # the newest version is the model itself, and takes no room a second time
    behaviour = {str(version): flat for version, flat in state.behaviour.items() if version != state.updates}
    safetensors.numpy.save_file(behaviour, temporary / "behaviour.safetensors")
    if state.reference is not None:
        safetensors.numpy.save_file({"reference": state.reference}, temporary / "reference.safetensors")
    files = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
    _describe(temporary, state, {name: digest(temporary / name) for name in files})


def _describe(checkpoint: Path, state: State, digests: Mapping[str, str]) -> None:
    """Write state.json, of files with these digests, over the one that is there: a reader finds either whole."""
    document = {
        "updates": state.updates,
        "evaluated": state.evaluated,
        "ledger": state.ledger(),
        "tracker": state.tracker,
        "scale": state.scale,
        "sha256": digests,
    }
    with replacing(checkpoint / "state.json") as temporary:
        temporary.write_bytes(_sealed(document))


def _share(model: Path, before: Path) -> None:
    """Let files that training did not touch, such as a VAE's, take room once: one file under the names of both checkpoints.

    Nothing writes into a file of a checkpoint, and removing one of its names leaves the other.
    """
    for file in sorted(path for path in model.rglob("*") if path.is_file()):
        twin, spare = before / file.relative_to(model), file.with_name(f".{file.name}")
        if twin.is_file() and filecmp.cmp(file, twin, shallow=False):
            try:
                spare.hardlink_to(twin)
            except OSError:  # a file system without links, or at their limit: two files, then
                return
            spare.replace(file)


SEAL = b'{"digest": "'
BLANK = b"0" * 64


def _sealed(document: Mapping[str, Any]) -> bytes:
    """A document whose first entry is the digest of its own bytes, taken with noughts in the digest's place."""
    blank = json.dumps({"digest": BLANK.decode(), **document}).encode()
    return blank.replace(BLANK, hashlib.sha256(blank).hexdigest().encode(), 1)


def _opened(data: bytes) -> dict[str, Any]:
    """What `_sealed` wrote, checked.

    Raises:
        ValueError: it was changed.
    """
    told, rest = data[len(SEAL) : len(SEAL) + len(BLANK)], data[len(SEAL) + len(BLANK) :]
    if not data.startswith(SEAL) or hashlib.sha256(SEAL + BLANK + rest).hexdigest().encode() != told:
        raise ValueError("it was changed")
    document: dict[str, Any] = json.loads(data)
    return document


class Snapshot:
    """What an optimiser remembered after an update, whole and on the CPU.

    From a GPU it is copied beside what goes on there, into memory that stays pinned: the next pictures are drawn meanwhile, and
    only learning waits. Not run on a GPU yet.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, keep: bool = True) -> None:
        """Nothing yet.

        Args:
            optimizer: whose memory may be spread over processes: then all of them have to ask.
            keep: whether this process wants it; one that does not gets nothing.
        """
        self._optimizer, self._keep = optimizer, keep
        self._gpu = optimizer.param_groups[0]["params"][0].is_cuda
        self._stream = torch.cuda.Stream() if self._gpu else None
        self._copied: torch.cuda.Event | None = None
        self._moments: Moments = {}

    def take(self) -> Moments:
        """Copy what the optimiser remembers now over what was copied before; there after `wait`."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            for index, entry in self._optimizer.state_dict()["state"].items():
                for key, value in in_parts(entry).items():
                    found = whole(torch.as_tensor(value))
                    if self._keep:
                        self._place(index, key, found).copy_(found, non_blocking=True)
            if self._stream is not None:
                self._copied = self._stream.record_event()
        return self._moments

    def _place(self, index: int, key: str, like: torch.Tensor) -> torch.Tensor:
        entry = self._moments.setdefault(index, {})
        if key not in entry:
            entry[key] = torch.empty_like(like, device="cpu", pin_memory=self._gpu)
        return entry[key]

    def before_step(self) -> None:
        """Let the GPU finish the copy before it does anything else; nobody waits here."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)

    def wait(self) -> None:
        """Until the copy is there."""
        if self._copied is not None:
            self._copied.synchronize()


def restore_moments(optimizer: torch.optim.Optimizer, remembered: Moments) -> None:
    """Give an optimiser a copy of what another remembered, laid out in memory as its parameters are, which fused steps need.

    No part of it is a view of what was given: of a mapped file that would stay open as long as the optimiser lives.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def placed(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        if value.shape != parameter.shape or type(value) is not torch.Tensor:
            return value
        if is_share(parameter):
            return share_of(value, parameter).clone()
        return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)

    shares = {}
    for index, entry in remembered.items():
        own = put_together({key: part.clone() for key, part in entry.items()})
        shares[index] = {key: placed(value, parameters[index]) for key, value in own.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": shares})


def by_updates(run: Path) -> dict[int, Path]:
    """A run's whole checkpoints by the number of updates that they are of."""
    return {int(path.name): path for path in completed(run / "checkpoints")}


def find(run: Path, updates: int | None = None) -> Path:
    """A run's checkpoint after so many updates, or its last.

    Raises:
        UserError: there is none.
    """
    found = by_updates(run)
    if not found:
        raise UserError(f"expected a checkpoint of {run}, which has none yet: wait for its first")
    wanted = max(found) if updates is None else updates
    if wanted not in found:
        raise UserError(
            f"expected a checkpoint of {run}, which has {', '.join(map(str, sorted(found)))}, got {wanted}: name one of them"
        )
    return found[wanted]


def weights(checkpoint: Path, *, ema: bool = False) -> Path:
    """Where a checkpoint's weights lie, or the average of them.

    Raises:
        UserError: it has no average.
    """
    found = checkpoint / (EMA if ema else "model")
    if not found.is_dir():
        raise UserError(
            f"expected an average of the weights in {checkpoint}, found none: the run has no learn.ema; leave --ema out"
        )
    return found


def completed(directory: Path) -> list[Path]:
    """Checkpoints in ascending order."""
    return sorted(path for path in directory.glob("[0-9]*") if path.is_dir())


def load(checkpoint: Path, policy: Policy, optimizer: torch.optim.Optimizer | None = None) -> State:
    """Put a checkpoint's parameters into the policy (and its moments into the optimiser), and return the rest of the state.

    Raises:
        UserError: a file is missing or is not as it was written.
    """
    try:
        return _load(checkpoint, policy, optimizer)
    except OSError as error:
        raise UserError(
            f"expected a complete checkpoint in {checkpoint}, could not read it ({error}): a run that goes on removes its oldest "
            "checkpoints; name a later one"
        ) from error


def _load(checkpoint: Path, policy: Policy, optimizer: torch.optim.Optimizer | None) -> State:
    state = read_state(checkpoint)
    if (checkpoint / EMA).is_dir():
        policy.load(checkpoint / EMA)
        state.ema = policy.weights()
    policy.load(checkpoint / "model")
    if optimizer is not None:
        known = moments_by_name(checkpoint)
        restore_moments(optimizer, {n: known[name] for n, name in enumerate(policy.trainable()) if name in known})
    behaviour = safetensors.numpy.load_file(checkpoint / "behaviour.safetensors")
    state.behaviour = {state.updates: policy.weights(), **{int(version): flat for version, flat in behaviour.items()}}
    if (checkpoint / "reference.safetensors").exists():
        state.reference = safetensors.numpy.load_file(checkpoint / "reference.safetensors")["reference"]
        policy.set_reference(state.reference)
    return state


def moments_by_name(checkpoint: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What the optimiser remembers at a checkpoint, by the parameter's name; those without any have no entry.

    The tensors are views of the file, which is mapped as long as one of them lives.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in safetensors.torch.load_file(checkpoint / "optimizer.safetensors").items():
        name, _, of = key.rpartition("/")
        found.setdefault(name, {})[of] = value
    return found


def read_state(checkpoint: Path) -> State:
    """A checkpoint's state without its arrays, after checking every file against state.json.

    Raises:
        UserError: a file is missing or is not as it was written.
    """
    remedy = f"remove {checkpoint} to go on from the one before"
    try:
        document = _opened((checkpoint / "state.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected a complete checkpoint in {checkpoint}, its state.json is missing or damaged: {remedy}"
        ) from error
    for name, expected in document["sha256"].items():
        if not (checkpoint / name).is_file() or digest(checkpoint / name) != expected:
            raise UserError(
                f"expected a complete checkpoint in {checkpoint}, {name} was cut short or changed: {remedy}"
            )
    ledger = document["ledger"]
    redone = dict(ledger["redone"])
    return State(
        updates=document["updates"],
        evaluated=document["evaluated"],
        training=Cost(**ledger["training"]),
        evaluation=Cost(**ledger["evaluation"]),
        seconds=ledger["seconds"],
        tracker=document["tracker"],
        scale=document["scale"],
        redone_seconds=redone.pop("seconds"),
        redone=Cost(**redone),
        scoring_seconds=ledger["scoring"]["seconds"],
    )
