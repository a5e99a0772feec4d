"""A run that begins from a LoRA file: it is trained on, and the reference has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import HfHubHTTPError
from peft import LoraConfig, get_peft_model_state_dict

from raysuite.errors import UserError
from raysuite.families.loading import check_start
from raysuite.families.pipeline import PipelinePolicy
from tests.families.test_pipelines import PROMPTS, latents, plain_pipeline, plainly, rows

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

Opener = Callable[..., PipelinePolicy]


@pytest.mark.parametrize("pipeline", ["sdxl", "sd3"])
@pytest.mark.parametrize("kind", ["lora", "all"])
def test_start(pipeline: str, kind: str, open_tiny: Opener, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Of rank 3 and alpha 6 on two kinds of layers, whatever the run's defaults are."""
    first = open_tiny(pipeline, parameters={"rank": 3, "alpha": 6.0, "targets": ["to_q", "to_out.0"]})
    stirred = np.random.default_rng(0).standard_normal(first.weights().shape).astype(np.float32)
    first.set_weights(first.weights() + 0.2 * stirred)
    first.save(tmp_path / "first", first.weights())
    file = tmp_path / "first" / "pytorch_lora_weights.safetensors"
    policy = open_tiny(pipeline, parameters={"kind": kind, "rank": 16, "start": str(file)})
    x, (t, prompts) = latents(policy), rows(policy, 2)
    with torch.no_grad():
        expected = first.predict(x, t, prompts)
        plain = first.predict(x, t, prompts, reference=True)
        came = policy.predict(x, t, prompts)
        torch.testing.assert_close(came, expected, rtol=1e-4, atol=1e-5)
        assert float((came - plain).abs().max()) > 1e-3
        draw = np.random.default_rng(1)
        before = policy.weights()
        policy.set_weights(before + 0.05 * draw.standard_normal(before.shape).astype(np.float32))
        assert float((policy.predict(x, t, prompts) - came).abs().max()) > 1e-3
        for of in ({"reference": True}, {"base": True}):
            torch.testing.assert_close(policy.predict(x, t, prompts, **of), came, rtol=1e-4, atol=1e-5)
        policy.set_reference(policy.weights())  # a reference that follows leaves the model as it came
        assert torch.equal(policy.predict(x, t, prompts, reference=True), policy.predict(x, t, prompts))
        torch.testing.assert_close(policy.predict(x, t, prompts, base=True), came, rtol=1e-4, atol=1e-5)
    if kind == "lora":
        assert before.shape == first.weights().shape  # the file's rank and layers
    policy.save(tmp_path / "trained", policy.weights())
    if kind == "lora":
        loaded = plain_pipeline(tiny(pipeline), pipeline)
        loaded.load_lora_weights(tmp_path / "trained")
    else:
        loaded = plain_pipeline(tmp_path / "trained", pipeline)
    trained = plainly(policy.pipeline, pipeline, PROMPTS[:1], steps=2)
    np.testing.assert_array_equal(plainly(loaded, pipeline, PROMPTS[:1], steps=2), trained)


def theirs(model: Path, pipeline: str, directory: Path, *, told: bool = True, **options: object) -> Path:
    """A LoRA of plain peft and diffusers, of rank 2 unless options say more; with what it is in its header, or not."""
    found, part = plain_pipeline(model, pipeline), "unet" if pipeline == "sdxl" else "transformer"
    said = {"r": 2, "lora_alpha": 2, "target_modules": ["to_out.0", "to_q"], **options}
    network = getattr(found, part)
    torch.manual_seed(0)
    network.add_adapter(LoraConfig(**said, init_lora_weights=False))
    header = {f"{part}_lora_adapter_metadata": said} if told else {}
    found.save_lora_weights(directory, **{f"{part}_lora_layers": get_peft_model_state_dict(network)}, **header)
    return directory / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True, "told": False},
        {"use_dora": True, "lora_alpha": 5},
        {"use_rslora": True},
        {"lora_bias": True},
        {"rank_pattern": {"to_q": 4}, "told": False},
    ],
    ids=str,
)
def test_loras_of_other_kinds_load_in_plain_diffusers_as_they_were_trained(
    options: dict[str, Any], open_tiny: Opener, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    file = theirs(tiny("sd3"), "sd3", tmp_path / "theirs", **options)
    policy = open_tiny("sd3", parameters={"start": str(file)})
    plain = plain_pipeline(tiny("sd3"), "sd3")
    plain.load_lora_weights(file.parent)
    came = plainly(plain, "sd3", PROMPTS[:1], steps=2)
    np.testing.assert_array_equal(plainly(policy.pipeline, "sd3", PROMPTS[:1], steps=2), came)
    before = policy.weights()
    stirred = np.random.default_rng(0).standard_normal(before.shape).astype(np.float32)
    policy.set_weights(before + 0.05 * stirred)
    policy.save(tmp_path / "trained", policy.weights())
    plain.unload_lora_weights()
    plain.load_lora_weights(tmp_path / "trained")
    trained = plainly(policy.pipeline, "sd3", PROMPTS[:1], steps=2)
    np.testing.assert_array_equal(plainly(plain, "sd3", PROMPTS[:1], steps=2), trained)
    assert np.abs(trained - came).max() > 1e-3
    policy.set_weights(before)
    policy.load(tmp_path / "trained")
    np.testing.assert_array_equal(policy.weights(), before + np.float32(0.05) * stirred)


def test_an_adapter_of_another_kind_is_refused_by_name(open_tiny: Opener, tmp_path: Path) -> None:
    factors = {"w1": torch.ones(4, 4), "w2": torch.ones(8, 8)}
    file = tmp_path / "lokr.safetensors"
    safetensors.torch.save_file(
        {f"transformer.layers.0.attention.to_q.lokr_{name}": factor for name, factor in factors.items()}, file
    )
    with pytest.raises(
        UserError, match=r"expected a LoRA at parameters\.start=.*, got LOKR, .*: fuse it into the model"
    ):
        open_tiny("z_image", parameters={"start": str(file)})


def test_no_lora_of_this_model(open_tiny: Opener, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    said = {
        "broken": r"expected a LoRA of this model at parameters\.start",
        "missing": r"expected a LoRA at parameters\.start=.*, there is nothing",
    }
    for file, sentence in said.items():
        with pytest.raises(UserError, match=sentence):
            open_tiny("sd3", parameters={"start": str(tmp_path / f"{file}.safetensors")})


def test_what_may_lie_on_a_hub_is_not_looked_for_here(tmp_path: Path) -> None:
    for name in ("owner/lora", "owner/lora-v1.5", str(tmp_path)):
        check_start(name)
    for name in ("lora", "loras/theirs.safetensors", "./theirs", str(tmp_path / "theirs"), "a/b/c"):
        with pytest.raises(UserError, match="there is nothing: name its file, or a hub's owner/name"):
            check_start(name)


def test_a_hub_that_is_not_reached(open_tiny: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    unreached = HfHubHTTPError.__bases__[0]("no such host")

    def load(*_: object, **__: object) -> None:
        raise unreached

    monkeypatch.setattr("diffusers.StableDiffusion3Pipeline.load_lora_weights", load)
    with pytest.raises(
        UserError, match=r"start=owner/lora, could not load it: no such host; check the id, or download it"
    ):
        open_tiny("sd3", parameters={"start": "owner/lora"})
