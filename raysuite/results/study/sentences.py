"""What a study says in sentences: nothing that its intervals do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

from raysuite.kernel.stats import ENOUGH_POWER, Interval
from raysuite.results.numerals import number, with_interval
from raysuite.results.run import SPLITS
from raysuite.results.side_by_side.runs import listed
from raysuite.results.study.read import Estimate, Gain, Study

SAME = 0.9
"""Two objectives push the same way where the whole interval of their cosine lies above this."""
MOST_GROUPS = 2
"""Groups of objectives that a clause names; of more it says how many pairs."""

Pair = tuple[str, str]


def lead(study: Study) -> list[str]:
    """What the first rung says in the space of parameters: which objectives agree, and which show no direction."""
    rung, units = study.rungs[0], study.rungs[0].facts["units"]
    shown = [label for label in study.labels if study.shows_direction(label, rung=rung.number)]
    silent = [label for label in study.labels if label not in shown]
    said = []
    for quantity, before in (("expected_cosine", ""), ("matched_cosine", "with timesteps weighted alike, ")):
        found = {pair: study.one(quantity, *pair, rung=rung.number) for pair in combinations(shown, 2)}
        if intervals := {pair: e.interval for pair, e in found.items() if e is not None}:
            said.append(before + _agreement(intervals, "all that show a direction" if silent else "all"))
            told = [e for e in found.values() if e is not None and not math.isnan(e.interval.estimate)]
            if quantity == "matched_cosine" and (limits := _limits(study, told)):
                said.append(limits)
    if silent:
        who = listed(silent) if shown else "no objective"
        verb = "show no" if len(silent) > 1 and shown else "shows no" if shown else "shows a"
        said.append(f"with {units} units {who} {verb} direction that can be told from noise")
    powers = {label: e.interval for label in shown if (e := study.one("power", label, rung=rung.number))}
    if weak := {label: i for label, i in powers.items() if i.estimate < ENOUGH_POWER}:
        chances = ", ".join(f"{label} {chance(i)}" for label, i in weak.items())
        said.append(
            f"power is low ({chances}): with {units} units such a direction may be found by luck; draw more units"
        )
    if len(shown) == 1:
        said.append(f"{shown[0]} shows one, and there is none to compare it with")
    if len(study.rungs) > 1:
        said[0] = f"of {len(study.rungs)} measurements the first ({rung.title}): {said[0]}"
    return [f"{_capital(clause, study.labels)}." for clause in said]


def _limits(study: Study, matched: Sequence[Estimate]) -> str:
    """How many matched cosines rest on some ranges of timesteps alone, and how many on directions that may be luck."""
    some = sum(len(e.bins) < len(study.facts["bins"]) for e in matched)
    weak = sum(bool(e.weak) for e in matched)
    said = [f"{some} rest on those timesteps alone in which both show a direction"] if some else []
    said += [f"{weak} rest on directions that may have been found by luck"] if weak else []
    return f"of these {len(matched)} cosines " + ", and ".join(said) if said else ""


def _capital(clause: str, labels: Sequence[str]) -> str:
    """With a capital letter, unless it begins with the name of an objective."""
    return clause if clause.startswith(tuple(labels)) else clause[0].upper() + clause[1:]


def _agreement(found: Mapping[Pair, Interval], everybody: str) -> str:
    """Clauses on which pairs push the same way, in part, or against each other, and on which nothing can be told."""
    sorts: dict[str, list[Pair]] = {}
    for name in ("same", "part", "some", "against", "untold", "none"):
        if pairs := [pair for pair, interval in found.items() if _sort(interval) == name]:
            sorts[name] = pairs
    clauses: list[str] = []
    for name, pairs in sorts.items():
        if len(pairs) == len(found) > 1:
            who = everybody
        elif len(groups := _groups(pairs)) <= MOST_GROUPS:
            who = ", as well as ".join(map(listed, groups)) + ("," if len(groups) > 1 else "")
        elif clauses and name == list(sorts)[-1]:
            who = f"the other {len(pairs)} pairs"
        else:
            who = f"{len(pairs)} of {len(found)} pairs"
        clauses.append(f"{who} {_words(name, [found[pair] for pair in pairs])}")
    return "; ".join(clauses)


def _sort(i: Interval) -> str:
    if math.isnan(i.low):
        return "none"
    if i.low > 0:
        return "same" if i.low > SAME else "part" if i.high < SAME else "some"
    return "against" if i.high < 0 else "untold"


def _words(sort: str, intervals: Sequence[Interval]) -> str:
    low, high = (number(f, 2) for f in (min(i.low for i in intervals), max(i.high for i in intervals)))
    return {
        "same": f"push the same way (cosine above {SAME})",
        "part": f"push in part the same way (cosine between {low} and {high})",
        "some": f"push the same way at least in part (cosine above {low})",
        "against": f"push against each other (cosine below {high})",
        "untold": "cannot be told to agree or disagree",
        "none": "cannot be compared",
    }[sort]


def _groups(pairs: Sequence[Pair]) -> list[list[str]]:
    """Few groups, each of objectives that are all paired with each other, so that every pair is in one."""
    labels = list(dict.fromkeys(label for pair in pairs for label in pair))
    left, groups = list(pairs), []
    while left:
        group = list(left[0])
        for label in labels:
            if label not in group and all((a, label) in pairs or (label, a) in pairs for a in group):
                group.append(label)
        left = [pair for pair in left if not set(pair) <= set(group)]
        groups.append(sorted(group, key=labels.index))
    return groups


def along(study: Study, path: str, quantity: str) -> str:
    """Whose agreement with the base moves along a ladder by more than intervals allow."""
    rungs, base = study.ladder(path), study.base(study.ladder(path))
    moved, still = [], []
    for label in study.labels:
        found = [(rung, study.one(quantity, base, label, rung=rung.number)) for rung in rungs if label != base]
        known = [(rung, e) for rung, e in found if e is not None and not math.isnan(e.interval.low)]
        # matched cosines over other timesteps are other quantities
        points = [(rung, e.interval) for rung, e in known if e.bins == known[0][1].bins]
        if len(points) < 2:
            continue
        lowest, highest = min(points, key=lambda p: p[1].high), max(points, key=lambda p: p[1].low)
        if highest[1].low > lowest[1].high:
            ends = sorted((lowest, highest), key=lambda p: p[0].number)
            moved.append(f"{label} from " + " to ".join(f"{_two(i)} at {rung.at(path)}" for rung, i in ends))
        else:
            still.append(label)
    said = [f"agreement with {base} moves: {'; '.join(moved)}"] if moved else []
    said += [f"for {listed(still)} no change of agreement with {base} can be told"] if still else []
    opening = f"With timesteps weighted alike, along {path}" if quantity == "matched_cosine" else f"Along {path}"
    return f"{opening} {'; '.join(said)}." if said else ""


def gained(gains: Sequence[Gain]) -> str:
    """Which steps changed the trained reward, and which by something else than was predicted. All are of one split."""
    clauses = []
    for words, test in (
        ("raised the trained reward", lambda i: i.low > 0),
        ("lowered it", lambda i: i.high < 0),
        ("changed nothing that can be told", lambda i: not (i.low > 0 or i.high < 0)),
    ):
        if names := [g.objective for g in gains if test(g.realised)]:
            clauses.append(f"{'a step' if len(names) == 1 else 'steps'} along {listed(names)} {words}")
    apart = [g.objective for g in gains if g.realised.low > g.predicted.high or g.realised.high < g.predicted.low]
    differs = f"For {listed(apart)} the intervals of prediction and outcome lie apart." if apart else ""
    return f"On {SPLITS[gains[0].split]} prompts {'; '.join(clauses)}. {differs}".strip()


def principal(shares: Sequence[float], objectives: int) -> str:
    """How few directions the objectives have between them. Noise in cosines makes the first one larger, whatever it is."""
    first = f"{100 * shares[0]:.0f} %"
    enough = next(n for n in range(1, len(shares) + 1) if sum(shares[:n]) > SAME or n == len(shares))
    more = "which is nearly all" if enough == 1 else f"{enough} hold {100 * sum(shares[:enough]):.0f} %"
    return (
        f"Of what {objectives} objectives want, one direction holds {first}, {more}. There are no limits to this, and noise makes "
        f"it too large: of objectives with nothing in common each holds {100 / objectives:.0f} %, and one seems to hold more."
    )


def chance(power: Interval) -> str:
    """A probability with its limits, in percent."""
    return f"{power.estimate:.0%} [{power.low:.0%}, {power.high:.0%}]".replace("%", " %")


def _two(interval: Interval) -> str:
    return with_interval(interval, places=2)
