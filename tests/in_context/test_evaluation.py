"""An in-context evaluation as a whole: known values, what is right and why, stops, and the same bytes twice."""

from __future__ import annotations

import re
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raysuite import cli
from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.in_context import command, evaluation, language
from raysuite.in_context.evaluation import Plan
from raysuite.in_context.judges import Exact, Reading
from raysuite.in_context.policies import Copy, Row, scenes_rows
from raysuite.in_context.scenes import ScenesWorld
from raysuite.in_context.tasks import Answer, Episode, Theme, World
from raysuite.kernel.stats import Interval
from raysuite.results.in_context.numbers import corrected, drawn, factors, share, together
from raysuite.results.in_context.published import PUBLISHED, SHOTS
from raysuite.results.in_context.read import InContext, Method, Source, read_in_context
from raysuite.results.in_context.report import in_context_summary, write_in_context_report
from raysuite.stages.models import find_model, find_models
from tests.in_context.doubles import Perfect
from tests.results.pages import check_self_contained
from tests.stages.worker import train_alone


class Silent:
    def begin(self, total: int, *, done: int) -> None:
        """Nothing."""

    def advance(self) -> None:
        """Nothing."""


@contextmanager
def silent(what: str, unit: str) -> Iterator[Silent]:
    yield Silent()


def planned(episodes: int = 12, *, shots: tuple[int, ...] = (2, 4, 6, 8), nuisance: bool = False) -> Plan:
    world = ScenesWorld(0, nuisance=nuisance)
    return Plan(world, Exact(world), scenes_rows(0, world.caption, 0.1), episodes, shots)


def evaluated(directory: Path, plan: Plan, drawer: Perfect) -> Path:
    directory.mkdir(exist_ok=True)
    evaluation.claim(plan, [{"label": drawer.label, "method": None}], directory, ["raysuite", "in-context"])
    evaluation.evaluate(plan, directory, [(drawer.label, lambda texts: drawer)], silent)
    return directory


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> InContext:
    plan = planned()
    assert isinstance(plan.world, ScenesWorld)
    return read_in_context(evaluated(tmp_path_factory.mktemp("perfect"), plan, Perfect(plan.world)))


def chance_of(found: InContext, side: str) -> float:
    """The mean over questions of one over the number of options of a side."""
    world = ScenesWorld(0)
    tasks = {task.name: len(getattr(task, side)) for task in world.tasks}
    rows = found.where(("random", "default"))
    return float(np.mean([1 / tasks[task] for task in found.judgements["task"][rows]]))


def agrees(found: Interval, chance: float) -> bool:
    """Whether a chance lies within twice the interval: the draws are fixed, and one in twenty lies outside of it."""
    return abs(found.estimate - chance) <= found.high - found.low


def test_reference_policies_have_their_known_values(found: InContext) -> None:
    """Of a model that draws perfectly: the oracle and the written latent 1, the last text alone its one side, a copy the other."""
    for row in (("oracle", "default"), ("chain", "caption"), ("text as written", "exact")):
        assert factors(found, row, 0).right.estimate == factors(found, row, 0).described.estimate == 1
    alone = factors(found, ("last text alone", "default"), 0)
    assert alone.textual.estimate == 1 and alone.described.estimate == 0 and np.isnan(alone.drawn.estimate)
    assert agrees(alone.visual, chance_of(found, "latents"))
    copy = factors(found, ("copy", "default"), -1)
    assert (copy.textual.estimate, copy.visual.estimate, copy.right.estimate) == (0, 1, 0)
    random = factors(found, ("random", "default"), -1)
    assert agrees(random.textual, chance_of(found, "requests"))
    assert agrees(random.visual, chance_of(found, "latents"))
    assert agrees(random.right, float(np.mean(list(found.chances.values()))))


def test_more_shots_mend_what_is_misread(found: InContext) -> None:
    row = ("chain, 10% of attributes misread", "default")
    two, eight = (share(found, "described", found.where(row, shots=shots)).estimate for shots in (2, 8))
    assert two < eight and eight > 0.95


def test_the_factors_make_the_whole(found: InContext) -> None:
    for row in found.rows[:5]:
        f = factors(found, row, 0)
        d = f.described.estimate
        parts = [p * q for p, q in ((d, f.drawn.estimate), (1 - d, f.lucky.estimate)) if p]
        assert sum(parts) == pytest.approx(f.right.estimate)


def test_a_description_is_drawn_once_whoever_gave_it(tmp_path: Path) -> None:
    plan = planned(2, shots=(2, 4))
    assert isinstance(plan.world, ScenesWorld)
    drawer = Perfect(plan.world)
    evaluated(tmp_path, plan, drawer)
    texts = {a.key for a in evaluation._answers(plan, tmp_path, silent) if a.answer.description is not None}
    assert drawer.blocks == -(-len(texts) // plan.batch)
    assert len(texts) < 0.6 * len([c for c in plan.coordinates if c[0] < 5])


def digests(directory: Path) -> dict[str, bytes]:
    files = (file for file in directory.rglob("*") if file.is_file() and file.name != "provenance.json")
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


def test_a_stop_repeats_nothing_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "PICTURES", 1)
    plan = replace(planned(2, shots=(2,)), batch=10)
    assert isinstance(plan.world, ScenesWorld)
    whole = Perfect(plan.world)
    wanted = digests(evaluated(tmp_path / "whole", plan, whole))
    assert whole.blocks > 3
    first, second = Perfect(plan.world, fails_after=2), Perfect(plan.world)
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path / "stopped", plan, first)
    assert digests(evaluated(tmp_path / "stopped", replace(planned(2, shots=(2,)), batch=10), second)) == wanted
    assert first.blocks + second.blocks == whole.blocks
    third = Perfect(plan.world)
    assert digests(evaluated(tmp_path / "stopped", plan, third)) == wanted and third.blocks == 0
    (tmp_path / "stopped" / "pictures" / "0" / "00001.parquet").unlink()  # nothing is judged that is not there
    assert digests(evaluated(tmp_path / "stopped", plan, third)) == wanted and third.blocks == 1


class Drawing(Copy):
    """Draws itself, and remembers which of its pictures somebody still holds."""

    kept = True

    def __init__(self) -> None:
        self.held: list[weakref.ref[np.ndarray]] = []
        self.most = 0

    def answer(self, world: World, episode: Episode) -> Answer:
        picture = episode.demos[-1].picture.copy()
        self.held = [one for one in self.held if one() is not None] + [weakref.ref(picture)]
        self.most = max(self.most, len(self.held))
        return Answer(picture=picture)


class Counted(Exact):
    pictures = 0

    def __call__(
        self, themes: Sequence[Theme], pictures: Sequence[np.ndarray], numbers: Sequence[int]
    ) -> list[Reading]:
        self.pictures += len(pictures)
        return super().__call__(themes, pictures, numbers)


def test_own_pictures_are_judged_once_and_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of them are held than a block has, and a second command judges none, of those who copy neither."""
    monkeypatch.setattr(evaluation, "BLOCK", 4)
    monkeypatch.setattr(evaluation, "PICTURES", 1)
    world = ScenesWorld(0)
    judge, drawing = Counted(world), Drawing()
    plan = Plan(world, judge, (Row("interleaved", "default", drawing), Row("copy", "default", Copy())), 2, (2,))
    wanted = digests(evaluated(tmp_path, plan, Perfect(world)))
    assert 0 < drawing.most <= 2 * evaluation.BLOCK
    cells = sum(len(theme.cells) for theme in world.themes)
    assert judge.pictures == cells + 20  # copies are the same pictures
    assert digests(evaluated(tmp_path, plan, Perfect(world))) == wanted and judge.pictures == cells + 20
    (tmp_path / "judged" / "00" / "00001.parquet").unlink()
    assert digests(evaluated(tmp_path, plan, Perfect(world))) == wanted and judge.pictures == cells + 24


def test_a_directory_of_another_evaluation_is_refused(tmp_path: Path) -> None:
    plan = planned(1, shots=(2,))
    assert isinstance(plan.world, ScenesWorld)
    evaluated(tmp_path, plan, Perfect(plan.world))
    with pytest.raises(UserError, match="differs in episodes"):
        evaluated(tmp_path, planned(2, shots=(2,)), Perfect(plan.world))


def test_another_share_of_misreading_is_another_evaluation(tmp_path: Path) -> None:
    """The rows' names said 10 % of 0.095 and 0.105 alike."""
    plans = [replace(planned(2), rows=scenes_rows(0, ScenesWorld().caption, errors)) for errors in (0.095, 0.105)]
    evaluation.claim(plans[0], [], tmp_path, ["test"])
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "0.parquet").touch()
    with pytest.raises(UserError, match="one that differs in rows"):
        evaluation.claim(plans[1], [], tmp_path, ["test"])


def test_a_damaged_block_is_told_by_whoever_goes_on(tmp_path: Path) -> None:
    plan = planned(2)
    evaluated(tmp_path, plan, Perfect(plan.world))
    (block, *_) = sorted((tmp_path / "pictures").rglob("*.parquet"))
    block.write_bytes(block.read_bytes()[:40])
    with pytest.raises(
        UserError, match=rf"{block.name} as it was written, it is damaged .*: remove it, and give the command"
    ):
        evaluated(tmp_path, plan, Perfect(plan.world))


def test_the_page_needs_nothing_but_itself_and_is_the_same_twice(found: InContext) -> None:
    page = write_in_context_report(found.directory).read_bytes()
    check_self_contained(page.decode())
    assert write_in_context_report(found.directory).read_bytes() == page
    assert page.decode().count('class="card episode"') == 10 * evaluation.SHOWN


def test_an_unfinished_evaluation_has_no_page(found: InContext, tmp_path: Path) -> None:
    shutil.copytree(found.directory, tmp_path / "copy")
    (tmp_path / "copy" / "judgements.parquet").unlink()
    with pytest.raises(UserError, match=r"found no judgements.parquet: give the command that began it again"):
        in_context_summary(tmp_path / "copy")


def test_the_judges_errors_are_taken_out_of_a_share() -> None:
    """90 of 100 right, 10 taken for another of 11 cells: so 1 in 100 wrong pictures for the right one, and (.6 - .01) / .89."""
    judge = Source("", 100, 90, 90, 90, 0, 0, 10, 11.0, ())
    assert (judge.sensitivity, judge.specificity) == pytest.approx((0.9, 0.99))
    found = corrected(Interval(0.6, 0.01, 0.95), judge)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.59 / 0.89, 0, 1))
    with pytest.raises(ValueError, match="a judge that tells something"):
        corrected(found, Source("", 100, 0, 0, 0, 0, 0, 100, 11.0, ()))


def test_reading_and_drawing_add_up_to_what_they_are(tmp_path: Path) -> None:
    """The first model draws nothing but grounds, the others well: without them reading adds nothing, without reading their half
    is right by chance alone, and runs of one method are one line.
    """
    plan = planned(4, shots=(2,))
    assert isinstance(plan.world, ScenesWorld)
    drawers = [Perfect(plan.world), Perfect(plan.world), Perfect(plan.world)]
    blank = np.full((32, 32, 3), 245, np.uint8)
    drawers[0].draw = lambda texts, tasks, indices: np.stack([blank] * len(texts))  # type: ignore[method-assign]
    settings: list[dict[str, object]] = [{"label": "blind", "objective": None, "method": None}]
    settings += [{"label": f"run {seed}", "objective": "ddpo", "method": "a"} for seed in (0, 1)]
    evaluation.claim(plan, settings, tmp_path, ["raysuite"])
    opened = [(str(one["label"]), lambda texts, of=of: of) for one, of in zip(settings, drawers, strict=True)]
    evaluation.evaluate(plan, tmp_path, opened, silent)
    found = read_in_context(tmp_path)
    assert found.methods == [Method("blind", (0,)), Method("ddpo, 2 runs", (1, 2))]
    assert [row[0] for row in found.readers] == ["chain", "chain, 10% of attributes misread"]
    of = together(found, ("chain", "caption"), found.methods[1])
    alone = factors(found, ("last text alone", "default"), 1).right.estimate
    shares = [one.estimate for one in (of.neither, of.reading, of.drawing, of.both)]
    assert shares == [0, 0, alone, 1] and alone < 0.5
    added = [one.estimate for one in (of.reading_adds, of.drawing_adds, of.both_add, of.more_than_sum)]
    assert added == pytest.approx([0, 1, 1, 1 - alone])
    share_of, difference = drawn(found, ("oracle", "default"), found.methods[1])
    assert share_of.estimate == 1 and difference is not None and difference.estimate == 1
    assert drawn(found, ("oracle", "default"), found.methods[0])[1] is None
    assert re.search(
        r"ddpo, 2 runs draws the right picture in 100\S* % .* more than blind", in_context_summary(tmp_path)
    )
    page = write_in_context_report(tmp_path).read_text()
    assert "Reading and drawing together" in page and "Published, beside ours" not in page


def test_published_means_are_those_of_the_published_figures() -> None:
    """Means over ten tasks, read off another figure: the transcription by task has to agree with them."""
    wanted = {
        ("SEED-LLaMA", "default"): (0.31, 0.19, 0.27, 0.26),
        ("Gemini", "default"): (0.575, 0.73, 0.83, 0.825),
        ("GPT-4V", "default"): (0.51, 0.465, 0.42, 0.40),
        ("Claude", "default"): (0.38, 0.50, 0.535, 0.56),
        ("Qwen-VL", "default"): (0.375, 0.50, 0.43, 0.34),
    }
    found = {(of.model, of.variant): of.mean for of in PUBLISHED}
    assert {at: found[at] for at in wanted} == {at: pytest.approx(shares, abs=0.006) for at, shares in wanted.items()}
    for of in PUBLISHED:
        assert len(of.tasks) == 10 and {len(shares) for shares in of.tasks.values()} == {len(SHOTS)}


# the command


@pytest.mark.slow
def test_the_command_draws_with_the_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under two names, which are one model opened twice: the same bytes, and paired differences of exactly 0."""
    monkeypatch.setattr(evaluation, "PICTURES", 1)
    monkeypatch.setattr(language, "TOKENS", 3_000)
    arguments = ["in-context", "scenes", "scenes-ddpo", "--episodes", "1", "--shots", "2", "--language"]
    cli.app([*arguments, "--out", str(tmp_path)], standalone_mode=False)
    found = read_in_context(tmp_path)
    names = {name for name, variant in found.rows if name.startswith("language model")}
    assert names == {"language model", "language model, with thought"}
    assert len(list((tmp_path / "language").iterdir())) == 2
    assert found.drawers == ["scenes", "scenes-ddpo"]
    assert digests(tmp_path / "pictures" / "0") == digests(tmp_path / "pictures" / "1")
    for row in found.rows[:5]:
        assert tuple(vars(factors(found, row, 1).difference).values()) == (0, 0, 0)
    assert found.sources[0].sensitivity == 1
    assert found.sources[1].name == "through the VAE of scenes" and found.sources[1].sensitivity >= 0.99
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["scenes", "--shots", "3"], "expected --shots of 2, 4, 6, 8, got '3'"),
        (["scenes", "scenes"], "got scenes twice"),
        (["toy-ddpo"], "expected a model that draws 32 x 32 pixels"),
        (["{tmp}"], "where there is neither config.json nor state.json"),
        (["--judge", "vlm", "--paired"], "expected --data with --paired, got none: name the folder"),
        (["--reader-url", "http://a"], "expected --data with --reader-url, got none"),
        (["--data", "{tmp}", "--language"], "expected --language without --data, got both"),
        (["--data", "{tmp}", "--misread", "0"], "expected --misread without --data, got both"),
        (["--data", "{tmp}", "--reader-url", "http://a"], "expected --reader with --reader-url, got none"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    asked = [argument.format(tmp=tmp_path) for argument in arguments]
    with pytest.raises(UserError, match=sentence):
        cli.app(["in-context", *asked, "--out", str(tmp_path / "out"), "--episodes", "1"], standalone_mode=False)


def test_a_run_without_a_checkpoint_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"expected a checkpoint of .*, which has none yet"):
        find_model(str(tmp_path))


def test_the_average_of_a_run_is_drawn_where_it_is_meant(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run_config(learn={"learning_rate": 0.1, "ema": 0.5})
    trained = train_alone(config, tmp_path / "run")
    assert trained.state.ema is not None
    (as_it_is,), (average,) = (find_models([str(tmp_path / "run")], ema=ema) for ema in (False, True))
    assert (as_it_is.label, average.label) == ("run after 1", "run after 1, average")
    assert as_it_is.settings()["method"] != average.settings()["method"]
    for one, wanted in ((as_it_is, trained.state.behaviour[1]), (average, trained.state.ema)):
        policy = open_policy(config, torch.device("cpu"))
        one.load(policy)
        assert np.array_equal(policy.weights(), wanted)
    assert not np.array_equal(trained.state.behaviour[1], trained.state.ema)
    with pytest.raises(UserError, match="expected a trained run with --ema, got scenes"):
        find_models(["scenes"], ema=True)


def test_a_run_without_an_average_is_told(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    train_alone(run_config(), tmp_path / "run")
    with pytest.raises(UserError, match="leave --ema out"):
        find_model(str(tmp_path / "run"), ema=True)


def test_labels_are_those_of_names() -> None:
    assert [one.label for one in find_models(["scenes", "scenes-flow"])] == ["scenes", "scenes-flow"]


def test_numbers_of_shots() -> None:
    assert command.numbers("8, 2") == (2, 8)
