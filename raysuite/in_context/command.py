"""What is asked at the command line -> a plan, checked before anything slow begins."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from raysuite.config.reading import parse
from raysuite.errors import UserError
from raysuite.families.interleaved import InterleavedPipeline
from raysuite.in_context import evaluation
from raysuite.in_context.chat import Chat, HttpChat, TransformersChat
from raysuite.in_context.draw import PolicyDrawer
from raysuite.in_context.evaluation import Plan, Progress
from raysuite.in_context.judges import Clip, Exact, Judge, MultipleChoice
from raysuite.in_context.official import RECORDS, OfficialWorld
from raysuite.in_context.policies import interleaved_rows, published_rows, reading_rows, scenes_rows
from raysuite.in_context.scenes import ScenesWorld
from raysuite.in_context.tasks import SHOTS
from raysuite.stages.models import FoundModel, find_models

LARGE = 8
"""Pictures that a model draws at once on --data, as in suites: they are large."""


def numbers(shots: str) -> tuple[int, ...]:
    """Numbers of demonstrations, ascending, from "2,4".

    Raises:
        UserError: they are others than can be asked for.
    """
    found = [word.strip() for word in shots.split(",")]
    known = {str(number): number for number in SHOTS}
    if wrong := [word for word in found if word not in known]:
        raise UserError(f"expected --shots of {', '.join(known)}, got {wrong[0]!r}: put commas between them")
    return tuple(sorted({known[word] for word in found}))


def check_options(*, scenes: Mapping[str, object], published: Mapping[str, object]) -> None:
    """Refuse options that would be ignored.

    Args:
        scenes: those of the bundled world, by name; None or False where they were not given.
        published: those of the published data, `--data` among them.

    Raises:
        UserError: there is one of the other world, or one of a reader without a reader.
    """
    of_scenes, of_data = (
        [name for name, value in options.items() if value is not None and value is not False]
        for options in (scenes, published)
    )
    if of_data and "--data" not in of_data:
        raise UserError(
            f"expected --data with {of_data[0]}, got none: name the folder with CoBSAT's pictures, or leave {of_data[0]} out"
        )
    if of_data and of_scenes:
        raise UserError(
            f"expected {of_scenes[0]} without --data, got both: it is of the bundled world, so leave one of them out"
        )
    for name in ("--reader-url", "--reader-fields"):
        if name in of_data and "--reader" not in of_data:
            raise UserError(f"expected --reader with {name}, got none: name the server's model, or leave {name} out")


def scenes(
    models: Sequence[str],
    directory: Path,
    *,
    episodes: int,
    shots: tuple[int, ...],
    nuisance: bool,
    misread: float,
    language: bool,
    leave_out: bool,
    seed: int,
    batch: int | None = None,
    ema: bool = False,
) -> tuple[Plan, list[FoundModel]]:
    """An evaluation in the bundled world; language models are kept in the directory.

    Raises:
        UserError: a model is not there.
    """
    world = ScenesWorld(seed, nuisance=nuisance)
    rows = scenes_rows(seed, world.caption, misread)
    if language or leave_out:
        from raysuite.in_context.language import language_rows  # transformers take seconds to import

        rows += language_rows(world, directory / "language", errors=misread, left_out=leave_out, seed=seed)
    return Plan(world, Exact(world), rows, episodes, shots, seed, batch or evaluation.BLOCK), find_models(
        models, ema=ema
    )


def evaluate(
    plan: Plan, drawers: Sequence[FoundModel], directory: Path, command: Sequence[str], progress: Progress
) -> None:
    """Do it, or what of it is missing.

    Raises:
        UserError: the directory holds something else, or a model does not fit.
    """
    evaluation.claim(plan, [one.settings() for one in drawers], directory, command)
    beside = directory / "texts"
    opened = [
        (one.label, partial(PolicyDrawer, one, plan.seed, size=plan.world.size, beside=beside)) for one in drawers
    ]
    evaluation.evaluate(plan, directory, opened, progress)
    shutil.rmtree(beside, ignore_errors=True)


def published(
    models: Sequence[str],
    *,
    data: Path,
    judge: Judge,
    reader: Chat | None,
    interleaved: InterleavedPipeline | None,
    episodes: int,
    shots: tuple[int, ...],
    paired: bool,
    seed: int,
    batch: int | None = None,
    ema: bool = False,
) -> tuple[Plan, list[FoundModel]]:
    """An evaluation on the published data.

    Raises:
        UserError: the data are not complete, or a model is not there.
    """
    if episodes > RECORDS:
        raise UserError(f"expected --episodes of at most the {RECORDS} that are published, got {episodes}")
    world = OfficialWorld(data, paired=paired)
    rows = (*published_rows(seed), *(reading_rows(reader) if reader else ()))
    rows += interleaved_rows(interleaved, seed) if interleaved else ()
    return Plan(world, judge, rows, episodes, shots, seed, batch or LARGE), find_models(models, ema=ema)


def judge_of(kind: str, *, model: str | None, url: str | None, fields: str | None = None, seed: int) -> Judge:
    """The judge that is asked for.

    Raises:
        UserError: there is no such judge, or it lacks something.
    """
    if kind not in ("clip", "vlm"):
        raise UserError(f"expected --judge of clip or vlm, got {kind!r}: name one that reads pictures")
    if kind == "clip":
        for option, value in (("--judge-url", url), ("--judge-fields", fields)):
            if value is not None:
                raise UserError(
                    f"expected --judge vlm with {option}, got clip, which is not asked over HTTP: correct one of them"
                )
        return Clip(model) if model else Clip()
    if model is None:
        raise UserError("expected --judge-model with --judge vlm, got none: name which model judges")
    return MultipleChoice(chat_of(model, url, fields), seed)


@cache
def chat_of(model: str, url: str | None, fields: str | None) -> Chat:
    """A model that reads pictures: of transformers, or of a server where there is a url, with fields of its requests in YAML. A judge
    that is also the reader is opened once.

    Raises:
        UserError: it cannot be read, or there are fields of no request.
    """
    if url is None:
        if fields is not None:
            raise UserError(
                f"expected a url with the fields of requests to {model}, got none: add it, or leave them out"
            )
        return TransformersChat(model)
    found = {} if fields is None else parse("the fields of requests", fields)
    if not isinstance(found, dict):
        raise UserError(
            f"expected fields of requests such as '{{\"max_tokens\": null}}', got {fields!r}: write names and values"
        )
    return HttpChat(url, model, fields=found)
