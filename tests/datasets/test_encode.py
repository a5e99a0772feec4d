"""Preference data in the layouts that others publish, bad rows included: what is learned from is what was preferred."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raysuite.config import TOYS, RunConfig
from raysuite.datasets.encode import Pairs, changed, check_some, compared, encode_block
from raysuite.datasets.sources import open_source
from raysuite.errors import UserError
from raysuite.families import Policy
from raysuite.families.text import tensors_of
from raysuite.stages import preference_set
from raysuite.stages.learn import gradient
from raysuite.stages.preference_set import PreferenceSet
from raysuite.types import Preferences

Opener = Callable[..., tuple[Policy, RunConfig]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever `datasets` keeps goes away with the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def pick_a_pic(file: Path, rows: Sequence[dict[str, Any]], **options: Any) -> Path:
    """A parquet file with Pick-a-Pic v2's columns and some of its others."""
    schema = pa.schema(
        {
            "are_different": pa.bool_(),
            "caption": pa.string(),
            "jpg_0": pa.binary(),
            "jpg_1": pa.binary(),
            "label_0": pa.float64(),
            "label_1": pa.float64(),
        }
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist([{"are_different": True, **row} for row in rows], schema=schema), file, **options
    )
    return file


def pair(seed: int, label: float = 1.0, **changes: Any) -> dict[str, Any]:
    images = {"jpg_0": png(picture(2 * seed)), "jpg_1": png(picture(2 * seed + 1))}
    return {"caption": f"one red circle {seed}", **images, "label_0": label, "label_1": 1 - label, **changes}


def encoded(
    policy: Policy,
    *paths: Path,
    out: Path,
    rows: int = 4,
    pairs: Pairs = "all",
    layout: str | None = None,
    names: dict[str, str] | None = None,
) -> PreferenceSet:
    source = open_source([str(path) for path in paths], layout=layout, split="train", names=names)
    identity = {
        "model": "tiny",
        "latent_shape": policy.latent_shape,
        "members": 2,
        "steps": None,
        "sampler": None,
        "source": source.identity(),
    }
    preference_set.claim(out, identity, ["test"])
    for part in source.parts(rows):
        encode_block(policy, source, part, out, pairs=pairs)
    preference_set.summarise(out)
    return PreferenceSet(out)


def summary(found: PreferenceSet) -> dict[str, Any]:
    return json.loads((found.directory / "summary.json").read_text())


def red(preferred: bool) -> np.ndarray:
    """Toy pictures whose latents say which one they are: red of the preferred is 2, of the other -1."""
    return np.full((8, 8, 3), (192 if preferred else 96, 128, 128), np.uint8)


def test_the_preferred_picture_comes_first_in_every_layout(policy_of: Opener, tmp_path: Path) -> None:
    policy, _ = policy_of("toy")
    good, bad = png(red(True)), png(red(False))
    for name, content in (("good.png", good), ("bad.png", bad)):
        for folder in ("", "train"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(content)
    rows = [
        pair(0, 1.0, jpg_0=good, jpg_1=bad, caption="left"),
        pair(0, 0.0, jpg_0=bad, jpg_1=good, caption=" right "),
    ]
    pick_a_pic(tmp_path / "parquet" / "train-0.parquet", rows)
    (tmp_path / "pairs.jsonl").write_text(
        '{"prompt": "left", "preferred": "good.png", "rejected": "bad.png"}\n\n'
        '{"prompt": "right", "preferred": "good.png", "rejected": "bad.png", "more": 1}\n'
    )
    hpd = [
        {"prompt": "left", "image_path": ["good.png", "bad.png"], "human_preference": [1, 0]},
        {"prompt": "right", "image_path": ["bad.png", "good.png"], "human_preference": [0, 1]},
    ]
    (tmp_path / "train.json").write_text(json.dumps(hpd))
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "train").symlink_to(tmp_path / "train")
    (tmp_path / "apart" / "train.json").write_text(json.dumps(hpd))
    (tmp_path / "chosen").mkdir()
    wrapped = [{"bytes": good, "path": None}] * 2
    columns = {"more": [1, 2], "prompt": ["left", "right "], "chosen": wrapped, "rejected": [bad] * 2}
    pq.write_table(pa.table(columns), tmp_path / "chosen" / "train-0.parquet")
    columns = {"caption": ["left", "right"], "rejected": [bad] * 2, "preferred": [good] * 2}
    pq.write_table(pa.table(columns), tmp_path / "preferred.parquet")
    tables = ("parquet", "parquet/train-0.parquet", "chosen", "preferred.parquet")
    sources = (*tables, "pairs.jsonl", "train.json", "apart/train.json")
    for number, path in enumerate(sources):
        found = encoded(policy, tmp_path / path, out=tmp_path / f"set{number}")
        rows_of = found.rows([0, 1])
        assert rows_of.prompts_R == ("left", "right"), path
        assert rows_of.clean_RM[..., 0].tolist() == [[2.0, -1.0], [2.0, -1.0]], path


@pytest.mark.parametrize(
    ("layout", "stored", "names"),
    [
        (
            None,
            {"caption": "left", "win": png(red(True)), "lose": png(red(False))},
            {"chosen": "win", "rejected": "lose"},
        ),
        (
            "pickapic",
            {"text": "left", "jpg_0": png(red(False)), "b": png(red(True)), "label_0": 0.0, "label_1": 1.0},
            {"caption": "text", "jpg_1": "b"},
        ),
    ],
    ids=["chosen", "pickapic"],
)
def test_columns_that_are_called_otherwise_are_named(
    layout: str | None, stored: dict[str, Any], names: dict[str, str], policy_of: Opener, tmp_path: Path
) -> None:
    policy, _ = policy_of("toy")
    file = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist([stored]), file)
    with pytest.raises(
        UserError,
        match=r"expected the columns .* of the layout pickapic .*say what they are called \(--column jpg_[01]=NAME",
    ):
        open_source([str(file)], layout=layout, split="train").parts(4)
    found = encoded(policy, file, out=tmp_path / "set", layout=layout, names=names).rows([0])
    assert found.prompts_R == ("left",) and found.clean_RM[..., 0].tolist() == [[2.0, -1.0]]


@pytest.mark.parametrize(
    ("layout", "names", "said"),
    [
        (None, {"chosen": "win", "jpg_0": "a"}, "got chosen, jpg_0: correct"),
        ("jsonl", {"chosen": "win"}, "got chosen with --layout jsonl: correct"),
        ("chosen", {"label_0": "a"}, "got label_0 with --layout chosen: correct"),
    ],
)
def test_columns_of_no_layout_are_refused(layout: str | None, names: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=f"expected --column with columns of one layout .*{said}"):
        open_source(["someone/pairs"], layout=layout, split="train", names=names)


BAD_ROWS: list[tuple[dict[str, Any], str | None]] = [
    (pair(0), None),
    (pair(1, 0.5), "tie"),
    (pair(2, 0.0), None),
    (pair(3, jpg_0=b"no picture"), "unreadable image"),
    (pair(4, jpg_1=png(picture(9))[:300]), "broken image"),
    (pair(5, caption="  "), "empty caption"),
    (pair(6, caption=None), "empty caption"),
    (pair(7, 0.7), "labels that are not 1 and 0 or 0.5 each"),
    (pair(8, label_1=1.0), "labels that are not 1 and 0 or 0.5 each"),
    (pair(9, label_0=None), "labels that are not 1 and 0 or 0.5 each"),
    (pair(10, jpg_0=png(picture(1)), jpg_1=png(picture(1))), "identical images"),
    (pair(11, jpg_0=None), "missing image"),
    (pair(12), None),
]


@pytest.mark.parametrize(("rows", "group"), [(4, 5), (100, 100), (1, 3)])
def test_bad_rows_are_set_aside_with_their_reasons(policy_of: Opener, tmp_path: Path, rows: int, group: int) -> None:
    policy, _ = policy_of("epsilon-lora-1")
    file = pick_a_pic(tmp_path / "train.parquet", [row for row, _ in BAD_ROWS], row_group_size=group)
    found = encoded(policy, file, out=tmp_path / "set", rows=rows)
    reasons = [reason for _, reason in BAD_ROWS]
    assert len(found) == reasons.count(None) and summary(found)["ties"] == 1 and summary(found)["read"] == 13
    files = sorted((tmp_path / "set" / "rejects").iterdir())
    rejects = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert [(r["row"], r["reason"]) for r in rejects] == [
        (number, reason) for number, reason in enumerate(reasons) if reason not in (None, "tie")
    ]
    wanted = [str(row["caption"]) for row, reason in BAD_ROWS if reason is None]
    assert list(found.rows(range(len(found))).prompts_R) == wanted


def reds(directory: Path, *names: str) -> None:
    """Toy pictures that are alike but for their redness, the first the reddest: their latents are 3, 2, 1, ..."""
    for number, name in enumerate(names):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.full((8, 8, 3), (224 - 32 * number, 128, 128), np.uint8)))


def pairs_of(found: PreferenceSet) -> list[tuple[str, float, float]]:
    """Prompt, and red of the preferred and of the rejected picture."""
    rows = found.rows(range(len(found)))
    values = rows.clean_RM[..., 0].tolist()
    return [(prompt, *value) for prompt, value in zip(rows.prompts_R, values, strict=True)]


def rejected(found: PreferenceSet) -> list[tuple[int, int | None, str]]:
    files = sorted((found.directory / "rejects").iterdir())
    rejects = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [(reject["row"], reject["image"], reject["reason"]) for reject in rejects]


GOOD = {"prompt": "left", "preferred": "a.png", "rejected": "b.png"}
LINES: list[tuple[bytes, int | None, str | None]] = [
    (json.dumps(GOOD).encode(), None, None),
    (b"{", None, "not JSON"),
    (b"\xff\xfe{}", None, "not JSON"),
    (b"[" * 100_000, None, "not JSON"),
    (b"[]", None, "row that is no object"),
    (json.dumps({**GOOD, "rejected": 3}).encode(), None, "missing image"),
    (json.dumps({**GOOD, "rejected": ""}).encode(), None, "missing image"),
    (json.dumps({**GOOD, "preferred": "no.png"}).encode(), 0, "missing image file"),
    (json.dumps({**GOOD, "preferred": "x" * 5000}).encode(), 0, "unreadable image"),
    (json.dumps({**GOOD, "rejected": "page.jpg"}).encode(), 1, "unreadable image"),
    (json.dumps({**GOOD, "rejected": "a.png"}).encode(), None, "identical images"),
    (json.dumps({**GOOD, "prompt": 7}).encode(), None, "caption that is no text"),
    (json.dumps({**GOOD, "prompt": ["left"]}).encode(), None, "caption that is no text"),
    (b'{"prompt": "half of \\ud83d", "preferred": "a.png", "rejected": "b.png"}', None, "caption that is no text"),
    (json.dumps({**GOOD, "prompt": "\n"}).encode(), None, "empty caption"),
    (b'{"preferred": "a.png", "rejected": "b.png"}', None, "empty caption"),
    ('{"prompt": "right", "preferred": "a.png", "rejected": "b.png", "note": "\u2028"}\r'.encode(), None, None),
]


def test_every_line_is_decided_for_itself(policy_of: Opener, tmp_path: Path) -> None:
    policy, _ = policy_of("toy")
    reds(tmp_path, "a.png", "b.png")
    (tmp_path / "page.jpg").write_text("<html></html>")
    (tmp_path / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(line for line, _, _ in LINES))
    found = encoded(policy, tmp_path / "pairs.jsonl", out=tmp_path / "set")
    assert rejected(found) == [(row, image, reason) for row, (_, image, reason) in enumerate(LINES) if reason]
    assert pairs_of(found) == [("left", 3.0, 2.0), ("right", 3.0, 2.0)]


NAMES = ["a.png", "b.png", "c.png"]
RANKED: dict[str, tuple[Any, list[tuple[float, float]], int, list[str]]] = {
    "pair": ({"image_path": ["b.png", "a.png"], "human_preference": [0, 1]}, [(3, 2)], 0, []),
    "pair by its older name": ({"file_path": ["a.png", "b.png"], "human_preference": [1, 0]}, [(3, 2)], 0, []),
    "number of the chosen": ({"file_path": NAMES, "human_preference": 1}, [(2, 3), (2, 1)], 1, []),
    "one of several": ({"image_path": NAMES, "human_preference": [0, 0, 1]}, [(1, 3), (1, 2)], 1, []),
    "ranking": ({"image_path": NAMES, "rank": [3, 1, 2]}, [(2, 1), (2, 3), (1, 3)], 0, []),
    "ranking with a tie": ({"image_path": NAMES, "rank": [1, 2.5, 1]}, [(3, 2), (1, 2)], 1, []),
    "one picture is not there": (
        {"image_path": ["a.png", "no.png", "c.png"], "rank": [2, 1, 3]},
        [(3, 1)],
        0,
        ["missing image file"],
    ),
    "no object": (["a.png", "b.png"], [], 0, ["row that is no object"]),
    "no pictures": ({"human_preference": [1, 0]}, [], 0, ["missing image"]),
    "numbers for paths": ({"image_path": [1, 2], "human_preference": [1, 0]}, [], 0, ["missing image"]),
    "one picture": ({"image_path": ["a.png"], "rank": [1]}, [], 0, ["fewer than two images"]),
    "no label": ({"image_path": NAMES}, [], 0, ["labels that are not 1 and 0"]),
    "two chosen": ({"image_path": NAMES, "human_preference": [1, 1, 0]}, [], 0, ["labels that are not 1 and 0"]),
    "other labels": ({"image_path": NAMES[:2], "human_preference": [2, 0]}, [], 0, ["labels that are not 1 and 0"]),
    "too few labels": ({"image_path": NAMES, "human_preference": [1, 0]}, [], 0, ["labels that are not 1 and 0"]),
    "number of none": ({"image_path": NAMES, "human_preference": 3}, [], 0, ["labels that are not 1 and 0"]),
    "too few ranks": ({"image_path": NAMES, "rank": [1, 2]}, [], 0, ["ranks that are not one number an image"]),
    "ranks that are none": (
        {"image_path": NAMES, "rank": [1, 2, None]},
        [],
        0,
        ["ranks that are not one number an image"],
    ),
    "one number for all": ({"image_path": NAMES, "rank": 1}, [], 0, ["ranks that are not one number an image"]),
}


def test_rankings_become_pairs(policy_of: Opener, tmp_path: Path) -> None:
    """HPDv2's forms and others, in one file; the last row is fine."""
    policy, _ = policy_of("toy")
    reds(tmp_path / "test", *NAMES)
    rows = [row if isinstance(row, list) else {"prompt": "left", **row} for row, *_ in RANKED.values()]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    found = encoded(policy, tmp_path / "test.json", out=tmp_path / "set")
    assert pairs_of(found) == [("left", *pair) for _, pairs, _, _ in RANKED.values() for pair in pairs]
    reasons = [(number, reason) for number, (*_, said) in enumerate(RANKED.values()) for reason in said]
    assert [(row, reason) for row, _, reason in rejected(found)] == reasons
    assert summary(found)["ties"] == sum(ties for _, _, ties, _ in RANKED.values())


def test_all_pairs_or_those_of_ranks_that_follow_one_another() -> None:
    nine = {place: float(place) for place in range(9)}
    assert len(compared(nine, "all")) == 36
    assert compared(nine, "adjacent") == [(place, place + 1) for place in range(8)]
    # 2 and 3 share a place, so each is compared with 0 before them and with 1 after them
    tied = {0: 1, 1: 7, 2: 4, 3: 4}
    assert compared(tied, "all") == [(0, 2), (0, 3), (0, 1), (2, 3), (2, 1), (3, 1)]
    assert compared(tied, "adjacent") == [(0, 2), (0, 3), (2, 3), (2, 1), (3, 1)]


def test_adjacent_pairs_of_what_can_be_read(policy_of: Opener, tmp_path: Path) -> None:
    policy, _ = policy_of("toy")
    reds(tmp_path, "a.png", "b.png", "c.png", "d.png")
    (tmp_path / "c.png").write_bytes(b"")
    row = {"prompt": "left", "image_path": ["d.png", "c.png", "b.png", "a.png"], "rank": [4, 3, 2, 1]}
    (tmp_path / "test.json").write_text(json.dumps([row]))
    found = encoded(policy, tmp_path / "test.json", out=tmp_path / "set", pairs="adjacent")
    assert pairs_of(found) == [("left", 3.0, 2.0), ("left", 2.0, 0.0)]
    assert rejected(found) == [(0, 1, "empty image file")]


IMAGES = [
    {"image_path": f"images/train/train_1/{name}", "prompt_id": prompt_id, "prompt": prompt, "rank": rank}
    for name, prompt_id, prompt, rank in (
        ("c.webp", "000864-0061", "left", 5),
        ("d.webp", "001324-0093", "right", 1),
        ("a.webp", "000864-0061", "left", 1),
        ("b.webp", "000864-0061", "left", 2),
        ("a.webp", "001324-0093", "right", 1),
    )
]
"""Of ImageRewardDB: a row a picture, prompts mixed, a tie."""
WANTED = [("left", 3.0, 2.0), ("left", 3.0, 1.0), ("left", 2.0, 1.0)]


@pytest.mark.parametrize("form", ["metadata-train.parquet", "train_1.json", "test.json"])
def test_image_rewards_rankings(policy_of: Opener, tmp_path: Path, form: str) -> None:
    """The table of all pictures, an archive's own list of them, and the paper's list of rankings."""
    policy, _ = policy_of("toy")
    reds(tmp_path / "images" / "train" / "train_1", "a.webp", "b.webp", "c.webp", "d.webp")
    file = tmp_path / form
    if form.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist([{**row, "classification": "People"} for row in IMAGES]), file)
    elif form == "train_1.json":
        file.write_text(json.dumps([*IMAGES, {**IMAGES[0], "prompt_id": None}]))
    else:
        names = [f"images/train/train_1/{name}.webp" for name in "abcd"]
        rankings = [
            {"id": "1", "prompt": "left", "generations": names[:3], "ranking": [1, 2, 5]},
            {"id": "2", "prompt": "right", "generations": [names[3], names[0]], "ranking": [1, 1]},
        ]
        file.write_text(json.dumps(rankings))
    assert type(open_source([str(file)], layout=None, split="train")).layout == "imagereward"
    found = encoded(policy, file, out=tmp_path / "set")
    assert pairs_of(found) == WANTED
    assert summary(found)["ties"] == 1
    assert rejected(found) == ([(2, None, "missing image")] if form == "train_1.json" else [])


def test_folders_of_winners_and_losers(policy_of: Opener, tmp_path: Path) -> None:
    policy, _ = policy_of("toy")
    data = tmp_path / "data"
    reds(data / "winners", "1.png", "both.png")
    reds(data / "winners", "deep/2.png", "alone.png", "dumb.png", "number.png")
    reds(data / "losers", "no.png", "1.webp", "dumb.png", "number.png", "other.png", "deep/2.png", "both.png")
    (data / "losers" / "both.webp").write_bytes(b"")
    (data / "winners" / ".DS_Store").write_bytes(b"")
    for name, prompt in (("winners/1", "left"), ("deep/2", "right\n"), ("both", "left"), ("losers/alone", "left")):
        (data / name).parent.mkdir(exist_ok=True)
        (data / f"{name}.txt").write_text(prompt)
    (data / "winners" / "number.txt").write_bytes(b"\xff")
    found = encoded(policy, data, out=tmp_path / "set")
    assert pairs_of(found) == [("left", 3.0, 2.0), ("right", 3.0, -2.0)]
    assert rejected(found) == [
        (1, None, "missing image"),
        (2, None, "several images of one name"),
        (4, None, "empty caption"),
        (5, None, "missing image"),
        (6, None, "caption that is no text"),
        (7, None, "missing image"),
    ]


def test_a_folder_of_pictures_is_compared_with_nothing(policy_of: Opener, tmp_path: Path) -> None:
    policy, _ = policy_of("toy")
    data = tmp_path / "data"
    reds(data, "1.png", "2.png", "deep/3.png", "number.png")
    (data / "1.txt").write_text("left\n")
    (data / "number.txt").write_bytes(b"\xff")
    source = open_source([str(data)], layout=None, split="train")
    assert source.layout == "pictures" and source.members == 1
    found = encoded(policy, data, out=tmp_path / "set")
    rankings = found.rows(range(len(found)))
    assert rankings.prompts_R == ("left", "", "") and rankings.latents_RMK.shape == (3, 1, 1, 2)
    assert rejected(found) == [(3, None, "caption that is no text")]


def test_several_files_and_patterns(policy_of: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is one source, in the order given; what is named twice is read once."""
    policy, _ = policy_of("toy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for number in range(3):
        row = pair(number, jpg_0=png(red(True)), jpg_1=png(red(False)), caption=["left", "right", "left"][number])
        pick_a_pic(tmp_path / "data" / f"train-{number}.parquet", [row])
        reds(tmp_path / str(number), "a.png", "b.png")
        (tmp_path / str(number) / "pairs.jsonl").write_text(json.dumps({**GOOD, "prompt": row["caption"]}))
    for given, prompts in {
        ("data/train-*.parquet",): ("left", "right", "left"),
        ("~/data/train-1.parquet", "data/train-0.parquet"): ("right", "left"),
        ("data/*-1.parquet", "data/*.parquet"): ("right", "left", "left"),
        ("?/pairs.jsonl",): ("left", "right", "left"),
        ("**/[12]/*.jsonl",): ("right", "left"),
    }.items():
        source = open_source(list(given), layout=None, split="train")
        assert [part.first for part in source.parts(64)] == list(range(len(prompts)))
        rows = [source.row(raw, part.file) for part in source.parts(64) for raw in source.raw(part)]
        assert tuple(row.prompt for row in rows) == prompts, given
    found = encoded(policy, tmp_path / "0" / "pairs.jsonl", tmp_path / "2" / "pairs.jsonl", out=tmp_path / "set")
    assert pairs_of(found) == [("left", 3.0, 2.0), ("left", 3.0, 2.0)]


def test_files_of_several_layouts(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(UserError, match=r"expected files of one layout, got .*a.jsonl \(jsonl\), .*b.json \(hpdv2\)"):
        open_source([str(tmp_path / "a.jsonl"), str(tmp_path / "b.json")], layout=None, split="train")


@pytest.mark.parametrize("name", ["pairs.parquet", "sorted"])
def test_a_split_of_what_has_none_is_refused(name: str, tmp_path: Path) -> None:
    """All of its rows would be in the set, whatever the split: a set for validation would be what is learned."""
    if name == "sorted":
        for side in ("winners", "losers"):
            (tmp_path / name / side).mkdir(parents=True)
    else:
        pq.write_table(pa.table({"prompt": ["a"], "chosen": [b""], "rejected": [b""]}), tmp_path / name)
    with pytest.raises(
        UserError, match=rf"expected no --split with .*{name}, which has none, got validation: leave it out"
    ):
        open_source([str(tmp_path / name)], layout=None, split="validation")


def test_a_pickapic_table_of_other_types(policy_of: Opener, tmp_path: Path) -> None:
    """A caption that is a number, pictures as `datasets` writes them, one of which is a path alone."""
    policy, _ = policy_of("toy")
    image, other = png(red(True)), png(red(False))
    struct = [{"bytes": image, "path": None}, {"bytes": image, "path": "a.png"}, {"bytes": None, "path": "a.png"}]
    columns = {"jpg_0": struct, "jpg_1": [other] * 3, "label_0": [1, 1, 1], "label_1": [0, 0, 0]}
    pq.write_table(pa.table({**columns, "caption": ["left", "right", "left"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({**columns, "caption": [1, 2, 3]}), tmp_path / "b.parquet")
    found = encoded(policy, tmp_path / "a.parquet", tmp_path / "b.parquet", out=tmp_path / "set")
    assert pairs_of(found) == [("left", 2.0, -1.0), ("right", 2.0, -1.0)]
    number = "caption that is no text"
    assert rejected(found) == [(2, None, "missing image"), (3, None, number), (4, None, number), (5, None, number)]


def test_a_parquet_file_that_is_damaged_inside(tmp_path: Path) -> None:
    file = pick_a_pic(tmp_path / "train.parquet", [pair(0)], compression="none")
    content = bytearray(file.read_bytes())
    content[4:200] = bytes(196)
    file.write_bytes(content)
    source = open_source([str(file)], layout=None, split="train")
    (part,) = source.parts(4)
    with pytest.raises(UserError, match=r"expected rows 0 to 0 in .*train.parquet, could not read them"):
        list(source.raw(part))


def test_a_row_group_is_read_once_for_all_of_its_parts(
    policy_of: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub would send it again for each."""
    read, groups = pq.ParquetFile.read_row_group, list[int]()

    def counted(file: pq.ParquetFile, group: int, **options: Any) -> pa.Table:
        groups.append(group)
        return read(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    file = pick_a_pic(tmp_path / "train.parquet", [pair(seed) for seed in range(8)], row_group_size=4)
    found = encoded(policy_of("toy")[0], file, out=tmp_path / "set", rows=1)
    assert groups == [0, 1] and list(found.rows(range(8)).prompts_R) == [f"one red circle {seed}" for seed in range(8)]
    source = open_source([str(file)], layout=None, split="train")
    assert changed(source, source.parts(1)[:4], tmp_path / "set") == [] and groups == [
        0,
        1,
        0,
    ]  # many parts are read at once


def test_encoding_before_equals_encoding_on_the_fly(policy_name: str, policy_of: Opener, tmp_path: Path) -> None:
    """Latents, text states and the gradient that they lead to, bit for bit, whatever the rows around a pair."""
    policy, _ = policy_of(policy_name)
    side = policy.image_size
    captions = (
        ["left", "right", "left"] if policy_name in TOYS else ["one red circle", "two blue squares", "one red circle"]
    )
    rows = [
        pair(n, jpg_0=png(picture(2 * n, side)), jpg_1=png(picture(2 * n + 1, side)), caption=caption)
        for n, caption in enumerate(captions)
    ]
    bad = pair(5, caption="")
    file = pick_a_pic(tmp_path / "train.parquet", [bad, *rows])
    found = encoded(policy, file, out=tmp_path / "set", rows=3)
    direct = Preferences(
        latents_RMK=torch.stack(
            [policy.encode(np.stack([picture(2 * n, side), picture(2 * n + 1, side)])) for n in range(3)]
        )[:, :, None],
        prompts_R=tuple(captions),
    )
    stored = found.rows([0, 1, 2])
    assert torch.equal(stored.latents_RMK, direct.latents_RMK)
    fresh = {
        question: answer for states in policy.text_states(captions).values() for question, answer in states.items()
    }
    read = found.texts([0, 1, 2])
    assert read.keys() == fresh.keys()
    for question, answer in read.items():
        pairs_of = zip(tensors_of(answer), tensors_of(fresh[question]), strict=True)
        assert all(torch.equal(stored, computed) for stored, computed in pairs_of)

    from raysuite.kernel.objectives.diffusion_dpo import DiffusionDpo

    gradients = []
    for batch in (direct, stored):
        policy.remember(found.texts([0, 1, 2]) if batch is stored else {})
        for p in policy.trainable().values():
            p.grad = None
        objective = DiffusionDpo(beta=100.0)
        gradient(objective, policy, [(batch, torch.Generator().manual_seed(0))], microbatch=8)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.trainable().values() if p.grad is not None]))
    assert torch.equal(*gradients) and float(gradients[0].abs().sum()) > 0


def test_pictures_are_cut_and_scaled_to_the_model(policy_of: Opener, tmp_path: Path) -> None:
    """A wide picture whose middle is red and whose sides are blue."""
    policy, _ = policy_of("toy")
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[..., 2], wide[:, 10:38] = 255, (192, 128, 128)  # the filter sees a little beyond the square
    (tmp_path / "wide.png").write_bytes(png(wide))
    (tmp_path / "b.png").write_bytes(png(red(False)))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "left", "preferred": "wide.png", "rejected": "b.png"}')
    found = encoded(policy, tmp_path / "pairs.jsonl", out=tmp_path / "set")
    assert found.rows([0]).clean_RM[0, 0].tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("name", "content", "mentions"),
    [
        ("nowhere.jsonl", None, "there is nothing: check the path"),
        ("empty.jsonl", "\n", "found not one row"),
        ("broken.json", "{", "could not read it"),
        ("object.json", "{}", "expected a list of objects"),
        ("deep.json", "[" * 100_000, "could not read it"),
        ("nothing-*.parquet", None, "there is nothing: check the path"),
        ("text.parquet", "text", "could not read it"),
        ("./nowhere", None, "there is nothing: check the path"),
    ],
)
def test_sources_that_cannot_be_read(name: str, content: str | None, mentions: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=mentions):
        open_source([str(tmp_path / name)], layout=None, split="train").parts(4)


def test_a_table_without_the_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(
        UserError,
        match=r"columns jpg_0, .* of the layout pickapic in .* found caption, and no jpg_0, .*: say what they are called",
    ):
        open_source([str(tmp_path / "train.parquet")], layout=None, split="train").parts(4)


@pytest.mark.parametrize(
    ("there", "names", "told"),
    [
        (
            ["prompt", "chosen"],
            {},
            r"layout chosen in .*, and no rejected: say what they are called \(--column rejected=NAME\)",
        ),
        (
            ["prompt", "chosen", "rejected"],
            {"chosen": "winner"},
            "layout chosen in .*, and no winner: correct --column",
        ),
    ],
)
def test_a_table_without_a_column_is_told_which(
    there: list[str], names: dict[str, str], told: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table({name: ["a"] for name in there}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=told):
        open_source([str(tmp_path / "train.parquet")], layout=None, split="train", names=names).parts(4)


def test_a_table_of_another_layout_is_told_which(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"], "chosen": [b""], "rejected": [b""]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="found prompt, chosen, rejected: name it with --layout chosen"):
        open_source([str(tmp_path / "train.parquet")], layout="pickapic", split="train").parts(4)


@pytest.mark.parametrize(
    ("make", "mentions"),
    [
        (lambda root: (root / "good").mkdir() or root, "found good/: name a folder of winners and losers"),
        (lambda root: (root / "p.tar").write_bytes(b"1") and root / "p.tar", "found a file .tar: name a folder of"),
    ],
)
def test_what_looks_like_nothing_is_told_by_what_is_there(
    make: Callable[[Path], Path], mentions: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=mentions):
        open_source([str(make(tmp_path))], layout=None, split="train")


def test_rows_of_which_none_is_usable_are_told_before_anything_slow(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"caption": "a", "better": "b.png", "worse": "c.png"}\n' * 3)
    source = open_source([str(file)], layout=None, split="train")
    with pytest.raises(UserError, match=r"of the first 3 none is usable .missing image: 3.; the first has .*better"):
        check_some(source, source.parts(64))
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    file.write_text('{"caption": "a", "chosen": "b.png", "rejected": "b.png"}\n' + '{"caption": ""}\n' * 3)
    mended = open_source([str(file)], layout=None, split="train")
    check_some(mended, mended.parts(64))  # a row is enough


def test_another_split_or_layout(tmp_path: Path) -> None:
    pick_a_pic(tmp_path / "data" / "train-0.parquet", [pair(0)])
    with pytest.raises(UserError, match=r"expected a split test in .*, found train: set --split"):
        open_source([str(tmp_path / "data")], layout=None, split="test").parts(4)
    with pytest.raises(
        UserError, match="expected a layout of folders, pictures, jsonl, imagereward, hpdv2, chosen, pickapic"
    ):
        open_source([str(tmp_path / "data")], layout="webdataset", split="train")


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected parquet files or a hub dataset at someone/pickapic"):
        open_source(["someone/pickapic"], layout=None, split="train").parts(4)


@pytest.mark.parametrize("layout", ["jsonl", "parquet"])
def test_what_is_mended_or_exchanged_in_place_is_encoded_again(layout: str, policy_of: Opener, tmp_path: Path) -> None:
    policy, out = policy_of("toy")[0], tmp_path / "set"

    def write(captions: list[str], reds: list[int], labels: list[float]) -> Path:
        """Four rows, two in a block."""
        rows = []
        for number, (caption, red_of, label) in enumerate(zip(captions, reds, labels, strict=True)):
            images = [png(np.full((8, 8, 3), (value, 128, 128), np.uint8)) for value in (red_of, 20)]
            if layout == "parquet":
                rows.append(pair(number, label, caption=caption, jpg_0=images[0], jpg_1=images[1]))
                continue
            names = [f"{number}-{side}.png" for side in range(2)]
            for name, image in zip(names, images, strict=True):
                (tmp_path / name).write_bytes(image)
            preferred = names if label == 1 else names[::-1]
            rows.append({"prompt": caption, "preferred": preferred[0], "rejected": preferred[1]})
        if layout == "parquet":
            return pick_a_pic(tmp_path / "pairs.parquet", rows)
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / "pairs.jsonl"

    def again(*what: list[Any]) -> list[int]:
        """Numbers of the blocks that are made again."""
        source = open_source([str(write(*what))], layout=None, split="train")
        numbers = changed(source, source.parts(2), out)
        preference_set.forget(out, numbers)
        assert (out / "summary.json").exists() == (not numbers)
        for part in source.parts(2):
            if part.number in numbers:
                encode_block(policy, source, part, out)
        preference_set.summarise(out)
        return numbers

    captions, reds, labels = ["left", "", "left", "left"], [200, 200, 200, 200], [1.0, 1.0, 1.0, 1.0]
    encoded(policy, write(captions, reds, labels), out=out, rows=2)
    first = summary(PreferenceSet(out))
    assert again(captions, reds, labels) == [] and summary(PreferenceSet(out)) == first
    captions[1] = "right"  # an empty caption is mended
    assert again(captions, reds, labels) == [0]
    assert summary(PreferenceSet(out))["rankings"] == 4 and not summary(PreferenceSet(out))["rejects"]
    reds[3] = 240  # a picture of the same name is another
    assert again(captions, reds, labels) == [1]
    latents = PreferenceSet(out).rows(range(4)).clean_RM[..., 0]
    assert latents[:, 0].tolist() == [2.25, 2.25, 2.25, 3.5]
    labels[2] = 0.0
    assert again(captions, reds, labels) == [1]
    assert PreferenceSet(out).rows([2]).clean_RM[0, :, 0].tolist() == [-3.375, 2.25]
