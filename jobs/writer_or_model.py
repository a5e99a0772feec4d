"""Align the writer of prompts, or the image model? `python jobs/writer_or_model.py --out DIR [--seeds 0 1 2]`.

Users' prompts of the bundled world, and one budget of network evaluations for each method: writers that learn from what the base model
draws of their rewrites, the image model that learns from what users typed, and both, with half of the budget each, in either
order. All are then asked the same prompts of four cells, seen and new phrasings of training and held-out combinations, with the same
noise.
DIR/table.md and DIR/scores.parquet have what was found, after every seed. The same command goes on with what is missing;
docs/results.md has the outcome.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysuite import cli
from raysuite.kernel.stats import Interval, difference_of_methods, mean_over_runs
from raysuite.places import replacing
from raysuite.results.comparison import generator, with_interval
from raysuite.results.page import table
from raysuite.results.writer import read_writers
from raysuite.stages import checkpoint
from raysuite.stages.files import RunDirectory
from raysuite.stages.rewrites import BUNDLED
from raysuite.writer.model import open_writer

RECIPE, OTHER = "scenes-users-ddpo", "scenes-diffusion-dpo"
USERS = ("prompts.training=scenes-users", "prompts.held_out=scenes-users")
RUN = (
    "cluster.actors=0",
    "checkpoints.every=1",
    "checkpoints.keep=100",
    "evaluation.every=1000",
    "evaluation.prompts=16",
)
"""One process for each run; evaluated little, and only before and after: what they are worth is measured by users' prompts."""
LOSSES = {
    "dpo": ("--loss", "sigmoid"),
    "cal-dpo": ("--loss", "cal_dpo", "--beta", "0.25"),
    "cal-dpo-normalised": ("--loss", "cal_dpo", "--beta", "0.25", "--targets", "normalised"),
}
"""Writers that learn from one set of pairs."""
NOTHING, ALL = "nothing", "all"
COLUMNS = ("method", "seed", "cell", "phrasing", "prompt", "picture", "strict")
"""Of scores.parquet. No seed decides what is not trained: it has seed -1."""


@dataclass(frozen=True)
class Comparison:
    """Writers before one image model."""

    model: str
    writers: Mapping[str, str]
    """By the method's name: none, oracle, or where it lies."""


@dataclass(frozen=True)
class Experiment:
    """Where all of it goes, and how large it is."""

    out: Path
    budget: int = 36_864
    """Network evaluations of each method."""
    prompts: int = 48
    """Of each cell."""
    settings: tuple[str, ...] = ()
    """Of every model that draws, such as `sampler.steps=2`."""

    def place(self, name: str, seed: int) -> str:
        """Of a run, a set of pairs or a writer."""
        return str(self.out / f"{name}-{seed}")

    def trainings(self, seed: int) -> Iterator[list[str]]:
        """What is drawn and trained with one seed, in order, each a command line after `raysuite`; each needs those before it."""
        yield self._pairs(RECIPE, "pairs", self.budget, seed)
        for name, loss in LOSSES.items():
            yield self._writer("pairs", name, seed, *loss)
        yield self._grpo("grpo", self.budget, seed)
        self._translate(seed)
        yield self._writer("translations", "sft", seed, "--loss", "sft", "--epochs", "10")
        yield self._run(RECIPE, "ddpo", self.budget, seed)
        yield self._run(OTHER, "diffusion-dpo", self.budget, seed, *USERS)
        yield self._pairs(str(self._half_way(seed)), "pairs-after", self.budget // 2, seed)
        yield self._writer("pairs-after", "dpo-after", seed)
        yield self._pairs(RECIPE, "pairs-half", self.budget // 2, seed)
        yield self._writer("pairs-half", "dpo-half", seed)
        yield self._run(RECIPE, "ddpo-before", self.budget // 2, seed, f"prompts.writer={self.place('dpo-half', seed)}")

    def untrained(self) -> dict[str, Comparison]:
        """What no seed decides, by where its evaluation goes."""
        who = {NOTHING: "none", "oracle translator": "oracle", "writer as it came": BUNDLED}
        return {str(self.out / "compared-base"): Comparison(RECIPE, who)}

    def trained(self, seed: int) -> dict[str, Comparison]:
        """What is compared of one seed, by where its evaluation goes."""

        def at(name: str) -> str:
            return self.place(name, seed)

        writers = {
            "SFT writer (told translations)": at("sft"),
            "DPO writer": at("dpo"),
            "Cal-DPO writer": at("cal-dpo"),
            "Cal-DPO writer, normalised": at("cal-dpo-normalised"),
        }
        return {
            at("compared-writers"): Comparison(RECIPE, writers),
            at("compared-grpo"): Comparison(RECIPE, {"GRPO writer": at("grpo")}),
            at("compared-ddpo"): Comparison(at("ddpo"), {"model: ddpo": "none", "both, all of each": at("dpo")}),
            at("compared-diffusion-dpo"): Comparison(at("diffusion-dpo"), {"model: diffusion_dpo": "none"}),
            at("compared-after"): Comparison(str(self._half_way(seed)), {"ddpo, then DPO writer": at("dpo-after")}),
            at("compared-before"): Comparison(at("ddpo-before"), {"DPO writer, then ddpo": at("dpo-half")}),
        }

    def evaluation(self, out: str, of: Comparison) -> list[str]:
        """The command that compares."""
        asked = ["--prompts", str(self.prompts), "--pictures", "2", *self._of_recipe(of.model)]
        return ["writer", "evaluate", *of.writers.values(), "--model", of.model, "--out", out, *asked]

    def _half_way(self, seed: int) -> Path:
        """The first checkpoint of the model by ddpo that has had half of the budget: as a run of that budget ends."""
        run = Path(self.place("ddpo", seed))
        spent = RunDirectory(run).metrics()["budget/network_evaluations"]
        return checkpoint.by_updates(run)[1 + min(update for update, of in spent.items() if of >= self.budget // 2)]

    def _pairs(self, model: str, name: str, budget: int, seed: int) -> list[str]:
        asked = {"prompts": 300, "draws": 7, "pictures": 4, "budget": budget, "seed": seed}
        words = [word for option, value in asked.items() for word in (f"--{option}", str(value))]
        return ["writer", "pairs", model, "--out", self.place(name, seed), *words, *self._of_recipe(model)]

    def _writer(self, pairs: str, name: str, seed: int, *loss: str) -> list[str]:
        return ["writer", "train", self.place(pairs, seed), "--out", self.place(name, seed), "--seed", str(seed), *loss]

    def _grpo(self, name: str, budget: int, seed: int) -> list[str]:
        asked = ["--steps", "400", "--budget", str(budget), "--seed", str(seed)]
        return ["writer", "grpo", RECIPE, "--out", self.place(name, seed), *asked, *self._of_recipe(RECIPE)]

    def _run(self, recipe: str, name: str, budget: int, seed: int, *settings: str) -> list[str]:
        chosen = self._set(f"seed={seed}", f"budget={budget}", *RUN, *settings)
        return ["train", recipe, "--out", self.place(name, seed), *chosen]

    def _of_recipe(self, model: str) -> list[str]:
        """Settings of a model as it came; runs have theirs."""
        return self._set("cluster.actors=0") if model == RECIPE else []

    def _set(self, *settings: str) -> list[str]:
        return [word for one in (*settings, *self.settings) for word in ("--set", one)]

    def _translate(self, seed: int) -> None:
        """Pairs whose preferred rewrite is what was meant, of the prompts that have pairs."""
        rows = map(json.loads, (Path(self.place("pairs", seed)) / "pairs.jsonl").read_text().splitlines())
        meant = {row["prompt"]: row["metadata"]["scene"] for row in rows}
        said = open_writer(BUNDLED).completion
        told = ({"prompt": asked, "chosen": said(scene), "rejected": said("")} for asked, scene in meant.items())
        place = Path(self.place("translations", seed))
        place.mkdir(parents=True, exist_ok=True)
        with replacing(place / "pairs.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in told))


def run(command: list[str]) -> None:
    """A command of the suite, in this process, where libraries are loaded once for all."""
    print("raysuite", *command, flush=True)
    try:
        cli.main(command)
    except SystemExit as left:
        if left.code:
            raise


def scores(comparisons: Mapping[str, Comparison], seed: int) -> list[dict[str, object]]:
    """Rows of scores.parquet from evaluations that are finished."""
    rows = []
    for place, of in comparisons.items():
        found = read_writers(Path(place))
        for method, who in of.writers.items():
            seen: dict[int, int] = {}
            for cell, phrasing, prompt, value in zip(
                found.cell_N, found.phrasing_N, found.prompt_N, found.score[who], strict=True
            ):
                picture = seen[prompt] = seen.get(prompt, -1) + 1
                known = (method, seed, str(cell), str(phrasing), int(prompt), picture, float(value))
                rows.append(dict(zip(COLUMNS, known, strict=True)))
    return rows


def tables(rows: Sequence[Mapping[str, object]]) -> list[list[tuple[str, ...]]]:
    """The mean of each method in each cell, and its difference from nothing, with 95 % intervals over prompts and seeds."""
    columns = {name: np.array([row[name] for row in rows]) for name in COLUMNS}
    cells = [*dict.fromkeys(columns["cell"]), ALL]
    methods = list(dict.fromkeys(columns["method"]))

    def of(method: str, cell: str) -> tuple[np.ndarray, np.ndarray]:
        """Strict passes (R, N), a row a seed, and the prompts (N,)."""
        mine = (columns["method"] == method) & ((columns["cell"] == cell) | (cell == ALL))
        seeds = np.unique(columns["seed"][mine])
        found = [np.flatnonzero(mine & (columns["seed"] == seed)) for seed in seeds]
        ordered = [at[np.lexsort((columns["picture"][at], columns["prompt"][at]))] for at in found]
        return np.stack([columns["strict"][at] for at in ordered]), columns["prompt"][ordered[0]]

    def mean(method: str, cell: str) -> Interval:
        values_RN, prompts_N = of(method, cell)
        return mean_over_runs(values_RN, prompts_N, generator())

    def gain(method: str, cell: str, other: str) -> Interval:
        (lower_RN, prompts_N), (higher_SN, _) = of(other, cell), of(method, cell)
        return difference_of_methods(lower_RN, higher_SN, prompts_N, generator())

    first = [(method, *(with_interval(mean(method, cell), places=2) for cell in cells)) for method in methods]
    second = [
        (method, *(with_interval(gain(method, cell, NOTHING), places=2, signed=True) for cell in cells))
        for method in methods
        if method != NOTHING
    ]
    head = ("strict pass, mean [95 % over prompts and seeds]", *cells)
    return [[head, *first], [("above nothing [95 % over prompts and seeds]", *cells), *second]]


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as documents have it."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return [head, "|" + "---|" * len(rows[0]), *body]


def main(arguments: Sequence[str] | None = None) -> None:
    """All of it, seed by seed; what follows -- are settings of every model that draws."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, default=Experiment.budget, help="network evaluations of each method")
    parser.add_argument(
        "--prompts", type=int, default=Experiment.prompts, help="of each cell, that methods are compared by"
    )
    parser.add_argument("settings", nargs="*", help="after --, such as cluster.threads=1")
    given = parser.parse_args(arguments)
    experiment = Experiment(given.out.absolute(), given.budget, given.prompts, tuple(given.settings))
    rows = compared(experiment, experiment.untrained(), -1)
    for seed in given.seeds:
        for command in experiment.trainings(seed):
            run(command)
        rows += compared(experiment, experiment.trained(seed), seed)
        found = tables(rows)
        with replacing(experiment.out / "scores.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(rows), temporary)
        with replacing(experiment.out / "table.md") as temporary:
            temporary.write_text("\n\n".join("\n".join(markdown(one)) for one in found) + "\n")
        print("\n\n".join("\n".join(table(one)) for one in found), flush=True)


def compared(experiment: Experiment, comparisons: Mapping[str, Comparison], seed: int) -> list[dict[str, object]]:
    """Rows of scores.parquet, drawn where they are missing."""
    for place, of in comparisons.items():
        run(experiment.evaluation(place, of))
    return scores(comparisons, seed)


if __name__ == "__main__":
    main()
