from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from raysuite.cli import main
from raysuite.errors import UserError
from raysuite.kernel.stats import differences_of_methods
from raysuite.results.figures import MARKERS, RUNS
from raysuite.results.side_by_side import methods, panels, sentences
from raysuite.results.side_by_side.methods import contrasts, summarise
from raysuite.results.side_by_side.panels import GLYPHS
from raysuite.results.side_by_side.report import Report, page_of
from raysuite.results.side_by_side.runs import SideBySide, read_runs
from tests.results import fabricate
from tests.results.fabricate import CONFIG, COST
from tests.results.pages import check_self_contained


def comparison_of(directories: Sequence[Path]) -> Path:
    """The page where the command puts it."""
    return Report.of(directories).write(page_of(directories))


def passing(prompts: int) -> fabricate.Value:
    """Of 12 prompts 3 pass strictly as the model came and `prompts` after training; `scenes` rises by 0.01 for each."""

    def value(update: int, split: str, prompt: int, sample: int, reward: str) -> float:
        if reward == "scenes_strict":
            return float(prompt < (prompts if update else 3))
        return 0.3 + 0.01 * prompt + 0.01 * (prompts if update else 0)

    return value


def run(directory: Path, prompts: int, changes: Mapping[str, Any] | None = None, **options: Any) -> Path:
    """A finished run whose last strict pass rate is `prompts` of 12. Its objective is called as its directory."""
    config = CONFIG | {"objective": {"name": directory.name}} | (changes or {})
    return fabricate.whole(directory, passing(prompts), config=config, **options)


def short_of(directory: Path, *, updates: int = 5, cost: int = COST, **options: Any) -> Path:
    """An unfinished run that was evaluated after `updates`."""
    fabricate.begin(directory)
    fabricate.evaluate(directory, 0, passing(9), **options)
    fabricate.learn(directory, range(updates), cost=cost)
    fabricate.evaluate(directory, updates, passing(9), **options)
    return directory


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Last strict pass rates of 3/12, 9/12 and 8/12, from 3/12."""
    return [run(tmp_path / name, prompts) for name, prompts in {"dpo": 3, "ddpo": 9, "dspo": 8}.items()]


def verdict(together: SideBySide) -> list[str]:
    return sentences.verdict(together, summarise(together), contrasts(together))


def test_numbers_are_those_of_the_arithmetic(three: list[Path]):
    together = read_runs(three)
    assert (together.names, together.headline, together.splits) == (
        ("dpo", "ddpo", "dspo"),
        "scenes_strict",
        ("held_out", "training"),
    )
    assert [gain.difference.estimate for gain in together.gains] == pytest.approx([0.0, 6 / 12, 5 / 12])
    graded = [together.gain_of((place,), "scenes", "training") for place in range(3)]
    assert [gain.difference.estimate for gain in graded if gain] == pytest.approx([0.03, 0.09, 0.08])
    found = contrasts(together)
    assert [(c.higher, c.lower, c.told) for c in found] == [(1, 2, False), (1, 0, True), (2, 0, True)]
    assert [c.difference.estimate for c in found] == pytest.approx([1 / 12, 6 / 12, 5 / 12])
    assert together.spent == [10 * COST] * 3


def test_the_verdict_is_about_the_base_and_then_about_the_runs(three: list[Path]):
    lead, between, seeds = verdict(read_runs(three))
    assert lead == (
        "On 12 held-out prompts the strict pass rate rose with ddpo and dspo and cannot be told from no change with dpo."
    )
    assert re.fullmatch(
        r"ddpo ended above dpo \(\+0\.50 \[.*\]\) and dspo ended above dpo \(\+0\.42 \[.*\]\)\. The other pair cannot be told apart\.",
        between,
    )
    assert seeds == "Every run is one seed of its settings: the intervals say nothing about another seed."


def test_more_pairs_make_wider_intervals(three: list[Path]):
    alone = contrasts(read_runs(three[:2]))[0].difference
    among = contrasts(read_runs(three))[1].difference
    assert among.estimate == alone.estimate
    assert among.low < alone.low and alone.high < among.high


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ((9, 9), "a and b cannot be told apart (+0.000 [0.000, 0.000])."),
        ((9, 9, 9), "No two of the 3 runs can be told apart by their last evaluations."),
        ((12, 9, 5, 0), "4 of 6 pairs of runs can be told apart; most clearly a ended above d (+1.000"),
    ],
)
def test_what_is_said_between_the_runs(tmp_path: Path, rates: tuple[int, ...], words: str):
    together = read_runs([run(tmp_path / name, rate) for name, rate in zip("abcd", rates, strict=False)])
    assert verdict(together)[1].startswith(words)


def test_a_reward_that_falls_is_called_that(tmp_path: Path):
    down = fabricate.whole(tmp_path / "down", lambda update, split, prompt, *_: float(prompt < 12 - update))
    together = read_runs([run(tmp_path / "up", 9), down])
    assert verdict(together)[0].endswith("the strict pass rate rose with up and fell with down.")


@pytest.mark.parametrize(
    ("rate", "words"), [(9, "rose with all 3 runs."), (3, "cannot be told from no change with any of")]
)
def test_what_all_runs_do_is_said_once(tmp_path: Path, rate: int, words: str):
    assert words in verdict(read_runs([run(tmp_path / name, rate) for name in "abc"]))[0]


def test_runs_with_other_seeds_are_one_method(tmp_path: Path):
    same = {"objective": {"name": "ddpo"}}
    first = run(tmp_path / "first", 9, same)
    other = run(tmp_path / "other", 3)
    again = run(tmp_path / "again", 6, same | {"seed": 4, "cluster": {"workers": 2}})
    together = read_runs([first, other, again])
    assert together.methods == [[0, 2], [1]]
    (found,) = contrasts(together)
    assert (found.higher, found.lower) == (0, 1)
    assert found.difference.estimate == pytest.approx((0.75 + 0.5) / 2 - 0.25)
    _, between, seeds = verdict(together)
    assert between.startswith("first + again and other cannot be told apart (")  # two seeds say little of others
    assert seeds.startswith("first and again differ in their seed only and ended at 0.750 and 0.500. The widest gap")
    assert "is 0.250: between methods, a difference of that size may be the seed's." in seeds
    assert seeds.endswith("other is one seed of its settings: what is said of them says nothing about another seed.")
    html = comparison_of([first, other, again]).read_text(encoding="utf-8")
    assert set(re.findall(r'var\(--(run\d)\)">(.)</i> (\w+)', html)) == {
        ("run1", GLYPHS[0], "first"),
        ("run2", GLYPHS[1], "other"),
        ("run1", GLYPHS[1], "again"),
    }


def test_only_repetitions(tmp_path: Path):
    same = {"objective": {"name": "ddpo"}}
    directories = [run(tmp_path / "a", 9, same), run(tmp_path / "b", 6, same)]
    _, between, seeds = verdict(read_runs(directories))
    assert between == "All runs have the same settings."
    assert "have the same settings, even the seed, and ended at" in seeds
    assert "Between the runs" not in comparison_of(directories).read_text(encoding="utf-8")


def test_numbers_are_of_the_pictures_that_all_runs_have(tmp_path: Path):
    whole = run(tmp_path / "whole", 9, samples=3)
    short = short_of(tmp_path / "short", samples=1)
    together = read_runs([whole, short])
    assert {(gain.prompts, gain.pictures) for gain in together.gains} == {(12, 12)}
    assert contrasts(together)[0].difference.estimate == 0


def test_diversity_is_that_of_the_last_evaluation_or_of_none(tmp_path: Path):
    """An unfinished run had one picture a prompt at its last evaluation: what its first one says is not how it ended."""
    finished, short = run(tmp_path / "whole", 9), short_of(tmp_path / "short")
    for directory, update, value in ((finished, 0, 40.0), (finished, 10, 30.0), (short, 0, 40.0)):
        fabricate.log(directory, update, {"evaluation/diversity/held_out": value})
    assert [method.diversity for method in summarise(read_runs([finished, short]))] == [None, None]
    fabricate.log(short, 5, {"evaluation/diversity/held_out": 35.0})
    found = [method.diversity for method in summarise(read_runs([finished, short]))]
    assert [one.estimate for one in found if one] == [30.0, 35.0]


def test_paths_begin_at_the_model_as_it_came(tmp_path: Path):
    """The ends have two pictures of a prompt, of which the second is worse: paths are of the first, and so is the line below."""

    def value(update: int, split: str, prompt: int, sample: int, reward: str) -> float:
        return 0.5 + 0.01 * update - 0.2 * sample

    directories = [tmp_path / "a", tmp_path / "b"]
    for directory in directories:
        fabricate.begin(directory, CONFIG | {"objective": {"name": directory.name}})
        fabricate.evaluate(directory, 0, value)
        fabricate.learn(directory, range(10))
        fabricate.evaluate(directory, 5, value, samples=1)
        fabricate.evaluate(directory, 10, value)
    for _, chart in panels.frontiers(read_runs(directories)):
        assert {float(line.y[0]) for line in chart.lines.values()} == {chart.options["reference"]} == {0.5}


def test_lines_of_methods_end_where_their_runs_end(tmp_path: Path):
    """Seeds that a budget ends after other numbers of updates: each has its own end, and what all have lies between."""
    directories = []
    for name, seed in ((name, seed) for name in ("a", "b") for seed in range(9)):
        directory = fabricate.begin(tmp_path / f"{name}-{seed}", CONFIG | {"objective": {"name": name}, "seed": seed})
        ends = 12 if seed % 2 else 11
        fabricate.evaluate(directory, 0, passing(3))
        fabricate.learn(directory, range(ends))
        for update in (6, ends):
            fabricate.evaluate(directory, update, passing(6 if update == 6 else 9))
        directories.append(directory)
    together = read_runs(directories)
    assert together.by_method
    charts = [chart for *_, chart in panels.curves(together)] + [panels.kl_curves(together)]
    for chart in filter(None, charts):
        assert {len(line.x) for line in chart.lines.values()} == {3}
        for line in chart.lines.values():
            assert line.x[-1] == pytest.approx((5 * 11 + 4 * 12) / 9 * COST)
    (strict,) = (chart for of, split, chart in panels.curves(together) if (of, split) == ("scenes_strict", "held_out"))
    assert strict.lines["a"].y == pytest.approx([3 / 12, 6 / 12, 9 / 12])


def test_curves_are_called_by_their_split(tmp_path: Path):
    """Test prompts are evaluated at both ends alone, so that curves are of the held-out ones."""
    splits = ("test", "held_out", "training")
    page = comparison_of([run(tmp_path / name, 9, splits=splits) for name in ("a", "b")]).read_text("utf-8")
    headings = re.findall(r"<h3>(.*?)</h3>", page)
    best, gained = (next(h for h in headings if h.startswith(word)) for word in ("Best so far", "Gained"))
    assert "held-out prompts" in best and "test prompts" not in best and "test prompts" in gained
    against = [h for h in headings if "against the KL" in h]
    assert against and all("held-out prompts" in h for h in against)


def test_what_a_run_says_of_its_own_prompts_is_said_where_others_have_other_ones(tmp_path: Path):
    def value(update: int, split: str, prompt: int, *_: object) -> float:
        return 0.01 * prompt + (0.02 if split == "training" else -0.02) * update

    config = CONFIG | {"evaluation": {"every": 5, "rewards": [], "seed": 7}}
    directories = [
        fabricate.whole(tmp_path / name, value, config=config | {"objective": {"name": name}}, rewards=("scenes",))
        for name in ("a", "b")
    ]
    for file in (directories[1] / "scores").iterdir():
        rename_prompts(file, "held_out")
    together = read_runs(directories)
    assert together.splits == ("training",)
    (alarm,) = sentences.alarms(together)
    assert alarm.startswith("The trained reward rose on training prompts") and "does not carry over" in alarm
    assert not any("no held-out prompts" in caution for caution in sentences.cautions(together))


def test_rewards_of_one_name_that_differ_are_told(tmp_path: Path):
    def scored(directory: str, **entry: object) -> Path:
        rewards = [{"name": "scenes", "weight": 1.0, **entry}]
        return run(tmp_path / directory, 9, {"rewards": rewards})

    alike = [scored("a", options={"url": "one", "batch": 8}), scored("b", options={"url": "one", "batch": 4})]
    assert not any("scored by the same" in said for said in sentences.cautions(read_runs(alike)))
    said = sentences.cautions(read_runs([*alike, scored("c", model="weights", options={"url": "two"})]))
    assert [sentence for sentence in said if "scored by the same" in sentence] == [
        "Not every run was scored by the same scenes (of a, b and c: model is None, None and weights; options.url is one, one and "
        "two): what differs may be the scorers and not the runs."
    ]


def test_a_split_that_a_run_has_not_scored_is_left_out_by_name(tmp_path: Path):
    whole = run(tmp_path / "whole", 9)
    short = fabricate.begin(tmp_path / "short", json.loads((whole / "config.json").read_text()))
    fabricate.evaluate(short, 0, passing(3))
    fabricate.learn(short, range(5))
    fabricate.evaluate(short, 5, passing(3), splits=("held_out",))
    said = sentences.cautions(read_runs([whole, short]))
    assert "The training prompts were not scored at last in short and are left out." in said


def test_a_split_with_other_prompts_is_left_out(tmp_path: Path):
    directories = [run(tmp_path / "a", 9), run(tmp_path / "b", 6)]
    for split in ("training", "held_out"):
        for file in (directories[1] / "scores").iterdir():
            rename_prompts(file, split)
        if split == "training":
            together = read_runs(directories)
            assert together.splits == ("held_out",)
            assert "The training prompts are not the same in every run and are left out." in sentences.cautions(
                together
            )
            assert "training prompt 0</h3>" not in comparison_of(directories).read_text(encoding="utf-8")
    with pytest.raises(
        UserError, match=r"same prompts, those of a and b differ: train them with the same prompts\.held_"
    ):
        read_runs(directories)


def rename_prompts(file: Path, split: str) -> None:
    table = fabricate.pq.read_table(file)
    prompts = [f"another {prompt}" if prompt.startswith(split) else prompt for prompt in table["prompt"].to_pylist()]
    column = table.column_names.index("prompt")
    fabricate.pq.write_table(table.set_column(column, "prompt", fabricate.pa.array(prompts)), file)


def evaluation_seed(directory: Path) -> Path:
    return run(directory, 9, {"evaluation": CONFIG["evaluation"] | {"seed": 8}})


def other_model(directory: Path) -> Path:
    return run(directory, 9, {"model": {"path": "toy"}})


def other_rewards(directory: Path) -> Path:
    return run(directory, 9, {"rewards": [{"name": "jpeg", "weight": 1.0}]}, rewards=("jpeg",))


def only_the_base(directory: Path) -> Path:
    fabricate.begin(directory)
    fabricate.evaluate(directory, 0, passing(9))
    return directory


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (fabricate.begin, r"found those after no updates: leave the run out or wait for its next evaluation"),
        (only_the_base, r"found those after \[0\] updates"),
        (evaluation_seed, r"the same evaluation\.seed, got 7 in a and 8 in b: compare runs"),
        (other_model, r"the same model\.path, got scenes in a and toy in b"),
        (other_rewards, r"a reward that all of a and b were evaluated on, found none: name one in evaluation\.rewards"),
        (lambda directory: directory, r"found no config\.json"),
        (lambda directory: directory.with_name("a"), r"expected different runs, got .*a twice: name it once"),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, make: Any, words: str):
    directories = [run(tmp_path / "a", 9), make(tmp_path / "b")]
    with pytest.raises(UserError, match=words):
        comparison_of(directories)
    assert not (tmp_path / "comparison.html").exists()


def test_too_few_or_too_many(tmp_path: Path):
    with pytest.raises(UserError, match="expected at least 2 runs to compare, got 1: name more"):
        read_runs([run(tmp_path / "0", 9)])
    apart = [tmp_path / "0", *(run(tmp_path / str(rate), 9, {"learn": {"rate": rate}}) for rate in range(1, 41))]
    with pytest.raises(UserError, match=r"expected at most 40 methods .* got 41: name fewer"):
        read_runs(apart)


@pytest.mark.parametrize(
    ("names", "called"),
    [
        ({"ddpo-0": 0, "ddpo-10": 10, "dspo": 0}, ["ddpo", "dspo"]),
        ({"ddpo_seed0": 0, "ddpo_seed1": 1, "dspo-s0": 0, "dspo-s1": 1}, ["ddpo", "dspo"]),
        ({"ddpo-1": 0, "ddpo-2": 1, "dspo-0": 0}, ["ddpo-1 + ddpo-2", "dspo-0"]),  # they say something else
        ({"ddpo-0": 0, "ddpo-1": 1, "ddpo": 2, "dspo": 0}, ["ddpo-0 + ddpo-1 + ddpo", "dspo"]),
        ({"ddpo-0": 0, "ddpo-1": 1, "ddpo": "dspo"}, ["ddpo-0 + ddpo-1", "ddpo"]),  # another method's name
        ({"0": 0, "1": 1, "dspo": 0}, ["0 + 1", "dspo"]),
    ],
)
def test_repetitions_that_are_named_by_their_seeds_are_called_what_they_share(
    names: dict[str, Any], called: list[str], tmp_path: Path
):
    """The objective is the beginning of the name, or what stands in place of a seed."""
    for name, seed in names.items():
        objective = seed if isinstance(seed, str) else "dspo" if name.startswith("dspo") else "ddpo"
        run(tmp_path / name, 6, {"objective": {"name": objective}, "seed": 0 if isinstance(seed, str) else seed})
    together = read_runs([tmp_path / name for name in names])
    assert together.method_names == called


def test_many_repetitions_are_shown_as_methods(tmp_path: Path):
    """Nine seeds of two methods: 3 of 12 before; the one ends at 3, 4, ... 11, the other always at 6."""
    runs = {"rising": lambda seed: 3 + seed, "steady": lambda seed: 6}
    directories = [
        run(tmp_path / f"{name}-{seed}", end(seed), {"objective": {"name": name}, "seed": seed})
        for name, end in runs.items()
        for seed in range(9)
    ]
    together = read_runs(directories)
    rising, steady = together.shown
    assert together.by_method and (rising.runs, steady.runs) == (tuple(range(9)), tuple(range(9, 18)))
    gain = together.gain_of(rising.runs, "scenes_strict", "held_out")
    assert gain is not None and gain.difference.estimate == pytest.approx(4 / 12)
    assert gain.difference.low < 2 / 12 and gain.difference.high > 6 / 12
    curve = next(
        chart for reward, split, chart in panels.curves(together) if (reward, split) == ("scenes_strict", "held_out")
    )
    line = curve.lines[rising.name]
    assert line.low is not None and line.high is not None
    assert (line.y[-1], line.low[-1], line.high[-1]) == pytest.approx((7 / 12, 3 / 12, 11 / 12))
    methods = summarise(together)
    bars = panels.gains(together, methods).bars
    assert [bar.name for bar in bars] == [rising.name, steady.name] == ["rising", "steady"]
    assert bars[0].points == pytest.approx([seed / 12 for seed in range(9)])
    html = comparison_of(directories).read_text(encoding="utf-8")
    costs = html[html.index("<h2>Cost</h2>") :]
    assert re.findall(r'<td class="n">([\d,]+)</td>', costs)[:2] == ["10", "10"]  # a column for each method
    check_self_contained(html)
    assert all(name in html for name in (rising.name, steady.name))


def test_what_many_runs_are_warned_of_is_said_once(tmp_path: Path):
    """Of nine runs each the first three of one method fall on held-out prompts, by different numbers."""

    def value(worse: float) -> fabricate.Value:
        return lambda update, split, prompt, *_: (
            0.5 + (0.01 if split == "training" else -worse) * update + 0.001 * prompt
        )

    directories = [
        fabricate.whole(
            tmp_path / f"{name}-{seed}",
            value(0.01 + 0.001 * seed if name == "a" and seed < 3 else -0.02),
            config=CONFIG | {"objective": {"name": name}, "seed": seed},
        )
        for name in "ab"
        for seed in range(9)
    ]
    together = read_runs(directories)
    (said,) = [alarm for alarm in sentences.alarms(together) if "carry over" in alarm]
    assert said.startswith(f"{together.shown[0].name} (3 of 9); of a-0: The trained reward rose on training prompts")


def test_a_guard_is_one_guard_however_often_it_warned(tmp_path: Path):
    """Of nine runs each the first three of one method had a guard warn, once, twice and three times."""
    directories = [
        run(tmp_path / f"{name}-{seed}", 6, {"objective": {"name": name}, "seed": seed})
        for name in "ab"
        for seed in range(9)
    ]
    for seed in range(3):
        for update in range(seed + 1):
            fabricate.log(tmp_path / f"a-{seed}", update, {"guard/spread": 1.0})
    (said,) = [alarm for alarm in sentences.alarms(read_runs(directories)) if "Guard spread" in alarm]
    assert said.startswith("a (3 of 9); of a-0: Guard spread")


@pytest.mark.parametrize(("cost", "said"), [(1_000, False), (1_090, False), (1_200, True)])
def test_budgets_that_differ(tmp_path: Path, cost: int, said: bool):
    directories = [run(tmp_path / "a", 9), short_of(tmp_path / "b", updates=10, cost=cost)]
    found = sentences.cautions(read_runs(directories))
    words = "network evaluations spent on training until the last evaluation are a 10,000 and b 12,000."
    assert any(words in caution for caution in found) == said


def test_cautions(tmp_path: Path):
    plain, sampler = run(tmp_path / "plain", 9), run(tmp_path / "ddim", 9, {"sampler": {"noise": {"level": 0.0}}})
    weights = run(tmp_path / "weighted", 9, {"rewards": [{"name": "scenes", "weight": 2.0}]})
    memorised = fabricate.whole(
        tmp_path / "memorised",
        lambda update, split, *_: 0.5 + (0.01 if split == "training" else -0.01) * update,
    )
    others = {
        "finished": run(tmp_path / "finished", 6),
        "sampler": sampler,
        "weights": weights,
        "unfinished": short_of(tmp_path / "short"),
        "memorised": memorised,
    }
    found = {name: " ".join(sentences.cautions(read_runs([plain, other]))) for name, other in others.items()}
    assert found["finished"] == ""
    assert "(sampler.noise.level is None and 0.0): a part of their differences is the sampler's" in found["sampler"]
    assert "The runs train other rewards: plain 1 scenes and weighted 2 scenes." in found["weights"]
    assert "short is unfinished: 5 of 10 updates are done." in found["unfinished"]
    assert "does not have the same scores in plain and memorised: other weights, versions" in found["memorised"]
    (alarm,) = [a for a in sentences.alarms(read_runs([plain, memorised])) if "carry over" in a]
    assert alarm.startswith("memorised: The trained reward rose on training prompts (+0.1")


def test_what_is_said_of_every_run_is_said_once(tmp_path: Path):
    directories = [fabricate.whole(tmp_path / name, passing(5), prompts=6, splits=("held_out",)) for name in "ab"]
    assert Report.of(directories).summary().count("With only 6 held-out prompts") == 1
    assert "a and b: With only" not in Report.of(directories).summary()
    assert "left out" not in Report.of(directories).summary()  # nobody has training prompts


def test_names(tmp_path: Path):
    def names(*places: tuple[str, str]) -> tuple[str, ...]:
        directories = [run(tmp_path / place, 9, {"objective": {"name": objective}}) for place, objective in places]
        return read_runs(directories).names

    assert names(("1/x", "ddpo"), ("1/y", "ddpo")) == ("x", "y")
    assert names(("2/run", "ddpo"), ("3/run", "dspo")) == ("ddpo", "dspo")
    assert names(("4/run", "ddpo"), ("5/run", "ddpo")) == ("4/run", "5/run")


def test_the_page_needs_nothing_but_itself(three: list[Path]):
    path = comparison_of(three)
    assert path == three[0].parent / "comparison.html"
    html = path.read_text(encoding="utf-8")
    page = check_self_contained(html)
    assert (
        page.tags.count("svg") == 1 + 2 * 2 + 2 + 1 + 1
    )  # what was gained, rewards by splits, rewards against the KL, the KL, the best so far
    assert page.tags.count("img") == 2 * 2 * (1 + 3)  # splits, prompts, the base and the runs
    assert [file.name for file in path.parent.glob("*.html")] == ["comparison.html"]
    assert all(sentence in html for sentence in verdict(read_runs(three)))
    assert comparison_of(three).read_text(encoding="utf-8") == html


def test_every_run_has_its_column(three: list[Path]):
    html = comparison_of(three).read_text(encoding="utf-8")
    assert "10,000" in html and "updates until the last evaluation" in html
    row = html[html.index("held_out prompt 1</h3>") :]
    assert re.findall(r'alt="held_out prompt 1, (.*?)"', row) == ["as it came", "dpo", "ddpo", "dspo"]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", row, flags=re.DOTALL)[:4]
    assert [re.findall(r"scenes (0\.\d+)", caption) for caption in captions] == [["0.31"], ["0.34"], ["0.40"], ["0.39"]]
    changed = html[html.index("<h2>What differs in how they were made</h2>") : html.index("Settings that are the same")]
    assert re.findall(r"<tr><td>(.*?)</td>", changed) == ["objective.name"]
    assert re.findall(r'value">(.*?)</td>', changed) == ["dpo", "ddpo", "dspo"]
    assert "Source, versions and machine are the same." in html


def test_other_sources_are_named(three: list[Path]):
    provenance = json.loads((three[1] / "provenance.json").read_text())
    other = provenance | {"commit": "decaf", "dirty": True, "date": "today"}
    (three[1] / "provenance.json").write_text(json.dumps(other))
    html = comparison_of(three).read_text(encoding="utf-8")
    origins = html[html.index("The runs were not made by the same source") :]
    assert re.findall(r"<tr><td>(.*?)</td>", origins) == ["commit", "dirty"]
    assert re.findall(r'value">(.*?)</td>', origins)[:3] == ["c0ffee", "decaf", "c0ffee"]
    assert "The source of ddpo had changes" in origins


def test_names_stay_text(tmp_path: Path):
    directories = [run(tmp_path / "a <b>&amp;", 9), run(tmp_path / "c", 9)]
    html = comparison_of(directories).read_text(encoding="utf-8")
    assert "<b>&amp;" not in html.replace("&lt;b&gt;&amp;amp;", "")
    check_self_contained(html)


def test_the_summary_has_a_row_for_each_run_and_pair(three: list[Path]):
    text = Report.of(three).summary()
    assert text.startswith("On 12 held-out prompts the strict pass rate rose with ddpo and dspo")
    assert re.search(
        r"^method +seeds +trials +last \[95 %\] +gained \[95 %\] +KL +spent +time$", text, flags=re.MULTILINE
    )
    assert re.search(
        r"^ddpo +1 +- +0\.75\d* \[.*\] +\+0\.50?0? \[.*\] +1 +10,000 +6\.5 s$",
        text.replace("–", "-"),
        flags=re.MULTILINE,
    )
    assert re.search(
        r"^higher +lower +difference \[95 % for all 3 at once\] +P\(improvement\) \[95 % for all 3 at once\]$",
        text,
        flags=re.MULTILINE,
    )
    assert len(re.findall(r"^\w+ +\w+ +\+0\.", text, flags=re.MULTILINE)) == 3


@pytest.mark.parametrize("command", ["compare", "report"])
def test_the_command(command: str, three: list[Path], capsys: pytest.CaptureFixture[str]):
    out = three[0].parent / "page.html"
    with pytest.raises(SystemExit) as leave:
        main([command, *map(str, three), "--out", str(out)])
    assert leave.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(Report.of(three).summary())
    assert printed.rstrip().endswith(f"report: {out}")
    assert out.is_file() and not (three[0].parent / "comparison.html").exists()
    numbers = fabricate.pq.read_table(out.with_suffix(".parquet")).to_pylist()
    (ddpo,) = [r for r in numbers if (r["method"], r["quantity"]) == ("ddpo", "held_out/scenes_strict gained")]
    assert ddpo["estimate"] == pytest.approx(0.5) and ddpo["low"] < 0.5 < ddpo["high"]
    (between,) = [r for r in numbers if (r["method"], r["other"], r["quantity"]) == ("ddpo", "dspo", "improvement")]
    assert between["estimate"] == pytest.approx(
        (1 + 11 / 2) / 12
    )  # better on one prompt of twelve, alike on the others
    scores = fabricate.pq.read_table(out.with_suffix(".scores.parquet")).to_pandas()
    own = scores[(scores.method == "ddpo") & (scores.split == "held_out") & (scores.reward == "scenes_strict")]
    means = own.groupby("evaluation").value.mean()
    assert means["last"] - means["first"] == pytest.approx(ddpo["estimate"])
    assert set(scores.run) == {"ddpo", "dspo", "dpo"} and len(scores) == 3 * 2 * 2 * len(own)  # runs, splits, rewards


@pytest.mark.parametrize(("most", "drawn"), [(200_000, 6_000), (50, 50)])
def test_resamples_grow_with_pairs_up_to_a_bound(
    most: int, drawn: int, three: list[Path], monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def differences(values: Any, pairs: Any, *rest: Any, confidence: float, resamples: int):
        asked.append((confidence, resamples))
        return differences_of_methods(values, pairs, *rest, confidence=confidence, resamples=resamples)

    monkeypatch.setattr(methods, "differences_of_methods", differences)
    monkeypatch.setattr(methods, "MOST_RESAMPLES", most)
    assert len(contrasts(read_runs(three))) == 3
    assert asked == [(pytest.approx(1 - 0.05 / 3), drawn)]


def test_a_damaged_evaluation_on_a_suite_costs_no_page(three: list[Path], capsys: pytest.CaptureFixture[str]):
    scores = three[0] / "suites" / "geneval" / "members" / "base" / "scores"
    scores.mkdir(parents=True)
    (scores / "00000.parquet").touch()
    (three[0] / "suites" / "geneval" / "protocol.json").write_text("{")
    out = three[0].parent / "page.html"
    with pytest.raises(SystemExit) as leave:
        main(["compare", *map(str, three), "--out", str(out)])
    assert leave.value.code == 2 and "protocol.json" in capsys.readouterr().err
    assert out.is_file()


def test_one_run_may_have_its_page_elsewhere(three: list[Path]):
    out = three[0].parent / "page.html"
    with pytest.raises(SystemExit) as leave:
        main(["report", str(three[0]), "--out", str(out)])
    assert leave.value.code == 0
    assert "Before and after" in out.read_text(encoding="utf-8") and not (three[0] / "report.html").exists()


def test_a_page_that_cannot_be_written(three: list[Path]):
    with pytest.raises(UserError, match="expected a file in a directory that exists"):
        Report.of(three).write(three[0] / "nowhere" / "page.html")


def test_there_is_a_letter_for_every_marker():
    assert len(MARKERS) == len(GLYPHS) == len(RUNS)
