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
from raysuite.datasets.encode import encode_block
from raysuite.datasets.sources import open_source
from raysuite.errors import UserError
from raysuite.families import Policy
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


def encoded(policy: Policy, path: Path | str, out: Path, *, rows: int = 4, **options: Any) -> PreferenceSet:
    source = open_source(str(path), layout=options.get("layout"), split=options.get("split", "train"))
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
        encode_block(policy, source, part, out)
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
    sources = ("parquet", "parquet/train-0.parquet", "pairs.jsonl", "train.json", "apart/train.json")
    for number, path in enumerate(sources):
        found = encoded(policy, tmp_path / path, tmp_path / f"set{number}")
        rows_of = found.rows([0, 1])
        assert rows_of.prompts_R == ("left", "right"), path
        assert rows_of.clean_RM[..., 0].tolist() == [[2.0, -1.0], [2.0, -1.0]], path


BAD_ROWS: list[tuple[dict[str, Any], str | None]] = [
    (pair(0), None),
    (pair(1, 0.5), "tie"),
    (pair(2, 0.0), None),
    (pair(3, jpg_0=b"no picture"), "unreadable image"),
    (pair(4, jpg_1=png(picture(9))[:300]), "unreadable image"),
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
    found = encoded(policy, file, tmp_path / "set", rows=rows)
    reasons = [reason for _, reason in BAD_ROWS]
    assert len(found) == reasons.count(None) and summary(found)["ties"] == 1 and summary(found)["read"] == 13
    files = sorted((tmp_path / "set" / "rejects").iterdir())
    rejects = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert [(r["row"], r["reason"]) for r in rejects] == [
        (number, reason) for number, reason in enumerate(reasons) if reason not in (None, "tie")
    ]
    wanted = [str(row["caption"]) for row, reason in BAD_ROWS if reason is None]
    assert list(found.rows(range(len(found))).prompts_R) == wanted


def test_other_layouts_reject_what_they_cannot_use(policy_of: Opener, tmp_path: Path) -> None:
    policy, _ = policy_of("toy")
    for name, preferred in (("a.png", True), ("b.png", False)):
        (tmp_path / name).write_bytes(png(red(preferred)))
    good = {"prompt": "left", "preferred": "a.png", "rejected": "b.png"}
    lines = [
        json.dumps(good),
        "{",
        "[]",
        json.dumps({**good, "rejected": 3}),
        json.dumps({**good, "preferred": "no.png"}),
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    assert summary(encoded(policy, tmp_path / "pairs.jsonl", tmp_path / "lines"))["rejects"] == {
        "missing image": 2,
        "not JSON": 1,
        "unreadable image": 1,
    }
    row = {"prompt": "left", "image_path": ["a.png", "b.png"], "human_preference": [1, 0]}
    rows = [row, {**row, "image_path": ["a.png"] * 9}, {**row, "human_preference": [1, 1]}, {"prompt": "left"}]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    assert summary(encoded(policy, tmp_path / "test.json", tmp_path / "hpd"))["rejects"] == {
        "labels that are not 1 and 0": 1,
        "not two images": 2,
    }


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
    found = encoded(policy, file, tmp_path / "set", rows=3)
    direct = Preferences(
        latents_RMK=torch.stack(
            [policy.encode(np.stack([picture(2 * n, side), picture(2 * n + 1, side)])) for n in range(3)]
        )[:, :, None],
        prompts_R=tuple(captions),
    )
    stored = found.rows([0, 1, 2])
    assert torch.equal(stored.latents_RMK, direct.latents_RMK)
    fresh = policy.text_states(captions)
    assert found.texts([0, 1, 2]).keys() == fresh.keys()
    assert all(torch.equal(states, fresh[prompt]) for prompt, states in found.texts([0, 1, 2]).items())

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
    found = encoded(policy, tmp_path / "pairs.jsonl", tmp_path / "set")
    assert found.rows([0]).clean_RM[0, 0].tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("name", "content", "mentions"),
    [
        ("nowhere.jsonl", None, "there is nothing: check the path"),
        ("empty.jsonl", "\n", "found not one row"),
        ("broken.json", "{", "could not read it"),
        ("object.json", "{}", "expected a list of objects"),
        ("text.parquet", "text", "could not read it"),
        ("./nowhere", None, "there is nothing: check the path"),
    ],
)
def test_sources_that_cannot_be_read(name: str, content: str | None, mentions: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=mentions):
        open_source(str(tmp_path / name), layout=None, split="train").parts(4)


def test_a_table_without_the_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="jpg_0, jpg_1, label_0, label_1 is missing"):
        open_source(str(tmp_path / "train.parquet"), layout=None, split="train").parts(4)


def test_another_split_or_layout(tmp_path: Path) -> None:
    pick_a_pic(tmp_path / "data" / "train-0.parquet", [pair(0)])
    with pytest.raises(UserError, match=r"expected a split test in .*, found train: set --split"):
        open_source(str(tmp_path / "data"), layout=None, split="test").parts(4)
    with pytest.raises(UserError, match="expected a layout of pickapic, hpdv2, jsonl"):
        open_source(str(tmp_path / "data"), layout="webdataset", split="train")


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected parquet files or a hub dataset at someone/pickapic"):
        open_source("someone/pickapic", layout=None, split="train").parts(4)
