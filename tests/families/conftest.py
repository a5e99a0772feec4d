"""Tiny pipelines on disk, and policies of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raysuite.config import Model, Parameters, RunConfig, Sampler, read, recipes, validate
from raysuite.families.pipeline import PipelinePolicy
from raysuite.kernel.objectives import OBJECTIVES
from tests.families.pipelines import ARGUMENTS, build

WITHOUT_GUIDANCE = {"flux2"}
WITHOUT_LORA = {"pixart"}
SIDE = {"hidream": 512}  # it draws one area only
"""Pixels of the tests' pictures; 32 for all others."""
OBJECTIVES_OF_RECIPES = {
    of["name"]: of for of in (read(name).get("objective") for name in recipes() if name.startswith("scenes")) if of
}
"""Settings with which objectives can learn; 1 for those without a default where there is no recipe."""


def settings_of(objective: str) -> dict[str, Any]:
    needed = [f.name for f in dataclasses.fields(OBJECTIVES[objective]) if f.default is dataclasses.MISSING]  # type: ignore[arg-type]
    return OBJECTIVES_OF_RECIPES.get(objective, {"name": objective, **dict.fromkeys(needed, 1.0)})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a tiny pipeline, by its name in `BUILDERS`."""
    root = tmp_path_factory.mktemp("tiny")

    def give(name: str) -> Path:
        if not (root / name).exists():
            build(name, root / name)
        return root / name

    return give


@pytest.fixture(scope="session")
def open_tiny(tiny: Callable[[str], Path]) -> Callable[..., PipelinePolicy]:
    """Opens a tiny pipeline as a policy: guided where its class knows guidance, with noise of level 1 unless said otherwise."""

    def give(
        name: str, *, texts: Path | None = None, encoders: bool = True, weights: bool = True, **settings: Any
    ) -> PipelinePolicy:
        sampler = {"steps": 4, "guidance": 1 if name in WITHOUT_GUIDANCE else 3, **settings.pop("sampler", {})}
        model = {"size": SIDE.get(name, 32), "arguments": ARGUMENTS[name], **settings.pop("model", {})}
        parameters = {"kind": "all" if name in WITHOUT_LORA else "lora", "rank": 2, **settings.pop("parameters", {})}
        assert not settings
        return PipelinePolicy(
            model=Model.model_validate({"path": str(tiny(name)), **model}),
            sampler=Sampler.model_validate(sampler),
            parameters=Parameters.model_validate(parameters),
            seed=0,
            device=torch.device("cpu"),
            texts=texts,
            encoders=encoders,
            weights=weights,
        )

    return give


@pytest.fixture(scope="session")
def _kept() -> dict[str, tuple[PipelinePolicy, Any]]:
    return {}


@pytest.fixture
def policy(
    pipeline: str, open_tiny: Callable[..., PipelinePolicy], _kept: dict[str, tuple[PipelinePolicy, Any]]
) -> PipelinePolicy:
    """The policy of the test's `pipeline`, with the weights that it came with."""
    if pipeline not in _kept:
        made = open_tiny(pipeline)
        _kept[pipeline] = (made, made.weights())
    found, weights = _kept[pipeline]
    found.set_weights(weights)
    for parameter in found.trainable().values():
        parameter.grad = None
    return found


@pytest.fixture
def tiny_run(tiny: Callable[[str], Path]) -> Callable[..., RunConfig]:
    """Makes the configuration of two updates on a tiny pipeline; keywords replace sections."""

    def make(pipeline: str, objective: str, **changes: Any) -> RunConfig:
        tree: dict[str, Any] = {
            "updates": 2,
            "model": {"path": str(tiny(pipeline)), "size": 32, "arguments": ARGUMENTS[pipeline]},
            "sampler": {"steps": 3, "guidance": 2.0},
            "parameters": {"rank": 2},
            "rewards": [{"name": "redness"}],
            "rollouts": {"prompts": 2, "samples": 2, "prompts_per_block": 2},
            "objective": settings_of(objective),
            "evaluation": {"prompts": 1, "final_samples": 1, "every": 2},
            **changes,
        }
        return validate(tree)

    return make
