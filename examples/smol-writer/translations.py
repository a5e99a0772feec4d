"""What users of the bundled world mean, as pairs that teach a writer: `python translations.py --writer smollm2 --out told.jsonl`.

Seen phrasings of training combinations alone, equally many of each phrasing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from raysuite.worlds.scenes.phrasings import SEEN, UserPrompt, user_prompts
from raysuite.writer.model import open_writer


def chosen(prompts: int, seed: int = 0) -> list[UserPrompt]:
    """So many training prompts, phrasing by phrasing."""
    rng, found = np.random.default_rng(seed), []
    for phrasing in SEEN:
        of_it = [prompt for prompt in user_prompts(held_out=False) if prompt.phrasing == phrasing]
        found += [of_it[place] for place in rng.choice(len(of_it), prompts // len(SEEN), replace=False)]
    return found


def main() -> None:
    """Write the pairs; what is preferred is all that `--loss sft` reads."""
    ask = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    ask.add_argument("--writer", default="smollm2", help="whom they are for: prompts are in its chat template")
    ask.add_argument("--prompts", type=int, default=200)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--out", type=Path, default=Path("told.jsonl"))
    given = ask.parse_args()
    writer = open_writer(given.writer)
    rows = (
        {
            "prompt": writer.asked(prompt.text),
            "chosen": writer.completion(prompt.scene.prompt),
            "rejected": writer.completion(""),
        }
        for prompt in chosen(given.prompts, given.seed)
    )
    given.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
