"""update -> checkpoint: everything that a run needs to go on, bit for bit. Safetensors and JSON only."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch

from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.families.policy import Policy
from raysuite.types import Cost


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

    def finished(self, config: RunConfig) -> bool:
        """Whether the run has had all its updates, or spent its budget."""
        spent = self.training.network_evaluations
        return self.updates >= config.updates or (config.budget is not None and spent >= config.budget)

    def expected_updates(self, config: RunConfig) -> int | None:
        """How many updates the run will probably have; None before the first where a budget decides."""
        if config.budget is None:
            return config.updates
        if not self.updates:
            return None
        if not self.training.network_evaluations:
            return config.updates
        return min(config.updates, math.ceil(config.budget * self.updates / self.training.network_evaluations))

    def ledger(self) -> dict[str, Any]:
        """What ledger.json holds."""
        return {"training": asdict(self.training), "evaluation": asdict(self.evaluation), "seconds": dict(self.seconds)}


def save(directory: Path, policy: Policy, optimizer: torch.optim.Optimizer, state: State, *, keep: int) -> Path:
    """Write `directory/<updates>`, complete or not at all, and drop all but the last `keep`."""
    final = directory / f"{state.updates:06d}"
    temporary = directory / f".{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "model").mkdir(parents=True)
    policy.save(temporary / "model")
    names = list(policy.trainable())
    moments = {
        f"{names[index]}/{key}": torch.as_tensor(value).contiguous()
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    safetensors.torch.save_file(moments, temporary / "optimizer.safetensors")
    behaviour = {str(version): flat for version, flat in state.behaviour.items()}
    safetensors.numpy.save_file(behaviour, temporary / "behaviour.safetensors")
    if state.reference is not None:
        safetensors.numpy.save_file({"reference": state.reference}, temporary / "reference.safetensors")
    files = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
    document = {
        "updates": state.updates,
        "ledger": state.ledger(),
        "tracker": state.tracker,
        "sha256": {name: _digest(temporary / name) for name in files},
    }
    (temporary / "state.json").write_text(json.dumps(document))
    shutil.rmtree(final, ignore_errors=True)
    temporary.replace(final)
    for old in completed(directory)[:-keep]:
        shutil.rmtree(old)
    return final


def completed(directory: Path) -> list[Path]:
    """Checkpoints in ascending order."""
    return sorted(path for path in directory.glob("[0-9]*") if path.is_dir())


def load(checkpoint: Path, policy: Policy, optimizer: torch.optim.Optimizer | None = None) -> State:
    """Put a checkpoint's parameters into the policy (and its moments into the optimiser), and return the state.

    Raises:
        UserError: a file is missing or is not as it was written.
    """
    state = read_state(checkpoint)
    policy.load(checkpoint / "model")
    if optimizer is not None:
        moments = safetensors.torch.load_file(checkpoint / "optimizer.safetensors")
        entries: dict[int, dict[str, torch.Tensor]] = {}
        for index, name in enumerate(policy.trainable()):
            entry = {key.rpartition("/")[2]: value for key, value in moments.items() if key.rpartition("/")[0] == name}
            if entry:
                entries[index] = entry
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    behaviour = safetensors.numpy.load_file(checkpoint / "behaviour.safetensors")
    state.behaviour = {int(version): flat for version, flat in behaviour.items()}
    if (checkpoint / "reference.safetensors").exists():
        state.reference = safetensors.numpy.load_file(checkpoint / "reference.safetensors")["reference"]
        policy.set_reference(state.reference)
    return state


def read_state(checkpoint: Path) -> State:
    """A checkpoint's state without its arrays, after checking every file against state.json.

    Raises:
        UserError: a file is missing or is not as it was written.
    """
    remedy = f"remove {checkpoint} to go on from the one before"
    try:
        document: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
        digests = document["sha256"]
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"expected a complete checkpoint in {checkpoint}, its state.json is missing or damaged: {remedy}"
        ) from error
    for name, digest in digests.items():
        if not (checkpoint / name).is_file() or _digest(checkpoint / name) != digest:
            raise UserError(
                f"expected a complete checkpoint in {checkpoint}, {name} was cut short or changed: {remedy}"
            )
    ledger = document["ledger"]
    return State(
        updates=document["updates"],
        training=Cost(**ledger["training"]),
        evaluation=Cost(**ledger["evaluation"]),
        seconds=ledger["seconds"],
        tracker=document["tracker"],
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
