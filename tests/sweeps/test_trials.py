"""The book of a sweep: what it remembers, what comes next."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from raysuite.errors import UserError
from raysuite.sweeps.declared import Confirm, Dimension, Sweep
from raysuite.sweeps.trials import Book, Outcome, Tried, outcomes, suggestion

SWEEP = Sweep.model_validate(
    {
        "recipe": "toy-ddpo",
        "objectives": ["toy-ddpo"],
        "space": {"learn.learning_rate": {"loguniform": [1e-4, 1e-2]}},
        "trials": 2,
        "seeds": [0, 1],
        "budget": 1500,
    }
)


def test_a_sweep_that_goes_on_tries_again_what_did_not_end(tmp_path: Path) -> None:
    book = Book.open(SWEEP, tmp_path / "sweep", ["test"])
    first, second, third, fourth = SWEEP.runs
    assert book.waiting() == [first, second, third, fourth]
    drawn = book.settings(first)
    book.note(first, status="done", settings=drawn, held_out=0.5)
    book.note(second, status="running", settings=drawn)
    book.note(third, status="failed", message="out of paint")
    again = Book.open(SWEEP, tmp_path / "sweep", ["test"])
    assert again.waiting() == [second, third, fourth]
    assert again.settings(second) == drawn != again.settings(third)
    assert again.trials[third.name].message is None
    assert json.loads((tmp_path / "sweep" / "trials.json").read_text())[0]["status"] == "done"


def test_what_a_killed_command_was_writing_is_removed_and_trials_are_left_alone(tmp_path: Path) -> None:
    book = Book.open(SWEEP, tmp_path, ["test"])
    name = f".trials.json.{uuid.uuid4().hex}"
    trial = book.run_directory(SWEEP.runs[0]) / name
    trial.parent.mkdir(parents=True)
    for left in (trial, tmp_path / name):
        left.touch()
    Book.open(SWEEP, tmp_path, ["test"])
    assert trial.exists() and not (tmp_path / name).exists()


def test_a_directory_belongs_to_one_sweep(tmp_path: Path) -> None:
    Book.open(SWEEP, tmp_path / "sweep", ["test"])
    Book.open(SWEEP.model_copy(update={"concurrent": 4}), tmp_path / "sweep", ["test"])
    other = SWEEP.model_copy(update={"budget": 1, "seeds": (0,)})
    assert Book.open(other, tmp_path / "sweep", ["mended"]).trials.keys() == {run.name for run in other.runs}
    (tmp_path / "sweep" / "trials" / "one").mkdir(parents=True)  # now there is something to lose
    expected = r"differs in budget \(1 there, 1500 here\); seeds \(\[0\] there, \[0, 1\] here\): name another --out"
    with pytest.raises(UserError, match=expected):
        Book.open(SWEEP, tmp_path / "sweep", ["test"])
    with pytest.raises(UserError, match="expected an empty or new directory"):
        Book.open(SWEEP, tmp_path, ["test"])


def test_nothing_is_imported_because_a_directory_names_it(tmp_path: Path) -> None:
    book = Book.open(SWEEP, tmp_path, ["test"])
    book.run_directory(book.sweep.runs[0]).mkdir(parents=True)
    written = json.loads((tmp_path / "sweep.json").read_text())
    written["configs"]["toy-ddpo"]["objective"] = {"name": "tests.nowhere:Own"}
    (tmp_path / "sweep.json").write_text(json.dumps(written))
    expected = r'differs in objectives \(\["tests.nowhere:Own"\] there, \["toy-ddpo"\] here\): name another --out'
    with pytest.raises(UserError, match=expected):
        Book.open(SWEEP, tmp_path, ["test"])


def test_a_recipe_that_was_edited_is_noticed(tmp_path: Path) -> None:
    recipe, out = tmp_path / "mine.yaml", tmp_path / "sweep"

    def opened(rate: float, extra: str = "") -> Book:
        recipe.write_text(f"extends: toy-ddpo\nlearn: {{learning_rate: {rate}}}\n{extra}")
        sweep = Sweep.model_validate({"recipe": "toy-ddpo", "objectives": [str(recipe)], "budget": 1500})
        return Book.open(sweep, out, ["test"])

    book = opened(0.01)
    book.run_directory(book.sweep.runs[0]).mkdir(parents=True)
    opened(0.01, "cluster: {threads: 1}\ntrackers: {tensorboard: true}\n")
    expected = r"differs in configs.mine.learn.learning_rate \(0.01 there, 0.5 here\)"
    with pytest.raises(UserError, match=expected):
        opened(0.5)


def test_where_runs_go_may_change_between_its_parts(tmp_path: Path) -> None:
    """And what a guard does, as in a run: what decides numbers may not."""

    def opened(**settings: object) -> Book:
        return Book.open(SWEEP.model_copy(update={"settings": settings}), tmp_path / "sweep", ["test"])

    book = opened()
    book.run_directory(book.sweep.runs[0]).mkdir(parents=True)
    opened(**{"cluster.max_failures": 5, "guards.kl": "stop"})
    with pytest.raises(UserError, match=r"differs in configs.toy-ddpo.learn.epochs \(1 there, 2 here\)"):
        opened(**{"learn.epochs": 2})


def test_prompts_that_were_edited_are_noticed(tmp_path: Path) -> None:
    """Trials that are compared learned from the same, and were judged by the same."""
    training, test, out = tmp_path / "training.txt", tmp_path / "test.txt", tmp_path / "sweep"
    training.write_text("left\n")
    test.write_text("right\n")
    settings = {"prompts.training": str(training)}
    sweep = SWEEP.model_copy(update={"settings": settings, "confirm": Confirm(seeds=(7,), test=str(test))})
    Book.open(sweep, out, ["test"])
    training.write_text("right\n")
    book = Book.open(sweep, out, ["test"])  # nothing was done yet
    book.run_directory(sweep.runs[0]).mkdir(parents=True)
    for file, setting in ((training, "prompts.training"), (test, "prompts.test")):
        before = file.read_text()
        file.write_text("up\n")
        with pytest.raises(UserError, match=f"expected what {setting} names as it was when the sweep in .* began"):
            Book.open(sweep, out, ["test"])
        file.write_text(before)
    assert Book.open(sweep, out, ["test"]).waiting()


def test_prompts_are_known_though_a_command_was_killed_as_it_claimed_its_directory(tmp_path: Path) -> None:
    training, out = tmp_path / "training.txt", tmp_path / "sweep"
    training.write_text("left\n")
    sweep = SWEEP.model_copy(update={"settings": {"prompts.training": str(training)}})
    Book.open(sweep, out, ["test"])
    (out / "provenance.json").unlink()  # it is written second
    Book.open(sweep, out, ["test"]).run_directory(sweep.runs[0]).mkdir(parents=True)
    training.write_text("right\n")
    with pytest.raises(UserError, match=r"expected what prompts\.training names as it was"):
        Book.open(sweep, out, ["test"])


@pytest.mark.parametrize("damage", ["[{", "{}", "null"])
def test_a_damaged_list_of_trials_is_a_sentence(tmp_path: Path, damage: str) -> None:
    Book.open(SWEEP, tmp_path / "sweep", ["test"])
    (tmp_path / "sweep" / "trials.json").write_text(damage)
    with pytest.raises(UserError, match=r"trials.json of a sweep, it is damaged"):
        Book.open(SWEEP, tmp_path / "sweep", ["test"])


def test_outcomes_are_of_the_trained_reward_on_held_out_prompts(tmp_path: Path) -> None:
    config = SWEEP.config(
        SWEEP.runs[0], {"rewards": [{"name": "redness", "weight": 2.0}, {"name": "jpeg", "weight": -1.0}]}
    )
    assert outcomes(tmp_path, config) == []
    rows = [(0, "evaluation/held_out/redness", 0.5), (0, "evaluation/held_out/jpeg", 0.25), (0, "train/reward", 9.0)]
    rows += [(0, "budget/network_evaluations", 100.0), (1, "evaluation/held_out/redness", 1.0)]
    rows += [(1, "evaluation/held_out/jpeg", 0.0), (1, "budget/network_evaluations", 200.0)]
    lines = [json.dumps({"update": update, "name": name, "value": value}) for update, name, value in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"update": 2, "na')
    assert outcomes(tmp_path, config) == [Outcome(0.0, 0.75), Outcome(100.0, 2.0)]


def test_a_trial_is_known_once_all_its_seeds_have_ended(tmp_path: Path) -> None:
    book = Book.open(SWEEP, tmp_path / "sweep", ["test"])
    first, second, *_ = SWEEP.runs
    book.note(first, status="done", settings={"learn.learning_rate": 1e-3}, held_out=0.5)
    assert book.tried("toy-ddpo") == []
    book.note(second, status="done", settings={"learn.learning_rate": 1e-3}, held_out=0.7)
    assert book.tried("toy-ddpo") == [({"learn.learning_rate": 1e-3}, pytest.approx(0.6), False)]
    book.note(second, status="stopped")
    assert [trial.stopped for trial in book.tried("toy-ddpo")] == [True]


def test_what_confirms_waits_for_all_trials_and_has_the_winners_settings(tmp_path: Path) -> None:
    sweep = SWEEP.model_copy(update={"seeds": (0,), "confirm": Confirm(seeds=(7, 8))})
    book = Book.open(sweep, tmp_path / "sweep", ["test"])
    first, second, again, once_more = sweep.runs
    book.note(first, status="done", settings={"learn.learning_rate": 1e-3}, held_out=0.5)
    assert book.waiting() == [second] and book.left() == [second, again, once_more]
    book.note(second, status="done", settings={"learn.learning_rate": 1e-4}, held_out=0.7)
    assert book.waiting() == [again, once_more]
    assert book.settings(again) == {"learn.learning_rate": 1e-4} and book.trials[again.name].confirms == 1
    book.note(first, held_out=0.9)  # were it run again: who won is settled
    assert book.settings(once_more) == {"learn.learning_rate": 1e-4}
    assert [trial.held_out for trial in book.tried("toy-ddpo")] == [0.9, 0.7]


def test_who_wins_ended_with_most_seeds_and_by_itself(tmp_path: Path) -> None:
    """Not who failed with a seed, nor who was stopped early."""
    book = Book.open(SWEEP, tmp_path / "seeds", ["test"])
    for run, (status, reward) in zip(
        SWEEP.runs, [("done", 0.5), ("done", 0.5), ("done", 0.9), ("failed", None)], strict=True
    ):
        book.note(run, status=status, held_out=reward)
    assert book.winner("toy-ddpo") == 0
    one = SWEEP.model_copy(update={"seeds": (0,)})
    book = Book.open(one, tmp_path / "stopped", ["test"])
    for run, (status, reward) in zip(one.runs, [("done", 0.5), ("stopped", 0.9)], strict=True):
        book.note(run, status=status, held_out=reward)
    assert book.winner("toy-ddpo") == 0


def test_where_no_trial_ended_there_is_nothing_to_confirm(tmp_path: Path) -> None:
    sweep = SWEEP.model_copy(update={"confirm": Confirm(seeds=(7,))})
    book = Book.open(sweep, tmp_path / "sweep", ["test"])
    for run in sweep.searched:
        book.note(run, status="failed")
    with pytest.raises(UserError, match="expected a finished trial of toy-ddpo to confirm, found none"):
        book.settings(sweep.runs[-1])


def test_optuna_draws_where_rewards_were_high() -> None:
    space = {
        "a": Dimension("uniform", (0.0, 1.0)),
        "b": Dimension("choice", ([1], [2])),
        "c": Dimension("integers", (1, 9)),
    }
    seen = [
        Tried({"a": i / 20, "b": [1 + i % 2], "c": 1 + i % 9}, -abs(i / 20 - 0.8), stopped=False) for i in range(20)
    ]
    drawn = [suggestion(space, seen, seed=seed) for seed in range(8)]
    assert drawn[0] == suggestion(space, seen, seed=0) != drawn[1]
    assert sum(abs(d["a"] - 0.8) < 0.3 for d in drawn) >= 6
    assert all(d["b"] in ([1], [2]) and 1 <= d["c"] <= 9 for d in drawn)
    assert sum(suggestion(space, [], seed=seed)["a"] < 0.5 for seed in range(8)) >= 1


def test_optuna_does_not_draw_where_trials_were_stopped() -> None:
    """Though their last evaluation, of fewer pictures, says more than those of trials that were finished."""
    space = {"a": Dimension("uniform", (0.0, 1.0))}
    seen = [Tried({"a": i / 20}, 0.9 if i < 10 else 0.5 + i / 100, stopped=i < 10) for i in range(20)]
    drawn = [suggestion(space, seen, seed=seed)["a"] for seed in range(8)]
    assert sum(a > 0.5 for a in drawn) >= 6
    finished = [trial._replace(stopped=False) for trial in seen]
    assert sum(suggestion(space, finished, seed=seed)["a"] < 0.5 for seed in range(8)) >= 6
    among = [Tried({"a": i / 20}, -abs(i / 20 - 0.8), stopped=True) for i in range(20)]
    assert sum(abs(suggestion(space, among, seed=seed)["a"] - 0.8) < 0.3 for seed in range(8)) >= 6
