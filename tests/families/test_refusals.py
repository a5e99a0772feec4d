"""What a pipeline cannot do, or would leave out without a word, is refused in a sentence before anything is drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from raysuite.config import Model, load
from raysuite.errors import UserError
from raysuite.families import check_model, open_model
from raysuite.families.driver import missing_seam
from raysuite.families.facts import FACTS
from raysuite.families.loading import load_pipeline
from raysuite.families.parameters import linear_layers
from raysuite.families.pipeline import PipelinePolicy
from raysuite.families.text import TextMemory
from tests.families.pipelines import BUILDERS

Opener = Callable[..., PipelinePolicy]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("sd3", {"model": {"size": 36}}, r"divisible by 8"),
        (
            "flux",
            {"model": {"size": [32, 36]}},
            r"model.size that FluxPipeline draws .* 32 x 36, of which it makes 32 x 32",
        ),
        ("hidream", {"model": {"size": 64}}, r"got 64 x 64, of which it makes 512 x 512"),
        ("flux2", {"sampler": {"guidance": 3}}, r"sampler.guidance=1 with Flux2Pipeline .* sampler.embedded_guidance"),
        ("sd3", {"sampler": {"embedded_guidance": 3}}, r"no sampler.embedded_guidance with StableDiffusion3Pipeline"),
        ("qwen_image", {"sampler": {"embedded_guidance": 3}}, r"no sampler.embedded_guidance with QwenImagePipeline"),
        ("flux2_klein", {"sampler": {"negative_prompt": "a"}}, r"no sampler.negative_prompt with Flux2KleinPipeline"),
        ("sd3", {"sampler": {"spacing": "leading"}}, r"no sampler.spacing with StableDiffusion3Pipeline"),
        ("sd3", {"model": {"arguments": {"skip_guidance_layers": [1]}}}, r"mean the same at every step"),
        ("sd3", {"model": {"arguments": {"max_sequence_lenght": 8}}}, r"did you mean max_sequence_length\?"),
        ("sd3", {"model": {"arguments": {"guidance_scale": 3}}}, r"no other setting decides"),
        ("chroma", {"parameters": {"checkpointing": True}}, r"checkpointing=false with ChromaPipeline: .* mask"),
        ("pixart", {"parameters": {"kind": "lora"}}, r"parameters.kind=all with PixArtSigmaPipeline"),
        (
            "sd3",
            {"parameters": {"targets": ["to_q", "to_queue"]}},
            r"layers of SD3Transformer2DModel .* got 'to_queue'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_settings(name: str, settings: dict[str, Any], sentence: str, open_tiny: Opener) -> None:
    with pytest.raises(UserError, match=sentence):
        open_tiny(name, **settings)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_size_that_would_be_cut(name: str, open_tiny: Opener) -> None:
    """No class draws pictures of 32 x 37 pixels; some would cut them without a word, and Krea 2 make them wider."""
    with pytest.raises(UserError, match=r"expected (settings|a model\.size) that"):
        open_tiny(name, model={"size": [32, 37]})


def changed(path: Path, target: Path, file: str, **values: Any) -> Path:
    """A copy of a pipeline with other values in one of its configurations."""
    shutil.copytree(path, target)
    found = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps({**found, **values}))
    return target


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_prediction_of_the_picture_itself(
    name: str, open_tiny: Opener, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    file = "scheduler/scheduler_config.json"
    path = changed(tiny(name), tmp_path / name, file, prediction_type="sample")
    with pytest.raises(UserError, match=r"noise, v or a velocity, got prediction_type=sample"):
        open_tiny(name, model={"path": str(path)})


@pytest.mark.parametrize("scheduler", ["DDIM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"])
def test_noise_that_is_predicted_where_there_is_no_signal(
    scheduler: str, open_tiny: Opener, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Some schedulers store 2^-24 where the signal is 0."""
    cls = getattr(diffusers, f"{scheduler}Scheduler")
    made = cls.from_config(cls().config, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    path = shutil.copytree(tiny("sdxl"), tmp_path / "sdxl")
    made.save_pretrained(path / "scheduler")
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", cls.__name__]}))
    with pytest.raises(UserError, match=r"zero terminal signal-to-noise ratio .* predict v"):
        open_tiny("sdxl", model={"path": str(path)})


def test_a_table_that_needs_another_spacing_does_not_keep_data_from_being_encoded(
    open_tiny: Opener, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """`raysuite encode` has no sampler whose spacing could be set."""
    file = "scheduler/scheduler_config.json"
    path = str(changed(tiny("sdxl"), tmp_path / "sdxl", file, timestep_spacing="linspace"))
    encoder = open_model(Model(path=path, size=32), torch.device("cpu"))
    assert encoder.encode(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, *encoder.latent_shape)
    assert encoder.text_states(["a photo of a red cat"])
    with pytest.raises(UserError, match=r"expected whole timesteps .*: set sampler.spacing"):
        open_tiny("sdxl", model={"path": path}, sampler={"steps": 6})


def test_a_class_without_a_seam(tmp_path: Path) -> None:
    for name, sentence in (
        ("StableDiffusionInpaintPipeline", "its call has mask_image, which pipelines have that begin from a picture"),
        ("ConsistencyModelPipeline", "it has no method encode_prompt"),
        ("NoSuchPipeline", "got NoSuchPipeline: it has none of that name"),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name, "unet": ["diffusers", "X"]}))
        with pytest.raises(UserError, match=sentence):
            check_model(Model(path=str(tmp_path)))


def test_a_licence_that_was_not_accepted_is_no_wrong_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub says of it comes in two lines, of which the second has the remedy."""

    def refused(path: str) -> None:
        raise OSError(
            f"{path} is not a local folder and is not a valid model identifier\nIf this is a private repository, log in"
        )

    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", refused)
    with pytest.raises(
        UserError, match=r"accept the model's licence .* `hf auth login` \(.*private repository, log in\)"
    ):
        check_model(Model(path="somebody/gated"))


def test_a_package_that_a_model_wants_is_named(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """FLUX.2-dev's processor wants torchvision."""

    def lacking(*_: object, **__: object) -> None:
        raise ImportError("PixtralProcessor requires the Torchvision library")

    monkeypatch.setattr(diffusers.Flux2Pipeline, "from_pretrained", lacking)
    with pytest.raises(UserError, match="could not load it: PixtralProcessor requires the Torchvision library"):
        load_pipeline(Model(path=str(tiny("flux2"))))


def test_two_networks(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    path = changed(
        tiny("wan"), tmp_path / "wan", "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"]
    )
    with pytest.raises(UserError, match=r"its transformer_2 is a second network"):
        check_model(Model(path=str(path)))


def test_every_promised_class_has_its_seams_and_a_tiny_pipeline(tiny: Callable[[str], Path]) -> None:
    assert {type(build()).__name__ for build in BUILDERS.values()} == set(FACTS)
    for name in FACTS:
        assert missing_seam(getattr(diffusers, name)) is None


def test_a_single_file_is_told_how_to_become_a_pipeline(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"got a file: write it as one with\n  python -c .*from_single_file\('.*model.safetensors'\)"
    ):
        check_model(Model(path=str(tmp_path / "model.safetensors")))


# what a target means


class Block(nn.Module):
    def __init__(self, *, single: bool) -> None:
        super().__init__()
        self.to_q = nn.Linear(2, 2)
        self.to_out = nn.Linear(2, 2) if single else nn.ModuleList([nn.Linear(2, 2), nn.Dropout(0.0)])


def test_targets_are_ends_of_names_of_layers() -> None:
    network = nn.ModuleDict({"two": Block(single=False), "one": Block(single=True)})
    assert linear_layers(network, ["to_q"]) == ["two.to_q", "one.to_q"]
    assert linear_layers(network, ["to_out"]) == ["one.to_out"]  # a list of layers is passed over
    assert linear_layers(network, ["to_out.0", "one.to_q"]) == ["two.to_out.0", "one.to_q"]
    with pytest.raises(UserError, match=r"got 'o_q'"):
        linear_layers(network, ["o_q"])
    with pytest.raises(UserError, match=r"did you mean to_out\?"):
        linear_layers(network, ["to_outt"])


RELEASED: dict[str, tuple[str, dict[str, Any], int, int]] = {
    # class, configuration where it is not the class's default, layers that get an adapter, its parameters at rank 16
    "FluxPipeline": ("FluxTransformer2DModel", {"guidance_embeds": True}, 19 * 4 + 38 * 3, 18_677_760),
    "ZImagePipeline": ("ZImageTransformer2DModel", {}, 34 * 4, 16_711_680),
    "StableDiffusion3Pipeline": (
        "SD3Transformer2DModel",
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536},
        24 * 4,
        4_718_592,
    ),
    "StableDiffusionXLPipeline": (
        "UNet2DConditionModel",
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        70 * 2 * 4,
        23_224_320,
    ),
}
"""Released networks, whose weights are never made: a target that reaches fewer blocks than it should shows in the count."""


@pytest.mark.parametrize("pipeline", RELEASED)
def test_default_targets_reach_every_block_of_released_networks(pipeline: str) -> None:
    cls, config, layers, parameters = RELEASED[pipeline]
    with torch.device("meta"):
        network = getattr(diffusers, cls)(**config)
    found = linear_layers(network, FACTS[pipeline].targets)
    assert len(found) == layers
    sizes = [network.get_submodule(name) for name in found]
    assert sum(16 * (layer.in_features + layer.out_features) for layer in sizes) == parameters


@pytest.mark.parametrize(("double", "single"), [(8, 48), (5, 20)])
def test_default_targets_reach_every_block_of_flux_2(double: int, single: int) -> None:
    """dev and klein-4B; the four names of attention alone would reach the double blocks only."""
    with torch.device("meta"):
        network = diffusers.Flux2Transformer2DModel(num_layers=double, num_single_layers=single)
    found = linear_layers(network, FACTS["Flux2Pipeline"].targets)
    assert len(found) == double * 4 + single * 2
    assert len(linear_layers(network, FACTS["FluxPipeline"].targets)) == double * 4


@pytest.mark.parametrize(
    ("recipe", "network", "double", "single", "each"),
    [
        ("sd35-medium-grpo", diffusers.SD3Transformer2DModel, 24, 0, 8),
        ("flux1-dev-grpo", diffusers.FluxTransformer2DModel, 19, 38, 12),
        ("qwen-image-grpo", diffusers.QwenImageTransformer2DModel, 60, 0, 8),
    ],
)
def test_recipes_train_both_streams_of_released_networks(
    recipe: str, network: Any, double: int, single: int, each: int
) -> None:
    """In double blocks as many layers as there are names, in single ones q, k and v; SD3's last block has no way out for the text."""
    with torch.device("meta"):
        made = network(
            **({"num_layers": double} if single == 0 else {"num_layers": double, "num_single_layers": single})
        )
    targets = load(recipe, {"prompts.training": "toy"}).parameters.targets
    assert targets is not None
    assert len(linear_layers(made, targets)) == double * each + single * 3 - (recipe == "sd35-medium-grpo")


# the memory of text


def test_memory_is_counted_in_bytes() -> None:
    """Three answers of 400 bytes in 1,000: the one that was not used for longest goes."""
    memory = TextMemory(budget=1000)
    for number, name in enumerate(("first", "second")):
        memory.put(name, (torch.full((50,), 2.0 * number), [torch.full((50,), 2.0 * number + 1)]))
    memory.get("first")
    memory.put("third", torch.full((100,), 9.0))
    assert memory.bytes == 800
    with pytest.raises(KeyError):
        memory.get("second")
    memory.get("first"), memory.get("third")


def test_answers_that_are_needed_at_once_are_kept_beyond_the_budget() -> None:
    """Those that an update learns from: three of 400 bytes in 1,000, and one that is asked for besides."""
    memory = TextMemory(budget=1000)
    memory.put("before", torch.zeros(50))
    memory.keep_together({name: torch.full((100,), float(number)) for number, name in enumerate("abc")})
    assert all(memory.get(name) is not None for name in "abc") and memory.bytes == 1200
    with pytest.raises(KeyError):
        memory.get("before")


def test_equal_tensors_are_kept_once() -> None:
    """Until the last answer that has one is forgotten; another type or shape is another tensor."""
    memory, shared = TextMemory(budget=1000), torch.arange(50.0)
    memory.put("first", (torch.zeros(50), shared.clone()))
    memory.put("second", (torch.ones(50), shared.clone()))
    assert memory.bytes == 600
    assert memory.get("first")[1] is memory.get("second")[1]
    memory.put("first", (torch.zeros(50).int(), torch.zeros(1, 50)))  # the same bytes, twice, and no longer the shared
    assert memory.bytes == 800
    memory.put("second", None)
    assert memory.bytes == 400


def test_answers_go_to_files_and_come_back(tmp_path: Path) -> None:
    answer = (torch.arange(6.0).view(1, 2, 3).bfloat16(), None, [torch.ones(2, dtype=torch.bool)])
    TextMemory(directory=tmp_path).put("what?", answer)
    found = TextMemory(directory=tmp_path).get("what?")
    assert torch.equal(found[0], answer[0]) and found[0].dtype == torch.bfloat16
    assert found[1] is None and isinstance(found[2], list) and torch.equal(found[2][0], answer[2][0])
    with pytest.raises(KeyError):
        TextMemory(directory=tmp_path).get("what else?")


# settings that contradict each other


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sampler.negative_prompt": "ugly"}, r"sampler.guidance above 1 with sampler.negative_prompt"),
        (
            {"parameters.kind": "lora", "parameters.start": "a", "parameters.rank": "4"},
            r"no parameters.rank, alpha or targets",
        ),
        ({"model.size": "[32, 32, 32]"}, r"model.size"),
    ],
)
def test_configurations(settings: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load("scenes-ddpo", {"sampler.guidance": "1.0", **settings})
