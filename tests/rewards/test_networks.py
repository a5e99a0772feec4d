"""Rewards that are networks, on tiny random ones: equal to what their papers' code computes, written down independently."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoTokenizer, CLIPProcessor

from raysuite.errors import UserError
from raysuite.rewards.aesthetic import Aesthetic
from raysuite.rewards.clip import ClipScore
from raysuite.rewards.convert import convert
from raysuite.rewards.hps import HpsV2
from raysuite.rewards.image_reward import ImageReward
from raysuite.rewards.network import Frame, NetworkReward
from raysuite.rewards.pickscore import PickScore
from tests.rewards import networks

PROMPTS = ("three red circles", "a red circle left of a blue square", "one blue square")
SIZES = ((32, 32), (64, 64), (48, 80), (20, 20))
"""Heights and widths: as the network takes them, twice that, not square, and too small."""


def pictures(height: int, width: int, count: int = 3) -> np.ndarray:
    """Smooth colours with some noise, uint8 (count, height, width, 3)."""
    rng = np.random.default_rng(height * width)
    coarse = torch.from_numpy(rng.random((count, 3, 4, 4), dtype=np.float32))
    smooth = F.interpolate(coarse, (height, width), mode="bilinear").permute(0, 2, 3, 1).numpy()
    return ((0.9 * smooth + 0.1 * rng.random(smooth.shape)) * 255).astype(np.uint8)


def reads(name: str) -> str | None:
    """The tokenizer of a reward that reads prompts."""
    return None if name == "aesthetic" else str(networks.TOKENIZER)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NetworkReward]:
    """Every network reward, of directories that `convert` made where the weights are published as a file."""
    root = tmp_path_factory.mktemp("rewards")
    clip = networks.save_clip(root / "clip")
    words = len(AutoTokenizer.from_pretrained(networks.TOKENIZER))
    for name, state in (
        ("hps_v2", {"epoch": 3, "state_dict": networks.open_clip_state(words)}),
        ("image_reward", networks.image_reward_state(words + 2)),
        ("aesthetic", networks.aesthetic_state(12)),
    ):
        torch.save(state, root / f"{name}.pt")
        convert(name, root / f"{name}.pt", root / name, tokenizer=reads(name))
    return {
        "clip_score": ClipScore(str(clip)),
        "pickscore": PickScore(str(clip)),
        "aesthetic": Aesthetic(str(root / "aesthetic"), clip=str(clip)),
        "hps_v2": HpsV2(str(root / "hps_v2")),
        "image_reward": ImageReward(str(root / "image_reward")),
    }


NAMES = ("clip_score", "pickscore", "aesthetic", "hps_v2", "image_reward")


def scored(reward: NetworkReward, images: np.ndarray, prompts: tuple[str, ...] = PROMPTS) -> np.ndarray:
    return reward(images, prompts, [{}] * len(images))


@pytest.mark.parametrize("size", SIZES)
def test_clip_rewards_are_cosines_of_pictures_that_pil_framed(
    size: tuple[int, int], made: dict[str, NetworkReward]
) -> None:
    """The tower's outputs come from transformers; preprocessing, normalisation, scale and head are computed here."""
    images, pick = pictures(*size), made["pickscore"]
    assert isinstance(pick, PickScore)
    pixels = torch.stack([networks.framed(image, 32) for image in images])
    tokens = AutoTokenizer.from_pretrained(networks.TOKENIZER)(list(PROMPTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        answer = pick.clip(pixel_values=pixels, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    unit = [x / x.norm(dim=-1, keepdim=True) for x in (answer.image_embeds, answer.text_embeds)]
    cosines = (unit[0] * unit[1]).sum(-1).numpy()
    assert np.ptp(cosines) > 0.01  # they say something
    assert scored(made["clip_score"], images) == pytest.approx(100 * cosines, abs=1e-4)
    scale = float(load_file(Path(pick.model) / "model.safetensors")["logit_scale"].exp())
    assert scored(pick, images) == pytest.approx(scale * cosines, abs=1e-4)
    head, x = networks.aesthetic_state(12), unit[0]
    for index in (0, 2, 4, 6, 7):
        x = x @ head[f"layers.{index}.weight"].T + head[f"layers.{index}.bias"]
    assert scored(made["aesthetic"], images) == pytest.approx(x[:, 0].numpy(), abs=1e-5)


def test_the_scale_of_pickscore_is_not_rounded(made: dict[str, NetworkReward]) -> None:
    """In bfloat16 its exponential would be 1 % off: 99 in place of 100."""
    pick = made["pickscore"]
    assert isinstance(pick, PickScore)
    images, narrow = pictures(*SIZES[0]), PickScore(pick.model, precision="bfloat16")
    with torch.no_grad():
        cosines = narrow.cosines(narrow.pixels(images), PROMPTS).numpy()
    scale = float(load_file(Path(pick.model) / "model.safetensors")["logit_scale"].exp())
    assert scored(narrow, images) == pytest.approx(scale * cosines, rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_hps_is_what_open_clip_computes(size: tuple[int, int], made: dict[str, NetworkReward]) -> None:
    images = pictures(*size)
    tokenizer = AutoTokenizer.from_pretrained(networks.TOKENIZER)
    state = networks.open_clip_state(len(tokenizer))
    scale = 32 / max(size)
    inner = (round(size[0] * scale), round(size[1] * scale))
    expected = []
    for image, prompt in zip(images, PROMPTS, strict=True):
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        if scale != 1:
            x = F.interpolate(x, inner, mode="bicubic", antialias=True)
        square = torch.zeros(1, 3, 32, 32)  # black, and then normalised with the rest
        top, left = (32 - inner[0]) // 2, (32 - inner[1]) // 2
        square[:, :, top : top + inner[0], left : left + inner[1]] = x
        pixels = (square[0] - torch.tensor(networks.MEAN).view(3, 1, 1)) / torch.tensor(networks.STD).view(3, 1, 1)
        expected.append(networks.open_clip_cosine(state, pixels, tokenizer(prompt).input_ids))
    assert np.ptp(expected) > 0.01
    assert scored(made["hps_v2"], images) == pytest.approx(expected, abs=1e-5)


def test_hps_reads_prompts_as_open_clip_mends_them(made: dict[str, NetworkReward]) -> None:
    images = pictures(*SIZES[0])[:1]
    curly, straight = "the cat\u2019s \u201ctwo\u201d hats &amp;amp; a dog", 'the cat\'s "two" hats & a dog'
    assert scored(made["hps_v2"], images, (curly,)) == scored(made["hps_v2"], images, (straight,))
    assert scored(made["clip_score"], images, (curly,)) != scored(made["clip_score"], images, (straight,))


@pytest.mark.parametrize("size", SIZES)
def test_image_reward_is_what_its_package_computes(size: tuple[int, int], made: dict[str, NetworkReward]) -> None:
    images, tokenizer = pictures(*size), AutoTokenizer.from_pretrained(networks.TOKENIZER)
    state = networks.image_reward_state(len(tokenizer) + 2)
    expected = []
    for image, prompt in zip(images, PROMPTS, strict=True):
        tokens = tokenizer(prompt, padding="max_length", truncation=True, max_length=35)
        expected.append(
            networks.image_reward_score(state, networks.framed(image, 32), tokens.input_ids, tokens.attention_mask)
        )
    assert np.ptp(expected) > 0.01
    assert scored(made["image_reward"], images) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_do_not_see_each_other(name: str, made: dict[str, NetworkReward]) -> None:
    images, reward = pictures(40, 40), made[name]
    apart = [scored(reward, images[i : i + 1], PROMPTS[i : i + 1])[0] for i in range(3)]
    assert scored(reward, images) == pytest.approx(apart, abs=1e-4)
    reward.batch = 2
    assert scored(reward, images) == pytest.approx(apart, abs=1e-4)
    reward.batch = 32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 32), (48, 80)])
def test_gradients_to_pixels_are_those_of_the_scores(
    name: str, size: tuple[int, int], made: dict[str, NetworkReward]
) -> None:
    """Central differences along a smooth direction; and the scores are nearly those of rounded pictures."""
    reward, images = made[name], pictures(*size)
    x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 * 0.8 + 0.1).requires_grad_(True)
    scores = reward.differentiable(x, PROMPTS)
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    direction = F.interpolate(
        torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)), size, mode="bilinear"
    )
    step = 3e-3
    with torch.no_grad():
        apart = reward.differentiable(x + step * direction, PROMPTS) - reward.differentiable(
            x - step * direction, PROMPTS
        )
    slopes = (gradient * direction).flatten(1).sum(1)
    assert slopes.abs().max() > 1e-3
    assert (apart / (2 * step)).numpy() == pytest.approx(slopes.numpy(), rel=0.05, abs=0.02 * float(slopes.abs().max()))
    with torch.no_grad():
        smooth = reward.differentiable(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, PROMPTS).numpy()
    rounded = scored(reward, images)
    assert smooth == pytest.approx(rounded, abs=0.05 * max(1.0, float(np.abs(rounded).max())))


def test_small_pictures_grow_with_gradients_as_they_do_without(made: dict[str, NetworkReward]) -> None:
    """PIL's bicubic kernel, which torch has only where it also smooths: its other one was 5 % of a grey level's range off."""
    frame, images = Frame(made["clip_score"].model, ""), pictures(9, 9)
    smooth = frame.resized(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    levels = 255 * (smooth - frame.pixels(images)).abs() * torch.tensor(networks.STD).view(3, 1, 1)
    assert levels.mean() < 0.5


@pytest.mark.parametrize("size", [(32, 67), (67, 32), (48, 80)])
def test_a_crop_begins_at_the_nearest_pixel_where_its_paper_s_code_does(
    size: tuple[int, int], made: dict[str, NetworkReward]
) -> None:
    """torchvision's place of the crop of 35 pixels that are too many is 18, transformers' 17; of an even number they are one."""
    images, frame = pictures(*size), Frame(made["clip_score"].model, "", nearest=True)
    expected = torch.stack([networks.framed(image, 32, nearest=True) for image in images])
    assert torch.allclose(frame.pixels(images), expected, atol=1e-6)
    other = torch.allclose(Frame(made["clip_score"].model, "").pixels(images), expected, atol=1e-6)
    assert other == (size == (48, 80))


def test_a_directory_that_its_processor_was_saved_to_is_read(tmp_path: Path, made: dict[str, NetworkReward]) -> None:
    """As the installed transformers saves it, which is not as the hub has it."""
    old, new = Path(made["clip_score"].model), tmp_path / "clip"
    shutil.copytree(old, new)
    (new / "preprocessor_config.json").unlink()
    CLIPProcessor(
        AutoImageProcessor.from_pretrained(old, backend="pil"), AutoTokenizer.from_pretrained(old)
    ).save_pretrained(new)
    assert not (new / "preprocessor_config.json").exists()
    ClipScore.check(str(new))
    assert scored(ClipScore(str(new)), images := pictures(48, 80)) == pytest.approx(scored(made["clip_score"], images))
    (new / "processor_config.json").unlink()
    with pytest.raises(UserError, match=r"found no preprocessor_config\.json"):
        ClipScore.check(str(new))


def test_a_prompt_that_is_too_long_is_cut_off(made: dict[str, NetworkReward]) -> None:
    long = ("a red circle left of " * 40,) * 3
    for name in NAMES:
        assert np.isfinite(scored(made[name], pictures(32, 32), long)).all()


# what is said of wrong directories and files


def without_eyes(directory: Path) -> Path:
    """A CLIP of which the tower of pictures goes by another library's names, as in a half converted one."""
    file = networks.save_clip(directory) / "model.safetensors"
    renamed = {name.replace("vision_model.", "visual.trunk."): value for name, value in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize(
    ("make", "mentions"),
    [
        (lambda root: ClipScore(str(root / "nothing")), "expected a directory at"),
        (lambda root: PickScore(str(root)), "found no config.json"),
        (lambda root: Aesthetic(None), "raysuite rewards convert aesthetic"),
        (lambda root: HpsV2(None), "raysuite rewards convert hps_v2"),
        (lambda root: ImageReward(str(root)), "raysuite rewards convert image_reward"),
        (lambda root: ClipScore(str(networks.save_clip(root / "c")), precision="int8"), "precision of float32"),
        (lambda root: ClipScore(str(networks.save_clip(root / "c")), batch=0), "batch of at least 1"),
        (
            lambda root: ClipScore(str(without_eyes(root / "c"))),
            r"none for \d+ of its parameters, such as vision_model",
        ),
    ],
)
def test_a_model_that_is_not_there_is_told(make: Callable[[Path], Any], mentions: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=mentions):
        make(tmp_path)


@pytest.mark.parametrize("name", ["aesthetic", "hps_v2", "image_reward"])
def test_another_file_is_not_converted_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pt"
    wanted = {"weight": "expected the weights of", "list": "expected named weights in", "code": "more than weights"}
    contents: dict[str, Any] = {"weight": {"weight": torch.zeros(3)}, "list": [1, 2], "code": {"f": print}}
    for kind, content in contents.items():
        torch.save(content, wrong)
        with pytest.raises(UserError, match=wanted[kind]):
            convert(name, wrong, tmp_path / "out", tokenizer=reads(name))
        assert not (tmp_path / "out").exists()
    wrong.write_bytes(b"not a file of torch")
    with pytest.raises(UserError, match=r"expected weights that torch saved in .*wrong\.pt"):
        convert(name, wrong, tmp_path / "out")
    with pytest.raises(UserError, match=r"could not read it \(No such file"):
        convert(name, tmp_path / "missing.pt", tmp_path / "out")


def test_a_file_that_lacks_weights_is_not_converted_and_leaves_nothing(tmp_path: Path) -> None:
    words = len(AutoTokenizer.from_pretrained(networks.TOKENIZER))
    for name, state, lacking in (
        ("hps_v2", networks.open_clip_state(words), "visual.proj"),
        ("image_reward", networks.image_reward_state(words + 2), "blip.visual_encoder.patch_embed.proj.weight"),
    ):
        torch.save({key: value for key, value in state.items() if key != lacking}, tmp_path / "file.pt")
        with pytest.raises(UserError, match=f"expected the weights '{lacking}' in .*file.pt"):
            convert(name, tmp_path / "file.pt", tmp_path / "out", tokenizer=reads(name))
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    torch.save(networks.open_clip_state(len(AutoTokenizer.from_pretrained(networks.TOKENIZER))), tmp_path / "file.pt")
    monkeypatch.setattr("raysuite.rewards.convert.save_file", full)
    with pytest.raises(OSError, match="No space"):
        convert("hps_v2", tmp_path / "file.pt", tmp_path / "out", tokenizer=str(networks.TOKENIZER))
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


def test_convert_says_what_it_converts(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="expected one of aesthetic, hps_v2, hps_v3, image_reward to convert, got 'pickscore'"
    ):
        convert("pickscore", tmp_path, tmp_path / "out")
    torch.save(networks.aesthetic_state(12), tmp_path / "head.pth")
    with pytest.raises(UserError, match="expected nothing at"):
        convert("aesthetic", tmp_path / "head.pth", tmp_path)


def test_a_head_of_another_clip_is_refused(tmp_path: Path) -> None:
    torch.save(networks.aesthetic_state(768), tmp_path / "head.pth")
    convert("aesthetic", tmp_path / "head.pth", tmp_path / "head")
    with pytest.raises(UserError, match="expected a head for embeddings of 12 numbers"):
        Aesthetic(str(tmp_path / "head"), clip=str(networks.save_clip(tmp_path / "clip")))
