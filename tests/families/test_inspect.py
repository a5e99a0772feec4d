"""A model's directory that cannot be loaded is told of without loading it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from raysuite.config import Model
from raysuite.errors import UserError
from raysuite.families import check_model


def write(file: str, text: str) -> Callable[[Path], object]:
    return lambda model: (model / file).write_text(text)


def remove(pattern: str) -> Callable[[Path], object]:
    def act(model: Path) -> None:
        for found in model.glob(pattern):
            shutil.rmtree(found) if found.is_dir() else found.unlink()

    return act


def cut(file: str) -> Callable[[Path], object]:
    return lambda model: (model / file).write_bytes((model / file).read_bytes()[:-1])


def pickled(model: Path) -> None:
    (model / "unet" / "diffusion_pytorch_model.safetensors").rename(model / "unet" / "diffusion_pytorch_model.bin")


def scheduled(**changes: object) -> Callable[[Path], object]:
    def act(model: Path) -> None:
        file = model / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return act


def listed(model: Path) -> None:
    listing = {"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "second.safetensors"}}
    (model / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(listing))


def other_scheduler(model: Path) -> None:
    index = json.loads((model / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EDMEulerScheduler"]
    (model / "model_index.json").write_text(json.dumps(index))
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": "epsilon"}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (write("model_index.json", "[]"), "expected a diffusers pipeline .*names no _class_name"),
        (write("model_index.json", "{"), "expected a diffusers pipeline"),
        (remove("tokenizer"), "expected the tokenizer of the pipeline in .*/tokenizer, found nothing"),
        (remove("tokenizer/*"), "expected a vocabulary in .*/tokenizer, found none"),
        (remove("unet/config.json"), "expected settings in .*/unet/config.json, they are missing or damaged"),
        (write("vae/config.json", "[1]"), "expected an object in .*/vae/config.json, got list"),
        (write("text_encoder/config.json", "{"), "expected settings in .*/text_encoder/config.json"),
        (remove("text_encoder/*.safetensors"), "expected safetensors weights in .*/text_encoder, found none"),
        (pickled, "expected safetensors weights in .*/unet, found only diffusion_pytorch_model.bin, which would have"),
        (cut("vae/diffusion_pytorch_model.safetensors"), "expected whole weights in .*/vae/.*, it was cut short"),
        (write("unet/diffusion_pytorch_model.safetensors", "x" * 99), "expected whole weights in .*/unet/"),
        (listed, "expected second.safetensors in .*/unet, which .* names, found nothing"),
        (remove("scheduler/*"), "expected settings in .*/scheduler/scheduler_config.json"),
        (scheduled(prediction_type="sample"), "noise, v or a velocity, got prediction_type=sample .*/scheduler"),
        (scheduled(beta_schedule="none of ours"), "expected settings of DDIMScheduler in .*, it does not take them"),
        (other_scheduler, "expected a scheduler with alphas_cumprod, got EDMEulerScheduler"),
    ],
)
def test_what_cannot_be_loaded(
    damage: Callable[[Path], object], sentence: str, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(pipelines["epsilon"], model)
    assert check_model(Model(path=str(model))) == "StableDiffusionPipeline"
    damage(model)
    with pytest.raises(UserError, match=sentence):
        check_model(Model(path=str(model)))
