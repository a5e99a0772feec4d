"""Preference sets on disk: what is written comes back, in any order, and only a finished set is read."""

from __future__ import annotations

import json
import uuid
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from raysuite.config import RunConfig, load
from raysuite.errors import UserError
from raysuite.kernel.directions import Gram, has_direction
from raysuite.stages.preference_set import (
    PreferenceSet,
    Reject,
    claim,
    content_of,
    finished_blocks,
    summarise,
    write_block,
)
from raysuite.types import Preferences

IDENTITY = {
    "model": "m",
    "encoders": {"vae": "1", "tokenizer": "2"},
    "latent_shape": [2],
    "members": 2,
    "steps": None,
    "sampler": None,
    "source": {"kind": "test"},
}


def preferences(first: int, count: int) -> Preferences:
    """Rankings whose latents are their numbers, the rejected one negative."""
    values = torch.arange(first, first + count, dtype=torch.float32)[:, None, None, None].expand(-1, 2, 1, 2).clone()
    values[:, 1] *= -1
    return Preferences(latents_RMK=values, prompts_R=tuple(f"prompt {n % 2}" for n in range(first, first + count)))


def fill(directory: Path, sizes: list[int], *, texts: bool = True, **identity: object) -> None:
    claim(directory, {**IDENTITY, **identity}, ["test"])
    states = {f"prompt {n}": {f"question {n}": (torch.full((3, 4), float(n)), None)} for n in range(2)} if texts else {}
    first = 0
    for number, size in enumerate(sizes):
        write_block(
            directory, number, preferences(first, size), rows_R=range(first, first + size), texts=states, read=size
        )
        first += size


def test_rows_come_back_in_any_order(tmp_path: Path) -> None:
    fill(tmp_path, [3, 0, 2, 1])
    summarise(tmp_path)
    found = PreferenceSet(tmp_path)
    assert len(found) == 6
    wanted = [5, 0, 3, 2, 4, 1, 1]
    rows = found.rows(wanted)
    assert rows.latents_RMK[:, 0, 0, 0].tolist() == wanted
    assert rows.latents_RMK[:, 1, 0, 1].tolist() == [-n for n in wanted]
    assert rows.prompts_R == tuple(f"prompt {n % 2}" for n in wanted)
    texts = found.texts([4, 5])
    assert {question: float(state.mean()) for question, (state, _) in texts.items()} == {
        "question 0": 0,
        "question 1": 1,
    }
    assert all(nothing is None for _, nothing in texts.values())


def test_rankings_that_may_share_pictures_are_one_unit(tmp_path: Path) -> None:
    fill(tmp_path / "found", [3, 0, 2, 1])
    summarise(tmp_path / "found")
    assert PreferenceSet(tmp_path / "found").units == [[0, 2, 4], [1, 3, 5]]
    fill(tmp_path / "drawn", [3, 0, 2, 1], source={"kind": "rollouts"})  # every block has its own pictures
    summarise(tmp_path / "drawn")
    assert PreferenceSet(tmp_path / "drawn").units == [[0, 2], [1], [3], [4], [5]]


def test_where_pictures_are_shared_no_direction_is_found_by_their_noise(tmp_path: Path) -> None:
    """Five pictures of each of 24 prompts in all pairs, no reward: the direction is 0. Rankings as units found one in most studies."""
    prompts, pictures, studies = 24, 5, 60
    pairs = [(p, a, b) for p in range(prompts) for a, b in combinations(range(pictures), 2)]
    claim(tmp_path, IDENTITY, ["test"])
    latents = torch.zeros(len(pairs), 2, 1, 2)
    named = Preferences(latents_RMK=latents, prompts_R=tuple(f"prompt {p}" for p, _, _ in pairs))
    write_block(tmp_path, 0, named, rows_R=range(len(pairs)), texts={}, read=len(pairs))
    summarise(tmp_path)
    units, rng, found, alone = PreferenceSet(tmp_path).units, np.random.default_rng(0), 0, 0
    for _ in range(studies):
        noise = rng.normal(size=(prompts, pictures, 200))
        by_pair = np.stack([noise[p, a] - noise[p, b] for p, a, b in pairs])
        by_unit = np.stack([by_pair[rows].sum(0) for rows in units])
        some = by_pair[rng.permutation(len(pairs))[:128]]
        found += has_direction(Gram.of(by_unit, by_unit))
        alone += has_direction(Gram.of(some, some))
    assert len(units) == prompts
    assert found <= 0.05 * studies and alone > 0.5 * studies


def test_a_family_without_text_states(tmp_path: Path) -> None:
    fill(tmp_path, [2], texts=False)
    summarise(tmp_path)
    assert PreferenceSet(tmp_path).texts([0, 1]) == {}


def test_counts(tmp_path: Path) -> None:
    claim(tmp_path, IDENTITY, ["test"])
    rejects = [Reject(row=4, reason="empty caption"), Reject(row=7, reason="unreadable image")]
    write_block(tmp_path, 0, preferences(0, 2), rows_R=[0, 1], texts={}, read=6, ties=2, rejects=rejects)
    write_block(tmp_path, 1, preferences(2, 1), rows_R=[6], texts={}, read=2, rejects=rejects[1:])
    summary = summarise(tmp_path)
    del summary["content"]
    assert summary == {
        "blocks": 2,
        "read": 8,
        "rankings": 3,
        "ties": 2,
        "rejects": {"empty caption": 1, "unreadable image": 2},
    }


def test_what_is_begun_goes_on_and_other_things_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "set", [2])
    half = tmp_path / "set" / "blocks" / f".000001.safetensors.{uuid.uuid4().hex}"
    half.write_bytes(b"what a killed process was writing")
    (tmp_path / "set" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "set" / ".notes").write_text("the user's own")
    claim(tmp_path / "set", IDENTITY, ["another", "command"])
    assert sorted(path.name for path in (tmp_path / "set").rglob(".*")) == [".ipynb_checkpoints", ".notes"]
    assert finished_blocks(tmp_path / "set") == {0}
    with pytest.raises(UserError, match=r'differs in model \(".*" there, "other" here\); source'):
        claim(tmp_path / "set", {**IDENTITY, "model": "other", "source": {}}, ["test"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(UserError, match="expected an empty or new directory"):
        claim(tmp_path / "other", IDENTITY, ["test"])


def test_a_set_of_which_nothing_is_made_gives_way(tmp_path: Path) -> None:
    claim(tmp_path, IDENTITY, ["mistaken"])
    claim(tmp_path, {**IDENTITY, "model": "other"}, ["mended"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["model"] == "other" and manifest["provenance"]["command"] == ["mended"]


def test_only_finished_sets_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make one with `raysuite encode` or `raysuite pairs`"):
        PreferenceSet(tmp_path)
    fill(tmp_path, [2])
    with pytest.raises(UserError, match="expected a finished preference set"):
        PreferenceSet(tmp_path)


DAMAGES = {
    "no table": lambda blocks: (blocks / "000001.parquet").unlink(),
    "no tensors": lambda blocks: (blocks / "000001.safetensors").unlink(),
    "no blocks": lambda blocks: [file.unlink() for file in blocks.iterdir()],
    "table cut": lambda blocks: cut(blocks / "000001.parquet"),
    "manifest cut": lambda blocks: cut(blocks.parent / "manifest.json"),
    "summary cut": lambda blocks: cut(blocks.parent / "summary.json"),
}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_set_that_is_not_whole_is_refused(damage: str, tmp_path: Path) -> None:
    fill(tmp_path, [2, 3, 1])
    summarise(tmp_path)
    DAMAGES[damage](tmp_path / "blocks")
    with pytest.raises(UserError, match=r"copy .* from where it is whole"):
        PreferenceSet(tmp_path)


def test_tensors_that_are_cut_are_a_sentence(tmp_path: Path) -> None:
    fill(tmp_path, [2, 3])
    summarise(tmp_path)
    cut(tmp_path / "blocks" / "000001.safetensors")
    found = PreferenceSet(tmp_path)
    found.rows([0, 1])
    with pytest.raises(UserError, match=r"000001.safetensors of a preference set, it is not there or damaged"):
        found.rows([2])


def test_a_block_is_finished_with_both_files_and_one_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    fill(tmp_path, [2, 3, 1])
    (tmp_path / "blocks" / "000000.safetensors").unlink()
    cut(tmp_path / "blocks" / "000001.parquet")
    assert finished_blocks(tmp_path) == {1, 2}
    assert [content_of(tmp_path, number) for number in (1, 2)] == [None, ""]


def test_sets_of_the_same_counts_and_other_latents_are_told_apart(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("again", 0), ("other", 2)):
        claim(tmp_path / name, IDENTITY, ["test"])
        write_block(tmp_path / name, 0, preferences(first, 2), rows_R=[0, 1], texts={}, read=2)
    a, again, other = (summarise(tmp_path / name)["content"] for name in ("a", "again", "other"))
    assert a == again != other


def test_a_set_without_a_preference_is_refused(tmp_path: Path) -> None:
    claim(tmp_path, IDENTITY, ["test"])
    reject = Reject(row=0, reason="empty caption")
    write_block(tmp_path, 0, preferences(0, 0), rows_R=[], texts={}, read=3, ties=2, rejects=[reject])
    with pytest.raises(UserError, match=r"found none in 3 rows \(2 ties, set aside: \{'empty caption': 1\}\)"):
        summarise(tmp_path)
    assert not (tmp_path / "summary.json").exists()


def test_a_set_belongs_to_its_encoders(tmp_path: Path) -> None:
    fill(tmp_path, [1])
    summarise(tmp_path)
    found = PreferenceSet(tmp_path)
    found.check_encoders({"tokenizer": "2", "vae": "1"})
    two = {"vae": "2", "text_encoder": "3"}
    for digests, others in (({"vae": "1", "tokenizer": "3"}, "tokenizer"), (two, "text_encoder, tokenizer, vae")):
        with pytest.raises(UserError, match=f"m encoded them, with another {others}: .* set model.path=m"):
            found.check_encoders(digests)


def test_prompts_that_were_read_otherwise_are_refused_where_nobody_could_read_them_again(tmp_path: Path) -> None:
    def run(once: bool, arguments: str, path: str = "scenes-flow") -> RunConfig:
        model = {"model.path": path, "model.arguments": arguments, "parameters.kind": "lora"}
        places = {"cluster.encode_once": str(once).lower(), "preferences.source": str(tmp_path / "plain")}
        return load("scenes-diffusion-dpo-offline", {**model, **places})

    fill(tmp_path / "plain", [1], source={"kind": "test", "model": {"arguments": {}}})
    fill(tmp_path / "long", [1], source={"kind": "test", "model": {"arguments": {"max_sequence_length": 8}}})
    for name in ("plain", "long"):
        summarise(tmp_path / name)
    plain, long = PreferenceSet(tmp_path / "plain"), PreferenceSet(tmp_path / "long")
    eight = "{max_sequence_length: 8}"
    with pytest.raises(
        UserError, match=r"read with max_sequence_length=8 .* got 1: make the set with the run's model.argum"
    ):
        plain.check(run(True, eight))
    with pytest.raises(UserError, match=r"read with max_sequence_length=1 .* got 8: "):
        long.check(run(True, "{}"))
    long.check(run(True, eight))
    plain.check(run(False, eight))  # its learners have encoders
    plain.check(run(True, "{}", "scenes"))
    with pytest.raises(UserError, match=r"read with guidance_rescale=0.7 "):
        plain.check(run(True, "{guidance_rescale: 0.7}", "scenes"))  # whose states have other names then
    plain.check(run(True, "{joint_attention_kwargs: {}}"))  # of which encoders know nothing
