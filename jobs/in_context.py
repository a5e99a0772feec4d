"""What do a model that reads and a model that draws add to each other? `python jobs/in_context.py --out DIR [--seeds 0 1 2]`.

The bundled model is trained by DDPO and by Diffusion-DPO on the descriptions of training cells, DIR/training-cells.txt, once with
every seed, at the recipes' budget. `raysuite in-context scenes` then asks what neither, either and both of that and of a small
language model that was trained on episodes are worth, on combinations that none of them has seen; its page is
DIR/table/report.html. The same command goes on with what is missing; docs/results-prompts.md has what was found.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from raysuite.in_context.scenes import ScenesWorld
from raysuite.places import replacing

RECIPES = {"ddpo": "scenes-ddpo", "diffusion-dpo": "scenes-diffusion-dpo"}
"""By what their runs are called."""
EVALUATION = ("evaluation.every=1000", "evaluation.prompts=8", "evaluation.final_samples=1")
"""Little, and only before and after: the runs are measured by what they draw of episodes."""
ALONE = "cluster.actors=0"
"""Each run is one process, which starts sooner and draws the same."""


def commands(out: Path, seeds: Sequence[int], episodes: int, options: Sequence[str]) -> list[list[str]]:
    """What is done, in order, each a command line after `raysuite`.

    Args:
        out: where all of it goes, with `training-cells.txt`.
        seeds: of the runs.
        episodes: of each task and number of shots.
        options: of the evaluation besides, such as `--nuisance`.
    """
    runs = {out / f"{name}-{seed}": (recipe, seed) for name, recipe in RECIPES.items() for seed in seeds}
    found = []
    for run, (recipe, seed) in runs.items():
        settings = (f"prompts.training={out / 'training-cells.txt'}", f"seed={seed}", ALONE, *EVALUATION)
        found.append(["train", recipe, "--out", str(run), *(word for one in settings for word in ("--set", one))])
    asked = ["in-context", "scenes", *map(str, runs), "--language", "--episodes", str(episodes)]
    return [*found, [*asked, *options, "--out", str(out / "table")]]


def main(arguments: Sequence[str] | None = None) -> None:
    """All of it, one command after the other; what follows -- are options of the evaluation."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("options", nargs="*", help="of `raysuite in-context scenes`, after --, such as --leave-out")
    given = parser.parse_args(arguments)
    out: Path = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "training-cells.txt") as temporary:
        world = ScenesWorld(nuisance="--nuisance" in given.options)
        temporary.write_text("\n".join(world.training) + "\n", encoding="utf-8")
    for command in commands(out, given.seeds, given.episodes, given.options):
        subprocess.run([sys.executable, "-m", "raysuite.cli", *command], check=True)


if __name__ == "__main__":
    main()
