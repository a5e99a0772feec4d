"""Prompts that are encoded once: studies, pairs, writers and in-context generation then draw without encoders, the same bits.

Encoders are spoiled as soon as that is done: what anybody draws with them later could not pass.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import safetensors.torch
import torch
from rich.console import Console
from transformers import PreTrainedModel

from raysuite.cluster import directions, pairs, session, writer
from raysuite.cluster.texts import encode_once
from raysuite.config import RunConfig
from raysuite.in_context.draw import PolicyDrawer
from raysuite.in_context.scenes import ScenesWorld
from raysuite.progress import Counting
from raysuite.stages.models import FoundModel
from raysuite.stages.prompts import drawn, load_prompts
from raysuite.study.declared import declare
from raysuite.writer.candidates import Candidate

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's processes warn of their own affairs


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    session.connect()
    yield
    ray.shutdown()


@pytest.fixture
def configured(
    tiny_run: Callable[..., RunConfig], tiny: Callable[[str], Path], tmp_path: Path
) -> Callable[[bool], RunConfig]:
    """Settings of a pipeline that can be spoiled, whose prompts are encoded once or not."""
    pipeline = shutil.copytree(tiny("sd3"), tmp_path / "sd3")

    def make(once: bool) -> RunConfig:
        places = {"threads": 1, "actor_cpus": 0.5, "encode_once": once}
        config = tiny_run("sd3", "ddpo", prompts={"training": "toy", "held_out": "toy"}, cluster=places)
        return config.model_copy(update={"model": config.model.model_copy(update={"path": str(pipeline)})})

    return make


def spoil(config: RunConfig) -> None:
    """Make whatever the text encoders say from now on not a number."""
    for file in Path(config.model.path).glob("text_encoder*/*.safetensors"):
        weights = safetensors.torch.load_file(file)
        spoiled = {name: torch.full_like(weight, torch.nan) for name, weight in weights.items()}
        safetensors.torch.save_file(spoiled, file, metadata={"format": "pt"})


def counting(what: str = "", unit: str = "") -> Counting:
    return Counting(what, unit, Console(quiet=True))


@pytest.fixture(autouse=True)
def _spoiled_when_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode_and_spoil(config: RunConfig, directory: Path, **options: Any) -> Path | None:
        texts = encode_once(config, directory, **{**options, "here": True})
        if texts is not None:
            spoil(config)
        return texts

    for module in (directions, session):
        monkeypatch.setattr(module, "encode_once", encode_and_spoil)


def test_encoders_that_have_encoded_are_gone_when_the_network_is_loaded(
    configured: Callable[[bool], RunConfig], tmp_path: Path
) -> None:
    """No collection is waited for: what was driven refers to nobody who has it."""
    gc.collect()
    before = {id(held) for held in gc.get_objects() if issubclass(type(held), PreTrainedModel)}
    gc.disable()
    try:
        encode_once(configured(True), tmp_path, threads=1, here=True)
        left = [h for h in gc.get_objects() if issubclass(type(h), PreTrainedModel) and id(h) not in before]
    finally:
        gc.enable()
    assert not left


def test_only_what_may_be_drawn_is_encoded_and_every_tensor_is_kept_once(
    configured: Callable[[bool], RunConfig], tmp_path: Path
) -> None:
    """Of a file of 1,000 prompts two updates draw four; with guidance a prompt has two answers, and all have the negative's."""
    (tmp_path / "many.txt").write_text("\n".join(f"picture number {n}" for n in range(1000)))
    config = configured(True)
    config = config.model_copy(
        update={
            "updates": 2,
            "prompts": config.prompts.model_copy(update={"training": str(tmp_path / "many.txt"), "held_out": None}),
            "evaluation": config.evaluation.model_copy(update={"prompts": 1}),
            "sampler": config.sampler.model_copy(update={"guidance": 3.0}),
        }
    )
    texts = encode_once(config, tmp_path, threads=1, here=True)
    assert texts is not None
    expected = drawn(config, load_prompts(config.prompts))
    assert 4 <= len(expected) <= 5  # and one that is looked at
    own = ("model.json", "complete.json")
    answers = [json.loads(file.read_text()) for file in texts.glob("*.json") if file.name not in own]
    assert len(answers) == 2 * (len(expected) + 1)  # "" is for whoever drops prompts
    tensors = [safetensors.torch.load_file(file)["tensor"] for file in texts.glob("*.safetensors")]
    assert len(tensors) == 2 * (len(expected) + 1)  # a sequence and a pooled vector of each
    kinds = {tensor.shape: [t for t in tensors if t.shape == tensor.shape] for tensor in tensors}
    assert all(not torch.equal(a, b) for of in kinds.values() for a, b in combinations(of, 2))


def test_states_of_another_model_are_never_found(configured: Callable[[bool], RunConfig], tmp_path: Path) -> None:
    """A first attempt failed, and the model was exchanged: at the same path, or by naming another one."""
    config = configured(True)
    states = {}
    for attempt in ("first", "again", "exchanged"):
        if attempt == "exchanged":
            spoil(config)
        texts = encode_once(config, tmp_path / "out", threads=1, here=True)
        assert texts is not None
        states[attempt] = {
            file.name: safetensors.torch.load_file(file)["tensor"].isnan().any() for file in texts.glob("*.safetensors")
        }
    assert states["again"] == states["first"] and not any(states["first"].values())
    assert all(states["exchanged"].values())


Work = Callable[[RunConfig, Path], object]


def same(work: Work, configured: Callable[[bool], RunConfig], place: Path, pattern: str) -> None:
    """Whether work leaves the same files with prompts that were encoded once, and no text states."""
    one, other = place / "plain", place / "encoded"
    work(configured(False), one)
    work(configured(True), other)
    assert not (other / "texts").exists()
    files = sorted(file.relative_to(one) for file in one.glob(pattern))
    assert files
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.ray
def test_a_study(configured: Callable[[bool], RunConfig], cluster: None, tmp_path: Path) -> None:
    def work(config: RunConfig, place: Path) -> None:
        (tmp_path / "run.yaml").write_text(json.dumps(config.canonical()))  # JSON is YAML
        declared = declare(str(tmp_path / "run.yaml"), objectives=["ddpo", "diffusion_dpo"], units=8, probes=2)
        directions.study(declared, place, ["test"], counting)

    same(work, configured, tmp_path, "*.parquet")


@pytest.mark.slow
@pytest.mark.ray
def test_pairs(configured: Callable[[bool], RunConfig], cluster: None, tmp_path: Path) -> None:
    """The set holds the text states of the encoders as they were."""

    def work(config: RunConfig, place: Path) -> None:
        pairs.make_pairs(config, place, prompts=4, trajectories=True, command=["test"], counting=counting())

    same(work, configured, tmp_path, "blocks/*")


@pytest.mark.slow
@pytest.mark.ray
def test_pictures_of_rewrites(configured: Callable[[bool], RunConfig], cluster: None, tmp_path: Path) -> None:
    """Texts that are among no prompts of the run."""
    prompts = {prompt.number: prompt for prompt in load_prompts(configured(False).prompts).training}
    texts = [Candidate(number, f"{text} of {number}", own=False) for number in prompts for text in ("a", "b", "c")]

    def work(config: RunConfig, place: Path) -> None:
        writer._draw(FoundModel("a model", config, None), prompts, texts, 1, place, counting())

    same(work, configured, tmp_path, "scores/*")


def test_descriptions(configured: Callable[[bool], RunConfig], tmp_path: Path) -> None:
    """One process has the encoders first, and then the network."""
    world, texts = ScenesWorld(0, nuisance=False), ["two red circles", "a blue square"]
    drawers = [
        PolicyDrawer(FoundModel("a model", configured(once), None), 0, texts, beside=tmp_path / "texts")
        for once in (False, True)
    ]
    pictures = [drawer.draw(texts, world.tasks[:2], [0, 1]) for drawer in drawers]
    assert np.array_equal(*pictures)
    assert [drawer.policy.pipeline.text_encoder is None for drawer in drawers] == [False, True]
