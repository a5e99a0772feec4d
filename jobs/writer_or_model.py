"""Align the writer of prompts, or the image model? `python jobs/writer_or_model.py --out DIR [--seeds 0 1 2]`.

Users' prompts of the bundled world, and one budget of network evaluations for each method: writers that learn from what the base model
draws of their rewrites, the image model that learns from what users typed, and both, with half of the budget each, in either
order. All are then asked the same prompts of four cells, seen and new phrasings of training and held-out combinations, with the same
noise.
DIR/table.md has what was found, after every seed, DIR/scores.parquet its scores and DIR/measures.parquet what each method cost and did
besides. The same command goes on with what is missing; docs/results-prompts.md has the outcome.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysuite import cli
from raysuite.kernel.stats import Interval, difference_of_methods, mean_over_runs
from raysuite.places import replacing
from raysuite.results.comparison import generator
from raysuite.results.numerals import with_interval
from raysuite.results.page import table
from raysuite.results.writer import read_writers
from raysuite.stages import checkpoint
from raysuite.stages.files import RunDirectory, write_json
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
SECOND = 1_000
"""Added to the seed of a second round's prompts and noise."""
UNTRAINED = -1
"""The seed of what is not trained, which no seed decides."""
EVALUATIONS, SECONDS = "network evaluations", "seconds of processors"
COLUMNS = ("method", "seed", "cell", "phrasing", "prompt", "picture", "strict")
"""Of scores.parquet."""


@dataclass(frozen=True)
class Method:
    """A writer before an image model, and what both came from."""

    writer: str
    """none, oracle, or where it lies."""
    made_by: Mapping[str, float] = field(default_factory=dict)
    """Which part of what it took, by place: runs, sets of pairs, trainings of writers."""


@dataclass(frozen=True)
class Comparison:
    """Methods with one image model."""

    model: str
    methods: Mapping[str, Method]


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
        if seed == UNTRAINED:
            return
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
        half = self.place("dpo-half", seed)
        yield self._pairs(RECIPE, "pairs-second", self.budget // 2, seed, writer=half, other=SECOND)
        yield self._writer("pairs-second", "dpo-second", seed, "--writer", half)
        yield self._run(RECIPE, "ddpo-before", self.budget // 2, seed, f"prompts.writer={half}")

    def comparisons(self, seed: int) -> dict[str, Comparison]:
        """What is compared of one seed, or of `UNTRAINED`."""
        return self.untrained() if seed == UNTRAINED else self.trained(seed)

    def untrained(self) -> dict[str, Comparison]:
        """What no seed decides, by where its evaluation goes."""
        who = {NOTHING: "none", "oracle translator": "oracle", "writer as it came": BUNDLED}
        methods = {name: Method(writer) for name, writer in who.items()}
        return {str(self.out / "compared-base"): Comparison(RECIPE, methods)}

    def trained(self, seed: int) -> dict[str, Comparison]:
        """What is compared of one seed, by where its evaluation goes."""

        def at(name: str) -> str:
            return self.place(name, seed)

        def method(writer: str, *made_by: str, half_of: str | None = None) -> Method:
            parts = {at(name): 1.0 for name in made_by} | ({at(half_of): 0.5} if half_of else {})
            return Method(writer if writer == "none" else at(writer), parts)

        writers = {
            "SFT writer (told translations)": method("sft", "sft"),
            "DPO writer": method("dpo", "pairs", "dpo"),
            "DPO writer, two rounds": method("dpo-second", "pairs-half", "dpo-half", "pairs-second", "dpo-second"),
            "Cal-DPO writer": method("cal-dpo", "pairs", "cal-dpo"),
            "Cal-DPO writer, normalised": method("cal-dpo-normalised", "pairs", "cal-dpo-normalised"),
        }
        aligned = {
            "model: ddpo": method("none", "ddpo"),
            "both, all of each": method("dpo", "ddpo", "pairs", "dpo"),
        }
        after = {"ddpo, then DPO writer": method("dpo-after", "pairs-after", "dpo-after", half_of="ddpo")}
        before = {"DPO writer, then ddpo": method("dpo-half", "pairs-half", "dpo-half", "ddpo-before")}
        return {
            at("compared-writers"): Comparison(RECIPE, writers),
            at("compared-grpo"): Comparison(RECIPE, {"GRPO writer": method("grpo", "grpo")}),
            at("compared-ddpo"): Comparison(at("ddpo"), aligned),
            at("compared-diffusion-dpo"): Comparison(
                at("diffusion-dpo"), {"model: diffusion_dpo": method("none", "diffusion-dpo")}
            ),
            at("compared-after"): Comparison(str(self._half_way(seed)), after),
            at("compared-before"): Comparison(at("ddpo-before"), before),
        }

    def evaluation(self, out: str, of: Comparison) -> list[str]:
        """The command that compares."""
        asked = ["--prompts", str(self.prompts), "--pictures", "2", *self._of_recipe(of.model)]
        writers = [method.writer for method in of.methods.values()]
        return ["writer", "evaluate", *writers, "--model", of.model, "--out", out, *asked]

    def _half_way(self, seed: int) -> Path:
        """The first checkpoint of the model by ddpo that has had half of the budget: as a run of that budget ends."""
        run = Path(self.place("ddpo", seed))
        spent = RunDirectory(run).metrics()["budget/network_evaluations"]
        return checkpoint.by_updates(run)[1 + min(update for update, of in spent.items() if of >= self.budget // 2)]

    def _pairs(
        self, model: str, name: str, budget: int, seed: int, *, writer: str = BUNDLED, other: int = 0
    ) -> list[str]:
        asked = {"prompts": 300, "draws": 7, "pictures": 4, "budget": budget, "seed": seed + other}
        words = [word for option, value in asked.items() for word in (f"--{option}", str(value))]
        named = ["--out", self.place(name, seed), "--writer", writer]
        return ["writer", "pairs", model, *named, *words, *self._of_recipe(model)]

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


def run(command: list[str], seconds: Path) -> None:
    """A command of the suite, in this process, where libraries are loaded once for all; and how long it took of its processors.

    Of one that was stopped its last part counts; one that is given again after its end has nothing to do, and costs nothing more.
    """
    print("raysuite", *command, flush=True)
    began = time.process_time()
    try:
        cli.main(command)
    except SystemExit as left:
        if left.code:
            raise
    known = json.loads(seconds.read_text()) if seconds.exists() else {}
    name = Path(command[command.index("--out") + 1]).name
    write_json(seconds, {name: time.process_time() - began, **known})


def scores(comparisons: Mapping[str, Comparison], seed: int) -> list[dict[str, object]]:
    """Rows of scores.parquet from evaluations that are finished."""
    rows = []
    for place, of in comparisons.items():
        found = read_writers(Path(place))
        for name, method in of.methods.items():
            seen: dict[int, int] = {}
            for cell, phrasing, prompt, value in zip(
                found.cell_N, found.phrasing_N, found.prompt_N, found.score[method.writer], strict=True
            ):
                picture = seen[prompt] = seen.get(prompt, -1) + 1
                known = (name, seed, str(cell), str(phrasing), int(prompt), picture, float(value))
                rows.append(dict(zip(COLUMNS, known, strict=True)))
    return rows


def measures(comparisons: Mapping[str, Comparison], seed: int, seconds: Path) -> list[dict[str, Any]]:
    """Rows of measures.parquet: what each method cost and did besides. What a method has not, such as the KL of a model that is as it
    came, has no row.
    """
    took = json.loads(seconds.read_text())
    rows = []
    for place, of in comparisons.items():
        found = read_writers(Path(place))
        model = RunDirectory(Path(of.model)).metrics() if Path(of.model).is_dir() else {}
        kl = model.get("evaluation/kl", {})
        for name, method in of.methods.items():
            parts = method.made_by.items()
            learned = _metrics(Path(method.writer))
            known = {
                EVALUATIONS: sum(share * _evaluations(Path(part)) for part, share in parts) if parts else None,
                SECONDS: sum(share * took[Path(part).name] for part, share in parts) if parts else None,
                "KL of the model, nats": kl[max(kl)] if kl else None,
                "diversity of pictures, grey levels": found.diversity[method.writer],
                "different rewrites, share": found.distinct[method.writer],
                "left as typed, share": found.kept[method.writer],
                "h of preferred": learned.get("h_preferred"),
                "log pi of preferred": learned.get("logp_preferred"),
            }
            rows += [
                {"method": name, "seed": seed, "measure": measure, "value": float(value)}
                for measure, value in known.items()
                if value is not None
            ]
    return rows


def _metrics(training: Path) -> dict[str, float]:
    """What the training of a writer ended with."""
    file = training / "metrics.jsonl"
    return json.loads(file.read_text().splitlines()[-1]) if file.exists() else {}


def _evaluations(place: Path) -> float:
    """Network evaluations of the image model for a run, a set of pairs or a training of a writer; those from pairs take none."""
    if (place / "pairs.json").exists():
        return float(json.loads((place / "summary.json").read_text())["network_evaluations"])
    if (place / "config.json").exists():
        spent = RunDirectory(place).metrics()["budget/network_evaluations"]
        return spent[max(spent)]
    return _metrics(place).get("network_evaluations", 0.0)


def measures_table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The mean over seeds of every measure, with the lowest and the highest seed."""
    names = list(dict.fromkeys(row["measure"] for row in rows))
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        values.setdefault((row["method"], row["measure"]), []).append(row["value"])

    def cell(method: str, measure: str) -> str:
        of = values.get((method, measure), [])
        if not of:
            return ""
        places = 0 if measure in (EVALUATIONS, SECONDS) else 2
        mean, low, high = (f"{value:,.{places}f}" for value in (sum(of) / len(of), min(of), max(of)))
        return mean if low == high else f"{mean} ({low} to {high})"

    methods = dict.fromkeys(row["method"] for row in rows)
    return [("mean (lowest to highest seed)", *names), *((m, *(cell(m, name) for name in names)) for m in methods)]


class Strict:
    """Strict passes of all methods in all cells, with 95 % intervals over prompts and seeds."""

    def __init__(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Rows of scores.parquet, in any order."""
        self._columns = {name: np.array([row[name] for row in rows]) for name in COLUMNS}
        self.cells = [*dict.fromkeys(self._columns["cell"].tolist()), ALL]
        self.methods = list(dict.fromkeys(self._columns["method"].tolist()))

    def mean(self, method: str, cell: str = ALL) -> Interval:
        """Of one method."""
        values_RN, prompts_N = self._of(method, cell)
        return mean_over_runs(values_RN, prompts_N, generator())

    def gain(self, method: str, cell: str = ALL, *, over: str = NOTHING) -> Interval:
        """How far a method lies above another, with the same prompts and noise."""
        (lower_RN, prompts_N), (higher_SN, _) = self._of(over, cell), self._of(method, cell)
        return difference_of_methods(lower_RN, higher_SN, prompts_N, generator())

    def _of(self, method: str, cell: str) -> tuple[np.ndarray, np.ndarray]:
        """Strict passes (R, N), a row a seed, and the prompts (N,)."""
        columns = self._columns
        mine = (columns["method"] == method) & ((columns["cell"] == cell) | (cell == ALL))
        seeds = np.unique(columns["seed"][mine])
        found = [np.flatnonzero(mine & (columns["seed"] == seed)) for seed in seeds]
        ordered = [at[np.lexsort((columns["picture"][at], columns["prompt"][at]))] for at in found]
        return np.stack([columns["strict"][at] for at in ordered]), columns["prompt"][ordered[0]]


def tables(rows: Sequence[Mapping[str, object]]) -> list[list[tuple[str, ...]]]:
    """The mean of each method in each cell, and its difference from nothing."""
    strict = Strict(rows)
    first = [
        (name, *(with_interval(strict.mean(name, cell), places=2) for cell in strict.cells)) for name in strict.methods
    ]
    second = [
        (name, *(with_interval(strict.gain(name, cell), places=2, signed=True) for cell in strict.cells))
        for name in strict.methods
        if name != NOTHING
    ]
    head = ("strict pass, mean [95 % over prompts and seeds]", *strict.cells)
    return [[head, *first], [("above nothing [95 % over prompts and seeds]", *strict.cells), *second]]


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
    seconds = experiment.out / "seconds.json"
    rows: list[dict[str, object]] = []
    measured: list[dict[str, Any]] = []
    for seed in (UNTRAINED, *given.seeds):
        for command in experiment.trainings(seed):
            run(command, seconds)
        comparisons = experiment.comparisons(seed)
        for place, of in comparisons.items():
            run(experiment.evaluation(place, of), seconds)
        rows += scores(comparisons, seed)
        measured += measures(comparisons, seed, seconds)
        found = [*tables(rows), measures_table(measured)]
        for name, kept in {"scores": rows, "measures": measured}.items():
            with replacing(experiment.out / f"{name}.parquet") as temporary:
                pq.write_table(pa.Table.from_pylist(kept), temporary)
        with replacing(experiment.out / "table.md") as temporary:
            temporary.write_text("\n\n".join("\n".join(markdown(one)) for one in found) + "\n")
        print("\n\n".join("\n".join(table(one)) for one in found), flush=True)


if __name__ == "__main__":
    main()
