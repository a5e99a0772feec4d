"""Prompts from files and worlds, and the blocks that they become."""

from __future__ import annotations

import datetime
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysuite.config import Prompts, RunConfig
from raysuite.errors import UserError
from raysuite.families.toy import PROMPTS as TOY_PROMPTS
from raysuite.stages import prompt_files
from raysuite.stages.prompts import (
    AGAIN,
    Prompt,
    PromptSet,
    distinct_blocks,
    drawn,
    evaluation_blocks,
    load_prompts,
    noisy_steps,
    training_blocks,
)
from raysuite.types import Block
from raysuite.worlds.scenes import grammar

Maker = Callable[..., RunConfig]


def write(directory: Path, name: str, text: str | bytes) -> str:
    file = directory / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


def texts(source: str) -> list[str]:
    return [p.text for p in load_prompts(Prompts(training=source, held_out=None)).training]


# files


def test_a_prompt_a_line(tmp_path: Path) -> None:
    file = write(tmp_path, "p.txt", "a cat\n\n  a dog on the moon \r\nünïcødé 猫\n\n")
    assert texts(file) == ["a cat", "a dog on the moon", "ünïcødé 猫"]


def test_objects_with_metadata(tmp_path: Path) -> None:
    rows = '{"prompt": " a cat ", "kind": "animal", "legs": 4}\n\n{"prompt": "a dog"}\n'
    prompts = load_prompts(Prompts(training=write(tmp_path, "p.jsonl", rows), held_out=None))
    assert [(p.text, dict(p.metadata)) for p in prompts.training] == [
        ("a cat", {"kind": "animal", "legs": 4}),
        ("a dog", {}),
    ]
    assert prompts.held_out == () and list(prompts.splits) == ["training"]


def test_numbers_are_unique_over_both_splits(tmp_path: Path) -> None:
    first, second = write(tmp_path, "a.txt", "a\nb\nc\n"), write(tmp_path, "b.txt", "d\ne\n")
    prompts = load_prompts(Prompts(training=first, held_out=second))
    assert [p.number - (1 << 30) for p in prompts.training] == [0, 1, 2]
    assert [p.number - (2 << 30) for p in prompts.held_out] == [0, 1]


def test_held_out_prompts_and_their_noise_do_not_depend_on_the_training_prompts(
    tmp_path: Path, run_config: Maker
) -> None:
    (tmp_path / "held_out.txt").write_text("".join(f"held {i}\n" for i in range(300)))
    blocks = []
    for name, size in (("small.txt", 20), ("large.txt", 40)):
        (tmp_path / name).write_text("".join(f"train {i}\n" for i in range(size)))
        spec = Prompts(training=str(tmp_path / name), held_out=str(tmp_path / "held_out.txt"))
        config = run_config(prompts=spec.model_dump(), evaluation={"prompts": 32})
        blocks.append(evaluation_blocks(config, load_prompts(spec), 0, final=True)["held_out"])
    assert blocks[0] == blocks[1]
    assert sum(len(block.prompts) for block in blocks[0]) >= 32


def test_bundled_sources_and_files_share_no_number(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("a\nb\n")
    own = str(tmp_path / "own.txt")
    for training in ("scenes", "scenes-users", own):
        for held_out, test in (("scenes", None), ("scenes-validation", "scenes-test"), ("scenes-users", None)):
            known = load_prompts(Prompts(training=training, held_out=held_out, test=test))
            assert len({prompt.number for prompt in known.all}) == len(known.all)


def test_a_byte_order_mark_is_not_part_of_the_prompt(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "p.txt", b"\xef\xbb\xbfa cat\n")) == ["a cat"]


@pytest.mark.parametrize(
    ("name", "text", "mentions"),
    [
        ("p.csv", "a cat\n", "one column called prompt in .*p.csv, found a cat"),
        ("p.csv", "prompt,Prompt\na,b\n", "one column called prompt in .*p.csv, found prompt, Prompt"),
        ("p.csv", "n,prompt\n1,a cat\n2,\n", "a prompt in row 2 of .*p.csv, got ''"),
        ("p.csv", 'prompt,n\n"a cat,1\n', "a table in .*p.csv, line 2 is none"),
        ("p.csv", "prompt,n\na cat,1\na dog\n", "2 cells in row 2 of .*p.csv, as its first line has, got 1"),
        ("p.tsv", "prompt\tn\na\tcat\t1\n", "2 cells in row 1 of .*p.tsv, as its first line has, got 3"),
        ("p.csv", "", "one column called prompt in .*p.csv, found none"),
        ("p.csv", "prompt\n", "expected at least one prompt"),
        ("p.parquet", "a cat\n", "a Parquet file at .*p.parquet"),
        ("p", "a cat\n", r"a file \(\.txt, \.json, \.jsonl, \.csv, \.tsv, \.parquet\) or a data set, got"),
        ("p.txt", "", "expected at least one prompt"),
        ("p.txt", " \n\n\t\n", "expected at least one prompt"),
        ("p.jsonl", "\n", "expected at least one prompt"),
        ("p.txt", b"a cat\n\xff\xfe\n", "expected UTF-8 text in .*, byte 6"),
        ("p.jsonl", '{"prompt": "a"}\nnot json\n', "p.jsonl, line 2"),
        ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', "p.jsonl, line 3"),
        ("p.jsonl", '"a cat"\n', 'non-empty "prompt" in .*line 1'),
        ("p.jsonl", "[1]\n", 'non-empty "prompt"'),
        ("p.jsonl", '{"text": "a cat"}\n', 'non-empty "prompt"'),
        ("p.jsonl", '{"prompt": "  "}\n', 'non-empty "prompt"'),
        ("p.jsonl", '{"prompt": 3}\n', 'non-empty "prompt"'),
        ("p.json", '["a cat",\n', "JSON in .*p.json, got something else .*line 2.*an object a line is a .jsonl"),
        ("p.json", "[" * 100_000, "JSON in .*p.json, got something else"),
        ("p.jsonl", '{"prompt": "a", "n": ' + "9" * 5_000 + "}\n", "p.jsonl, line 1, got something else"),
        ("p.jsonl", '{"prompt": "a \\ud83d cat"}\n', r"whole characters in .*p.jsonl, line 1, got half of one"),
        ("p.json", '{"prompt": "a cat"}', "a list of prompts, or of objects with a prompt, in .*p.json, got dict"),
        ("p.json", '["a cat", " "]', 'non-empty "prompt" in .*p.json, entry 2'),
        ("p.json", '[{"text": "a cat"}]', 'non-empty "prompt" in .*p.json, entry 1, got {"text": "a cat"}'),
        ("p.json", "[]", "expected at least one prompt"),
    ],
)
def test_bad_files(name: str, text: str | bytes, mentions: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=mentions) as error:
        texts(write(tmp_path, name, text))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.txt, could not read it \(No such file"):
        texts(str(tmp_path / "missing.txt"))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match="could not read it"):
        texts(str(tmp_path / "folder.txt"))


def test_a_row_that_is_there_twice_is_one_prompt_and_equal_texts_with_other_metadata_are_two(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a cat", "include": [{"class": "cat", "count": 1}]},
        {"prompt": "a dog"},
        {"prompt": "a cat", "include": [{"class": "cat", "count": 2}]},
        {"include": [{"class": "cat", "count": 1}], "prompt": " a cat"},
    ]
    spec = Prompts(
        training=write(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows))),
        held_out=write(tmp_path, "h.txt", "an owl\nan owl\nan owl\nan emu"),
    )
    prompts = load_prompts(spec)
    assert [(p.text, p.metadata.get("include", [{}])[0].get("count")) for p in prompts.training] == [
        ("a cat", 1),
        ("a dog", None),
        ("a cat", 2),
    ]
    assert list(prompts.names.values()) == ["a cat", "a dog", "a cat (no. 2)", "an owl", "an emu"]
    assert prompts.repeated == {"training": 1, "held_out": 2}
    assert load_prompts(Prompts()).repeated == {}


def test_lines_end_with_newlines_only(tmp_path: Path) -> None:
    odd = "a\u2028cat\u0085 and\x0ba dog"
    assert texts(write(tmp_path, "p.txt", f"{odd}\na bat\r\n")) == [odd, "a bat"]
    row = json.dumps({"prompt": odd, "note": "x\u2028y"}, ensure_ascii=False)
    (prompt,) = load_prompts(Prompts(training=write(tmp_path, "p.jsonl", row), held_out=None)).training
    assert (prompt.text, prompt.metadata) == (odd, {"note": "x\u2028y"})


def test_tables_have_a_column_of_prompts_and_the_others_are_metadata(tmp_path: Path) -> None:
    known = {"a cat, asleep": {"Category": "Animals", "Note": None}, "a dog": {"Category": "Animals", "Note": "x"}}
    table = pa.table(
        {
            "Prompt": list(known),
            "Category": ["Animals", "Animals"],
            "Note": [None, "x"],
            "image": [{"bytes": b"png", "path": "a"}] * 2,
            "raw": [b"1", b"2"],
        }
    )
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "p.parquet")
    pq.write_table(table, tmp_path / "set" / "train-00000-of-00001.parquet")
    csv = 'Prompt,Category,Note\n"a cat, asleep",Animals,\na dog,Animals,x\n'
    tsv = "Prompt\tCategory\tNote\na cat, asleep\tAnimals\t\na dog\tAnimals\tx\n"
    for source in (
        write(tmp_path, "p.csv", csv),
        write(tmp_path, "p.tsv", tsv),
        tmp_path / "p.parquet",
        tmp_path / "set",
    ):
        found = load_prompts(Prompts(training=str(source), held_out=None)).training
        assert {p.text: {k: v or None for k, v in p.metadata.items()} for p in found} == known, source


def test_metadata_of_a_table_is_what_json_can_hold(tmp_path: Path) -> None:
    rows = {"prompt": ["a"], "n": [1], "tags": [["b"]], "on": [datetime.date(2024, 1, 2)], "price": [Decimal("1.50")]}
    pq.write_table(pa.table(rows), tmp_path / "p.parquet")
    ((_, metadata),) = prompt_files.read(str(tmp_path / "p.parquet"))
    assert metadata == {"n": 1, "tags": ["b"], "on": "2024-01-02", "price": "1.50"}
    assert json.loads(json.dumps(metadata)) == metadata


def test_a_list_of_prompts_or_of_objects(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "plain.json", '[" a cat", "a dog"]')) == ["a cat", "a dog"]
    rows = '[{"prompt": "a cat", "rank": [1, 0]},\n {"rank": [0, 1], "prompt": "a dog"}]'
    found = load_prompts(Prompts(training=write(tmp_path, "p.json", rows), held_out=None)).training
    assert [(p.text, p.metadata) for p in found] == [("a cat", {"rank": [1, 0]}), ("a dog", {"rank": [0, 1]})]


def test_quotes_in_a_tsv_belong_to_its_prompts(tmp_path: Path) -> None:
    """What a picture should say stands in quotes: the reward `ocr` looks for them."""
    rows = 'Prompt\tCategory\n"hello" on a sign\tText\n"a b\tWords\na dog\tAnimals\n'
    found = load_prompts(Prompts(training=write(tmp_path, "p.tsv", rows), held_out=None)).training
    assert [(p.text, p.metadata["Category"]) for p in found] == [
        ('"hello" on a sign', "Text"),
        ('"a b', "Words"),
        ("a dog", "Animals"),
    ]


def test_a_data_set_that_is_not_there_and_a_split_that_it_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="prompts in the data set nobody/prompts, could not load it"):
        texts("nobody/prompts")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", "test.csv", "prompt\na cat\n")
    assert texts(str(tmp_path / "set")) == ["a cat"]
    with pytest.raises(UserError, match=r"the split dev of .*set, found test: name one as .*set:SPLIT"):
        texts(f"{tmp_path / 'set'}:dev")
    (tmp_path / "cut").mkdir()
    write(tmp_path / "cut", "test.jsonl", '{"prompt": "a cat"}\n{"prompt": ')
    with pytest.raises(UserError, match=r"prompts in the data set .*cut, could not load it"):
        texts(str(tmp_path / "cut"))


def test_a_prompt_to_learn_from_is_not_held_out(tmp_path: Path) -> None:
    first, second = write(tmp_path, "a.txt", "a cat\na dog"), write(tmp_path, "b.jsonl", '{"prompt": "a dog", "n": 1}')
    with pytest.raises(UserError, match="1 are in both, for example 'a dog'"):
        load_prompts(Prompts(training=first, held_out=second))


def test_no_prompt_is_in_two_splits(tmp_path: Path) -> None:
    first, second, third = (
        write(tmp_path, f"{name}.txt", text)
        for name, text in {"a": "a cat", "b": "a dog", "c": "an owl\na dog"}.items()
    )
    with pytest.raises(
        UserError, match=r"other prompts in prompts\.test than in prompts\.held_out, 1 are in both, for example 'a dog'"
    ):
        load_prompts(Prompts(training=first, held_out=second, test=third))


def test_the_digest_of_a_file_is_its_content_and_of_a_data_set_its_rows(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "train.csv", "prompt,n\na cat,1\n")
    one, two = (prompt_files.digest(str(tmp_path / name)) for name in ("one", "two"))
    assert one == two
    write(tmp_path, "p.txt", "a cat")
    before = prompt_files.digest(str(tmp_path / "p.txt"))
    write(tmp_path, "p.txt", "a bat")
    assert prompt_files.digest(str(tmp_path / "p.txt")) != before


# worlds


def test_the_toy_knows_its_prompts() -> None:
    prompts = load_prompts(Prompts(training="toy", held_out="toy"))
    assert {p.text for p in (*prompts.training, *prompts.held_out)} == set(TOY_PROMPTS)


def test_scenes_come_in_two_kinds() -> None:
    prompts = load_prompts(Prompts())
    assert len(prompts.training) + len(prompts.held_out) == 1296
    assert {p.metadata["kind"] for p in prompts.training} == {"count", "relation"}


def test_the_held_out_scenes_in_halves_to_choose_by_and_to_report() -> None:
    prompts = load_prompts(Prompts(held_out="scenes-validation", test="scenes-test"))
    whole = {p.text for p in load_prompts(Prompts()).held_out}
    said = {p.text for p in prompts.held_out} | {p.text for p in prompts.test if p.metadata["phrasing"] == "plain"}
    assert said == whole

    def combinations(of: Sequence[Prompt]) -> set[tuple]:
        scenes = (grammar.parse(p.metadata.get("scene", p.text)) for p in of)
        return {(len(s.things) if s.relation is None else 0, frozenset(s.things)) for s in scenes}

    splits = [combinations(split) for split in prompts.splits.values()]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]
    assert {p.stratum for p in prompts.test} == {"plain/count", "plain/relation", "reversed/count", "reversed/relation"}
    (example,) = (p for p in prompts.test if p.text == "below a purple triangle a black square")
    assert example.metadata["scene"] == "a black square below a purple triangle"


@pytest.mark.parametrize(
    "given", [{"training": "scenes-test"}, {"held_out": "scenes-test"}, {"test": "scenes"}, {"test": "toy"}]
)
def test_a_source_that_has_nothing_for_a_split(given: dict[str, str]) -> None:
    ((split, source),) = given.items()
    with pytest.raises(
        UserError, match=rf"expected prompts for prompts\.{split}, got {source}, which has those of prompts\."
    ):
        load_prompts(Prompts(**given))


def test_test_prompts_are_evaluated_at_both_ends_alone(tmp_path: Path, run_config: Callable[..., RunConfig]) -> None:
    files = {
        split: write(tmp_path, f"{split}.txt", text)
        for split, text in {"training": "left", "held_out": "both", "test": "right"}.items()
    }
    config = run_config("toy", prompts=files)
    prompts = load_prompts(config.prompts)
    assert list(evaluation_blocks(config, prompts, 0, final=True)) == ["training", "held_out", "test"]
    assert list(evaluation_blocks(config, prompts, 1, final=False)) == ["training", "held_out"]


def test_users_of_the_scenes_world_say_what_they_mean_in_the_metadata() -> None:
    prompts = load_prompts(Prompts(training="scenes-users", held_out="scenes-users"))
    said = next(p for p in prompts.training if p.text == "3 red circles")
    assert said.metadata == {"scene": "three red circles", "phrasing": "digits", "cell": "seen phrasing, training"}
    assert len({p.stratum for p in prompts.training}) == 20  # ten phrasings of counts and of relations
    assert {p.metadata["cell"] for p in prompts.held_out} == {
        "seen phrasing, held out",
        "new phrasing, training",
        "new phrasing, held out",
    }


# the blocks of an update


def blocks_of(run_config: Maker, update: int = 0, seed: int = 0, **rollout: int) -> list[Block]:
    sizes = {"prompts": 8, "samples": 2, "prompts_per_block": 4, **rollout}
    config = run_config("epsilon-lora-1", rollouts=sizes, seed=seed)
    return training_blocks(config, load_prompts(config.prompts), update)


def test_training_blocks(run_config: Maker) -> None:
    blocks = blocks_of(run_config, update=5)
    numbers = [i for b in blocks for i in b.prompt_ids]
    training = load_prompts(Prompts()).training
    assert [(b.index, b.update, b.size, b.first_sample, b.evaluation) for b in blocks] == [
        (0, 5, 8, 0, False),
        (1, 5, 8, 0, False),
    ]
    assert len(set(numbers)) == 8  # without replacement
    for block in blocks:
        assert block.prompts == tuple(training[i].text for i in block.prompt_ids)
        assert block.metadata == tuple(training[i].metadata for i in block.prompt_ids)
        assert block.prompt_of_N[:2] == (block.prompts[0],) * 2
    assert Counter(m["kind"] for b in blocks for m in b.metadata) == {"count": 4, "relation": 4}  # alike from both


def test_independent_draws_have_the_chances_of_an_update_and_noise_of_their_own(run_config: Maker) -> None:
    """Two strata, of one and of five prompts: the small one has a quarter of an update of four, and not half."""
    config = run_config("epsilon-lora-1", rollouts={"prompts": 4, "samples": 2, "prompts_per_block": 2})
    known = PromptSet(tuple(Prompt(f"prompt {n}", n, {}, stratum="small" if n == 0 else "large") for n in range(6)), ())
    counts = []
    for independent in (False, True):
        updates = [training_blocks(config, known, u, independent=independent) for u in range(500)]
        ids = [[n for block in blocks for n in block.prompt_ids] for blocks in updates]
        assert all(len(set(of_update)) == 4 for of_update in ids)
        counts.append(Counter(prompt for blocks in updates for block in blocks for prompt in block.prompts))
        again = [n for of_update in ids for n in of_update if n >= AGAIN]
        assert bool(again) == independent
    for prompt, count in counts[0].items():
        assert abs(counts[1][prompt] - count) < 5 * count**0.5


def test_a_sets_prompts_are_distinct_while_there_are_enough(run_config: Maker) -> None:
    """Ten prompts of two strata, three a round: three rounds hold nine of them, and only then does any come again."""
    config = run_config("epsilon-lora-1", rollouts={"prompts": 3, "samples": 2, "prompts_per_block": 1})
    known = PromptSet(tuple(Prompt(f"prompt {n}", n, {}, stratum="small" if n < 4 else "large") for n in range(10)), ())
    blocks = distinct_blocks(config, known, 7)
    assert [(b.update, b.index) for b in blocks] == [(update, index) for update in range(7) for index in range(3)]
    rounds = [[n for b in blocks if b.update == update for n in b.prompt_ids] for update in range(7)]
    assert all(len(set(of_round)) == 3 for of_round in rounds)
    assert (
        len({n for of_round in rounds[:3] for n in of_round})
        == len({n for of_round in rounds[3:6] for n in of_round})
        == 9
    )
    drawn = [n for b in distinct_blocks(config, known, 2) for n in b.prompt_ids]
    assert sorted(n < 4 for n in drawn) == [False] * 3 + [True] * 3  # alike from both


def test_a_run_draws_of_a_set_nothing_and_of_kept_rollouts_what_their_seed_chose(
    run_config: Maker, tmp_path: Path
) -> None:
    (tmp_path / "training.txt").write_text("\n".join(f"prompt {n}" for n in range(40)))
    (tmp_path / "held-out.txt").write_text("other prompt")
    files = {"training": str(tmp_path / "training.txt"), "held_out": str(tmp_path / "held-out.txt")}
    sizes = {"prompts": 8, "samples": 2, "prompts_per_block": 4}
    evaluation = {"prompts": 1, "every": 1}
    kept = run_config("epsilon-lora-1", prompts=files, rollouts=sizes, updates=2, evaluation=evaluation, seed=3)
    known = load_prompts(kept.prompts)
    learned = {p for update in range(2) for b in training_blocks(kept, known, update) for p in b.prompts}
    (tmp_path / "config.json").write_text(json.dumps(kept.canonical()))

    def texts(config: RunConfig) -> set[str]:
        return {prompt.text for prompt in drawn(config, known)}

    evaluated = {
        p for blocks in evaluation_blocks(kept, known, 0, final=True).values() for b in blocks for p in b.prompts
    }
    assert texts(kept) == learned | evaluated
    replaying = kept.model_copy(
        update={"seed": 4, "rollouts": kept.rollouts.model_copy(update={"replay": str(tmp_path)})}
    )
    assert texts(replaying) == learned | evaluated
    of_a_set = kept.model_copy(
        update={
            "preferences": kept.preferences.model_copy(update={"source": "a/set"}),
            "rollouts": kept.rollouts.model_copy(
                update={"prompts": 64}
            ),  # rankings an update: more than there are prompts
        }
    )
    assert texts(of_a_set) == evaluated


def test_draws_depend_on_seed_and_update(run_config: Maker) -> None:
    assert blocks_of(run_config) == blocks_of(run_config)
    assert blocks_of(run_config) != blocks_of(run_config, seed=1)
    assert [b.prompts for b in blocks_of(run_config)] != [b.prompts for b in blocks_of(run_config, update=1)]


def test_every_prompt_is_drawn_at_some_time(run_config: Maker, tmp_path: Path) -> None:
    file = write(tmp_path, "p.txt", "\n".join("abcdefghij"))
    config = run_config("epsilon-lora-1", prompts={"training": file, "held_out": None})
    prompts = load_prompts(config.prompts)
    drawn = Counter(p for update in range(200) for b in training_blocks(config, prompts, update) for p in b.prompts)
    assert len(drawn) == 10
    assert all(count == pytest.approx(40, abs=25) for count in drawn.values())  # four standard deviations


def test_more_prompts_than_there_are(run_config: Maker) -> None:
    config = run_config("toy", rollouts={"prompts": 4, "prompts_per_block": 2})
    with pytest.raises(UserError, match=r"at most the 2 training prompts, got 4"):
        training_blocks(config, load_prompts(config.prompts), 0)


# windows of noise


@pytest.mark.parametrize(
    ("window", "places"),
    [
        ({"size": 3, "first": 2}, [2, 2, 2, 2, 2, 2, 2, 2]),
        ({"size": 4, "move": "progressive"}, [0, 1, 2, 3, 4, 5, 6, 0]),
        ({"size": 2, "move": "progressive", "first": 1, "until": 6, "stride": 2, "every": 2}, [1, 1, 3, 3, 5, 5, 1, 1]),
    ],
)
def test_where_a_window_is(window: dict[str, Any], places: list[int], run_config: Maker) -> None:
    config = run_config("toy", sampler={"steps": 10, "window": window})
    found = [noisy_steps(config, update) for update in range(8)]
    assert found == [(place, place + window["size"]) for place in places]
    assert all(block.window == found[3] for block in training_blocks(config, load_prompts(config.prompts), update=3))


def test_a_random_window_is_a_function_of_coordinates(run_config: Maker) -> None:
    """Of the seed and the update, evenly from first to until; the same for so many updates."""
    window = {"size": 2, "first": 1, "until": 5, "move": "random"}
    config = run_config("toy", sampler={"steps": 10, "window": window})
    found = [noisy_steps(config, update) for update in range(500)]
    assert found == [noisy_steps(config, update) for update in range(500)]
    counts = Counter(found)
    assert set(counts) == {(first, first + 2) for first in range(1, 6)}
    assert all(count == pytest.approx(100, abs=45) for count in counts.values())  # five standard deviations
    other = [noisy_steps(config.model_copy(update={"seed": 1}), update) for update in range(500)]
    assert other != found
    slow = run_config("toy", sampler={"steps": 10, "window": {**window, "every": 5}})
    assert [noisy_steps(slow, update) for update in range(50)] == [found[update // 5] for update in range(50)]


def test_evaluations_draw_with_the_window_in_its_first_place(run_config: Maker) -> None:
    config = run_config("toy", sampler={"steps": 10, "window": {"size": 4, "first": 1, "move": "random"}})
    by_split = evaluation_blocks(config, load_prompts(config.prompts), 7, final=True)
    assert {block.window for blocks in by_split.values() for block in blocks} == {(1, 5)}
    assert noisy_steps(run_config("toy"), 3) is None


# the blocks of an evaluation


def test_evaluation_blocks(run_config: Maker) -> None:
    """Ten prompts a split in blocks of at most 6, one sample each: shapes do not depend on the number of samples."""
    config = run_config("epsilon-lora-1", evaluation={"prompts": 10, "samples": 1, "final_samples": 3})
    prompts = load_prompts(config.prompts)
    along, final = (evaluation_blocks(config, prompts, 4, final=final) for final in (False, True))
    assert list(along) == ["training", "held_out"]
    for split in along:
        assert [(b.size, b.index, b.first_sample) for b in along[split]] == [(6, 0, 0), (4, 1, 0)]
        assert [(b.size, b.index, b.first_sample) for b in final[split]] == [
            (size, index, sample) for sample in range(3) for size, index in ((6, 0), (4, 1))
        ]
        assert final[split][:2] == along[split]
        assert all(b.evaluation and b.samples_per_prompt == 1 and b.update == 4 for b in final[split])
        available = {p.text for p in prompts.splits[split]}
        assert {p for b in final[split] for p in b.prompts} <= available
        assert len({p for b in along[split] for p in b.prompts}) == 10
    assert [b.measure_kl for b in (*final["training"], *final["held_out"])] == [True] + [False] * 11
    assert [b.pictures for b in (*final["training"], *final["held_out"])] == [8, 2, *[0] * 4] * 2
    unmeasured = run_config("epsilon-lora-1", evaluation={"prompts": 10, "kl": False})
    assert not any(b.measure_kl for b in evaluation_blocks(unmeasured, prompts, 0, final=True)["training"])


def test_evaluations_are_always_of_the_same_prompts(run_config: Maker) -> None:
    first, second = (run_config("epsilon-lora-1", seed=seed) for seed in (0, 9))
    prompts = load_prompts(first.prompts)
    blocks = [evaluation_blocks(c, prompts, 2, final=False)["held_out"] for c in (first, second)]
    assert blocks[0] == blocks[1]
    assert [b.prompts for b in blocks[0]] == [
        b.prompts for b in evaluation_blocks(first, prompts, 7, final=False)["held_out"]
    ]


def test_few_prompts_are_all_evaluated(run_config: Maker) -> None:
    config = run_config("toy", evaluation={"prompts": 96})
    blocks = evaluation_blocks(config, load_prompts(config.prompts), 0, final=False)
    assert sorted(p for b in blocks["training"] for p in b.prompts) == ["left", "right"]
    assert [p for b in blocks["held_out"] for p in b.prompts] == ["both"]


def test_without_held_out_prompts(run_config: Maker) -> None:
    config = run_config("toy", prompts={"held_out": None})
    assert list(evaluation_blocks(config, load_prompts(config.prompts), 0, final=False)) == ["training"]


def test_one_repetition_among_very_many_prompts_is_found_at_once(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join([*(f"prompt {n}" for n in range(100_000)), "prompt 99999"]))
    began = time.process_time()
    assert len(load_prompts(Prompts(training=str(file), held_out=None)).training) == 100_000
    assert time.process_time() - began < 20  # comparing all with all took 82 seconds
