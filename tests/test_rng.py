"""Numbers that runs stand on: another one, and a run that was begun before goes on otherwise than it would have."""

from __future__ import annotations

import torch

from raysuite.rng import Stage, numpy_generator, torch_generator

STAGES = {
    "PROMPTS": 1,
    "INITIAL_NOISE": 2,
    "STEP_NOISE": 3,
    "MINIBATCHES": 4,
    "OBJECTIVE": 5,
    "EVALUATION_INITIAL_NOISE": 6,
    "EVALUATION_STEP_NOISE": 7,
    "BOOTSTRAP": 8,
    "PARAMETERS": 9,
    "WORLD": 10,
    "EVALUATION_PROMPTS": 11,
    "PREFERENCES": 12,
    "PREFERENCE_ORDER": 13,
    "SKETCH": 14,
    "SWEEP": 15,
    "WINDOW": 16,
    "PROMPT_DRAW": 17,
    "EVALUATION_PROMPT_DRAW": 18,
    "IN_CONTEXT": 19,
    "IN_CONTEXT_NOISE": 20,
    "IN_CONTEXT_POLICY": 21,
    "IN_CONTEXT_JUDGE": 22,
    "IN_CONTEXT_LANGUAGE": 23,
    "WRITER": 24,
    "WRITER_TRAINING": 25,
    "EVALUATION_PREFERENCES": 26,
}


def test_stages_keep_their_numbers() -> None:
    assert {stage.name: stage.value for stage in Stage} == STAGES


def test_coordinates_keep_their_draws() -> None:
    where = {"seed": 5, "update": 4, "prompt": 3, "sample": 2}
    assert numpy_generator(stage=Stage.PROMPTS, **where).integers(0, 1000, 6).tolist() == [518, 96, 977, 589, 849, 258]
    drawn = torch.randint(1000, (6,), generator=torch_generator(stage=Stage.STEP_NOISE, **where))
    assert drawn.tolist() == [198, 470, 747, 253, 128, 850]


def test_every_coordinate_matters() -> None:
    one = {"seed": 1, "stage": Stage.OBJECTIVE, "update": 1, "prompt": 1, "sample": 1}
    others = [one, *({**one, name: 2} for name in one)]
    assert len({torch_generator(**each).initial_seed() for each in others}) == len(others)
    assert len({numpy_generator(**each).integers(2**62) for each in others}) == len(others)
