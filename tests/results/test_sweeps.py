"""Sweeps compared: which of their runs stand for them, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysuite.errors import UserError
from raysuite.results.side_by_side import members, panels, sentences
from raysuite.results.side_by_side.methods import best_so_far, contrasts, summarise
from raysuite.results.side_by_side.report import Report
from raysuite.results.side_by_side.runs import SideBySide, read_runs
from tests.results import fabricate
from tests.results.fabricate import CONFIG, COST
from tests.results.test_side_by_side import comparison_of, passing


def fabricate_sweep(directory: Path, runs: list[tuple[str, int, int, int | str]]) -> Path:
    """A sweep of (objective, trial, seed, prompts of 12 that pass strictly at the end, or another status)."""
    rows: list[dict[str, Any]] = []
    for objective, trial, seed, ended in runs:
        name = f"{objective}-{trial:02d}-seed{seed}"
        row = {"name": name, "objective": objective, "trial": trial, "seed": seed, "settings": {"learn.rate": trial}}
        if isinstance(ended, int):
            changes = {"objective": {"name": objective}, "learn": {"rate": trial}, "seed": seed}
            fabricate.whole(directory / "trials" / name, passing(ended), config=CONFIG | changes)
            row |= {"status": "done", "held_out": ended / 100, "message": None}
        else:
            row |= {"status": ended, "held_out": None, "message": "out of paint"}
        rows.append(row)
    (directory / "sweep.json").write_text("{}")
    (directory / "trials.json").write_text(json.dumps(rows))
    return directory


@pytest.fixture
def race(tmp_path: Path) -> Path:
    """ddpo with three seeds that end at 6, 9 and 12 of 12, dspo with three that all end at 6; before, 3."""
    ends = {"ddpo": (6, 9, 12), "dspo": (6, 6, 6)}
    return fabricate_sweep(tmp_path, [(name, 0, seed, end) for name, e in ends.items() for seed, end in enumerate(e)])


def verdict(together: SideBySide) -> list[str]:
    return sentences.verdict(together, summarise(together), contrasts(together))


def test_the_runs_of_a_sweep_are_methods_with_intervals_over_seeds_and_prompts(race: Path):
    together = read_runs([race])
    ddpo, dspo = summarise(together)
    assert (ddpo.name, ddpo.runs, ddpo.tried) == ("ddpo", (0, 1, 2), 1)
    assert ddpo.last.estimate == pytest.approx(0.75)
    assert ddpo.gain.estimate == pytest.approx(0.5)
    assert ddpo.gain.low <= 0.35 and ddpo.gain.high >= 0.65  # the seeds alone go from 0.25 to 0.75
    assert dspo.gain.estimate == pytest.approx(0.25)
    assert (ddpo.kl.estimate, ddpo.kl.low, ddpo.kl.high) == pytest.approx((1.0, 1.0, 1.0))
    assert (ddpo.network_evaluations, ddpo.seconds) == (10 * COST, 6.5)
    (found,) = contrasts(together)
    assert found.difference.estimate == pytest.approx(0.25) and found.difference.low <= 0.02
    # of nine pairs of runs a third differ on no prompt, a third on 3 of 12, a third on 6 of 12
    assert found.improvement.estimate == pytest.approx(0.5 + (0 + 3 + 6) / 3 / 12 / 2)
    assert found.improvement.low < found.improvement.estimate < found.improvement.high
    lead, _, seeds = verdict(together)
    assert lead.endswith("cannot be told from no change with ddpo and dspo.")  # three seeds so far apart say little
    assert "ddpo, 3 seeds, ended at 0.500, 0.750 and 1.000." in seeds
    assert seeds.endswith("The intervals are over prompts and seeds.")


def test_seeds_that_waited_longer_for_a_reward_are_repetitions(tmp_path: Path):
    for seed in range(4):
        seconds = 600.0 if seed % 2 else 1200.0
        config = CONFIG | {
            "objective": {"name": "ddpo" if seed < 2 else "dspo"},
            "rewards": [{"name": "scenes", "weight": 1.0, "seconds": seconds, "retries": seed}],
            "seed": seed,
        }
        fabricate.whole(tmp_path / f"run-{seed}", passing(6), config=config)
    assert read_runs([tmp_path / f"run-{seed}" for seed in range(4)]).methods == [[0, 1], [2, 3]]


def test_without_held_out_rewards_no_setting_is_called_the_best(tmp_path: Path):
    fabricate_sweep(tmp_path, [("ddpo", trial, 0, 6) for trial in range(3)])
    rows = json.loads((tmp_path / "trials.json").read_text())
    (tmp_path / "trials.json").write_text(json.dumps([{**row, "held_out": None} for row in rows]))
    with pytest.raises(UserError, match=r"by which the best of 3 settings of ddpo in .* is chosen, found none"):
        read_runs([tmp_path])


def test_the_best_so_far_never_falls(tmp_path: Path):
    up_and_down = {0: 3, 5: 9, 10: 6}
    for name in ("a", "b"):
        fabricate.whole(tmp_path / name, lambda update, split, prompt, *_: float(prompt < up_and_down[update]))
    spent, mean, low, high = best_so_far(read_runs([tmp_path / "a", tmp_path / "b"]), 0)
    assert np.array_equal(spent, [0, 5 * COST, 10 * COST])
    for track in (mean, low, high):
        assert track == pytest.approx([0.25, 0.75, 0.75])


def test_evaluations_are_compared_by_the_pictures_that_all_of_them_have(tmp_path: Path):
    """The second picture of a prompt never passes, and evaluations along the way do not draw it."""
    for name in ("a", "b"):
        fabricate.begin(tmp_path / name)
        for update, samples in ((0, 2), (5, 1), (10, 2)):
            fabricate.evaluate(
                tmp_path / name, update, lambda _, __, ___, sample, ____: float(sample == 0), samples=samples
            )
            fabricate.learn(tmp_path / name, range(update, min(update + 5, 10)))
    together = read_runs([tmp_path / "a", tmp_path / "b"])
    samples = {u: set(together.runs[0].scores.where(update=u).sample.tolist()) for u in (0, 5, 10)}
    assert samples == {0: {0, 1}, 5: {0}, 10: {0, 1}}
    assert best_so_far(together, 0)[1] == pytest.approx([1.0, 1.0, 1.0])


def test_a_run_that_is_called_as_a_sweeps_objective_is_another_method(tmp_path: Path):
    sweep = fabricate_sweep(tmp_path / "race", [("ddpo", 0, 0, 6), ("ddpo", 0, 1, 6), ("dspo", 0, 0, 7)])
    config = CONFIG | {"objective": {"name": "ddpo"}, "learn": {"rate": 5}}
    together = read_runs([fabricate.whole(tmp_path / "ddpo", passing(9), config=config), sweep])
    assert together.method_names == ["ddpo", "ddpo (race)", "dspo"]
    assert list(panels.best_curve(together).lines) == together.method_names
    assert [method.name for method in summarise(together)] == together.method_names


def test_curves_of_runs_are_of_the_same_pictures(tmp_path: Path):
    """Second pictures always pass, first ones of 3 prompts in 12: one run draws both each time, one at its ends, one is not looked
    at between."""
    evaluated = {"both": {0: 2, 5: 2, 10: 2}, "ends": {0: 2, 5: 1, 10: 2}, "twice": {0: 2, 10: 2}}
    for rate, (name, samples) in enumerate(evaluated.items()):
        fabricate.begin(tmp_path / name, CONFIG | {"learn": {"rate": rate}})
        for update in (0, 5, 10):
            if update in samples:
                fabricate.evaluate(
                    tmp_path / name,
                    update,
                    lambda _, __, prompt, sample, ____: float(sample == 1 or prompt < 3),
                    samples=samples[update],
                )
            fabricate.learn(tmp_path / name, range(update, min(update + 5, 10)))
    together = read_runs([tmp_path / name for name in evaluated])
    curves = {(reward, split): chart for reward, split, chart in panels.curves(together)}
    for number, name in enumerate(evaluated):
        assert set(best_so_far(together, number)[1]) == {0.25}
        assert set(curves["scenes_strict", "held_out"].lines[name].y) == {0.25}
        gain = together.gain_of((number,), "scenes_strict", "held_out")  # of both pictures
        assert gain is not None and gain.before.estimate == 0.625


def test_every_objective_is_shown_with_its_best_settings_and_unequal_tuning_is_said(tmp_path: Path):
    runs = [
        ("ddpo", 0, 0, 6),
        ("ddpo", 1, 0, 9),
        ("ddpo", 2, 0, "failed"),
        ("dspo", 0, 0, 7),
        ("dspo", 1, 0, "waiting"),
    ]
    together = read_runs([fabricate_sweep(tmp_path, runs)])
    assert together.names == ("ddpo-01-seed0", "dspo-00-seed0")
    assert together.method_names == ["ddpo", "dspo"]
    said = " ".join(sentences.cautions(together))
    assert "1 of 5 runs of" in said and "ddpo-02-seed0: out of paint" in said
    assert "have not ended and are left out" in said
    assert "Not tuned equally hard: settings tried are ddpo 2 and dspo 1." in said
    assert "are the best of those tried, chosen on the held-out prompts of this page" in said


def test_settings_that_more_seeds_have_go_before_better_ones(tmp_path: Path):
    runs = [("ddpo", 0, 0, 6), ("ddpo", 0, 1, 6), ("ddpo", 1, 0, 12), ("ddpo", 1, 1, "failed"), ("dspo", 0, 0, 6)]
    assert read_runs([fabricate_sweep(tmp_path, runs)]).names == ("ddpo-00-seed0", "ddpo-00-seed1", "dspo-00-seed0")


def test_of_one_objective_the_settings_are_compared(tmp_path: Path):
    together = read_runs([fabricate_sweep(tmp_path, [("ddpo", trial, 0, 3 + trial) for trial in range(10)])])
    assert [method.name for method in summarise(together)][:2] == ["ddpo #09 (rate 9)", "ddpo #08 (rate 8)"]
    assert len(together.runs) == 8
    assert "The settings at the top are the best of those tried" in " ".join(sentences.cautions(together))


def test_two_sweeps_of_the_same_objectives_are_told_apart_by_their_names(tmp_path: Path):
    tuned = fabricate_sweep(tmp_path / "tuned", [(name, trial, 0, 6) for name in ("ddpo", "dspo") for trial in (1, 2)])
    untuned = fabricate_sweep(
        tmp_path / "untuned", [(name, 0, seed, 5) for name in ("ddpo", "dspo") for seed in (7, 8)]
    )
    names = [method.name for method in summarise(read_runs([tuned, untuned]))]
    assert names == ["ddpo (tuned)", "dspo (tuned)", "ddpo (untuned)", "dspo (untuned)"]


def test_runs_that_confirm_stand_for_the_settings_that_won(tmp_path: Path):
    directory = fabricate_sweep(tmp_path, [("ddpo", 0, 0, 6), ("ddpo", 1, 0, 12), ("dspo", 0, 0, 7), ("dspo", 1, 0, 6)])
    rows = json.loads((directory / "trials.json").read_text())
    for objective, won, ended in (("ddpo", 1, (8, 9)), ("dspo", 0, (7, 8))):
        for seed, passed in zip((7, 8), ended, strict=True):
            name = f"{objective}-best-seed{seed}"
            changes = {"objective": {"name": objective}, "learn": {"rate": won}, "seed": seed}
            fabricate.whole(directory / "trials" / name, passing(passed), config=CONFIG | changes)
            row = {"name": name, "objective": objective, "trial": None, "seed": seed, "confirms": won, "message": None}
            rows.append(row | {"settings": {"learn.rate": won}, "status": "done", "held_out": passed / 100})
    (directory / "trials.json").write_text(json.dumps(rows))
    together = read_runs([directory])
    assert together.names == ("ddpo-best-seed7", "ddpo-best-seed8", "dspo-best-seed7", "dspo-best-seed8")
    assert [(method.name, method.tried) for method in summarise(together)] == [("ddpo", 2), ("dspo", 2)]
    said = " ".join(sentences.cautions(together))
    assert (
        "ddpo: the settings of trial 01 were chosen at 0.12 on held-out prompts, and reach 0.085 there with 2 other seeds."
        in said
    )
    assert "what is shown are new seeds, and the prompts are those that they were chosen by." in said
    assert "partly luck" not in said
    page = " ".join(comparison_of([directory]).read_text().split())
    cells = ("ddpo", "2", "0.090", "0.120", "0.085 [0.080, 0.090]", "-0.035")
    assert '</td><td class="n">'.join(cells) in page
    forest = panels.tuning(together)
    assert forest is not None and forest.reference == pytest.approx(0.3 + 0.01 * 5.5)
    ddpo = next(bar for bar in forest.bars if bar.name == "ddpo")
    assert (sorted(ddpo.points), ddpo.hollow) == ([0.06, 0.12], 0.12)
    assert (ddpo.interval.low, ddpo.interval.high) == (0.08, 0.09)
    alike = fabricate.whole(
        tmp_path / "alike", passing(8), config=CONFIG | {"objective": {"name": "ddpo"}, "learn": {"rate": 1}}
    )
    beside = panels.tuning(read_runs([alike, directory]))  # a repetition that is of no sweep, named first
    assert beside is not None and [bar.name for bar in beside.bars] == [bar.name for bar in forest.bars]


def test_how_far_many_choices_carried_over_is_said_once():
    """Four objectives, chosen at 0.5, 0.6, 0.7 and 0.8; two seeds later the first is at 0.3 and the others at 0.7."""
    rows: list[dict[str, Any]] = []
    for place, objective in enumerate("abcd"):
        known = {"objective": objective, "status": "done", "confirms": 1}
        rows.append({**known, "trial": 1, "held_out": 0.5 + place / 10})
        rows.append({**known, "trial": 2, "held_out": 0.2, "status": "stopped"})
        rows += [{**known, "trial": None, "held_out": 0.3 if objective == "a" else 0.7} for _ in range(2)]
    carried = list(members._tuned("race", rows, alone=True))
    known = {"sweep": "race", "objective": "a", "name": "a", "trial": 1}
    assert carried[0] == members.Tuned(**known, tried=(0.5, 0.2), chosen=0.5, again=(0.3, 0.3))
    assert next(members._tuned("race", rows, alone=False)).name == "a (race)"
    (said,) = members._told(carried)
    assert said == (
        "The settings of 4 objectives were chosen at 0.65 on held-out prompts, mean over objectives, and reach 0.6 there with 2 other "
        "seeds; differences from -0.2 (a) to +0.1 (b)."
    )


def test_test_prompts_come_first_and_the_way_is_shown_on_held_out_ones(tmp_path: Path):
    def value(update: int, split: str, prompt: int, *_: object) -> float:
        return float(prompt < {"test": 6, "held_out": 9, "training": 12}[split] * update / 10)

    for name in ("a", "b"):
        fabricate.begin(tmp_path / name)
        for update in (0, 5, 10):
            splits = ("held_out", "training") if update == 5 else ("test", "held_out", "training")
            fabricate.learn(tmp_path / name, range(max(0, update - 5), update))
            fabricate.evaluate(tmp_path / name, update, value, splits=splits)
    together = read_runs([tmp_path / "a", tmp_path / "b"])
    assert together.splits == ("test", "held_out", "training") and together.along == "held_out"
    assert verdict(together)[0].startswith("On 12 test prompts")


def test_a_sweep_beside_a_run(race: Path, tmp_path: Path):
    alone = fabricate.whole(tmp_path / "alone", passing(8), config=CONFIG | {"objective": {"name": "sft"}})
    together = read_runs([race, alone])
    assert [method.name for method in summarise(together)] == ["ddpo", "dspo", "alone"]
    assert "Not tuned equally hard: settings tried are ddpo 1, dspo 1 and alone unknown." in " ".join(
        sentences.cautions(together)
    )


def test_the_page_of_a_sweep_lies_in_it(race: Path):
    page = comparison_of([race])
    assert page == race / "comparison.html" and (race / "comparison.parquet").is_file()
    html = page.read_text(encoding="utf-8")
    assert "Best so far" in html and "over its seeds and the prompts" in html
    assert Report.of([race]).summary().count("ddpo, 3 seeds") == 1


def test_diversity_is_shown_where_all_runs_have_it(race: Path):
    assert "diversity" not in Report.of([race]).summary()
    for place, directory in enumerate(sorted((race / "trials").iterdir())):
        fabricate.log(directory, 10, {"evaluation/diversity/held_out": 0.1 * place})
    ddpo, dspo = summarise(read_runs([race]))
    assert ddpo.diversity is not None and dspo.diversity is not None
    assert (ddpo.diversity.estimate, ddpo.diversity.low, ddpo.diversity.high) == pytest.approx((0.1, 0.0, 0.2))
    assert dspo.diversity.estimate == pytest.approx(0.4)
    assert "diversity" in Report.of([race]).summary()


def test_a_sweep_without_anything_to_compare(tmp_path: Path):
    with pytest.raises(UserError, match="expected finished runs in the sweep"):
        read_runs([fabricate_sweep(tmp_path, [("ddpo", 0, 0, "waiting")])])
    (tmp_path / "trials.json").write_text("[")
    with pytest.raises(UserError, match="it is missing or damaged"):
        read_runs([tmp_path])
