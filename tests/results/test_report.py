from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from raysuite.errors import UserError
from raysuite.kernel.stats import Interval
from raysuite.results import comparison, sentences
from raysuite.results.figures import STAND_INS, Line, panel
from raysuite.results.report import summary, write_report
from raysuite.results.run import WEIGHTED_SUM, read_run
from tests.results import fabricate
from tests.results.fabricate import CONFIG, COST
from tests.results.pages import check_self_contained


def improving(update: int, split: str, prompt: int, sample: int, reward: str) -> float:
    """`scenes` is 0.3 + 0.02 update + a prompt offset; strictly pass prompts 0 to 2, from update 5 on 0 to 8."""
    if reward == "scenes_strict":
        return float(prompt < (3 if update < 5 else 9))
    return 0.3 + 0.02 * update + 0.01 * prompt


def memorising(update: int, split: str, prompt: int, sample: int, reward: str) -> float:
    return 0.5 + (0.01 if split == "training" else -0.01) * update * (1 + prompt / 10)


def gaming(update: int, split: str, prompt: int, sample: int, reward: str) -> float:
    return 0.5 + (-0.01 if reward == "scenes_strict" else 0.01) * update * (1 + prompt / 10)


def peaking(update: int, split: str, prompt: int, sample: int, reward: str) -> float:
    return {0: 0.2, 5: 0.9, 10: 0.6}[update]


def flat(update: int, split: str, prompt: int, sample: int, reward: str) -> float:
    return 0.5 + 0.1 * (-1) ** (prompt + update)


def html_of(directory: Path) -> str:
    return write_report(directory).read_text(encoding="utf-8")


def test_differences_are_those_of_the_arithmetic(tmp_path: Path):
    compared = {(c.reward, c.split): c for c in comparison.compare(read_run(fabricate.whole(tmp_path, improving)))}
    assert set(compared) == {(r, s) for r in ("scenes", "scenes_strict") for s in ("held_out", "training")}
    scenes, strict = compared["scenes", "held_out"], compared["scenes_strict", "held_out"]
    assert (scenes.first, scenes.last, scenes.prompts, scenes.pictures) == (0, 10, 12, 24)
    assert scenes.before.estimate == pytest.approx(0.3 + 0.01 * 5.5)
    assert scenes.difference.estimate == pytest.approx(0.2)
    # every prompt gains alike, so which prompts were drawn does not matter
    assert (scenes.difference.low, scenes.difference.high) == pytest.approx((0.2, 0.2))
    assert (strict.before.estimate, strict.after.estimate) == (0.25, 0.75)
    assert 0 < strict.difference.low < 0.5 < strict.difference.high
    assert strict.difference.estimate == 0.5


def test_only_pairs_that_both_evaluations_have_are_compared(tmp_path: Path):
    fabricate.begin(tmp_path)
    fabricate.evaluate(tmp_path, 0, improving, samples=3)
    fabricate.learn(tmp_path, range(5))
    fabricate.evaluate(tmp_path, 5, improving, samples=1, prompts=10)
    found = comparison.compare(read_run(tmp_path))[0]
    assert (found.prompts, found.pictures) == (10, 10)
    assert found.difference.estimate == pytest.approx(0.1)


def test_pictures_are_paired_by_prompt_and_sample(tmp_path: Path):
    """Samples of a prompt differ by more than updates do; the second evaluation has more of them."""

    def value(update: int, split: str, prompt: int, sample: int, reward: str) -> float:
        return 0.02 * update + 0.1 * sample

    fabricate.begin(tmp_path)
    fabricate.evaluate(tmp_path, 0, value, samples=1)
    fabricate.learn(tmp_path, range(10))
    fabricate.evaluate(tmp_path, 10, value, samples=3)
    found = comparison.compare(read_run(tmp_path))[0]
    assert found.pictures == 12
    assert [found.difference.low, found.difference.estimate, found.difference.high] == pytest.approx([0.2] * 3)


def test_a_policy_cost_what_was_spent_before_it(tmp_path: Path):
    run = read_run(fabricate.whole(tmp_path, improving))
    curve = comparison.curve(run, "scenes", "held_out")
    assert curve.network_evaluations.tolist() == [0, 5 * COST, 10 * COST]
    assert curve.mean == pytest.approx(0.355 + 0.02 * np.array([0, 5, 10]))
    assert (curve.low < curve.mean).all() and (curve.mean < curve.high).all()


def test_the_verdict_is_about_the_strict_pass_rate_of_held_out_prompts(tmp_path: Path):
    fabricate.whole(tmp_path, improving)
    run = read_run(tmp_path)
    sentence = sentences.verdict(run, comparison.compare(run))
    assert sentence.startswith("On 12 held-out prompts the strict pass rate rose from 0.25 to 0.75: +0.50 [")
    assert sentence.endswith("], 95 % bootstrap over prompts.")
    assert sentence.replace("95 %", "95\N{NO-BREAK SPACE}%") in html_of(tmp_path)
    text = summary(tmp_path)
    assert text.startswith(sentence)
    assert re.search(r"scenes +training +12 .*\+0\.200 \[0\.200, 0\.200\]", text)
    assert "WARNING" not in text


def test_no_change_is_called_that(tmp_path: Path):
    run = read_run(fabricate.whole(tmp_path, lambda update, *rest: flat(update // 10, *rest)))
    sentence = sentences.verdict(run, comparison.compare(run))
    assert "the strict pass rate went from 0.50 to 0.50" in sentence
    assert sentence.endswith("which cannot be told from no change.")


def test_few_prompts_say_nothing_of_a_rise(tmp_path: Path) -> None:
    run = read_run(fabricate.whole(tmp_path, improving))
    few = [replace(found, prompts=2) for found in comparison.compare(run)]
    assert " went from " in (sentence := sentences.verdict(run, few))
    assert sentence.endswith("95 % bootstrap over prompts. That is too few prompts to tell.")


@pytest.mark.parametrize(("value", "words"), [(memorising, "does not carry over"), (gaming, "is being gamed")])
def test_hacking_stands_at_the_top(tmp_path: Path, value: fabricate.Value, words: str):
    fabricate.whole(tmp_path, value)
    html = html_of(tmp_path)
    assert words in html
    assert html.index('role="alert"') < html.index("<h2>")
    assert re.search(rf"^WARNING: .*{words}", summary(tmp_path), flags=re.MULTILINE)


def falling_on_average(apart: str) -> fabricate.Value:
    """What rises by 0.10 on half of the prompts and falls by 0.12 on the others, of a split or a reward; all else rises."""

    def value(update: int, split: str, prompt: int, sample: int, reward: str) -> float:
        change = 0.01 * update if apart not in (split, reward) or prompt % 2 == 0 else -0.012 * update
        return 0.4 + change

    return value


@pytest.mark.parametrize(("apart", "alarm"), [("held_out", "carry over"), ("scenes_strict", "gamed")])
def test_what_cannot_be_told_raises_no_alarm(apart: str, alarm: str, tmp_path: Path):
    said = summary(fabricate.whole(tmp_path, falling_on_average(apart)))
    assert alarm not in said and "WARNING" not in said
    assert ("cannot be told from none" in said) is (apart == "held_out")


def test_a_reward_past_its_peak_is_noticed(tmp_path: Path):
    run = fabricate.whole(tmp_path, peaking)
    assert "was best after 5 updates and has changed by -0.300" in summary(run)
    assert "the better one; it was not kept (checkpoints.best keeps it)." in summary(run)
    (run / "checkpoints" / "000005").mkdir(parents=True)
    assert "the better one." in summary(run)


def test_what_a_run_cannot_show_is_said(tmp_path: Path):
    config = CONFIG | {"evaluation": {"seed": 0, "rewards": []}}
    fabricate.whole(tmp_path, improving, config=config, splits=("training",), rewards=("scenes",), prompts=1)
    text = summary(tmp_path)
    assert text.startswith("On 1 training prompt the reward scenes")
    assert "no held-out prompts" in text
    assert "Only the trained reward is evaluated" in text
    assert "With only 1 training prompt, intervals are too narrow" in text


def test_several_terms_are_judged_by_their_weighted_sum(tmp_path: Path):
    terms = [{"name": "scenes", "weight": 1.0}, {"name": "scenes_strict", "weight": -2.0}]
    run = read_run(fabricate.whole(tmp_path, improving, config=CONFIG | {"rewards": terms}))
    assert (run.trained, run.rewards, run.watched) == (WEIGHTED_SUM, [WEIGHTED_SUM, "scenes", "scenes_strict"], [])
    found = comparison.compare_one(run, WEIGHTED_SUM, "held_out", 0, 10)
    assert found is not None and found.difference.estimate == pytest.approx(0.2 - 2 * 0.5)
    assert (run.sign("scenes"), run.sign("scenes_strict")) == (1, -1)
    assert WEIGHTED_SUM in html_of(tmp_path)


def test_the_page_needs_nothing_but_itself(tmp_path: Path):
    html = html_of(fabricate.whole(tmp_path, improving))
    page = check_self_contained(html)
    assert page.tags.count("svg") == 2 + 1 + 2  # rewards, KL, learner
    assert page.tags.count("img") == 2 * 2 * 2  # splits, prompts, before and after
    assert [file.name for file in tmp_path.glob("*report*")] == ["report.html"]


def test_the_same_run_gives_the_same_bytes(tmp_path: Path):
    fabricate.whole(tmp_path, improving)
    assert html_of(tmp_path) == html_of(tmp_path)


def test_what_regenerates_the_run_is_on_the_page(tmp_path: Path):
    html = html_of(fabricate.whole(tmp_path, improving))
    assert "<pre>raysuite train scenes-ddpo</pre>" in html
    for fact in ("c0ffee", "versions.torch", "learn.learning_rate", "Seeds: 3 of the run; 7 of every evaluation"):
        assert fact in html
    assert re.search(r'network evaluations</td><td class="n">10,000</td><td class="n">50</td>', html)


def test_html_in_prompts_stays_text(tmp_path: Path):
    fabricate.whole(tmp_path, improving, text="<script>alert('{index}')</script> & \"{split}\"")
    html = html_of(tmp_path)
    assert "<script>" not in html
    assert "&lt;script&gt;alert(" in html


def test_pictures_carry_their_scores(tmp_path: Path):
    html = html_of(fabricate.whole(tmp_path, improving))
    first = html[html.index("held_out prompt 1</h3>") :]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", first, flags=re.DOTALL)[:2]
    assert ["before" in captions[0], "after 10" in captions[1]] == [True, True]
    assert ["scenes 0.31" in captions[0], "scenes 0.51" in captions[1]] == [True, True]
    assert all("✓" in caption for caption in captions)


def test_before_the_first_evaluation(tmp_path: Path):
    fabricate.begin(tmp_path)
    sentence = "Nothing has been evaluated yet: 0 of 10 updates are done."
    assert summary(tmp_path) == sentence
    assert sentence in html_of(tmp_path)


def test_after_the_first_evaluation(tmp_path: Path):
    fabricate.begin(tmp_path)
    fabricate.evaluate(tmp_path, 0, improving)
    sentence = "So far only the model as it came has been evaluated: on 12 held-out prompts"
    assert summary(tmp_path).startswith(f"{sentence} the strict pass rate is 0.25 [")
    html = html_of(tmp_path)
    assert sentence in html
    assert html.count("<img") == 4  # before only


def test_an_unfinished_run_says_so(tmp_path: Path):
    fabricate.begin(tmp_path)
    fabricate.evaluate(tmp_path, 0, improving)
    fabricate.learn(tmp_path, range(5))
    fabricate.evaluate(tmp_path, 5, improving)
    fabricate.learn(tmp_path, range(5, 7))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 7, "na')  # the run is writing it now
    sentence = "The run is unfinished: 7 of 10 updates are done."
    assert sentence in summary(tmp_path)
    assert sentence in html_of(tmp_path)


def test_a_run_that_spent_its_budget_is_finished(tmp_path: Path):
    fabricate.begin(tmp_path, CONFIG | {"budget": 4_500})
    fabricate.evaluate(tmp_path, 0, improving)
    fabricate.learn(tmp_path, range(3))
    spent = "3 of at most 10 updates and 3,000 of 4,500 network evaluations"
    assert summary(tmp_path).endswith(f"The run is unfinished: {spent} are done.")
    assert f"{spent} · seed 3" in html_of(tmp_path)
    fabricate.learn(tmp_path, range(3, 5))
    fabricate.evaluate(tmp_path, 5, improving)
    assert read_run(tmp_path).finished
    assert "unfinished" not in summary(tmp_path)


def test_what_the_learner_learned_from_is_shown_and_judged(tmp_path: Path):
    fabricate.whole(tmp_path, improving)
    assert "Note" not in summary(tmp_path)
    for update in range(10):
        metrics = {"train/rankings": float(update % 5), "learn/reward_margin": 0.1, "learn/preferred_error": 0.02}
        fabricate.log(tmp_path, update, metrics)
    text = summary(tmp_path)
    assert "In 2 of 10 updates every ranking was tied" in text
    assert "Over the last 5 updates the denoising error of preferred pictures was above the reference's (+0.02)" in text
    html = html_of(tmp_path)
    titles = [html.index(f"<h3>{t}</h3>") for t in ("Implicit reward margin", "Error of the preferred", "Rankings")]
    assert titles == sorted(titles)


@pytest.mark.parametrize(
    "name",
    ["config.json", "provenance.json", "metrics.jsonl", "ledger.json", "images/prompts.json", "scores/000005.parquet"],
)
@pytest.mark.parametrize("damage", [False, True])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, name: str, damage: bool):
    fabricate.whole(tmp_path, improving)
    if damage:
        (tmp_path / name).write_bytes(b'{"cut short\n')
    else:
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=re.escape(Path(name).name)) as caught:
        write_report(tmp_path)
    assert re.search("name the|copy|repeat", str(caught.value))
    assert not (tmp_path / "report.html").exists()


def test_a_picture_that_is_none_is_named(tmp_path: Path):
    fabricate.whole(tmp_path, improving)
    (tmp_path / "images" / "000010" / "held_out-1-0.png").write_bytes(b"")
    with pytest.raises(UserError, match="held_out-1 of update 10 is none"):
        write_report(tmp_path)


def test_a_failed_report_leaves_the_last_one(tmp_path: Path):
    before = html_of(fabricate.whole(tmp_path, improving))
    (tmp_path / "ledger.json").write_text("{")
    with pytest.raises(UserError, match=r"ledger\.json"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before


@pytest.mark.parametrize("points", [1, 3])
def test_a_figure_takes_its_colours_and_letters_from_the_page(points: int):
    x = np.arange(points, dtype=float)
    band = Line(x, x, "held_out", x - 1, np.full(points, np.nan))
    svg = panel("p", [Line(x, x, "rollouts"), band], describe='a "line"', xlabel="updates", reference=0.0)
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'a "line"'
    assert root.get("width") is None and root.get("viewBox")
    assert "updates" in "".join(root.itertext())
    assert all(f"var(--{name})" in svg for name in ("ink", "grid", "held_out", "rollouts"))
    assert not any(colour in svg for colour in STAND_INS.values())


def test_the_results_need_neither_torch_nor_ray():
    code = "import sys, raysuite.results.report, raysuite.results.side_by_side.report; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "diffusers", "pandas", "matplotlib.pyplot"} & set(loaded)


def test_what_is_told_of_a_change_is_what_its_interval_allows(tmp_path: Path):
    """A rise on training prompts need not be certain for a certain fall to be told; a rise that may be none games nothing."""
    run = read_run(fabricate.whole(tmp_path, improving))
    known = {(c.reward, c.split): c for c in comparison.compare(run)}
    rose, perhaps, fell = Interval(0.2, 0.1, 0.3), Interval(0.2, -0.1, 0.5), Interval(-0.2, -0.3, -0.1)

    def changed(**differences: Interval) -> list[comparison.Comparison]:
        keys = {
            "learned": ("scenes", "training"),
            "held_out": ("scenes", "held_out"),
            "watched": ("scenes_strict", "held_out"),
        }
        return [replace(known[keys[name]], difference=difference) for name, difference in differences.items()]

    (alarm,) = sentences.alarms(run, changed(learned=perhaps, held_out=fell))
    assert "does not carry over" in alarm
    assert sentences.alarms(run, changed(held_out=perhaps, watched=fell)) == []
    assert "cannot be told" not in " ".join(sentences.cautions(run, changed(learned=rose, held_out=fell)))
    assert "cannot be told" in " ".join(sentences.cautions(run, changed(learned=rose, held_out=perhaps)))


def test_a_fall_since_the_best_that_may_be_none_is_not_told(tmp_path: Path):
    def value(update: int, split: str, prompt: int, sample: int, reward: str) -> float:
        return {0: 0.2, 5: 0.9, 10: 0.88 + 0.3 * (-1) ** prompt}[update]

    run = read_run(fabricate.whole(tmp_path, value))
    assert not any("was best after" in sentence for sentence in sentences.cautions(run, comparison.compare(run)))
