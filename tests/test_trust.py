"""What a file from somebody else can make this code do: nothing."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raysuite import rewards
from raysuite.config import RunConfig
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.rewards.convert import convert
from raysuite.stages import checkpoint
from raysuite.stages.stored import check_replay
from tests.stages.test_train import begin, toy

PACKAGE = Path(rewards.__file__).parents[1]
OF_TORCH = {"convert.py", "pretrain.py"}
"""Modules that read files of torch, for their weights and nothing else: published rewards, once, by somebody who asks for it, and
what a stopped pretraining of a bundled model left for itself."""
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def test_no_module_reads_pickles() -> None:
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            of_errors = isinstance(node, ast.ImportFrom) and [name.name for name in node.names] == ["UnpicklingError"]
            if {module.split(".")[0] for module in modules} & UNPICKLERS and not of_errors:
                found.append((file.name, node.lineno))
            reads = isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load")
            if reads and not (file.name in OF_TORCH and "weights_only=True" in map(ast.unparse, node.keywords)):
                found.append((file.name, node.lineno))
    assert found == []


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


def test_a_published_reward_is_read_for_its_weights_alone(tmp_path: Path) -> None:
    torch.save({"layers.0.weight": Bomb(tmp_path / "trace")}, tmp_path / "head.pth")
    with pytest.raises(UserError, match="got something else or more than weights"):
        convert("aesthetic", tmp_path / "head.pth", tmp_path / "out")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"])
def test_a_model_with_pickled_weights_is_refused_unread(
    pipelines: dict[str, Path], run_config: Callable[..., RunConfig], tmp_path: Path, part: str
) -> None:
    model, trace = shutil.copytree(pipelines["epsilon"], tmp_path / "model"), tmp_path / "trace"
    (model / f"{part}.safetensors").unlink()
    pickled = "diffusion_pytorch_model.bin" if "diffusion" in part else "pytorch_model.bin"
    torch.save(Bomb(trace), model / part.split("/")[0] / pickled)
    config = run_config("epsilon-all-3", model={"path": str(model)})
    with pytest.raises(UserError, match=r"expected safetensors weights in .*would have to be unpickled"):
        open_policy(config, torch.device("cpu"))
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()  # it would have gone off


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trace that a reward leaves when it is imported, by a name under which it would be found."""
    (tmp_path / "hostile_rewards.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('trace').touch()\ndef reward(images, prompts, metadata): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hostile_rewards", raising=False)
    return tmp_path / "trace"


HOSTILE = {"name": "hostile_rewards:reward", "weight": 1.0, "seconds": 1.0, "retries": 0}


def test_a_reward_that_only_a_run_directory_names_is_not_imported(hostile: Path, tmp_path: Path) -> None:
    config, run = toy(rollouts__keep="true", updates="1"), tmp_path / "run"
    begin(config, run).train()
    config_file, state_file = run / "config.json", run / "checkpoints" / "000001" / "state.json"
    state_as_it_was = state_file.read_bytes()
    for file in (config_file, state_file):
        tree = json.loads(file.read_text())
        file.write_text(json.dumps({**tree, "rewards": [HOSTILE]}))
    with pytest.raises(UserError, match="differs in rewards"):
        begin(config, run)
    with pytest.raises(UserError, match="drawn with another rewards"):
        check_replay(toy(updates="1", rollouts__replay=str(run)))
    with pytest.raises(UserError, match=r"state.json is missing or damaged"):
        checkpoint.read_state(state_file.parent)
    state_file.write_bytes(state_as_it_was)
    state = checkpoint.load(run / "checkpoints" / "000001", open_policy(config, torch.device("cpu")))
    assert state.updates == 1
    assert not hostile.exists()
    rewards.resolve(HOSTILE["name"])
    assert hostile.exists()  # it would have been found


def test_a_reward_beside_a_model_is_not_imported(
    hostile: Path, pipelines: dict[str, Path], run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    model = shutil.copytree(pipelines["epsilon"], tmp_path / "model")
    (model / "config.json").write_text(json.dumps({"rewards": [HOSTILE]}))
    shutil.copy(tmp_path / "hostile_rewards.py", model / "jpeg_rewards.py")
    open_policy(run_config("epsilon-all-3", model={"path": str(model)}), torch.device("cpu"))
    assert not hostile.exists() and not (model / "trace").exists()
