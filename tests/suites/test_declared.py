"""Prompt suites, read from files in the form in which their authors publish them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysuite.errors import UserError
from raysuite.rewards import REWARDS
from raysuite.suites.declared import SUITES, categories_of, find, prompts_of

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "cow", "count": 2}],
        "exclude": [{"class": "cow", "count": 3}],
        "prompt": "a photo of two cows",
    },
]
GENEVAL2 = [
    {"prompt": f"{n} cats", "atom_count": n, "vqa_list": [["How many cats?", str(n)]], "skills": ["count"]}
    for n in (10, 3)
]
DPG = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
    "partiprompts7,A red cat.,,1,0,entity,whole,entity - whole (cat),Is there a cat?\n"
    'partiprompts7,A red cat.,,2,1,attribute,color,"attribute - color (cat, red)",Is the cat red?\n'
    "3,A dog.,,1,0,entity,whole,entity - whole (dog),Is there a dog?\n"
)


def text(name: str, content: str) -> Callable[[Path], Path]:
    """What writes a file and says where."""

    def write(directory: Path) -> Path:
        (directory / name).write_text(content)
        return directory / name

    return write


def lines(name: str, rows: list[dict[str, Any]]) -> Callable[[Path], Path]:
    return text(name, "".join(json.dumps(row) + "\n" for row in rows))


def folder(**files: str) -> Callable[[Path], Path]:
    """What writes a directory, whose files have a dot for two underscores."""

    def write(directory: Path) -> Path:
        for name, content in files.items():
            (directory / name.replace("__", ".").replace("9", "-")).write_text(content)
        return directory

    return write


def parquet(**columns: list[Any]) -> Callable[[Path], Path]:
    def write(directory: Path) -> Path:
        pq.write_table(pa.table(columns), directory / "p.parquet")
        return directory / "p.parquet"

    return write


PUBLISHED = {
    "prompts": (
        lines("mine.jsonl", [{"prompt": "a cat", "category": "pets"}, {"prompt": "a cup", "category": "things"}]),
        [("a cat", "pets", {"category": "pets"}), ("a cup", "things", {"category": "things"})],
    ),
    "pickapic": (
        parquet(caption=["a cat", "a dog", "a cat"], jpg_0=[b"1", b"2", b"3"], label_0=[1.0, 0.5, 0.0]),
        [("a cat", "", {}), ("a dog", "", {})],
    ),
    "partiprompts": (
        text(
            "PartiPrompts.tsv",
            "Prompt\tCategory\tChallenge\tNote\nlife\tAbstract\tBasic\tBiology\nlife\tArts\tBasic\t\n"
            '"GO" on a sign \tArts\tWriting & Symbols\t\n',
        ),
        [
            ("life", "Abstract", {"Category": "Abstract", "Challenge": "Basic", "Note": "Biology"}),
            ("life", "Arts", {"Category": "Arts", "Challenge": "Basic", "Note": ""}),
            ('"GO" on a sign', "Arts", {"Category": "Arts", "Challenge": "Writing & Symbols", "Note": ""}),
        ],
    ),
    "hpdv2": (
        folder(
            photo__json='["a plate", "a plate"]',
            anime__json='["a cat"]',
            concept9art__json='["a ship"]',
            drawbench__json='["a red car"]',
        ),
        [("a cat", "anime", {}), ("a ship", "concept-art", {}), ("a plate", "photo", {}), ("a plate", "photo", {})],
    ),
    "drawbench": (
        text("drawbench.csv", 'Prompts,Category\nA red car.,Colors\n"A cat, left of a dog.",Positional\n'),
        [
            ("A red car.", "Colors", {"Category": "Colors"}),
            ("A cat, left of a dog.", "Positional", {"Category": "Positional"}),
        ],
    ),
    "geneval": (
        lines("evaluation_metadata.jsonl", GENEVAL),
        [(row["prompt"], row["tag"], {k: v for k, v in row.items() if k != "prompt"}) for row in GENEVAL],
    ),
    "geneval2": (
        lines("geneval2_data.jsonl", GENEVAL2),
        [(row["prompt"], str(row["atom_count"]), {k: v for k, v in row.items() if k != "prompt"}) for row in GENEVAL2],
    ),
    "t2i-compbench": (
        folder(
            texture_val__txt="a wooden cup\n",
            color_val__txt="a red cup\na blue cup\n",
            color_train__txt="a green cup\n",
            color_val_seen__txt="a black cup\n",
        ),
        [("a red cup", "color", {}), ("a blue cup", "color", {}), ("a wooden cup", "texture", {})],
    ),
    "dpg": (
        folder(COCOval3__txt="A long\nprompt. \n", **{"10__txt": "Another."}),
        [("Another.", "", {"item_id": "10"}), ("A long prompt.", "", {"item_id": "COCOval3"})],
    ),
}


@pytest.mark.parametrize("name", SUITES)
def test_what_is_published_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    write, expected = PUBLISHED[name]
    found = prompts_of(SUITES[name], str(write(tmp_path)))
    assert [(prompt.text, prompt.stratum, dict(prompt.metadata)) for prompt in found] == expected
    assert [prompt.number for prompt in found] == list(range(len(expected)))


def test_the_questions_of_a_prompt_are_one_row(tmp_path: Path) -> None:
    found = prompts_of(SUITES["dpg"], str(text("dpg_bench.csv", DPG)(tmp_path)))
    assert [(prompt.text, dict(prompt.metadata)) for prompt in found] == [
        (
            "A red cat.",
            {
                "item_id": "partiprompts7",
                "vqa_list": [["Is there a cat?", "Yes"], ["Is the cat red?", "Yes"]],
                "dependency": ["0", "1"],
            },
        ),
        ("A dog.", {"item_id": "3", "vqa_list": [["Is there a dog?", "Yes"]], "dependency": ["0"]}),
    ]


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("hpdv2", text("anime.json", '["a cat"]'), [("a cat", "anime")]),
        ("hpdv2", text("p.csv", "prompt,Category\na cat,photo\n"), [("a cat", "photo")]),
        ("t2i-compbench", text("shape_val.txt", "a round cup\n"), [("a round cup", "shape")]),
        ("drawbench", text("drawbench.json", '["a red car"]'), [("a red car", "")]),
        ("prompts", text("mine.txt", "a red car\na cat\n"), [("a red car", ""), ("a cat", "")]),
        ("prompts", lines("mine.jsonl", [{"prompt": "a cat", "meant": "a dog"}]), [("a cat", "")]),
        ("pickapic", lines("p.jsonl", [{"caption": "a cat"}]), [("a cat", "")]),
    ],
)
def test_other_forms_in_which_they_are_found(
    name: str, write: Callable[[Path], Path], expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    found = prompts_of(SUITES[name], str(write(tmp_path)))
    assert [(prompt.text, prompt.stratum) for prompt in found] == expected


def test_categories_come_in_the_order_of_the_file_and_numbers_by_size(tmp_path: Path) -> None:
    order = {}
    for name in ("geneval", "geneval2", "pickapic"):
        (tmp_path / name).mkdir()
        order[name] = categories_of(prompts_of(SUITES[name], str(PUBLISHED[name][0](tmp_path / name))))
    assert order == {"geneval": ("single_object", "counting"), "geneval2": ("3", "10"), "pickapic": ()}


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        (
            "partiprompts",
            text("p.tsv", "Prompt\tChallenge\na cat\tBasic\n"),
            "expected category of every prompt .* row 1",
        ),
        (
            "partiprompts",
            text("p.tsv", "Prompt\tCategory\na cat\tArts\na dog\t \n"),
            "none in row 2 .'a dog', which has",
        ),
        ("partiprompts", text("p.txt", "a cat\n"), "row 1 .*which has nothing else.: .* or --suite prompts for others"),
        ("partiprompts", text("p.tsv", "Text\tCategory\na cat\tArts\n"), "one column called prompt"),
        ("drawbench", text("p.csv", "Text,Category\na cat,Colors\n"), "one column called prompts or prompt"),
        ("pickapic", text("p.csv", "text\na cat\n"), "one column called caption or prompt"),
        ("geneval", lines("p.jsonl", [{"prompt": "a cat", "include": []}]), "expected tag of every prompt"),
        ("geneval2", lines("p.jsonl", [{"prompt": "a cat", "skills": []}]), "expected atom_count of every prompt"),
        ("hpdv2", folder(train__json="[]"), "files such as anime.json in .*, found none of anime.json, concept-art"),
        ("t2i-compbench", folder(color__txt="a cup\n"), "files such as color_val.txt"),
        ("t2i-compbench", text("x_val.txt", "a cup\n"), "files such as color_val.txt"),
        ("dpg", folder(), "a .txt file of each prompt"),
        ("dpg", text("p.csv", "text,item_id\na cat,1\n"), "item_id and question_natural_language in row 1"),
        ("geneval", lambda directory: directory / "nothing.jsonl", "nothing.jsonl, could not read it"),
    ],
)
def test_something_else_is_refused(name: str, write: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        prompts_of(SUITES[name], str(write(tmp_path)))


def test_a_suite_that_is_none() -> None:
    with pytest.raises(UserError, match=r"did you mean geneval"):
        find("geneva")
    with pytest.raises(UserError, match="dpg, drawbench"):
        find("something")


@pytest.mark.parametrize("name", SUITES)
def test_suites_name_rewards_that_there_are(name: str) -> None:
    suite = find(name)
    assert set(suite.rewards) <= set(REWARDS)
    assert suite.samples >= 1
