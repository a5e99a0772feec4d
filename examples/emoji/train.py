"""Train the scorer's two maps, and measure how often they find the caption of an icon whose like they never saw.

`python train.py` writes maps.safetensors, the captions learned.txt and held-out.txt, retrieval.json and retrieval.png to --out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import icons
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scorer import SIDE, Eyes, Words
from torch import Tensor, nn

from raysuite.kernel.stats import bootstrap_mean

WIDTH, STEPS, LEARNING_RATE, DECAY, DROPPED = 128, 400, 1e-3, 0.5, 0.3


def view(path: Path, generator: torch.Generator) -> np.ndarray:
    """An icon (SIDE, SIDE, 3): mirrored or not, smaller or not, on a pale colour."""
    ground = (200 + 55 * torch.rand(3, generator=generator)).to(torch.uint8).tolist()
    margin = int(torch.randint(0, SIDE // 4, (), generator=generator))
    picture = np.tile(np.array(ground, np.uint8), (SIDE, SIDE, 1))
    picture[margin : SIDE - margin, margin : SIDE - margin] = icons.draw(path, SIDE - 2 * margin, ground)
    return picture[:, ::-1] if torch.rand((), generator=generator) < 0.5 else picture


def learn(seen: Tensor, read: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Two linear maps by CLIP's loss.

    Args:
        seen: features (V, N, 1280) of V views of N icons.
        read: features (N, 384) of their captions.
        generator: of the first maps, the views that are drawn and the features that are dropped.
    """
    maps = {
        name: nn.Parameter(torch.randn(size, WIDTH, generator=generator) * size**-0.5)
        for name, size in (("image", seen.shape[-1]), ("text", read.shape[-1]))
    }
    scale = nn.Parameter(torch.tensor(2.0))
    optimiser = torch.optim.AdamW([*maps.values(), scale], lr=LEARNING_RATE, weight_decay=DECAY)
    right = torch.arange(len(read))
    for _ in range(STEPS):
        drawn = seen[torch.randint(len(seen), (len(read),), generator=generator), right]
        kept = [torch.rand(x.shape, generator=generator) > DROPPED for x in (drawn, read)]
        image = F.normalize((drawn * kept[0]) @ maps["image"], dim=-1)
        text = F.normalize((read * kept[1]) @ maps["text"], dim=-1)
        logits = scale.exp() * image @ text.T
        loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {name: value.detach() for name, value in maps.items()}


def scores(maps: dict[str, Tensor], seen: Tensor, read: Tensor) -> Tensor:
    """Cosines (pictures, captions)."""
    return F.normalize(seen @ maps["image"], dim=-1) @ F.normalize(read @ maps["text"], dim=-1).T


def figure(path: Path, pictures: Sequence[np.ndarray], names: Sequence[str], found: Tensor) -> None:
    """Twelve pictures, each with the three captions that score highest; the right one in bold."""
    drawn, axes = plt.subplots(3, 4, figsize=(10, 8.5))
    for index, (axis, picture) in enumerate(zip(axes.flat, pictures, strict=True)):
        axis.imshow(picture)
        axis.axis("off")
        for line, best in enumerate(found[index].topk(3).indices.tolist()):
            words = f"{found[index, best]:.2f} {names[best]}"
            weight = "bold" if best == index else "normal"
            axis.text(0.5, -0.06 - 0.1 * line, words, transform=axis.transAxes, ha="center", fontsize=8, weight=weight)
    drawn.suptitle("Icons that the maps never saw, and the captions that they find among all that they never saw")
    drawn.subplots_adjust(hspace=0.45)
    drawn.savefig(path, dpi=100)


def main() -> None:
    """Draw, train, measure, write."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--out", type=Path, default=Path("trained"), help="directory that is written")
    ask.add_argument("--icons", type=int, help="how many, at most")
    ask.add_argument("--views", type=int, default=4, help="of each icon to learn from")
    ask.add_argument("--held-out", type=int, default=200, help="icons that each seed sets aside")
    ask.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="the first one's maps are kept")
    given = ask.parse_args()
    began = time.monotonic()
    paths = dict(list(icons.names().items())[: given.icons])
    names = list(paths)
    eyes, words = Eyes(), Words()
    plain = np.stack([icons.draw(path, SIDE) for path in paths.values()])
    generator = torch.Generator().manual_seed(0)
    views = [np.stack([view(path, generator) for path in paths.values()]) for _ in range(given.views)]
    clean, *others = [eyes(pictures) for pictures in (plain, *views)]
    seen, read = torch.stack([clean, *others]), words([icons.caption(name) for name in names])
    given.out.mkdir(parents=True, exist_ok=True)
    hits: dict[str, list[np.ndarray]] = {"R@1": [], "R@5": []}
    icon: list[np.ndarray] = []
    for seed in given.seeds:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(names), generator=generator)
        aside, rest = order[: given.held_out], order[given.held_out :]
        maps = learn(seen[:, rest], read[rest], generator)
        found = scores(maps, clean[aside], read[aside])
        ranks = (found > found.diagonal()[:, None]).sum(1).numpy()
        for name, among in (("R@1", 1), ("R@5", 5)):
            hits[name].append((ranks < among).astype(float))
        icon.append(aside.numpy())
        if seed == given.seeds[0]:
            save_file(maps, given.out / "maps.safetensors")
            for file, of in (("learned.txt", rest), ("held-out.txt", aside)):
                captions = [f"{icons.caption(names[index])}\n" for index in of]
                (given.out / file).write_text("".join(captions), encoding="utf-8")
            figure(given.out / "retrieval.png", plain[aside[:12]], [names[index] for index in aside], found)
    result = {"icons": len(names), "held_out": given.held_out, "seeds": given.seeds, "chance": 1 / given.held_out}
    for name, each in hits.items():
        interval = bootstrap_mean(np.concatenate(each), np.concatenate(icon), np.random.default_rng(0))
        result[name] = {
            "mean": round(interval.estimate, 3),
            "low": round(interval.low, 3),
            "high": round(interval.high, 3),
            "of_seeds": [round(float(of.mean()), 3) for of in each],
        }
    result["seconds"] = round(time.monotonic() - began)
    (given.out / "retrieval.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
