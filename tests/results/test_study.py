"""The page of a study says what its numbers say, and no more."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysuite.cli import main
from raysuite.errors import UserError
from raysuite.results.study import figures, read_study
from raysuite.results.study.report import study_summary, write_study_report
from raysuite.results.study.sentences import along, gained, lead
from tests.results.pages import check_self_contained

NAN = math.nan
WEAK = "weak"
"""An objective of this name may have been found by luck."""


Cosines = dict[tuple[str, str], tuple[float, float, float]]


def rows_of(
    cosines: Cosines, silent: tuple[str, ...], place: dict[str, Any], space: str = "parameters"
) -> list[dict[str, Any]]:
    """Estimates of one rung: cosines of pairs, whole and by bin and block, and who shows a direction."""
    out: list[tuple[str, str, str, str, str, tuple[float, float, float], str]] = []
    parts = [("whole", ""), ("bin", "0"), ("bin", "1"), ("block", "up_blocks.0"), ("block", "mid_block")]
    parts = parts if space != "prediction" else parts[:1]
    labels = list(dict.fromkeys(label for pair in cosines for label in pair))
    shown = [label for label in labels if label not in silent]
    for label in labels:
        low = -0.1 if label in silent else 0.125
        chance = (0.1, 0.01, 0.8) if label in silent else (0.58, 0.03, 0.98) if label == WEAK else (0.99, 0.9, 1.0)
        for quantity, value in (("squared_norm", (1.0, low, 2.0)), ("snr", (0.25, low, 0.5)), ("power", chance)):
            out.append((label, label, "whole", "", quantity, value, ""))
    for (a, b), value in cosines.items():
        without = [label for label in (a, b) if label in silent]
        for part, where in parts:
            weak = f"low power: {WEAK} 58%" if WEAK in (a, b) else ""
            note = f"no direction: {', '.join(without)}" if without else weak
            out.append((a, b, part, where, "expected_cosine", (NAN,) * 3 if without else value, note))
        out.append((a, b, "whole", "", "batch_cosine", (0.77, NAN, NAN), ""))
        if len(parts) > 1:
            matched = (NAN,) * 3 if without else (0.97, 0.95, 0.99)
            out.append((a, b, "whole", "", "matched_cosine", matched, "bins 0, 1"))
    for number, share in enumerate((0.75, 0.25) if len(shown) > 1 else ()):
        out.append(("", "", "whole", str(number), "principal_share", (share, NAN, NAN), ""))
        out += [(a, "", "whole", str(number), "principal_loading", (-0.6, NAN, NAN), "") for a in shown]
    names = ("a", "b", "part", "where", "quantity")
    return [
        {
            **place,
            "space": space,
            **dict(zip(names, row[:5], strict=True)),
            **dict(zip(("estimate", "low", "high"), row[5], strict=True)),
            "note": row[6],
        }
        for row in out
    ]


def fabricate(
    directory: Path,
    cosines: Cosines,
    *,
    silent: tuple[str, ...] = (),
    rungs: int = 1,
    checkpoints: tuple[int, ...] = (0,),
    later: Cosines | None = None,
    gain: bool = False,
) -> Path:
    """A study along `sampler.eta`, or of some checkpoints. `later` are the cosines of all rungs but the first."""
    directory.mkdir(exist_ok=True)
    labels = list(dict.fromkeys(label for pair in cosines for label in pair))
    settings = {
        "run": {"model": {"path": "toy"}, "seed": 0},
        "objectives": {label: {"name": label} for label in labels},
        "units": 64,
        "gain": {"kl": 2.0} if gain else None,
    }
    ladder = [(r, c) for c in checkpoints for r in range(rungs)]
    places = [
        {
            "rung": number,
            "along": "sampler.eta" if rungs > 1 else "",
            "value": json.dumps(r / 2 if rungs > 1 else None),
            "checkpoint": checkpoint,
        }
        for number, (r, checkpoint) in enumerate(ladder)
    ]
    facts = {
        "objectives": labels,
        "bins": [[0, 499], [500, 999]],
        "blocks": {"mid_block": 20, "up_blocks.0": 10},
        "exact": False,
        "projection_error": 0.022,
        "rungs": [{**place, "units": 64, "network_evaluations": 5000, "seconds": {"draw": 61.0}} for place in places],
    }
    provenance = {
        "command": ["/opt/bin/raysuite", "directions", "a b"],
        "date": "2026-01-01",
        "commit": None,
        "dirty": None,
        "machine": "m",
    }
    for name, value in (("study", settings), ("facts", facts), ("provenance", provenance)):
        (directory / f"{name}.json").write_text(json.dumps(value))
    rows = []
    for place in places:
        found = later if later and place["rung"] else cosines
        for space in ("parameters", *(["adam"] if place["checkpoint"] else []), "prediction"):
            rows += rows_of(found, silent, place, space)
    pq.write_table(pa.Table.from_pylist(rows), directory / "estimates.parquet")
    if gain:
        found = [row for place in places for label in labels for row in gain_rows(place, label)]
        pq.write_table(pa.Table.from_pylist(found), directory / "gains.parquet")
    return directory


def gain_rows(place: dict[str, Any], label: str) -> list[dict[str, Any]]:
    """The trained reward and a watched one on both splits: predicted 0.1; realised 0.08, for sft -0.08."""
    sign = -1 if label == "sft" else 1
    realised = (0.08 * sign, *sorted((0.02 * sign, 0.14 * sign)))
    out = []
    for split in ("held_out", "training"):
        for reward, predicted in (("red", (0.1, 0.05, 0.15)), ("strict", (NAN,) * 3)):
            intervals = {"kl": (2.0, 1.9, 2.1), "predicted": predicted, "realised": realised}
            values = {
                f"{n}{end}": v for n, i in intervals.items() for end, v in zip(("", "_low", "_high"), i, strict=True)
            }
            out.append({**place, "objective": label, "split": split, "reward": reward, **values})
    return out


THREE = {("ddpo", "dspo"): (0.95, 0.92, 0.98), ("ddpo", "sft"): (-0.5, -0.6, -0.4), ("dspo", "sft"): (0.3, -0.2, 0.8)}


LONG = "scenes-discounted-dpo-offline-with-a-very-long-name-that-goes-on"


def every(labels: list[str], value: tuple[float, float, float]) -> Cosines:
    return dict.fromkeys(combinations(labels, 2), value)


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = write_study_report(fabricate(tmp_path, THREE, rungs=2, gain=True))
    html = page.read_text()
    check_self_contained(html)
    for wanted in (
        "0.95",
        "[0.92, 0.98]",
        # cells are as deep as their intervals support: 55 % of the limit next to zero
        'title="ddpo and dspo: 0.950 [0.920, 0.980]" style="background: color-mix(in srgb, var(--held_out) 51%',
        'title="ddpo and sft: −0.500 [−0.600, −0.400]" style="background: color-mix(in srgb, var(--bad) 22%',
        'title="dspo and sft: 0.300 [−0.200, 0.800]" style="background: color-mix(in srgb, var(--held_out) 0%',
        "Timesteps weighted alike",
        "2.2 % of the product",
        "<pre>raysuite directions &#39;a b&#39;</pre>",
        "agreement with ddpo along sampler.eta",
        "agreement with ddpo by layer",
        "Of what 3 objectives want, one direction holds 75 %",
        "of objectives with nothing in common each holds 33 %, and one seems to hold more",
        "Rewards without a prediction",
    ):
        assert wanted in html
    assert {
        "expected_cosine-parameters.svg",
        "bin-parameters-0.svg",
        "snr-prediction-0.svg",
        "gains-0-training.svg",
    } <= {path.name for path in (tmp_path / "figures").iterdir()}


@pytest.mark.slow
def test_a_study_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    def written() -> dict[str, bytes]:
        page = write_study_report(tmp_path)
        return {path.name: path.read_bytes() for path in (page, *(tmp_path / "figures").iterdir())}

    fabricate(tmp_path, every(["ddpo", "dspo"], (0.5, 0.4, 0.6)), gain=True)
    assert written() == written()


@pytest.mark.parametrize(
    ("cosines", "options"),
    [
        (every(list("abcdef"), (0.5, 0.4, 0.6)), {"rungs": 5}),
        (every([LONG, f"{LONG}-2", "sft"], (0.5, 0.4, 0.6)), {"rungs": 2}),
        (every(["<b>&amp;", "a_b"], (-0.5, -0.6, -0.4)), {"checkpoints": (0, 10), "gain": True}),
        (THREE, {"silent": ("ddpo", "dspo"), "gain": True}),
    ],
)
def test_every_shape_of_study_has_a_page(tmp_path: Path, cosines: Cosines, options: dict[str, Any]) -> None:
    fabricate(tmp_path, cosines, **options)
    html = write_study_report(tmp_path).read_text()
    check_self_contained(html)
    assert "no gradient" not in html
    assert study_summary(tmp_path)


def test_the_lead_claims_what_intervals_support(tmp_path: Path) -> None:
    agreement, matched = lead(read_study(fabricate(tmp_path, THREE)))
    assert agreement == (
        "ddpo and dspo push the same way (cosine above 0.9); ddpo and sft push against each other (cosine below −0.40); "
        "dspo and sft cannot be told to agree or disagree."
    )
    assert matched == "With timesteps weighted alike, all push the same way (cosine above 0.9)."


def with_matched(directory: Path, said: dict[tuple[int, str, str], dict[str, Any]]) -> Path:
    """Write over some matched cosines of the parameters, by rung and pair."""
    rows = pq.read_table(directory / "estimates.parquet").to_pylist()
    for row in rows:
        if (row["space"], row["quantity"]) == ("parameters", "matched_cosine"):
            row |= said.get((row["rung"], row["a"], row["b"]), {})
    pq.write_table(pa.Table.from_pylist(rows), directory / "estimates.parquet")
    return directory


def test_matched_cosines_name_the_timesteps_that_they_rest_on(tmp_path: Path) -> None:
    """Of two objectives of which one draws the noisier half alone the other half is not compared."""
    notes = {
        (0, "ddpo", "dspo"): {"note": "bins 0, 1"},
        (0, "ddpo", "sft"): {"note": "bins 1"},
        (0, "dspo", "sft"): {"note": "low power: sft 58%; bins 0"},
    }
    study = read_study(with_matched(fabricate(tmp_path, THREE), notes))
    found = [study.one("matched_cosine", *pair) for pair in study.pairs]
    weak = "low power: sft 58%; timesteps 0 to 499 alone"
    assert [study.cautions(e) for e in found if e] == ["", "timesteps 500 to 999 alone", weak]
    summary = study_summary(tmp_path)
    assert (
        "Of these 3 cosines 2 rest on those timesteps alone in which both show a direction, and 1 rest on directions that may "
        "have been found by luck." in summary
    )
    assert "0.97 [0.95, 0.99] (timesteps 500 to 999 alone)" in summary
    assert weak in write_study_report(tmp_path).read_text()


def test_matched_cosines_over_other_timesteps_are_no_ladder(tmp_path: Path) -> None:
    lower = {"estimate": 0.4, "low": 0.3, "high": 0.5}
    other = {(1, "ddpo", "dspo"): {**lower, "note": "bins 1"}, (1, "ddpo", "sft"): lower}
    study = read_study(with_matched(fabricate(tmp_path, THREE, rungs=2), other))
    assert along(study, "sampler.eta", "matched_cosine") == (
        "With timesteps weighted alike, along sampler.eta agreement with ddpo moves: sft from 0.97 [0.95, 0.99] at 0.0 to "
        "0.40 [0.30, 0.50] at 0.5."
    )


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.95, 0.91, 0.99), "a and b push the same way (cosine above 0.9)."),
        ((0.5, 0.3, 0.7), "a and b push in part the same way (cosine between 0.30 and 0.70)."),
        ((0.95, 0.3, 1.0), "a and b push the same way at least in part (cosine above 0.30)."),
        ((0.95, -0.1, 1.0), "a and b cannot be told to agree or disagree."),
        ((-0.5, -0.7, -0.3), "a and b push against each other (cosine below −0.30)."),
    ],
)
def test_a_pair_is_described_by_its_limits(tmp_path: Path, interval: tuple[float, float, float], said: str) -> None:
    assert lead(read_study(fabricate(tmp_path, {("a", "b"): interval})))[0] == said


def test_all_means_all_that_could_be_compared(tmp_path: Path) -> None:
    four = every(["a", "b", "c", "d"], (0.95, 0.92, 0.98)) | {("c", "d"): (NAN, NAN, NAN)}
    said = lead(read_study(fabricate(tmp_path, four)))[0]
    assert (
        said == "a, b and c, as well as a, b and d, push the same way (cosine above 0.9); c and d cannot be compared."
    )


def test_many_pairs_are_counted(tmp_path: Path) -> None:
    labels = list("abcdef")
    star = every(labels, (0.1, -0.1, 0.3)) | {("a", b): (0.5, 0.4, 0.6) for b in labels[1:]}
    said = lead(read_study(fabricate(tmp_path, star, rungs=2)))[0]
    assert said == (
        "Of 2 measurements the first (sampler.eta = 0.0, the model as it came): 5 of 15 pairs push in part the same way "
        "(cosine between 0.40 and 0.60); b, c, d, e and f cannot be told to agree or disagree."
    )


def test_without_a_direction_nothing_is_claimed(tmp_path: Path) -> None:
    directory = fabricate(tmp_path / "one", THREE, silent=("sft",))
    agreement, _, none = lead(read_study(directory))
    assert agreement == "ddpo and dspo push the same way (cosine above 0.9)."
    assert none == "With 64 units sft shows no direction that can be told from noise."
    assert "no direction: sft" in study_summary(directory)
    html = write_study_report(directory).read_text()
    assert 'title="no direction: sft"' in html and "<b>–</b>" in html and '<td class="n">no direction</td>' in html
    two = fabricate(tmp_path / "two", THREE, silent=("sft", "ddpo"))
    assert lead(read_study(two))[-1] == "dspo shows one, and there is none to compare it with."
    three = fabricate(tmp_path / "three", THREE, silent=("sft", "ddpo", "dspo"))
    assert lead(read_study(three)) == ["With 64 units no objective shows a direction that can be told from noise."]
    assert "no objective shows a direction" in write_study_report(three).read_text()


def test_units_for_a_direction_are_one_over_signal_to_noise(tmp_path: Path) -> None:
    table = study_summary(fabricate(tmp_path, THREE, silent=("sft",))).split("\n\n")[-1]
    assert "ddpo  0.25 [0.125, 0.5]       4" in table
    assert "sft   0.25 [-0.1, 0.5]        no direction" in table
    assert list(figures.snr(read_study(tmp_path)).lines) == ["ddpo", "dspo"]


def test_charts_show_what_was_measured(tmp_path: Path) -> None:
    study = read_study(fabricate(tmp_path, THREE, rungs=3, gain=True))
    by_bin = figures.by_bin(study)
    assert list(by_bin.lines) == ["dspo", "sft"]
    assert by_bin.lines["dspo"].x.tolist() == [249.5, 749.5]
    assert by_bin.lines["sft"].y.tolist() == [-0.5, -0.5]
    assert figures.by_block(study).options["ticks"] == ["up_blocks.0", "mid_block"]  # in the network's order
    ladder = figures.along(study, "sampler.eta")
    assert ladder.lines["dspo"].y.tolist() == [0.95, 0.95, 0.95]
    assert ladder.options["ticks"] == ["0.0", "0.5", "1.0"]
    gains = figures.gains(study)
    assert (gains.lines["dspo"].x.tolist(), gains.lines["dspo"].y.tolist()) == ([0.1], [0.08])
    estimates, lows, highs = study.matrix()
    assert (estimates[0, 2], lows[2, 0], highs[0, 2]) == (-0.5, -0.6, -0.4)
    assert math.isnan(estimates[1, 1])
    for chart in (by_bin, ladder, gains, figures.snr(study)):
        chart.figure()
    figures.heat_map(study)


def test_a_silent_objective_is_no_base(tmp_path: Path) -> None:
    study = read_study(fabricate(tmp_path, THREE, silent=("ddpo",), rungs=2))
    for chart in (figures.by_bin(study), figures.by_block(study), figures.along(study, "sampler.eta")):
        assert "agreement with dspo" in chart.title and list(chart.lines) == ["sft"]
    assert not figures.by_bin(study, base="ddpo").lines


def test_ladders_say_what_moves(tmp_path: Path) -> None:
    lower = THREE | {("ddpo", "dspo"): (0.4, 0.3, 0.5)}
    study = read_study(fabricate(tmp_path, THREE, rungs=2, later=lower))
    assert along(study, "sampler.eta", "expected_cosine") == (
        "Along sampler.eta agreement with ddpo moves: dspo from 0.95 [0.92, 0.98] at 0.0 to 0.40 [0.30, 0.50] at 0.5; "
        "for sft no change of agreement with ddpo can be told."
    )
    assert along(study, "sampler.eta", "matched_cosine") == (
        "With timesteps weighted alike, along sampler.eta for dspo and sft no change of agreement with ddpo can be told."
    )


def test_checkpoints_are_a_ladder_and_adam_begins_with_the_first_trained_one(tmp_path: Path) -> None:
    study = read_study(fabricate(tmp_path, THREE, checkpoints=(0, 10, 30)))
    assert study.ladders == ["checkpoint"]
    chart = figures.along(study, "checkpoint")
    assert chart.lines["dspo"].x.tolist() == [0, 10, 30]
    assert study.first_rung("adam").checkpoint == 10
    # the table is that of the first rung which has an optimiser, not an empty one of the first rung
    assert study.one("snr", "ddpo", space="adam") is None
    assert list(figures.snr(study, space="adam", rung=study.first_rung("adam").number).lines) == ["ddpo", "dspo", "sft"]


def test_a_gain_that_is_not_predicted_says_why(tmp_path: Path) -> None:
    directory = fabricate(tmp_path, THREE, gain=True)
    nothing = dict.fromkeys(("predicted", "predicted_low", "predicted_high"), NAN)
    note = "not predicted: 1 of 10 steps draw no noise"
    rows = [{**row, **nothing, "note": note} for row in pq.read_table(directory / "gains.parquet").to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), directory / "gains.parquet")
    page = write_study_report(directory).read_text()
    assert f"The gain is {note}." in page and "nan" not in page.lower().partition("predicted and realised")[2]
    assert f"The gain is {note}." in " ".join(study_summary(directory, 200).split())


def test_gains_are_judged_by_their_intervals(tmp_path: Path) -> None:
    study = read_study(fabricate(tmp_path, THREE, gain=True))
    assert gained(figures.trained_gains(study, 0, "held_out")) == (
        "On held-out prompts steps along ddpo and dspo raised the trained reward; a step along sft lowered it. For sft the "
        "intervals of prediction and outcome lie apart."
    )


def test_pairs_are_found_whichever_way_round(tmp_path: Path) -> None:
    study = read_study(fabricate(tmp_path, THREE))
    assert study.one("expected_cosine", "sft", "ddpo") == study.one("expected_cosine", "ddpo", "sft")
    assert study.labels == ["ddpo", "dspo", "sft"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("study.json", None, "expected a study in .*, found no study.json"),
        ("estimates.parquet", None, "expected a finished study in .*, found no estimates.parquet"),
        ("gains.parquet", None, "gains.parquet as the study wrote it"),
        ("facts.json", None, "facts.json as the study wrote it"),
        ("facts.json", "{", "facts.json as the study wrote it"),
        ("facts.json", "[]", "facts.json as the study wrote it.*has no objectives"),
        ("study.json", '{"units": 64}', "study.json as the study wrote it.*has no run, objectives, gain"),
        ("estimates.parquet", "not parquet", "estimates.parquet as the study wrote it"),
    ],
)
def test_damaged_studies_are_refused(tmp_path: Path, name: str, content: str | None, sentence: str) -> None:
    file = fabricate(tmp_path, THREE, gain=True) / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=sentence):
        write_study_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    file = fabricate(tmp_path, THREE) / "estimates.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["low"]), file)
    with pytest.raises(UserError, match="has no low"):
        read_study(tmp_path)


def test_report_recognises_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = fabricate(tmp_path / "study", every(["ddpo", "dspo"], (0.95, 0.91, 0.99)))
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["report", str(study), "--out", str(tmp_path / "page.html")])
    assert "push the same way" in capsys.readouterr().out
    assert "directions on toy" in (tmp_path / "page.html").read_text()


def test_low_power_is_said_beside_the_cosine(tmp_path: Path) -> None:
    study = fabricate(tmp_path, every(["ddpo", "weak"], (0.5, -0.2, 1.0)))
    said = " ".join(lead(read_study(study)))
    assert "Power is low (weak 58 % [3 %, 98 %]): with 64 units such a direction may be found by luck" in said
    assert "ddpo 99" not in said
    assert "0.50 [-0.20, 1.00] (low power: weak 58%)" in study_summary(study)
    assert "<small>low power: weak 58%</small>" in write_study_report(study).read_text()
