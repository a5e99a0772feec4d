"""The GPU benchmark: networks of the released sizes, and a script that works, tried on CPUs with tiny ones."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

from jobs import bench_gpu
from jobs.gpu_models import MODELS, write

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
PARAMETERS = {"SD 1.5": 859_520_964, "SD3.5-M": 2_243_171_520, "SDXL": 2_567_463_684, "FLUX.1-dev": 11_901_408_320}


@pytest.mark.parametrize("name", MODELS)
def test_networks_have_the_released_sizes(name: str) -> None:
    cls, config = MODELS[name].network
    with torch.device("meta"):
        network, vae = getattr(diffusers, cls)(**config), diffusers.AutoencoderKL(**MODELS[name].vae)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]
    assert 83_000_000 < sum(p.numel() for p in vae.parameters()) < 84_000_000


@pytest.mark.parametrize("name", MODELS)
def test_directories_are_of_configurations_and_small_encoders(name: str, tmp_path: Path) -> None:
    write(MODELS[name], tmp_path / "model", tiny=True)
    config = bench_gpu.run_of(MODELS[name], tmp_path / "model", bench_gpu.DRY, gpu=False)
    learner, _ = bench_gpu.plan(config).processes
    assert learner.device["activations"] > 0
    found = bench_gpu.ways(MODELS[name], checkpointing=config.parameters.checkpointing)
    assert len({way.name for way in found}) == len(found) >= 4
    for way in found:
        bench_gpu.run_of(MODELS[name], tmp_path / "model", {**bench_gpu.DRY, **way.settings}, gpu=True)


@pytest.mark.slow
def test_a_row_is_measured() -> None:
    rows = bench_gpu.rows_of(["SD 1.5"], torch.device("cpu"), dry=True, seconds=1e9)
    row = next(rows)
    assert isinstance(row, bench_gpu.Row)
    assert row.way == "bfloat16" and min(row.rollout, row.plain, row.update, row.loop, row.first) > 0
    assert row.outside is not None and row.outside >= 0
    assert (row.memory, row.rollout_share) == (None, None)  # CPUs do not say
    learning = 1 / row.loop - 1 / row.rollout  # seconds a picture, of which an update has several
    assert 0 < learning < row.update
    assert len(bench_gpu.line(row)) == len(bench_gpu.HEAD.splitlines()[1])
    rows.close()


def test_what_there_is_no_time_for_is_named() -> None:
    said = list(bench_gpu.rows_of(["SDXL"], torch.device("cpu"), dry=True, seconds=-1.0))
    assert said and all("no time left" in str(line) for line in said)
