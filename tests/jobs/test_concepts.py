"""Concepts of the scenes world: what is counted, and that arms differ in what they say they differ in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import concepts
from jobs.concepts import ARMS, CONCEPTS, Concept, entropy, opened, settings, share, shares, table
from raysuite.errors import UserError
from raysuite.worlds.scenes.render import render


def test_concepts_are_of_four_scenes_each_and_all_differ() -> None:
    assert len({concept.name for concept in CONCEPTS}) == 12
    assert all(len(set(concept.scenes)) == 4 for concept in CONCEPTS)
    assert len({concept.shape for concept in CONCEPTS[:3]}) == 3


def test_the_reader_finds_the_scene_of_every_reference() -> None:
    concept = Concept("circle", (2, 3), ("red", "purple"))
    assert concept.cells(concept.pictures(seed=0)) == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    other = Concept("square", (2, 3), ("red", "purple"))
    assert other.cells(render(concept.scenes[0], np.random.default_rng(0))[None]) == [-1]


@pytest.mark.parametrize(
    ("cells", "of_concept", "bits"),
    [
        ([0, 1, 2, 3], 1.0, 2.0),
        ([0, 0, 1, -1], 0.75, 2 / 3 * np.log2(1.5) + np.log2(3) / 3),
        ([2, 2, -1, -1], 0.5, 0.0),
        ([-1, -1], 0.0, 0.0),
    ],
)
def test_shares_and_bits_by_hand(cells: list[int], of_concept: float, bits: float) -> None:
    assert share(cells) == of_concept and entropy(cells) == pytest.approx(bits)


def test_the_baseline_has_the_distributions_deviation_around_one_prompt() -> None:
    policy = opened(settings(0, 1))
    assert policy.soft is not None
    distribution = {name: value.detach() for name, value in policy.trainable().items()}
    one = {name: value[3:4] for name, value in distribution.items()}
    question = policy.driver.question(policy.soft.marked(""))
    with torch.no_grad():
        encoded = policy.soft.encoded(*question)
        drawn = {}
        for arm, policy.soft.mixture in shares(distribution, one).items():
            drawn[arm] = policy.soft.states(*question, encoded, [5])[0][0]
    (mean,), (states_K,) = encoded.distribution.mean, encoded.distribution.states_K
    torch.testing.assert_close(drawn["distribution"], encoded.distribution.draw(5, kind="independent", spread=1.0)[0])
    torch.testing.assert_close(drawn["one"], states_K[3:4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(drawn["one + noise"] - drawn["one"], drawn["distribution"] - mean, atol=1e-5, rtol=1e-5)


def test_a_table_is_of_differences_within_a_concept() -> None:
    def found(concept: str, better: list[int], worse: list[int]) -> dict:
        return {"concept": concept, "cells": {"3": dict(zip(ARMS, (better, worse, worse), strict=True))}}

    lines = table([found("a", [0, 1, -1, -1], [0, -1, -1, -1]), found("b", [0, 1, 2, 3], [0, 1, 2, -1])])
    first = next(line for line in lines if line.startswith("  distribution - one  "))
    assert [float(word.strip("[],")) for word in first.split()[3:]] == [0.25, 0.25, 0.25]


def test_it_trains_draws_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(concepts, "GUIDANCES", (3.0,))
    command = ["concepts.py", "--out", str(tmp_path), "--concepts", "1", "--updates", "1", "--pictures", "2"]
    monkeypatch.setattr(sys, "argv", [*command, "--seeds", "1"])
    concepts.main()
    (file,) = tmp_path.iterdir()
    result = json.loads(file.read_text())
    assert result["learned"]["network_evaluations"] == result["one"]["network_evaluations"] == 16 * 3
    assert {arm: len(cells) for arm, cells in result["cells"]["3"].items()} == dict.fromkeys(ARMS, 2)
    monkeypatch.setattr(concepts, "measured", None)  # nothing is left to do
    first = capsys.readouterr().out
    concepts.main()
    assert capsys.readouterr().out == first and "1 trained pairs, 1 concepts" in first
    monkeypatch.setattr(sys, "argv", [*command[:-1], "3", "--seeds", "1"])
    with pytest.raises(
        UserError, match=r"expected 1 updates and 3 pictures in .*, got other numbers: name another --out"
    ):
        concepts.main()
