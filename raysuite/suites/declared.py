"""The suites, and how each is read in the form in which its authors publish it. To add one: write an entry of `SUITES`."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from raysuite.config import one_of
from raysuite.errors import UserError
from raysuite.stages import prompt_files
from raysuite.stages.prompt_files import Row
from raysuite.stages.prompts import Prompt


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Prompts that models are compared on, and what is customary with them."""

    name: str
    asks: str
    """Of a model, in words."""
    form: str
    """What its authors publish, and `--prompts` names."""
    read: Callable[[str], list[tuple[str, Row]]]
    """A file, directory or data set -> category and row of every prompt, in order. The category of a suite without is empty."""
    samples: int
    """Pictures a prompt, as its authors draw."""
    rewards: tuple[str, ...]
    """What it is scored with unless told."""
    scored: str
    """How its authors score, and how far that is the same."""
    overall: Literal["prompts", "categories"]
    """Of what the one number is the mean: of all prompts, or of the categories' means, whatever their sizes."""
    source: str
    licence: str
    """Of the prompts."""


def find(name: str) -> Suite:
    """The suite of this name.

    Raises:
        UserError: there is none.
    """
    if name not in SUITES:
        raise UserError(f"expected a suite ({one_of(name, SUITES)}), got {name!r}: name one with --suite")
    return SUITES[name]


def prompts_of(suite: Suite, source: str) -> tuple[Prompt, ...]:
    """All prompts of a suite, repeated ones too, numbered in order; the stratum is the category.

    Raises:
        UserError: there is nothing, or something else than the suite's authors publish.
    """
    return tuple(
        Prompt(text, number, metadata, category)
        for number, (category, (text, metadata)) in enumerate(suite.read(source))
    )


def categories_of(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """The categories in the order in which they are met, numbers by size; none for a suite without."""
    found = [category for category in dict.fromkeys(prompt.stratum for prompt in prompts) if category]
    return tuple(sorted(found, key=int) if all(category.isdecimal() for category in found) else found)


def _table(source: str, *, category: str) -> list[tuple[str, Row]]:
    """Rows of which one column says the category."""
    return _by_category(prompt_files.read(source), category, source)


def _table_or_list(source: str, *, prompt: Sequence[str] = prompt_files.NAMES) -> list[tuple[str, Row]]:
    """The same by a column `category`; rows without one have no categories."""
    rows = prompt_files.read(source, prompt)
    if not any("category" in map(str.lower, metadata) for _, metadata in rows):
        return [("", row) for row in rows]
    return _by_category(rows, "category", source)


def _by_category(rows: Sequence[Row], category: str, source: str) -> list[tuple[str, Row]]:
    return [(_category(row, category, number, source), row) for number, row in enumerate(rows, start=1)]


def _category(row: Row, category: str, number: int, source: str) -> str:
    text, metadata = row
    found = next((value for name, value in metadata.items() if name.lower() == category), None)
    said = "" if found is None else str(found).strip()
    if not said:
        raise UserError(
            f"expected {category} of every prompt in {source}, found none in row {number} ({text[:60]!r}, which has "
            f"{', '.join(metadata) or 'nothing else'}): take the file that the suite's authors publish, or --suite prompts for others"
        )
    return said


def _once(source: str, *, prompt: Sequence[str]) -> list[tuple[str, Row]]:
    """Rows of pictures for prompts: every prompt counts once, and nothing else of a row is about it."""
    return [("", (text, {})) for text in dict.fromkeys(text for text, _ in prompt_files.read(source, prompt))]


def _files(source: str, *, pattern: str, known: Sequence[str]) -> list[tuple[str, Row]]:
    """A file of each category, in the order of these that are known; or one such file; or a table with a column `category`."""
    path = Path(source)
    if not path.is_dir() and not fnmatch.fnmatch(path.name, pattern):
        return _table_or_list(source)
    ending = pattern.removeprefix("*")
    files = {file.name.removesuffix(ending): file for file in sorted(path.glob(pattern))} if path.is_dir() else {}
    if not path.is_dir():
        files = {path.name.removesuffix(ending): path}
    found = [name for name in known if name in files]
    if not found:
        raise UserError(
            f"expected files such as {known[0]}{ending} in {source}, found none of {', '.join(name + ending for name in known)}: name "
            "the directory that the suite's authors publish"
        )
    return [(name, row) for name in found for row in prompt_files.read(str(files[name]))]


def _dense(source: str) -> list[tuple[str, Row]]:
    """A directory with a prompt a file; or the table of questions, whose rows of one prompt become one."""
    path = Path(source)
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise UserError(
                f"expected a .txt file of each prompt in {source}, found none: name the directory prompts/ of DPG-Bench, or its "
                "dpg_bench.csv"
            )
        return [("", (_whole(file), {"item_id": file.stem})) for file in files]
    prompts: dict[str, Row] = {}
    for number, (text, row) in enumerate(prompt_files.read(source, ("text", "prompt")), start=1):
        item, question = row.get("item_id"), row.get("question_natural_language")
        if not item or not question:
            raise UserError(
                f"expected item_id and question_natural_language in row {number} of {source}, found {', '.join(row) or 'neither'}: "
                "take dpg_bench.csv, or the directory prompts/, of DPG-Bench"
            )
        known = prompts.setdefault(str(item), (text, {"item_id": str(item), "vqa_list": [], "dependency": []}))
        known[1]["vqa_list"].append([question, "Yes"])
        known[1]["dependency"].append(row.get("dependency"))
    return [("", row) for row in prompts.values()]


def _whole(file: Path) -> str:
    """The one prompt in a file, whose lines are parts of it."""
    return " ".join(text for text, _ in prompt_files.read(str(file)))


STYLES = ("anime", "concept-art", "paintings", "photo")
KINDS = ("color", "shape", "texture", "spatial", "3d_spatial", "non_spatial", "numeracy", "complex")
PREFERENCES = ("pickscore", "clip_score")
"""Of the preference rewards those whose weights are on a hub as they are used."""

SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="prompts",
            asks="prompts of your own",
            form="a file of prompts, as runs take it; a column category makes categories",
            read=_table_or_list,
            samples=4,
            rewards=(),
            scored="by the rewards that the runs were trained and watched with, unless --reward names others",
            overall="prompts",
            source="you",
            licence="yours",
        ),
        Suite(
            name="pickapic",
            asks="prompts that people gave a web application",
            form="a table with a column caption: the 500 of the split validation_unique, or the test split",
            read=partial(_once, prompt=("caption", "prompt")),
            samples=1,
            rewards=PREFERENCES,
            scored="by preference rewards, whose means and win rates papers report; add yours by --reward",
            overall="prompts",
            source="Kirstain et al., Pick-a-Pic, 2023; yuvalkirstain/pickapic_v1 and v2",
            licence="that of the data set's page",
        ),
        Suite(
            name="partiprompts",
            asks="1,632 prompts of 12 categories and 11 challenges",
            form="PartiPrompts.tsv, with the columns Prompt, Category, Challenge and Note",
            read=partial(_table, category="category"),
            samples=1,
            rewards=PREFERENCES,
            scored="by people at first, by preference rewards since; add yours by --reward",
            overall="prompts",
            source="Yu et al., Parti, 2022; google-research/parti",
            licence="Apache-2.0",
        ),
        Suite(
            name="hpdv2",
            asks="3,200 prompts of four styles, 800 each",
            form="the directory benchmark/ of HPDv2: anime.json, concept-art.json, paintings.json and photo.json, lists of prompts",
            read=partial(_files, pattern="*.json", known=STYLES),
            samples=1,
            rewards=("hps_v2",),
            scored="by HPS v2, whose tables print 100 times our numbers",
            overall="categories",
            source="Wu et al., HPS v2, 2023; zhwang/HPDv2",
            licence="Apache-2.0",
        ),
        Suite(
            name="drawbench",
            asks="200 prompts of 11 categories",
            form="a .csv with the columns Prompts and Category; or a list of prompts, which has no categories",
            read=partial(_table_or_list, prompt=("prompts", "prompt")),
            samples=1,
            rewards=PREFERENCES,
            scored="by people at first, by preference rewards since; add yours by --reward",
            overall="prompts",
            source="Saharia et al., Imagen, 2022",
            licence="not said",
        ),
        Suite(
            name="geneval",
            asks="553 prompts of six tasks: objects, their number, colours and places",
            form="evaluation_metadata.jsonl, as it is",
            read=partial(_table, category="tag"),
            samples=4,
            rewards=("geneval",),
            scored="by a detector and CLIP, with its rules and thresholds; the detector is the same network trained by other hands",
            overall="categories",
            source="Ghosh et al., GenEval, 2023; djghosh13/geneval",
            licence="MIT",
        ),
        Suite(
            name="geneval2",
            asks="800 prompts of 3 to 10 parts, 100 each",
            form="geneval2_data.jsonl, as it is",
            read=partial(_table, category="atom_count"),
            samples=1,
            rewards=("soft_tifa",),
            scored="by Soft-TIFA, whose geometric mean is the default; its tables print percent",
            overall="prompts",
            source="Kamath et al., GenEval 2, 2025; facebookresearch/GenEval2",
            licence="CC-BY-NC-4.0",
        ),
        Suite(
            name="t2i-compbench",
            asks="300 prompts of each of eight kinds of composition",
            form="the directory examples/dataset/, with color_val.txt, shape_val.txt and so on; or one of these files",
            read=partial(_files, pattern="*_val.txt", known=KINDS),
            samples=10,
            rewards=("vqa", "clip_score"),
            scored="by BLIP-VQA, UniDet and CLIP, of which only CLIP is here: with vqa its numbers are no CompBench scores",
            overall="categories",
            source="Huang et al., T2I-CompBench, 2023, and T2I-CompBench++, 2025; Karine-Huang/T2I-CompBench",
            licence="MIT",
        ),
        Suite(
            name="dpg",
            asks="1,065 long prompts",
            form="the directory prompts/ of DPG-Bench, a prompt a file; or its dpg_bench.csv, whose questions soft_tifa asks",
            read=_dense,
            samples=4,
            rewards=("vqa",),
            scored="by mPLUG's answers to questions that depend on one another, which is not here: numbers are no DPG scores",
            overall="prompts",
            source="Hu et al., ELLA, 2024; TencentQQGYLab/ELLA",
            licence="Apache-2.0",
        ),
    )
}
