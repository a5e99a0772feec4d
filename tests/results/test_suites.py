"""Evaluations on suites, from scores that are written here: every number by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raysuite.errors import UserError
from raysuite.results.suites.across import suites_across
from raysuite.results.suites.numbers import lines, of
from raysuite.results.suites.pictures import shown
from raysuite.results.suites.read import read_suite
from raysuite.results.suites.report import suite_summary, write_suite_report
from tests.results.pages import check_self_contained

PROMPTS = [("a cat", "single"), ("a dog", "single"), ("a cow", "single"), ("two cats", "counting")]
BASE = [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
BETTER = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]


def fabricate(
    directory: Path,
    scores: Mapping[str, Any],
    *,
    overall: str = "categories",
    prompts: list[tuple[str, str]] = PROMPTS,
    rewards: tuple[str, ...] = ("geneval",),
) -> Path:
    """A directory as an evaluation leaves it; of each member a base and an array (P, S), a NaN being a picture that is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    categories = list(dict.fromkeys(category for _, category in prompts if category))
    protocol = {
        "suite": {"name": "geneval", "source": "Ghosh et al.", "overall": overall, "categories": categories},
        "prompts": {"number": len(prompts), "sha256": "0"},
        "samples": 2,
        "seed": 0,
        "batch": 2,
        "images": "some",
        "sampler": {"steps": 4},
        "rewards": {reward: {"model": None} for reward in rewards},
        "order": list(rewards),
    }
    (directory / "protocol.json").write_text(json.dumps(protocol))
    (directory / "provenance.json").write_text(json.dumps({"command": ["raysuite", "evaluate"], "commit": "abc"}))
    rows = [json.dumps({"prompt": text, "category": category, "metadata": {}}) for text, category in prompts]
    (directory / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    for label, (base, values) in scores.items():
        member = directory / "members" / label
        (member / "scores").mkdir(parents=True)
        (member / "member.json").write_text(json.dumps({"base": base}))
        for sample, column in enumerate(np.asarray(values).T):
            known = [(prompt, value) for prompt, value in enumerate(column) if not np.isnan(value)]
            table = {
                "prompt": [prompt for prompt, _ in known] * len(rewards),
                "sample": [sample] * len(known) * len(rewards),
                "reward": [reward for reward in rewards for _ in known],
                "value": [value * (place + 1) for place in range(len(rewards)) for _, value in known],
            }
            pq.write_table(pa.table(table), member / "scores" / f"{sample:05d}.parquet")
    return directory


def both(directory: Path, **options: Any) -> Path:
    return fabricate(directory, {"base-sd": ("base-sd", BASE), "run@4": ("base-sd", BETTER)}, **options)


def test_the_overall_score_is_the_mean_of_the_categories(tmp_path: Path) -> None:
    """Base: (1/6 + 0) / 2. Run: (3/6 + 1) / 2. Over prompts it would be 1/8 and 5/8."""
    found = lines(read_suite(both(tmp_path / "geneval")))
    base, run = of(found, reward="geneval")
    assert (base.mean.estimate, run.mean.estimate) == pytest.approx((1 / 12, 3 / 4))
    assert base.difference is None and base.wins is None and run.difference is not None
    assert run.difference.estimate == pytest.approx(2 / 3)
    flat = list(of(lines(read_suite(both(tmp_path / "flat", overall="prompts"))), reward="geneval"))
    assert [line.mean.estimate for line in flat] == pytest.approx([1 / 8, 5 / 8])


def test_ties_win_half(tmp_path: Path) -> None:
    """Of 8 pictures 4 win and 4 tie: 0.75 over pictures; by category (4/6 and 1): 5/6."""
    for overall, expected in (("prompts", 0.75), ("categories", (4 / 6 + 1) / 2)):
        _, run = of(lines(read_suite(both(tmp_path / overall, overall=overall))), reward="geneval")
        assert run.wins is not None and run.wins.estimate == pytest.approx(expected)


def test_categories_have_numbers_of_their_own(tmp_path: Path) -> None:
    found = lines(read_suite(both(tmp_path / "e")))
    single = {line.member: line for line in of(found, reward="geneval", category="single")}
    assert single["base-sd"].mean.estimate == pytest.approx(1 / 6) and single["base-sd"].prompts == 3
    assert single["run@4"].mean.estimate == pytest.approx(3 / 6)
    difference = single["run@4"].difference
    assert difference is not None and difference.low <= 1 / 3 <= difference.high
    assert difference.high - difference.low < 1  # paired: narrower than the scores' range


def test_prompts_of_the_same_text_are_resampled_together(tmp_path: Path) -> None:
    """With one text there is one prompt, and its interval is about its pictures."""
    prompts = [("life", "Abstract"), ("life", "Arts")]
    scores = {"base-sd": ("base-sd", [[0.0, 1.0], [1.0, 0.0]])}
    found = read_suite(fabricate(tmp_path / "e", scores, overall="prompts", prompts=prompts))
    assert found.groups_P.tolist() == [0, 0]
    (line,) = of(lines(found), reward="geneval")
    assert 0 <= line.mean.low < line.mean.high <= 1

    texts = [(text, "Abstract") for text in ("life", "cat") for _ in range(8)]
    halves = {"base-sd": ("base-sd", [[0.25, 0.25]] * 8 + [[0.75, 0.75]] * 8)}
    (two,) = of(
        lines(read_suite(fabricate(tmp_path / "two", halves, overall="prompts", prompts=texts))), reward="geneval"
    )
    assert (two.mean.low, two.mean.high) == (0.25, 0.75)  # of sixteen prompts 0.37 to 0.63


def test_any_run_may_be_what_others_are_compared_with(tmp_path: Path) -> None:
    third = {"other@2": ("base-sd", BETTER), "base-sd": ("base-sd", BASE), "run@4": ("base-sd", BETTER)}
    directory = fabricate(tmp_path / "three", third)
    found = {line.member: line for line in of(lines(read_suite(directory), "runs/run"), reward="geneval")}
    assert list(found) == ["base-sd", "other@2", "run@4"]
    assert found["run@4"].difference is None
    base, equal = found["base-sd"].difference, found["other@2"].wins
    assert base is not None and base.estimate == pytest.approx(-2 / 3)
    assert equal is not None and equal.estimate == 0.5
    with pytest.raises(UserError, match="--against one of base-sd, other@2, run@4, got nobody"):
        lines(read_suite(directory), "nobody")


def test_what_is_not_finished_is_said_and_left_out(tmp_path: Path) -> None:
    half = [[1.0, float("nan")], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    directory = fabricate(tmp_path / "e", {"base-sd": ("base-sd", BASE), "run@4": ("base-sd", half)})
    found = read_suite(directory)
    assert found.members == ("base-sd",) and found.unfinished == ("run@4",)
    assert "run@4 is not finished" in suite_summary(directory)
    only = fabricate(tmp_path / "only", {"base-sd": ("base-sd", half)})
    with pytest.raises(UserError, match="of which a model is finished, found none"):
        read_suite(only)


def test_the_terminal_says_who_is_better_and_by_how_much(tmp_path: Path) -> None:
    """With one prompt in a category there is no interval; differences of twenty equal ones in each have none of width."""
    prompts = [(f"{n} {kind}", kind) for kind in ("cats", "dogs") for n in range(20)]
    scores = {
        "base-sd": ("base-sd", np.zeros((40, 2))),
        "run@4": ("base-sd", np.ones((40, 2))),
        "bad@4": ("base-sd", np.full((40, 2), -1.0)),
    }
    directory = fabricate(tmp_path / "e", scores, prompts=prompts, rewards=("geneval", "clip_score"))
    said = suite_summary(directory)
    assert "On geneval run@4 scores higher than base-sd by geneval: +1.000 [1.000, 1.000], and wins 100 %" in said
    assert "On geneval bad@4 scores lower than base-sd by geneval: -1.000" in said
    assert "clip_score, mean over the categories' means: 40 prompts with 2 pictures each" in said
    assert "run@4 - base-sd" in said and "dogs" in said
    assert "not told apart" not in said
    table = pq.read_table(write_suite_report(directory).with_suffix(".parquet")).to_pylist()
    row = next(r for r in table if (r["member"], r["reward"], r["category"]) == ("run@4", "clip_score", "dogs"))
    assert (row["mean"], row["difference"], row["prompts"]) == (2.0, 2.0, 20)
    assert row["wins_low"] == pytest.approx(0.025 ** (1 / 20))  # all of twenty: that is what they can say
    assert len(table) == 3 * 2 * 3


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda d: (d / "protocol.json").unlink(), "found no protocol.json"),
        (lambda d: (d / "protocol.json").write_text("{"), "protocol.json as it was written, it is damaged"),
        (lambda d: (d / "members/run@4/scores/00000.parquet").write_bytes(b"x"), "00000.parquet as it was written"),
    ],
)
def test_damage_is_told_of(break_it: Any, said: str, tmp_path: Path) -> None:
    directory = both(tmp_path / "e")
    break_it(directory)
    with pytest.raises(UserError, match=said):
        suite_summary(directory)


def picture(directory: Path, label: str, prompt: int, grey: int, side: int = 16) -> None:
    file = directory / "members" / label / "images" / f"{prompt}-0.png"
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((side, side, 3), grey, np.uint8)).save(file)


def test_the_page_shows_pictures_side_by_side_in_orders_to_choose(tmp_path: Path) -> None:
    directory = both(tmp_path / "e")
    for label in ("base-sd", "run@4"):
        for prompt in (0, 1, 3):  # of the third prompt the run's is missing
            picture(directory, label, prompt, 10 * prompt)
    picture(directory, "base-sd", 2, 0)
    html = write_suite_report(directory).read_text()
    page = check_self_contained(html)
    assert len([r for r in page.references if r.startswith("data:")]) == 6
    assert [html.count(f'id="sort{n}"') for n in range(4)] == [1, 1, 1, 0]
    for name in ("as in the suite", "geneval: run@4 gains most", "geneval: run@4 loses most"):
        assert name in html
    # gains of the first pictures are 1, 0 and 1
    assert re.findall(r"--s0:(\d);--s1:(\d);--s2:(\d)", html) == [("0", "0", "1"), ("1", "2", "0"), ("2", "1", "2")]
    assert "checked" in html and write_suite_report(directory).read_text() == html


def test_of_many_pictures_half_are_spaced_evenly_and_half_are_extremes(tmp_path: Path) -> None:
    prompts = [(f"cat {n}", "") for n in range(100)]
    gains = np.zeros((100, 2))
    gains[37, 0], gains[59, 0] = 5.0, -5.0
    directory = fabricate(
        tmp_path / "e", {"base-sd": ("base-sd", np.zeros((100, 2))), "run@4": ("base-sd", gains)}, prompts=prompts
    )
    for label in ("base-sd", "run@4"):
        for prompt in range(100):
            picture(directory, label, prompt, prompt, side=4)
    found = shown(read_suite(directory), [("run@4", "base-sd")])
    assert len(found) == len(set(found)) == 48 and {37, 59} <= set(found)
    assert {place * 100 // 24 for place in range(24)} <= set(found)


def test_runs_evaluated_under_one_protocol_stand_in_one_table(tmp_path: Path) -> None:
    for name, values in (("a", BETTER), ("b", BASE)):
        fabricate(
            tmp_path / name / "suites" / "geneval", {"base-sd": ("base-sd", BASE), f"{name}@4": ("base-sd", values)}
        )
    said = suites_across([tmp_path / "a", tmp_path / "b"])
    lines = [line.split()[0] for line in said.splitlines()[1:]]
    assert lines == ["model", "base-sd", "a@4", "b@4"]
    fabricate(tmp_path / "c" / "suites" / "geneval", {"base-sd": ("base-sd", BASE)}, overall="prompts")
    assert suites_across([tmp_path / "a", tmp_path / "c"]).count("model") == 2
    assert suites_across([tmp_path]) == ""


def test_what_nobody_has_finished_is_not_shown_beside_others(tmp_path: Path) -> None:
    half = [[0.0, float("nan")], *BASE[1:]]
    fabricate(tmp_path / "a" / "suites" / "geneval", {"base-sd": ("base-sd", half)})
    assert suites_across([tmp_path / "a"]) == ""
    with pytest.raises(UserError, match="of which a model is finished, found none"):
        read_suite(tmp_path / "a" / "suites" / "geneval")
    both(tmp_path / "b" / "suites" / "geneval")
    said = suites_across([tmp_path / "a", tmp_path / "b"])
    assert [line.split()[0] for line in said.splitlines()[1:]] == ["model", "base-sd", "run@4"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name, values in (("a", BETTER), ("b", np.array(BETTER) * 2)):
        fabricate(
            tmp_path / name / "run" / "suites" / "geneval", {"base-sd": ("base-sd", BASE), "run@4": ("base-sd", values)}
        )
    said = suites_across([tmp_path / "a" / "run", tmp_path / "b" / "run"])
    assert [line.split("  ")[0] for line in said.splitlines()[2:]] == ["base-sd", "b/run: run@4", "run@4"]
