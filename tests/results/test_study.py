"""The page of a study says what its numbers say, and no more."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysuite.errors import UserError
from raysuite.results.study import figures, read_study
from raysuite.results.study.report import lead, study_summary, write_study_report
from tests.results.pages import check_self_contained

NAN = math.nan


def rows_of(
    cosines: dict[tuple[str, str], tuple[float, float, float]], silent: tuple[str, ...], rung: int
) -> list[dict[str, Any]]:
    """Estimates of one rung: cosines of pairs, whole and by bin and block, and who shows a direction."""
    place = {"rung": rung, "along": "sampler.eta" if rung else "", "value": json.dumps(rung / 2), "checkpoint": 0}
    out = []
    parts = [("whole", ""), ("bin", "0"), ("bin", "1"), ("block", "up_blocks.0"), ("block", "mid_block")]
    for label in sorted({label for pair in cosines for label in pair}):
        low = -0.1 if label in silent else 0.5
        for quantity, value in (("squared_norm", (1.0, low, 2.0)), ("snr", (0.25, low, 0.5))):
            out.append((label, label, "whole", "", quantity, value, ""))
    for (a, b), value in cosines.items():
        for part, where in parts:
            without = [label for label in (a, b) if label in silent]
            note = f"no direction: {', '.join(without)}" if without else ""
            out.append((a, b, part, where, "expected_cosine", (NAN,) * 3 if without else value, note))
        out.append((a, b, "whole", "", "batch_cosine", (0.77, NAN, NAN), ""))
        out.append((a, b, "whole", "", "matched_cosine", (NAN,) * 3 if without else (0.97, 0.95, 0.99), "bins 0, 1"))
    keys = ("a", "b", "part", "where", "quantity", "values", "note")
    named = [dict(zip(keys, row, strict=True)) for row in out]
    return [
        {
            **place,
            "space": "parameters",
            **{k: v for k, v in row.items() if k != "values"},
            **dict(zip(("estimate", "low", "high"), row["values"], strict=True)),
        }
        for row in named
    ]


def fabricate(
    directory: Path,
    cosines: dict[tuple[str, str], tuple[float, float, float]],
    *,
    silent: tuple[str, ...] = (),
    rungs: int = 1,
    gain: bool = False,
) -> Path:
    labels = list(dict.fromkeys(label for pair in cosines for label in pair))
    settings = {
        "run": {"model": {"path": "toy"}, "seed": 0},
        "objectives": {label: {"name": label} for label in labels},
        "units": 64,
        "gain": {"kl": 2.0} if gain else None,
    }
    places = [
        {"rung": r, "along": "sampler.eta" if r else "", "value": json.dumps(r / 2), "checkpoint": 0}
        for r in range(rungs)
    ]
    facts = {
        "objectives": labels,
        "bins": [[0, 499], [500, 999]],
        "blocks": {"up_blocks.0": 10, "mid_block": 20},
        "exact": False,
        "projection_error": 0.022,
        "rungs": [{**place, "units": 64, "network_evaluations": 5000, "seconds": {"draw": 61.0}} for place in places],
    }
    provenance = {
        "command": ["raysuite", "directions", "a b"],
        "date": "2026-01-01",
        "commit": None,
        "dirty": None,
        "machine": "m",
    }
    for name, value in (("study", settings), ("facts", facts), ("provenance", provenance)):
        (directory / f"{name}.json").write_text(json.dumps(value))
    rows = [row for rung in range(rungs) for row in rows_of(cosines, silent, rung)]
    pq.write_table(pa.Table.from_pylist(rows), directory / "estimates.parquet")
    if gain:
        intervals = {"kl": (2.0, 1.9, 2.1), "predicted": (0.1, 0.05, 0.15), "realised": (0.08, 0.02, 0.14)}
        numbers = {
            f"{n}{end}": v for n, i in intervals.items() for end, v in zip(("", "_low", "_high"), i, strict=True)
        }
        found = [{**places[0], "objective": label, "split": "training", "reward": "r", **numbers} for label in labels]
        pq.write_table(pa.Table.from_pylist(found), directory / "gains.parquet")
    return directory


THREE = {("ddpo", "dspo"): (0.95, 0.92, 0.98), ("ddpo", "sft"): (-0.5, -0.6, -0.4), ("dspo", "sft"): (0.3, -0.2, 0.8)}


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = write_study_report(fabricate(tmp_path, THREE, rungs=3, gain=True))
    html = page.read_text()
    check_self_contained(html)
    for wanted in (
        "0.95",
        "[0.92, 0.98]",
        "Timesteps weighted alike",
        "2.2 % of the product",
        "raysuite directions",
        "sampler.eta",
    ):
        assert wanted in html
    assert page.read_bytes() == write_study_report(tmp_path).read_bytes()
    assert {"expected_cosine-parameters.svg", "bin-parameters-0.svg", "gains-0-training.svg"} <= {
        path.name for path in (tmp_path / "figures").iterdir()
    }


def test_the_lead_claims_what_intervals_support(tmp_path: Path) -> None:
    said = lead(read_study(fabricate(tmp_path, THREE)))
    assert "ddpo with dspo push the same way (cosine above 0.9)" in said
    assert "ddpo with sft push against each other" in said
    assert "dspo with sft" not in said.split("With timesteps")[0]
    assert "With timesteps weighted alike, all push the same way" in said


def test_without_a_direction_nothing_is_claimed(tmp_path: Path) -> None:
    directory = fabricate(tmp_path, THREE, silent=("sft",))
    said = lead(read_study(directory))
    assert said.startswith("With 64 units sft shows no direction")
    assert "with sft" not in said
    assert "no direction: sft" in study_summary(directory)
    assert "–" in write_study_report(directory).read_text()
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    fabricate(nothing, THREE, silent=("sft", "ddpo", "dspo"))
    assert lead(read_study(nothing)).startswith("With 64 units no objective shows a direction")
    write_study_report(nothing)


def test_charts_show_what_was_measured(tmp_path: Path) -> None:
    study = read_study(fabricate(tmp_path, THREE, rungs=3, gain=True))
    by_bin = figures.by_bin(study)
    assert list(by_bin.lines) == ["dspo", "sft"]
    assert by_bin.lines["sft"].x.tolist() == [249.5, 749.5]
    assert by_bin.lines["sft"].y.tolist() == [-0.5, -0.5]
    ladder = figures.along(study, "sampler.eta")
    assert ladder.lines["dspo"].y.tolist() == [0.95, 0.95]
    gains = figures.gains(study)
    assert (gains.lines["dspo"].x.tolist(), gains.lines["dspo"].y.tolist()) == ([0.1], [0.08])
    assert not figures.gains(study, split="held_out").lines
    figures.gains(study, split="held_out").figure()


def test_pairs_are_found_whichever_way_round(tmp_path: Path) -> None:
    study = read_study(fabricate(tmp_path, THREE))
    assert study.one("expected_cosine", "sft", "ddpo") == study.one("expected_cosine", "ddpo", "sft")
    assert study.labels == ["ddpo", "dspo", "sft"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("study.json", None, "expected a study in .*, found no study.json"),
        ("estimates.parquet", None, "expected a finished study in .*, found no estimates.parquet"),
        ("facts.json", "{", "facts.json as the study wrote it"),
        ("estimates.parquet", "not parquet", "estimates.parquet as the study wrote it"),
    ],
)
def test_damaged_studies_are_refused(tmp_path: Path, name: str, content: str | None, sentence: str) -> None:
    file = fabricate(tmp_path, THREE) / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_study(tmp_path)
