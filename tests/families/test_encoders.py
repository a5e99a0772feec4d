"""What identifies a pipeline's encoders: what they do, not how they are stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from raysuite.cluster import launch
from raysuite.config import Model, load
from raysuite.errors import UserError
from raysuite.families import encoder_digests
from raysuite.stages import preference_set
from raysuite.stages.preference_set import Preferences, write_block

NAMES = {"vae": "diffusion_pytorch_model", "text_encoder": "model"}


def digests(path: Path, **more: str) -> dict[str, str]:
    return encoder_digests(Model(path=str(path), **more))


def weights(pipeline: Path, component: str) -> Path:
    return pipeline / component / f"{NAMES[component]}.safetensors"


@pytest.fixture
def copied(pipelines: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: shutil.copytree(pipelines["epsilon"], tmp_path / name)


def test_a_model_that_was_saved_again_encodes_as_before(copied: Callable[[str], Path], tmp_path: Path) -> None:
    """In pieces, under other names, with tied weights twice, counters of positions, and without a default that was written out."""
    one, other = copied("one"), copied("other")
    assert digests(one).keys() == {"vae", "text_encoder", "tokenizer"}
    for component in NAMES:
        file = weights(other, component)
        tensors = safetensors.torch.load_file(file)
        tensors = {f"renamed.{name}": tensor for name, tensor in tensors.items()}
        halves: list[dict[str, torch.Tensor]] = [
            {"positions": torch.arange(3)},
            {"tied": next(iter(tensors.values())).clone()},
        ]
        for number, (name, tensor) in enumerate(tensors.items()):
            halves[number % 2][name] = tensor
        file.unlink()
        for number, half in enumerate(halves):
            safetensors.torch.save_file(half, file.with_name(f"{file.stem}-0000{number + 1}-of-00002.safetensors"))
    config = json.loads((one / "vae" / "config.json").read_text())
    assert config.pop("scaling_factor") == 0.18215
    (other / "vae" / "config.json").write_text(json.dumps({**config, "_diffusers_version": "1"}))
    assert digests(other) == digests(one)


@pytest.mark.parametrize("changed", ["vae", "text_encoder", "scaling", "tokenizer"])
def test_what_encodes_otherwise_is_another(changed: str, copied: Callable[[str], Path]) -> None:
    one, other = copied("one"), copied("other")
    if changed in NAMES:
        tensors = safetensors.torch.load_file(weights(other, changed))
        last = list(tensors)[-1]
        tensors[last] = tensors[last] + 1e-3
        safetensors.torch.save_file(tensors, weights(other, changed))
    elif changed == "scaling":
        config = json.loads((other / "vae" / "config.json").read_text())
        (other / "vae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.13025}))
    else:
        file = other / "tokenizer" / "tokenizer.json"
        whole = json.loads(file.read_text())
        assert whole["model"]["merges"].pop(0)  # the same words, cut into other pieces
        file.write_text(json.dumps(whole))
    own, others = digests(one), digests(other)
    differing = {name for name in own if own[name] != others[name]}
    assert differing == {"vae" if changed == "scaling" else changed}


def test_a_variant_has_weights_of_its_own(copied: Callable[[str], Path]) -> None:
    one = copied("one")
    file = weights(one, "vae")
    tensors = {name: tensor.half() for name, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(tensors, file.with_name(f"{file.stem}.fp16.safetensors"))
    whole, half = digests(one), digests(one, variant="fp16")
    assert whole["vae"] != half["vae"] and whole["text_encoder"] == half["text_encoder"]


def test_the_toy_encodes_by_itself() -> None:
    assert encoder_digests(Model(path="toy")) == {} == encoder_digests(Model(path="toy-flow"))


@pytest.mark.parametrize("missing", ["vae", "text_encoder", "tokenizer"])
def test_a_component_without_its_files_is_named(missing: str, copied: Callable[[str], Path]) -> None:
    one = copied("one")
    for file in (one / missing).glob("*"):
        file.unlink()
    with pytest.raises(UserError, match=f"in {one / missing}"):
        digests(one)


def test_a_set_of_another_encoder_is_refused_before_anything_starts(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    """Both have latents of the same shape, so that nothing but the digests can tell them apart."""
    one, other = copied("one"), copied("other")
    file = weights(other, "vae")
    safetensors.torch.save_file({n: t * 0.9 for n, t in safetensors.torch.load_file(file).items()}, file)
    identity = {
        "model": str(one),
        "encoders": digests(one),
        "latent_shape": [4, 8, 8],
        "members": 2,
        "steps": None,
        "sampler": None,
        "source": {"kind": "test"},
    }
    preference_set.claim(tmp_path / "set", identity, ["test"])
    rankings = Preferences(latents_RMK=torch.zeros(1, 2, 1, 4, 8, 8), prompts_R=("one red circle",))
    write_block(tmp_path / "set", 0, rankings, rows_R=[0], texts={}, read=1)
    preference_set.summarise(tmp_path / "set")
    run = load("scenes-diffusion-dpo", {"model.path": str(one), "preferences": f"{{source: {tmp_path / 'set'}}}"})
    launch.preflight(run)
    with pytest.raises(UserError, match=rf"{one} encoded them, with another vae: .*set model.path={one}"):
        launch.preflight(run.model_copy(update={"model": Model(path=str(other))}))
