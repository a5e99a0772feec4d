"""The experiment's commands: what each method is given and what it costs, and what the tables make of scores worked out by hand."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import writer_or_model
from jobs.writer_or_model import (
    NOTHING,
    RECIPE,
    Comparison,
    Experiment,
    Method,
    markdown,
    measures,
    measures_table,
    tables,
)
from raysuite import config as configuration

HALF_WAY = Path("half-way")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Command lines by what they make, with no more run than their names."""
    monkeypatch.setattr(Experiment, "_half_way", lambda self, seed: HALF_WAY)
    monkeypatch.setattr(Experiment, "_translate", lambda self, seed: None)
    found = Experiment(tmp_path, settings=("sampler.steps=2",)).trainings(4)
    return {Path(command[command.index("--out") + 1]).name: command for command in found}


def option(command: list[str], name: str) -> str:
    return command[command.index(f"--{name}") + 1]


def settings(command: list[str]) -> dict[str, str]:
    return dict(command[place + 1].split("=", 1) for place, word in enumerate(command) if word == "--set")


def test_a_command_that_was_finished_before_costs_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(command: list[str]) -> None:
        began = time.process_time()
        while time.process_time() - began < 0.01:
            pass
        raise SystemExit(0)

    monkeypatch.setattr(writer_or_model.cli, "main", work)
    seconds = tmp_path / "seconds.json"
    told = []
    for name in ("one", "one", "two"):
        writer_or_model.run(["train", "toy-ddpo", "--out", str(tmp_path / name)], seconds)
        told.append(json.loads(seconds.read_text()))
    assert told[0] == told[1] and told[2]["one"] == told[0]["one"] > 0 and told[2]["two"] > 0


def test_every_method_has_one_budget_and_both_together_half_of_it_each(commands: dict[str, list[str]]) -> None:
    whole, half = "36864", "18432"
    assert {
        name: option(commands[f"{name}-4"], "budget")
        for name in ("pairs", "pairs-after", "pairs-half", "pairs-second", "grpo")
    } == {
        "pairs": whole,
        "pairs-after": half,
        "pairs-half": half,
        "pairs-second": half,
        "grpo": whole,
    }
    runs = {name: command for name, command in commands.items() if command[0] == "train"}
    configs = {name: configuration.load(command[1], settings(command)) for name, command in runs.items()}
    assert {name: (c.objective["name"], c.budget, c.seed) for name, c in configs.items()} == {
        "ddpo-4": ("ddpo", int(whole), 4),
        "diffusion-dpo-4": ("diffusion_dpo", int(whole), 4),
        "ddpo-before-4": ("ddpo", int(half), 4),
    }
    for config in configs.values():
        assert config.prompts.training == config.prompts.held_out == "scenes-users"
        assert config.cluster.alone and config.sampler.steps == 2


def test_who_comes_first(commands: dict[str, list[str]], tmp_path: Path) -> None:
    """The writer learns before the base model and stands before the run; or it learns before the run's model half way."""
    assert commands["pairs-half-4"][2] == RECIPE and commands["dpo-half-4"][2] == str(tmp_path / "pairs-half-4")
    assert settings(commands["ddpo-before-4"])["prompts.writer"] == str(tmp_path / "dpo-half-4")
    second = [commands[f"{name}-4"] for name in ("pairs-second", "dpo-second")]
    assert {option(command, "writer") for command in second} == {str(tmp_path / "dpo-half-4")}
    assert option(second[0], "seed") != option(commands["pairs-half-4"], "seed")  # other prompts
    assert commands["pairs-after-4"][2] == str(HALF_WAY) and "--set" not in commands["pairs-after-4"]
    assert commands["dpo-after-4"][2] == str(tmp_path / "pairs-after-4")


def test_all_methods_are_asked_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Experiment, "_half_way", lambda self, seed: HALF_WAY)
    experiment = Experiment(tmp_path, prompts=5)
    compared = experiment.untrained() | experiment.trained(0)
    said = [experiment.evaluation(place, of) for place, of in compared.items()]
    assert {(option(command, "prompts"), option(command, "pictures")) for command in said} == {("5", "2")}
    assert all(("--set" in command) == (option(command, "model") == RECIPE) for command in said)
    methods = [method for of in compared.values() for method in of.methods]
    assert len({*methods}) == len(methods) == 14 and methods[0] == NOTHING


def rows(method: str, seed: int, passed: list[int]) -> list[dict[str, object]]:
    """Two cells of two prompts with one picture each."""
    known = [("a", 0), ("a", 1), ("b", 2), ("b", 3)]
    return [
        dict(zip(writer_or_model.COLUMNS, (method, seed, cell, "plain", prompt, 0, float(strict)), strict=True))
        for (cell, prompt), strict in zip(known, passed, strict=True)
    ]


def test_tables_are_means_over_seeds_and_differences_from_nothing() -> None:
    """Over two seeds writer passes 4 of 8, nothing 1 of 4: +0.25; in cell a 3 of 4 against 1 of 2."""
    found = [*rows(NOTHING, -1, [1, 0, 0, 0]), *rows("writer", 0, [1, 1, 0, 0]), *rows("writer", 1, [1, 0, 0, 1])]
    means, gains = tables(found[::-1])
    assert [line[0] for line in means[1:]] == ["writer", NOTHING]
    cells = means[0][1:]
    of = {(line[0], cell): value.split()[0] for line in means[1:] for cell, value in zip(cells, line[1:], strict=True)}
    assert {key: float(value) for key, value in of.items()} == {
        ("writer", "a"): 0.75,
        ("writer", "b"): 0.25,
        ("writer", "all"): 0.5,
        (NOTHING, "a"): 0.5,
        (NOTHING, "b"): 0.0,
        (NOTHING, "all"): 0.25,
    }
    assert len(gains) == 2 and [float(value.split()[0]) for value in gains[1][1:]] == [0.25] * 3
    assert markdown(means)[1] == "|---|---|---|---|"


def test_what_a_method_cost_is_the_sum_of_what_it_took(tmp_path: Path) -> None:
    """Half of a run of 96 network evaluations and 20 seconds, pairs of 40 evaluations and 3 seconds, and a training of 1 second."""
    pairs, run, writer = (tmp_path / name for name in ("pairs-0", "ddpo-0", "dpo-0"))
    for place in (pairs, run, writer):
        place.mkdir()
    (pairs / "pairs.json").write_text("{}")
    (pairs / "summary.json").write_text(json.dumps({"network_evaluations": 40}))
    (run / "config.json").write_text("{}")
    spent = [{"update": u, "name": "budget/network_evaluations", "value": v} for u, v in ((0, 48), (1, 96))]
    kl = {"update": 2, "name": "evaluation/kl", "value": 7.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*spent, kl)))
    (writer / "metrics.jsonl").write_text(json.dumps({"h_preferred": -1.0, "logp_preferred": -5.0}) + "\n")
    seconds = tmp_path / "seconds.json"
    seconds.write_text(json.dumps({"pairs-0": 3, "ddpo-0": 20, "dpo-0": 1}))
    compared = tmp_path / "compared"
    write_evaluation(compared, str(writer))
    method = Method(str(writer), {str(run): 0.5, str(pairs): 1.0, str(writer): 1.0})
    found = measures({str(compared): Comparison(str(run), {"both": method})}, 0, seconds)
    assert {row["measure"]: row["value"] for row in found} == {
        "network evaluations": 88,
        "seconds of processors": 14,
        "KL of the model, nats": 7,
        "diversity of pictures, grey levels": 255,
        "different rewrites, share": 1,
        "left as typed, share": 0,
        "h of preferred": -1,
        "log pi of preferred": -5,
    }
    again = [{**row, "seed": 1, "value": row["value"] + 2} for row in found]
    head, line = measures_table([*found, *again])
    assert dict(zip(head, line, strict=True))["network evaluations"] == "89 (88 to 90)"


def write_evaluation(directory: Path, who: str) -> None:
    """One prompt, one rewrite, a black and a white picture of it."""
    (directory / "scores").mkdir(parents=True)
    row = {
        "who": who,
        "prompt": 3,
        "cell": "a",
        "phrasing": "plain",
        "user": "2 cats",
        "rewrite": "two cats",
        "ended": True,
        "cut": False,
    }
    (directory / "rewrites.jsonl").write_text(json.dumps(row) + "\n")
    pictures = {
        "prompt": [3, 3],
        "text": ["two cats"] * 2,
        "picture": [0, 1],
        "total": [0.0, 1.0],
        "reward/scenes_strict": [0.0, 1.0],
        "thumbnail": [bytes(12), b"\xff" * 12],
    }
    pq.write_table(pa.table(pictures), directory / "scores" / "00001-000.parquet")
    (directory / "summary.json").write_text("{}")
