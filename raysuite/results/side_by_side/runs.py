"""Several runs on the same pictures: what can be compared, what each gained, how far they lie apart."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raysuite.errors import UserError
from raysuite.kernel.stats import Interval, by_prompt, mean_over_runs
from raysuite.results import comparison
from raysuite.results.comparison import Comparison, Curve, compare_one, generator
from raysuite.results.run import SPLITS, WEIGHTED_SUM, Run, Scores, flat, read_run
from raysuite.results.side_by_side.members import Origin, Tuned, choose

MOST_SHOWN = 40
"""More cannot be told apart in one figure."""
MOST_SINGLE = 16
"""Above this many runs those of one method are shown as one."""
MUST_AGREE = ("model.path", "model.variant", "model.size", "evaluation.seed")
"""Settings without which two runs did not evaluate the same base on the same noise."""
WITHOUT_EFFECT = ("seed", "cluster", "checkpoints", "guards", "trackers")
"""Sections that do not say what is learned: runs that differ in these alone are repetitions."""
PATIENCE = ("seconds", "retries")
"""Of a reward: the same."""
SEED = r"([-_.=/]+(seed|s)?[-_.=]*|seed[-_.=]*)?{seed}$"
"""How the name of a run ends that says its seed."""

Picture = tuple[str, str, int]
"""Split, prompt and sample: the same noise in every run."""


@dataclass(frozen=True)
class Shown:
    """What has one line, one row or one column: a run, or all runs of a method where there are many."""

    name: str
    method: int
    runs: tuple[int, ...]
    """Their places."""


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Runs that can be compared. Their scores are those of the pictures that all of them have."""

    runs: tuple[Run, ...]
    whole: tuple[Run, ...]
    """The same with all of their scores, for what is said of a run by itself."""
    names: tuple[str, ...]
    splits: tuple[str, ...]
    """Splits with the same prompts in every run, the one that matters most first."""
    left_out: Mapping[str, Sequence[str]]
    """Splits whose prompts are not the same in every run, with the names of the runs that were not evaluated on them at last."""
    rewards: tuple[str, ...]
    """Rewards that every run has, the one that the verdict is about first."""
    origins: tuple[Origin | None, ...]
    """Of the runs that belong to a sweep."""
    left_behind: tuple[str, ...]
    """What is to be said of a sweep's other runs."""
    tuned: tuple[Tuned, ...] = ()
    """How the settings of a sweep's objectives were chosen, and how far they carried over."""

    @cached_property
    def methods(self) -> list[list[int]]:
        """Places of the runs of each method: runs with the same settings are its repetitions."""
        found: dict[str, list[int]] = {}
        for place, run in enumerate(self.runs):
            found.setdefault(json.dumps(_learned(run.config), sort_keys=True), []).append(place)
        return list(found.values())

    @cached_property
    def shown(self) -> list[Shown]:
        """Every run, or every method where there are more than `MOST_SINGLE` runs of fewer methods."""
        if self.by_method:
            return [Shown(self.method_names[number], number, tuple(runs)) for number, runs in enumerate(self.methods)]
        method_of = {place: number for number, places in enumerate(self.methods) for place in places}
        return [Shown(name, method_of[place], (place,)) for place, name in enumerate(self.names)]

    @property
    def by_method(self) -> bool:
        """Whether the runs of a method are shown as one."""
        return len(self.runs) > MOST_SINGLE and len(self.methods) < len(self.runs)

    @cached_property
    def method_names(self) -> list[str]:
        """No two alike: where one is called as a sweep's objective is, the sweep is named, too."""
        names = [self._method_name(number) for number in range(len(self.methods))]
        origins = [self.origins[places[0]] for places in self.methods]
        return [
            f"{name} ({origin.sweep})" if origin is not None and names.count(name) > 1 else name
            for name, origin in zip(names, origins, strict=True)
        ]

    def _method_name(self, method: int) -> str:
        """Its objective's in a sweep, with its settings or its sweep where there are others; else what the names of its runs have in
        common but for their seeds, or these names.
        """
        origin = self.origins[self.methods[method][0]]
        if origin is None or not self.named_by_origin:
            return self._names_without_seeds[method] or " + ".join(self.names[place] for place in self.methods[method])
        alike = [o for o in self.origins if o is not None and o.objective == origin.objective]
        name = origin.objective
        if len({o.trial for o in alike if o.sweep == origin.sweep}) > 1:
            settings = ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in origin.settings.items())
            name += f" #{origin.trial:02d} ({settings})"
        return f"{name} ({origin.sweep})" if len({o.sweep for o in alike}) > 1 else name

    @cached_property
    def _names_without_seeds(self) -> list[str]:
        """Of every method that has several runs, such as ddpo of ddpo-0 and ddpo-1; empty where that is no name, or another's."""
        stems = [
            {re.sub(SEED.format(seed=self.runs[place].config["seed"]), "", self.names[place]) for place in places}
            for places in self.methods
        ]
        found = [
            stem.pop() if len(places) > 1 == len(stem) else "" for places, stem in zip(self.methods, stems, strict=True)
        ]
        return [stem if found.count(stem) == 1 and stem not in self.names else "" for stem in found]

    @cached_property
    def named_by_origin(self) -> bool:
        """Whether sweep, objective and trial tell the methods apart."""
        keys = [self.origins[places[0]] for places in self.methods]
        named = [(origin.sweep, origin.objective, origin.trial) for origin in keys if origin is not None]
        return len(set(named)) == len(named)

    @property
    def headline(self) -> str:
        """The reward that the verdict is about."""
        return self.rewards[0]

    @property
    def along(self) -> str:
        """The split that shows the way: test prompts are evaluated at its ends alone."""
        return next((split for split in self.splits if split != "test"), self.splits[0])

    def by_update(self, run: Run, reward: str, split: str) -> dict[int, Interval]:
        """A reward's mean at each evaluation of one of the runs, over the pictures that evaluations of all of them have."""
        return comparison.by_update(run, reward, split, samples=self._samples[reward, split])

    def curve(self, place: int) -> Curve:
        """The headline reward's way through the evaluations of a run, over the same pictures."""
        reward, split = self.headline, self.along
        return comparison.curve(self.runs[place], reward, split, samples=self._samples[reward, split])

    @cached_property
    def _samples(self) -> dict[tuple[str, str], int]:
        """How many pictures of a prompt evaluations of all runs have, by reward and split."""
        return {
            (reward, split): min(comparison.shared_samples(run, reward, split) for run in self.runs)
            for reward in self.rewards
            for split in self.splits
        }

    @cached_property
    def gains(self) -> list[Comparison]:
        """The headline reward of every run: the model as it came against its last evaluation."""
        found = (self.gain_of((place,), self.headline, self.splits[0]) for place in range(len(self.runs)))
        return [gain for gain in found if gain is not None]

    def gain_of(self, places: Sequence[int], reward: str, split: str) -> Comparison | None:
        """One reward of a run, or of several with intervals over them and the prompts; None without pictures."""
        runs = [self.runs[place] for place in places]
        first = compare_one(runs[0], reward, split, 0, runs[0].evaluations[-1])
        if first is None or len(runs) == 1:
            return first
        old, new = (
            [run.scores.where(reward=reward, split=split, update=run.evaluations[at]) for run in runs] for at in (0, -1)
        )
        prompts = by_prompt(new[0].prompt)
        old_RN, new_RN = (np.array([scores.value for scores in of]) for of in (old, new))
        means = [mean_over_runs(values, prompts, generator()) for values in (old_RN, new_RN, new_RN - old_RN)]
        return replace(first, before=means[0], after=means[1], difference=means[2])

    def values(self, method: int, *, first: bool = False) -> np.ndarray:
        """The headline reward of a method's pictures, (runs, pictures), at the last evaluation or at the first.

        After trimming all evaluations that count have the same pictures in the same order.
        """
        return np.array([self.last(place, first=first).value for place in self.methods[method]])

    def last(self, run: int, *, first: bool = False) -> Scores:
        """The headline reward at a run's last evaluation, or at its first."""
        update = self.runs[run].evaluations[0 if first else -1]
        return self.runs[run].scores.where(reward=self.headline, split=self.splits[0], update=update)

    @property
    def spent(self) -> list[float]:
        """Network evaluations of training behind every run's last evaluation."""
        return [float(run.spent(run.evaluations[-1:])[0]) for run in self.runs]


def read_runs(directories: Sequence[Path]) -> SideBySide:
    """Runs of the same base, evaluated on the same prompts and noise. A sweep stands for its best runs (`members.choose`).

    Raises:
        UserError: there is one run or too many, one has not been evaluated after training, or they cannot be compared.
    """
    chosen = choose(directories)
    places = [member.directory.resolve() for member in chosen.members]
    if len(places) < 2:
        raise UserError(f"expected at least 2 runs to compare, got {len(places)}: name more")
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise UserError(f"expected different runs, got {twice} twice: name it once")
    runs = [read_run(member.directory) for member in chosen.members]
    for run in runs:
        if run.evaluations[:1] != [0] or len(run.evaluations) < 2:
            raise UserError(
                f"expected evaluations of the model as it came and of a trained policy in {run.directory}, found those "
                f"after {run.evaluations or 'no'} updates: leave the run out or wait for its next evaluation"
            )
    names = _names(runs)
    for run, name in zip(runs[1:], names[1:], strict=True):
        _check_agreement(runs[0], run, (names[0], name))
    pictures = _shared_pictures(runs)
    splits = tuple(split for split in SPLITS if any(picture[0] == split for picture in pictures))
    if not splits:
        raise UserError(
            f"expected runs evaluated on the same prompts, those of {listed(names)} differ: train them with the same "
            "prompts.held_out and evaluation.prompts"
        )
    trimmed = [replace(run, scores=run.scores.keep(_is_among(run.scores, pictures))) for run in runs]
    left_out = {
        split: [name for name, run in zip(names, runs, strict=True) if split not in run.splits]
        for split in SPLITS
        if split not in splits and any(split in run.splits for run in runs)
    }
    origins = tuple(member.origin for member in chosen.members)
    found = SideBySide(
        runs=tuple(trimmed),
        whole=tuple(runs),
        names=names,
        splits=splits,
        left_out=left_out,
        rewards=_rewards(trimmed, names),
        origins=origins,
        left_behind=chosen.cautions,
        tuned=chosen.tuned,
    )
    if len(found.shown) > MOST_SHOWN:
        raise UserError(
            f"expected at most {MOST_SHOWN} methods (or runs, without repetitions) to compare, got {len(found.shown)}: name fewer"
        )
    return found


def _names(runs: Sequence[Run]) -> tuple[str, ...]:
    """The shortest names that tell the runs apart: directories, objectives, directories with their parents, or paths."""
    places = [run.directory.resolve() for run in runs]
    candidates = (
        [place.name for place in places],
        [str(run.config["objective"]["name"]) for run in runs],
        [f"{place.parent.name}/{place.name}" for place in places],
    )
    return tuple(next((names for names in candidates if len(set(names)) == len(names)), map(str, places)))


def _check_agreement(first: Run, other: Run, names: tuple[str, str]) -> None:
    settings = [dict(flat(run.config)) for run in (first, other)]
    for path in MUST_AGREE:
        one, two = (s.get(path) for s in settings)
        if one != two:
            raise UserError(
                f"expected runs with the same {path}, got {one} in {names[0]} and {two} in {names[1]}: compare runs that start "
                "from one model and are evaluated with one seed"
            )


def _same_prompts(runs: Sequence[Run], split: str) -> bool:
    first, *others = (set(run.scores.where(update=0, split=split).prompt) for run in runs)
    return bool(first) and all(other == first for other in others)


def _shared_pictures(runs: Sequence[Run]) -> set[Picture]:
    """What every first and last evaluation has, of the splits with the same prompts in all runs."""
    shared = set.intersection(*(_pictures(run, update) for run in runs for update in (0, run.evaluations[-1])))
    splits = [split for split in SPLITS if _same_prompts(runs, split)]
    return {picture for picture in shared if picture[0] in splits}


def _pictures(run: Run, update: int) -> set[Picture]:
    scores = run.scores.where(update=update)
    return set(zip(scores.split, scores.prompt, scores.sample, strict=True))


def _is_among(scores: Scores, pictures: set[Picture]) -> np.ndarray:
    return np.array(
        [key in pictures for key in zip(scores.split, scores.prompt, scores.sample, strict=True)], dtype=bool
    )


def _rewards(runs: Sequence[Run], names: Sequence[str]) -> tuple[str, ...]:
    """Rewards that all runs have, first the one that the verdict is about: the first run's headline if all have it."""
    scores = [run.scores.where(update=update) for run in runs for update in (0, run.evaluations[-1])]
    shared = [name for name in runs[0].rewards if all(name in s.reward for s in scores)]
    if any(run.config["rewards"] != runs[0].config["rewards"] for run in runs):
        shared = [name for name in shared if name != WEIGHTED_SUM]  # of other terms or weights
    if not shared:
        raise UserError(
            f"expected a reward that all of {listed(names)} were evaluated on, found none: name one in evaluation.rewards of each"
        )
    headlines = [name for run in runs if (name := comparison.headline(run)) in shared]
    return tuple(dict.fromkeys([*headlines[:1], *shared]))


def _learned(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say what is learned and how it is judged."""

    def scored(rewards: Sequence[Any]) -> list[Any]:
        terms = ({"name": reward} if isinstance(reward, str) else reward for reward in rewards)
        return [{name: value for name, value in term.items() if name not in PATIENCE} for term in terms]

    kept = {name: section for name, section in config.items() if name not in WITHOUT_EFFECT}
    evaluation = config["evaluation"]
    return {
        **kept,
        "rewards": scored(config["rewards"]),
        "evaluation": {**evaluation, "rewards": scored(evaluation["rewards"])},
    }


def differing(trees: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Dotted paths whose values are not the same in all, with the value in each; None where it has none."""
    found = [dict(flat(tree)) for tree in trees]
    paths = dict.fromkeys(path for tree in found for path in tree)
    rows = [(path, [tree.get(path) for tree in found]) for path in paths]
    return [(path, values) for path, values in rows if any(value != values[0] for value in values)]


def listed(words: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
