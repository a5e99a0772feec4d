"""What a run says in sentences: what was gained, what is wrong with it, and what limits the conclusions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raysuite.kernel.guards import REMEDIES
from raysuite.results import comparison
from raysuite.results.comparison import Comparison
from raysuite.results.numerals import count, decimals, number, with_interval
from raysuite.results.run import EMPTY, SPLITS, Run

WARNED = {
    "held_out": "the trained reward had risen on training prompts and fallen on held-out ones",
    "watched": "the trained reward had risen, and one that is only watched had fallen",
    "diversity": "pictures of one prompt had become alike",
    "kl": "the KL was beyond its limit",
    "ratio": "the first importance ratio was off 1",
    "spread": "the pictures of most prompts had equal rewards",
    "prompts": "the soft prompts were becoming one",
    "finite": "a metric was not a finite number",
}
"""What each guard saw when it warned."""
LAST_UPDATES = 5
"""Updates over which a learner's metric is averaged to say where it ended: one update alone is noise."""


def label(reward: str) -> str:
    """How a reward is called in a sentence."""
    return "strict pass rate" if reward.endswith("_strict") else f"reward {reward}"


def verdict(run: Run, comparisons: Sequence[Comparison]) -> str:
    """The run in one sentence, or two while it is unfinished."""
    if not run.evaluations:
        return f"Nothing has been evaluated yet: {run.progress} are done."
    reward, split = comparison.headline(run), run.splits[0]
    found = next((c for c in comparisons if (c.reward, c.split) == (reward, split)), None)
    if found is None:
        scores = run.scores.where(reward=reward, split=split, update=run.evaluations[-1])
        prompts = count(len(np.unique(scores.prompt)), f"{SPLITS[split]} prompt")
        policy = f"policy after {count(run.evaluations[-1], 'update')}" if run.evaluations[-1] else "model as it came"
        return (
            f"So far only the {policy} has been evaluated: on {prompts} the {label(reward)} is "
            f"{with_interval(comparison.mean(scores))}, 95 % bootstrap over prompts. "
            f"The run is unfinished: {run.progress} are done."
        )
    few = found.prompts < comparison.FEW_PROMPTS
    verb = "went" if few else {1: "rose", 0: "went", -1: "fell"}[found.direction]
    places = decimals(found.difference)
    over = "over prompts" if found.prompts > 1 else "over the pictures of that prompt"
    sentence = (
        f"On {count(found.prompts, f'{SPLITS[split]} prompt')} the {label(reward)} {verb} from "
        f"{number(found.before.estimate, places)} to {number(found.after.estimate, places)}: "
        f"{with_interval(found.difference, signed=True)}, 95 % bootstrap {over}"
    )
    if few:
        sentence += ". That is too few prompts to tell."
    else:
        sentence += ", which cannot be told from no change." if found.direction == 0 else "."
    if not run.finished:
        sentence += f" The run is unfinished: {run.progress} are done."
    return sentence


def alarms(run: Run, comparisons: Sequence[Comparison]) -> list[str]:
    """Signs that the reward is gamed or the prompts learned by heart, and what guards saw: what must not be overlooked."""
    by = {(c.reward, c.split): c for c in comparisons}
    found = []
    training, held_out = by.get((run.trained, "training")), by.get((run.trained, "held_out"))
    memorised = training and held_out and training.difference.estimate > 0 > held_out.direction
    if training and held_out and memorised:
        found.append(
            f"The trained reward rose on training prompts ({_change(training)}) and fell on held-out prompts "
            f"({_change(held_out)}): what was learned does not carry over. Prefer an earlier checkpoint."
        )
    gaming = []
    for split in run.splits:
        trained = by.get((run.trained, split))
        for name in run.watched:
            watched = by.get((name, split))
            if trained and watched and trained.direction > 0 > watched.direction:
                gaming.append(
                    f"On {SPLITS[split]} prompts the trained reward {run.trained} rose ({_change(trained)}) while "
                    f"{name}, which is only watched, fell ({_change(watched)}): the trained reward is being gamed."
                )
    said = [name for name, is_said in {"held_out": memorised, "watched": gaming}.items() if is_said]
    return [*found, *gaming, *_guard_alarms(run, said=said)]


def _guard_alarms(run: Run, *, said: Sequence[str]) -> list[str]:
    """What the run's guards warned of, unless it is `said` of the run as a whole."""
    warned = {name.removeprefix("guard/"): run.metrics[name].updates for name in run.metrics if name[:6] == "guard/"}
    return [
        f"Guard {name}: {WARNED[name]} after {count(int(updates[0]) + 1, 'update')}"
        f"{f' and {len(updates) - 1} more times' if len(updates) > 1 else ''}; {REMEDIES[name]}"
        for name, updates in warned.items()
        if name not in said
    ]


def cautions(run: Run, comparisons: Sequence[Comparison]) -> list[str]:
    """What limits the conclusions."""
    by = {(c.reward, c.split): c for c in comparisons}
    found = [f"The last attempt to train ended early: {run.failure}."] if run.failure else []
    training, held_out = by.get((run.trained, "training")), by.get((run.trained, "held_out"))
    if training and held_out and training.direction > 0 and held_out.direction == 0:
        found.append(
            f"The trained reward rose on training prompts ({_change(training)}); on held-out prompts the change "
            f"({_change(held_out)}) cannot be told from none."
        )
    for split in [split for split in run.splits if split != "test"][:1]:
        means = {update: scores.value.mean() for update, scores in comparison.alike(run, run.trained, split).items()}
        best = max(run.evaluations, key=lambda update: means.get(update, -math.inf))
        since = comparison.compare_one(run, run.trained, split, best, run.evaluations[-1])
        if since and best > run.evaluations[0] and since.direction < 0:
            gone = not (run.directory / "checkpoints" / f"{best:06d}").is_dir()
            found.append(
                f"On {SPLITS[split]} prompts the trained reward was best after {count(best, 'update')} and has changed "
                f"by {_change(since)} since. The best of {len(run.evaluations)} evaluations is partly luck; even so, "
                f"that checkpoint may be the better one{'; it was not kept (checkpoints.best keeps it)' if gone else ''}."
            )
    if run.splits == ["training"]:
        found.append(
            "There are no held-out prompts: nothing here shows whether a gain carries over. Set prompts.held_out."
        )
    if run.evaluations and not run.watched:
        found.append(
            "Only the trained reward is evaluated, so a run that games it looks like one that works. Name another in "
            "evaluation.rewards."
        )
    few = {c.split: c.prompts for c in comparisons if c.prompts < comparison.FEW_PROMPTS}
    if few:
        where = " and ".join(count(n, f"{SPLITS[split]} prompt") for split, n in few.items())
        found.append(f"With only {where}, intervals are too narrow to rely on. Evaluate more (evaluation.prompts).")
    return [*found, *_learner_cautions(run)]


def _learner_cautions(run: Run) -> list[str]:
    """What the learner's own numbers warn of."""
    found = []
    rankings = run.metrics.get("train/rankings", EMPTY).values
    if tied := int((rankings == 0).sum()):
        found.append(
            f"In {tied} of {count(len(rankings), 'update')} every ranking was tied, so that nothing was learned from. Draw "
            "more pictures a prompt, or train on a reward that has more values."
        )
    error = run.metrics.get("learn/preferred_error", EMPTY).values[-LAST_UPDATES:]
    if len(error) and error.mean() > 0:
        found.append(
            f"Over the last {count(len(error), 'update')} the denoising error of preferred pictures was above the "
            f"reference's ({error.mean():+.2g}): the preferred pictures became less likely than under the reference."
        )
    return found


def _change(found: Comparison) -> str:
    return with_interval(found.difference, signed=True)
