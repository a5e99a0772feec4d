"""A rung of a study on disk: rollouts and units as they come, and in the end the estimates that take their place.

    seconds.json            what was spent so far
    drawn.json, rollouts/   what was drawn
    units/, sums/           what was measured, block by block
    totals.safetensors      sums over all blocks
    estimates.parquet, facts.json, inner_products-<space>.safetensors, gains.parquet

The first three are removed when there are estimates, since they can be had again; totals when steps along them were taken.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.numpy
import torch

from raysuite.errors import UserError
from raysuite.families.policy import Policy
from raysuite.kernel.credit import PromptTracker
from raysuite.kernel.directions import Gram
from raysuite.kernel.sketch import Sketch
from raysuite.places import replacing
from raysuite.stages import checkpoint, stored
from raysuite.stages.files import read_json, write_json
from raysuite.study.declared import Rung, Study
from raysuite.study.estimates import estimates, widest
from raysuite.study.gains import COLUMNS
from raysuite.study.gradients import bin_ranges
from raysuite.study.measure import (
    REWARD,
    SPACES,
    Advantages,
    adam_scale,
    block_advantages,
    block_number,
    inner_products,
    study_sketch,
)
from raysuite.types import Block, Cost, Rollouts


class RungDirectory:
    """One measurement of a study: what is known of it, and where it is kept."""

    def __init__(self, study: Study, rung: Rung, path: Path) -> None:
        self.study, self.rung, self.path = study, rung, path

    def of_size(self, units: int) -> RungDirectory:
        """The same measurement of so many units, of which those that are there are the first."""
        return RungDirectory(self.study.model_copy(update={"units": units}), self.rung, self.path)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of units that are still to be measured; of fewer than are being measured it is known that they were not enough."""
        begun = len(self.measured) * self.rung.config.rollouts.prompts_per_block
        return tuple(size for size in self.study.sizes if size >= begun) or self.study.sizes[-1:]

    @property
    def finished(self) -> bool:
        """Whether its estimates are there."""
        return (self.path / "estimates.parquet").exists()

    @property
    def stepped(self) -> bool:
        """Whether steps along what was found have been taken."""
        return (self.path / "gains.parquet").exists()

    @property
    def place(self) -> dict[str, Any]:
        """What tells its rows from those of other rungs."""
        rung = self.rung
        return {
            "rung": rung.number,
            "along": rung.along,
            "value": json.dumps(rung.value),
            "checkpoint": rung.checkpoint,
        }

    # the policy that is measured

    @property
    def _checkpoint(self) -> Path | None:
        if not self.rung.checkpoint:
            return None
        return Path(str(self.study.directory)) / "checkpoints" / f"{self.rung.checkpoint:06d}"

    def load(self, policy: Policy) -> None:
        """Put the rung's checkpoint into a policy: its weights, and the reference that the run had then."""
        if self._checkpoint is not None:
            checkpoint.load(self._checkpoint, policy)

    def adam_scale(self, policy: Policy) -> dict[str, torch.Tensor] | None:
        """Of the optimiser at the rung's checkpoint; None for the model as it came."""
        return adam_scale(self._checkpoint, policy, self.rung.config) if self._checkpoint is not None else None

    # what was spent

    @property
    def seconds(self) -> dict[str, float]:
        """By what they were spent on, of all attempts."""
        known = self.path / "seconds.json"
        return read_json(known, "study") if known.exists() else {}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the seconds of a `with`, however it ends."""
        started = time.monotonic()
        try:
            yield
        finally:
            before = self.seconds
            write_json(self.path / "seconds.json", {**before, what: before.get(what, 0.0) + time.monotonic() - started})

    # what was drawn

    @cached_property
    def drawn(self) -> dict[str, Any]:
        """Cost and mean reward of every block that was drawn, by its number."""
        known = self.path / "drawn.json"
        return json.loads(known.read_text()) if known.exists() else {}

    def undrawn(self, blocks: Sequence[Block]) -> list[Block]:
        """Those that are still to be drawn."""
        return [block for block in blocks if str(block_number(self.rung.config, block)) not in self.drawn]

    def keep(self, rollouts: Rollouts) -> None:
        """A block was drawn."""
        stored.keep(self.path, rollouts)
        facts = {"cost": vars(rollouts.cost), "reward": float(rollouts.reward_N.mean())}
        self.drawn[str(block_number(self.rung.config, rollouts.block))] = facts
        write_json(self.path / "drawn.json", self.drawn)

    def rollouts(self, block: Block) -> Rollouts:
        """Of a block that was drawn, here or by the run that is replayed.

        Raises:
            UserError: it was drawn for other prompts.
        """
        replay = self.rung.config.rollouts.replay
        place = Path(replay) if replay else self.path
        found = stored.read(place, block.update, block.index)
        if found.block.prompt_ids != block.prompt_ids:
            raise UserError(
                f"expected rollouts of this study's prompts in {place}, got those of others: put the prompts back as they were "
                "when it began, or give another --out"
            )
        return found

    def advantages(self, blocks: Sequence[Block]) -> dict[int, Advantages]:
        """Of every block, round by round as training would have them; none where nothing is drawn or replayed."""
        config = self.rung.config
        if not self.rung.draws and config.rollouts.replay is None:
            return {}
        rewarded = self.rung.rewarded
        trackers = {
            process: PromptTracker.empty(size=run.credit.tracker_size, minimum=run.credit.tracker_minimum)
            for process, run in rewarded.items()
        }
        out = {}
        for start in range(0, len(blocks), config.rollouts.blocks):
            rollouts = [self.rollouts(block) for block in blocks[start : start + config.rollouts.blocks]]
            known = block_advantages(rewarded, rollouts, trackers, steps=config.sampler.steps)
            for done, advantage in zip(rollouts, known, strict=True):
                out[block_number(config, done.block)] = advantage
        return out

    # what was measured

    @property
    def _units(self) -> list[Path]:
        return sorted((self.path / "units").glob("[0-9]*.safetensors"))

    @property
    def measured(self) -> set[int]:
        """Numbers of the blocks whose units have been measured."""
        return {int(file.stem) for file in self._units}

    def estimate(self, policy: Policy, *, last: bool = True) -> bool:
        """Write what comes of the units, and remove them.

        Args:
            policy: of the family and with the parameters that were measured.
            last: whether that is all. Otherwise nothing is written where the study wants more units, to know cosines better.

        Returns:
            Whether it was written.
        """
        with self.timed("estimate"):
            sketch = study_sketch(self.study, self.rung.config.seed, policy)
            rows = list(self._rows(sketch))
        if not last and self.study.until is not None and widest(rows) > self.study.until:
            return False
        facts = {
            "objectives": list(self.study.objectives),
            "bins": bin_ranges(policy, self.study.bins),
            "blocks": sketch.coordinates,
            "exact": sketch.error == 0,
            "projection_error": sketch.error,
            "rungs": [self._facts()],
        }
        write_json(self.path / "facts.json", facts)
        with replacing(self.path / "estimates.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(rows), temporary)
        self.tidy()
        return True

    def tidy(self) -> None:
        """Remove what estimates, and gains, have made needless; a command may have been killed before it did."""
        if self.finished:
            for file in ("drawn.json", "seconds.json"):
                (self.path / file).unlink(missing_ok=True)
            for done_with in ("units", "rollouts", "sums"):
                shutil.rmtree(self.path / done_with, ignore_errors=True)
        if self.stepped:
            (self.path / Totals.FILE).unlink(missing_ok=True)

    def _rows(self, sketch: Sketch) -> Iterator[dict[str, Any]]:
        labels = list(self.rung.configs)
        with safetensors.safe_open(self._units[0], framework="numpy") as held:
            spaces = {name.split("/")[0] for name in held.keys()}  # noqa: SIM118 - not a mapping
        for space in (space for space in SPACES if space in spaces):
            spans = {"": slice(None)} if space == "prediction" else sketch.spans
            measured = [*labels, REWARD] if self.study.gain and space == "parameters" else labels
            products = inner_products(self.path, space, measured, spans)
            order = {label: str(number) for number, label in enumerate(measured)}
            arrays = {
                f"{order[a]}-{order[b]}/{part}/{name}": np.ascontiguousarray(values)
                for (a, b), both in products.items()
                for part, gram in zip(("bins", "blocks"), both, strict=True)
                for name, values in vars(gram).items()
            }
            with replacing(self.path / f"inner_products-{space}.safetensors") as temporary:
                safetensors.numpy.save_file(arrays, temporary, metadata={"labels": json.dumps(measured)})
            own = {pair: found for pair, found in products.items() if REWARD not in pair}
            for row in estimates(own, labels, list(spans)):
                yield {**self.place, "space": space, **row}

    def _facts(self) -> dict[str, Any]:
        drawn, ranked = self.drawn, 0
        cost = sum((Cost(**block["cost"]) for block in drawn.values()), Cost())
        for file in self._units:
            with safetensors.safe_open(file, framework="numpy") as measured:
                metadata = measured.metadata()
            cost += Cost(**json.loads(metadata["cost"]))
            ranked += json.loads(metadata["counts"])["rankings"]
        rewards = [drawn[number]["reward"] for number in sorted(drawn, key=int)]
        return {
            **self.place,
            "units": self.study.units,
            "rankings": ranked,
            "reward": float(np.mean(rewards)) if rewards else None,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "network_evaluations": cost.network_evaluations,
        }

    # what steps are taken along

    @property
    def totals(self) -> dict[str, np.ndarray]:
        """Sum of all units' gradients by objective."""
        return safetensors.numpy.load_file(self.path / Totals.FILE)

    def reward_products(self) -> dict[str, Gram]:
        """Of every objective with the trained reward."""
        labels, found = list(self.rung.configs), {}
        with safetensors.safe_open(self.path / "inner_products-parameters.safetensors", framework="numpy") as held:
            for number, label in enumerate(labels):
                at = f"{number}-{len(labels)}/bins"
                sums = {field.name: held.get_tensor(f"{at}/{field.name}") for field in fields(Gram)}
                found[label] = Gram(**sums).over_bins()
        return found

    def write_gains(self, rows: Sequence[Mapping[str, Any]], cost: Cost, seconds: float) -> None:
        """Steps were taken, at a cost of their own; their directions are needed no more."""
        facts = read_json(self.path / "facts.json", "study")
        for rung in facts["rungs"]:
            rung["step_evaluations"] = cost.network_evaluations
            rung["seconds"]["steps"] = round(seconds, 1)
        write_json(self.path / "facts.json", facts)
        with replacing(self.path / "gains.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(list(rows), schema=COLUMNS), temporary)
        self.tidy()


class Totals:
    """Sum of all units' gradients by objective, added in the order of blocks so that it is the same every time."""

    FILE = "totals.safetensors"

    def __init__(self, directory: Path) -> None:
        """Go on from what was added up before in a rung's directory."""
        self._directory, self._file = directory, directory / self.FILE
        self._next, self._waiting = 0, set[int]()
        self._sums: dict[str, np.ndarray] = {}
        if self._file.exists():
            with safetensors.safe_open(self._file, framework="numpy") as held:
                self._sums = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 - not a mapping
                self._next = int(held.metadata()["blocks"])

    def take(self, numbers: set[int]) -> None:
        """These blocks are measured."""
        self._waiting |= {number for number in numbers if number >= self._next}
        before = self._next
        while self._next in self._waiting:
            file = self._directory / "sums" / f"{self._next:06d}.safetensors"
            if not file.exists():  # no steps are to be taken
                return
            for name, value in safetensors.numpy.load_file(file).items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._next += 1
        if self._next > before:
            with replacing(self._file) as temporary:
                safetensors.numpy.save_file(self._sums, temporary, metadata={"blocks": str(self._next)})
            for number in range(before, self._next):
                (self._directory / "sums" / f"{number:06d}.safetensors").unlink()


def collect(rungs: Sequence[RungDirectory], directory: Path) -> None:
    """Put the rungs of a study together in one table each. All have estimates; of gains those that there are so far."""
    facts = [json.loads((rung.path / "facts.json").read_text()) for rung in rungs]
    write_json(
        directory / "facts.json", {**facts[0], "rungs": [of_rung for found in facts for of_rung in found["rungs"]]}
    )
    tables = {"estimates": [pq.read_table(rung.path / "estimates.parquet") for rung in rungs]}
    if rungs[0].study.gain:
        stepped = [pq.read_table(rung.path / "gains.parquet") for rung in rungs if rung.stepped]
        tables["gains"] = stepped or [COLUMNS.empty_table()]
    for name, parts in tables.items():
        with replacing(directory / f"{name}.parquet") as temporary:
            pq.write_table(pa.concat_tables(parts), temporary)
