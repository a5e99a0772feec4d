"""What users of the bundled world mean, as pairs that teach a writer: `python translations.py --writer smollm2 --out told.jsonl`.

Seen phrasings of training combinations alone, equally many of each phrasing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from raysuite.worlds.scenes.phrasings import SEEN, user_prompts
from raysuite.writer.model import open_writer

if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    ask.add_argument("--writer", default="smollm2", help="whom they are for: prompts are in its chat template")
    ask.add_argument("--prompts", type=int, default=200)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--out", type=Path, default=Path("told.jsonl"))
    given = ask.parse_args()
    writer, rng = open_writer(given.writer), np.random.default_rng(given.seed)
    known = user_prompts(held_out=False)
    rows = []
    for phrasing in SEEN:
        of_it = [prompt for prompt in known if prompt.phrasing == phrasing]
        for index in rng.choice(len(of_it), given.prompts // len(SEEN), replace=False):
            said = writer.completion(of_it[index].scene.prompt)
            rows.append({"prompt": writer.asked(of_it[index].text), "chosen": said, "rejected": writer.completion("")})
    given.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
