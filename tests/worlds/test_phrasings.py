"""What users of the scenes world type, and what they mean."""

from __future__ import annotations

import pytest

from raysuite.worlds.scenes.grammar import parse
from raysuite.worlds.scenes.phrasings import HABITS, NEW, PLAIN, SEEN, SYNONYMS, phrase, user_prompts

COUNT, RELATION = "three red squares", "a red circle left of a blue square"


@pytest.mark.parametrize(
    ("phrasing", "count", "relation"),
    [
        ("plain", COUNT, RELATION),
        ("digits", "3 red squares", "1 red circle left of 1 blue square"),
        ("synonyms", "three crimson boxes", "a crimson disc left of an azure box"),
        ("terse", "red square three", "red circle left blue square"),
        ("reversed", "three squares red", "left of a blue square a red circle"),
        # 17 letters: 1 + 17 % 5 is 3, the "a" of "square"; 34 letters: 5, the last of "circle" and of "square"
        ("typo", "three red squres", "a red circl left of a blue squar"),
        ("polite", "please draw three red squares", "please draw a red circle left of a blue square"),
        ("digits+synonyms+polite", "please draw 3 crimson boxes", "please draw 1 crimson disc left of 1 azure box"),
        ("synonyms+terse", "crimson box three", "crimson disc left azure box"),
        ("reversed+typo", "three squres red", "left of a blue squar a red circl"),
    ],
)
def test_phrasings(phrasing: str, count: str, relation: str) -> None:
    assert [phrase(parse(sentence), phrasing) for sentence in (COUNT, RELATION)] == [count, relation]


def test_one_thing_has_no_plural_and_no_word_lacks_its_first_letter() -> None:
    assert phrase(parse("one black square"), "synonyms") == "one ebony box"
    for said in (*user_prompts(held_out=False), *user_prompts(held_out=True)):
        if "typo" in said.phrasing:
            assert not {"quare", "ircle", "riangle"} & {*said.text.split()}


def test_a_synonym_means_one_thing() -> None:
    assert len({*SYNONYMS.values()}) == len(SYNONYMS) == 9
    assert not {*SYNONYMS} & {*SYNONYMS.values()}


def test_new_phrasings_are_new_company_of_habits_that_were_seen() -> None:
    assert not {*SEEN} & {*NEW} and {PLAIN, *HABITS} <= {*SEEN}
    assert {habit for phrasing in NEW for habit in phrasing.split("+")} <= {*SEEN}


def test_no_text_that_is_learned_from_is_held_out() -> None:
    training, held_out = user_prompts(held_out=False), user_prompts(held_out=True)
    assert not {said.text for said in training} & {said.text for said in held_out}
    cells = [said.cell for said in (*training, *held_out)]
    assert {cell: cells.count(cell) for cell in dict.fromkeys(cells)} == {
        "seen phrasing, training": len(SEEN) * 966,
        "seen phrasing, held out": len(SEEN) * 330,
        "new phrasing, training": len(NEW) * 966,
        "new phrasing, held out": len(NEW) * 330,
    }


def test_a_text_means_one_thing_whoever_types_it() -> None:
    meant: dict[str, set[object]] = {}
    for said in (*user_prompts(held_out=False), *user_prompts(held_out=True)):
        meant.setdefault(said.text, set()).add(said.scene)
    assert all(len(scenes) == 1 for scenes in meant.values())
