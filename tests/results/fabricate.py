"""A run directory whose every number is known by arithmetic."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

COST = 1_000  # network evaluations of one update

CONFIG: dict[str, Any] = {
    "seed": 3,
    "updates": 10,
    "model": {"path": "scenes"},
    "objective": {"name": "ddpo", "clip": 0.002},
    "rewards": [{"name": "scenes", "weight": 1.0}],
    "evaluation": {"every": 5, "rewards": ["scenes_strict"], "seed": 7},
    "learn": {"learning_rate": 1e-4},
}

Value = Callable[[int, str, int, int, str], float]
"""(update, split, prompt, sample, reward) -> value"""


def png(red: int, size: int = 2) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    rows = (b"\0" + bytes((red, 0, 0)) * size) * size
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def begin(directory: Path, config: Mapping[str, Any] = CONFIG) -> Path:
    """What there is before the first evaluation."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    provenance = {
        "command": ["/opt/bin/raysuite", "train", "scenes-ddpo"],
        "commit": "c0ffee",
        "versions": {"torch": "2.13.0"},
    }
    (directory / "provenance.json").write_text(json.dumps(provenance))
    return directory


def evaluate(
    directory: Path,
    update: int,
    value: Value,
    *,
    prompts: int = 12,
    samples: int = 2,
    rewards: tuple[str, ...] = ("scenes", "scenes_strict"),
    splits: tuple[str, ...] = ("held_out", "training"),
    text: str = "{split} prompt {index}",
) -> None:
    """One evaluation: scores, a KL of `update` / 10 nats, and two pictures of each split."""
    rows = [
        (update, split, text.format(split=split, index=i), s, reward, value(update, split, i, s, reward))
        for split in splits
        for s in range(samples)
        for reward in rewards
        for i in range(prompts)
    ]
    names = ("update", "split", "prompt", "sample", "reward", "value")
    (directory / "scores").mkdir(exist_ok=True)
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), directory / "scores" / f"{update:06d}.parquet")
    images = directory / "images" / f"{update:06d}"
    images.mkdir(parents=True, exist_ok=True)
    shown = [(split, i) for split in splits for i in range(min(2, prompts))]
    for split, i in shown:
        (images / f"{split}-{i}-0.png").write_bytes(png(20 * update + i))
    keys = {f"{split}-{i}": text.format(split=split, index=i) for split, i in shown}
    (directory / "images" / "prompts.json").write_text(json.dumps(keys))
    kl = update / 10
    log(directory, update, {"evaluation/kl": kl, "evaluation/kl_low": 0.9 * kl, "evaluation/kl_high": 1.1 * kl})
    spend(directory, update)


def learn(directory: Path, updates: range, *, cost: int = COST) -> None:
    """The metrics of some updates."""
    for update in updates:
        values = {
            "train/reward": 0.1 * update,
            "train/reward/scenes": 0.1 * update,
            "learn/ratio": 1.0,
            "learn/grad_norm": 0.5,
        }
        log(directory, update, values | {"budget/network_evaluations": cost * (update + 1)})
    spend(directory, updates.stop)


def log(directory: Path, update: int, values: Mapping[str, float]) -> None:
    with (directory / "metrics.jsonl").open("a") as file:
        for name, value in values.items():
            file.write(json.dumps({"update": update, "name": name, "value": value}) + "\n")


def spend(directory: Path, updates: int) -> None:
    """A ledger whose training side is COST network evaluations an update."""
    side = {
        "forward": COST * updates - 2 * 300 * updates,
        "backward": 300 * updates,
        "images_decoded": 8,
        "images_scored": 8,
    }
    evaluation = {"forward": 50, "backward": 0, "images_decoded": 4, "images_scored": 4}
    seconds = {"rollout": 3.0, "learn": 2.0, "evaluate": 1.0, "checkpoint": 0.5}
    (directory / "ledger.json").write_text(json.dumps({"training": side, "evaluation": evaluation, "seconds": seconds}))


def whole(directory: Path, value: Value, *, config: Mapping[str, Any] = CONFIG, **options: Any) -> Path:
    """A finished run of ten updates, evaluated at 0, 5 and 10."""
    begin(directory, config)
    evaluate(directory, 0, value, **options)
    learn(directory, range(5))
    evaluate(directory, 5, value, **options)
    learn(directory, range(5, 10))
    evaluate(directory, 10, value, **options)
    return directory
