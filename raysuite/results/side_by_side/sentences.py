"""What several runs say together, in sentences: what rose, what can be told between them, what limits both."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from raysuite.results import comparison, sentences
from raysuite.results.comparison import Comparison
from raysuite.results.numerals import count, number, with_interval
from raysuite.results.run import SPLITS, Run, Scores
from raysuite.results.side_by_side.methods import Contrast, Method
from raysuite.results.side_by_side.runs import SideBySide, differing, listed

SAME_BUDGET = 1.1
"""Budgets whose ratio is at most this are called equal."""
MOST_PAIRS = 3
"""Pairs that are named in the verdict; the others are in the table."""
OF_ROUNDING = ("batch", "device")
"""Options of a reward that change nothing but rounding."""
NUMBER = re.compile(r"[+−]?[0-9][0-9.,]*")
MORE = re.compile(r" and [0-9]+ more times")
"""What a guard says that warned again."""


def verdict(together: SideBySide, methods: Sequence[Method], found: Sequence[Contrast]) -> list[str]:
    """Sentences: what rose against the base, what can be told between the runs, and what seeds have to do with it."""
    return [_against_the_base(together, methods), _between(together, found), _seeds(together)]


def _against_the_base(together: SideBySide, methods: Sequence[Method]) -> str:
    what = "runs" if len(methods) == len(together.runs) else "methods"
    words = {1: "rose with", -1: "fell with", 0: "cannot be told from no change with"}
    clauses = []
    for direction, verb in words.items():
        names = [method.name for method in methods if method.direction == direction]
        if len(names) == len(methods) > 2:
            clauses.append(f"{verb} {'all' if direction else 'any of the'} {len(methods)} {what}")
        elif names:
            clauses.append(f"{verb} {listed(names)}")
    where = count(together.gains[0].prompts, f"{SPLITS[together.splits[0]]} prompt")
    return f"On {where} the {sentences.label(together.headline)} {listed(clauses)}."


def _between(together: SideBySide, found: Sequence[Contrast]) -> str:
    if not found:
        return "All runs have the same settings."
    names, methods = together.method_names, "runs" if len(together.methods) == len(together.runs) else "settings"
    told = sorted((c for c in found if c.told), key=lambda c: -c.difference.estimate)
    untold = [c for c in found if not c.told]
    above = listed([f"{names[c.higher]} ended above {names[c.lower]} ({_size(c)})" for c in told[:MOST_PAIRS]])
    if len(told) > MOST_PAIRS:
        return f"{len(told)} of {len(found)} pairs of {methods} can be told apart; most clearly {above}."
    if told and untold:
        return f"{above}. The other {'pair' if len(untold) == 1 else f'{len(untold)} pairs'} cannot be told apart."
    if told:
        return f"{above}."
    if len(untold) == 1:
        return f"{names[untold[0].higher]} and {names[untold[0].lower]} cannot be told apart ({_size(untold[0])})."
    return f"No two of the {len(together.methods)} {methods} can be told apart by their last evaluations."


def _size(contrast: Contrast) -> str:
    return with_interval(contrast.difference, signed=True)


def _seeds(together: SideBySide) -> str:
    """Which runs are repetitions of each other and how far those lie apart; that the others are not repeated."""
    repeated = [places for places in together.methods if len(places) > 1]
    if not repeated:
        return "Every run is one seed of its settings: the intervals say nothing about another seed."
    ends = [float(together.last(place).value.mean()) for place in range(len(together.runs))]
    sentences = []
    if not together.by_method:  # else the figure shows them
        sentences += [_repetitions(together, method, ends) for method, p in enumerate(together.methods) if len(p) > 1]
    gap = max(max(ends[place] for place in places) - min(ends[place] for place in places) for places in repeated)
    sentences.append(
        f"The widest gap between such repetitions is {number(gap, 3)}: between methods, a difference of that size may be the "
        "seed's."
    )
    if len(repeated) == len(together.methods) > 1:
        sentences.append("The intervals are over prompts and seeds.")
    if single := [together.names[places[0]] for places in together.methods if len(places) == 1]:
        each = "is one seed of its" if len(single) == 1 else "are one seed each of their"
        sentences.append(f"{listed(single)} {each} settings: what is said of them says nothing about another seed.")
    return " ".join(sentences)


def _repetitions(together: SideBySide, method: int, ends: Sequence[float]) -> str:
    places = together.methods[method]
    reached = listed([number(ends[place], 3) for place in places])
    if together.origins[places[0]] is not None and together.named_by_origin:
        return f"{together.method_names[method]}, {len(places)} seeds, ended at {reached}."
    seeds = {together.runs[place].config["seed"] for place in places}
    what = "differ in their seed only" if len(seeds) == len(places) else "have the same settings, even the seed,"
    return f"{listed([together.names[place] for place in places])} {what} and ended at {reached}."


def alarms(together: SideBySide) -> list[str]:
    """Signs in any run that a reward is gamed or prompts learned by heart."""
    return _said(together, sentences.alarms)


def cautions(together: SideBySide) -> list[str]:
    """What limits the comparison, then what limits single runs."""
    own = (_tuned, _budgets, _samplers, _writers, _bases, _trained_rewards, _namesakes, _left_out, _unfinished)
    return [
        *together.left_behind,
        *(caution for about in own for caution in about(together)),
        *_said(together, sentences.cautions),
    ]


def _said(together: SideBySide, about: Callable[[Run, Sequence[Comparison]], list[str]]) -> list[str]:
    """What is said about single runs, with their names; once and without them where it is said about all. Where the runs of methods
    are shown as one, sentences that differ in their numbers alone are said once, of how many runs.
    """
    said: dict[str, list[tuple[int, str]]] = {}
    for place, run in enumerate(together.whole):
        for sentence in about(run, comparison.compare(run)):
            alike = NUMBER.sub("#", MORE.sub("", sentence)) if together.by_method else sentence
            said.setdefault(alike, []).append((place, sentence))
    found = []
    for of in said.values():
        text, places = of[0][1], [place for place, _ in of]
        if len(places) == len(together.runs) and len({sentence for _, sentence in of}) == 1:
            found.append(text)
        elif together.by_method:
            parts = [(shown, len({*places} & {*shown.runs})) for shown in together.shown]
            who = listed([f"{shown.name} ({of_it} of {len(shown.runs)})" for shown, of_it in parts if of_it])
            found.append(f"{who}; of {together.names[places[0]]}: {text}")
        else:
            found.append(f"{listed([together.names[place] for place in places])}: {text}")
    return found


def _tuned(together: SideBySide) -> list[str]:
    """Whether the methods were tuned equally hard, and what choosing the best does to their numbers."""
    tried = {
        together.method_names[number]: origin.tried if (origin := together.origins[places[0]]) else None
        for number, places in enumerate(together.methods)
    }
    if set(tried.values()) <= {1, None} and len(set(tried.values())) == 1:
        return []
    each = listed([f"{name} {'unknown' if n is None else n}" for name, n in tried.items()])
    objectives = {origin.objective for origin in together.origins if origin}
    found = []
    if len(set(tried.values())) > 1:
        found.append(
            f"Not tuned equally hard: settings tried are {each}. More trials alone can put a method above another."
        )
    if all(origin is not None and origin.confirms for origin in together.origins):
        own = "" if together.splits[0] == "test" else ", and the prompts are those that they were chosen by"
        found.append(f"The settings were chosen by other runs, on held-out prompts; what is shown are new seeds{own}.")
    elif any(origin is not None and origin.tried > 1 and not origin.confirms for origin in together.origins):
        shown = "The settings of each objective are" if len(objectives) > 1 else "The settings at the top are"
        found.append(
            f"{shown} the best of those tried, chosen on the held-out prompts of this page: what they gained is partly luck. Run "
            "them with other seeds before you rely on it."
        )
    return found


def _budgets(together: SideBySide) -> list[str]:
    spent = together.spent
    if max(spent) <= SAME_BUDGET * min(spent):
        return []
    means = [float(np.mean([spent[place] for place in places])) for places in together.methods]
    each = listed([f"{together.method_names[number]} {cost:,.0f}" for number, cost in enumerate(means)])
    return [
        f"The budgets differ: network evaluations spent on training until the last evaluation are {each}. Compare the "
        "curves where they have spent the same."
    ]


def _samplers(together: SideBySide) -> list[str]:
    rows = [
        (path, values)
        for path, values in differing([run.config for run in together.runs])
        if path.startswith("sampler.")
    ]
    each = "; ".join(f"{path} is {listed([str(value) for value in values])}" for path, values in rows)
    said = (
        f"The runs draw their pictures differently ({each}): a part of their differences is the sampler's, and pictures of "
        f"the model as it came are those of {together.names[0]}."
    )
    return [said] if rows else []


def _writers(together: SideBySide) -> list[str]:
    found = [run.config.get("prompts", {}).get("writer") for run in together.runs]
    if len({*found}) == 1:
        return []
    each = listed([f"{name} {writer or 'none'}" for name, writer in zip(together.names, found, strict=True)])
    return [
        f"Prompts are rewritten by other writers ({each}): a part of the differences is theirs, before the first update already."
    ]


def _bases(together: SideBySide) -> list[str]:
    """Where the same model, sampler, prompts and noise did not give the same scores."""
    if _samplers(together) or _writers(together):
        return []
    first, *others = (run.scores.where(reward=together.headline, update=0) for run in together.runs)
    other = [name for name, scores in zip(together.names[1:], others, strict=True) if not _same(first, scores)]
    if not other:
        return []
    return [
        f"The model as it came does not have the same scores in {listed([together.names[0], *other])}: other weights, "
        "versions or hardware are a part of their differences."
    ]


def _same(one: Scores, two: Scores) -> bool:
    return one.value.shape == two.value.shape and np.allclose(one.value, two.value, rtol=1e-3)


def _trained_rewards(together: SideBySide) -> list[str]:
    terms = [
        " + ".join(f"{term['weight']:g} {term['name']}" for term in run.config["rewards"]) for run in together.runs
    ]
    each = listed([f"{name} {what}" for name, what in zip(together.names, terms, strict=True)])
    return [f"The runs train other rewards: {each}."] if len(set(terms)) > 1 else []


def _namesakes(together: SideBySide) -> list[str]:
    """Rewards of one name that are not the same: of other weights, from another server, with other questions."""
    found = []
    for reward in together.rewards:
        rows = differing([_entry(run, reward) for run in together.runs])
        if each := "; ".join(f"{path} is {listed([str(value) for value in values])}" for path, values in rows):
            found.append(
                f"Not every run was scored by the same {reward} (of {listed(together.names)}: {each}): what differs may be "
                "the scorers and not the runs."
            )
    return found


def _entry(run: Run, reward: str) -> dict[str, Any]:
    """What a reward's scores depend on, of its entry in a run's configuration; empty of a weighted sum, and where it says nothing."""
    entries = [*run.config["rewards"], *run.config["evaluation"]["rewards"]]
    entry = next((one for one in entries if isinstance(one, Mapping) and one["name"] == reward), {})
    options = {name: value for name, value in entry.get("options", {}).items() if name not in OF_ROUNDING}
    return {"model": entry.get("model"), "options": options}


def _left_out(together: SideBySide) -> list[str]:
    found = []
    for split, without in together.left_out.items():
        why = f"were not scored at last in {listed(without)}" if without else "are not the same in every run"
        found.append(f"The {SPLITS[split]} prompts {why} and are left out.")
    return found


def _unfinished(together: SideBySide) -> list[str]:
    members = zip(together.names, together.runs, strict=True)
    return [f"{name} is unfinished: {run.progress} are done." for name, run in members if not run.finished]
