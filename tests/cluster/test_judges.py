"""Rewards in processes of their own: the same numbers as without, whatever happens to them, and drawing goes on meanwhile."""

from __future__ import annotations

import importlib
import json
import os
import signal
import site
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from accelerate import Accelerator

from raysuite.cluster import launch, session
from raysuite.cluster.actors import RayCollector
from raysuite.cluster.judges import blocks_at_once
from raysuite.config import Cluster, Judge, RunConfig, load
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.stages.collect import LocalCollector
from raysuite.stages.prompts import load_prompts, training_blocks
from raysuite.types import Rollouts
from tests.cluster.test_chaos import SETTINGS, check_equal, plan, when
from tests.processes import called, until
from tests.stages.worker import train_alone

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.filterwarnings("ignore")]

JUDGED = {**SETTINGS, "cluster.judges": "{'tests.cluster.rewards:disturbed': {actors: 2, cpus: 0.5}}"}


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("chaos")
    os.environ["CHAOS"] = str(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(thin(tmp_path_factory.mktemp("thin"))))
        session.connect()
    yield directory
    ray.shutdown()
    del os.environ["CHAOS"]


def thin(directory: Path) -> Path:
    """Python with all that is installed here, in an environment of a few files: Ray copies the one that it runs in before it adds
    packages, and gigabytes take minutes.
    """
    venv.create(directory, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(directory)}))
    lines = [f"import site; site.addsitedir({found!r})" for found in site.getsitepackages()]
    (packages / "installed.pth").write_text("\n".join(lines))
    return directory / "bin" / "python"


def wheel(directory: Path, name: str, code: str) -> Path:
    """A package of one module."""
    about = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": code,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{file},,\n" for file in (*files, f"{about}/RECORD"))
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as packed:
        for file, text in files.items():
            packed.writestr(file, text)
    return Path(str(packed.filename))


def judged(reward: str, **settings: str) -> RunConfig:
    name = f"tests.cluster.rewards:{reward}"
    entry = f"{{name: '{name}', seconds: {settings.pop('seconds', '60')}, retries: 1}}"
    judges = f"{{'{name}': {{actors: {settings.pop('judges', '1')}, cpus: 0.25}}}}"
    return load("toy-ddpo", {**SETTINGS, "rewards": f"[{entry}]", "cluster.judges": judges, **settings})


def drawn(config: RunConfig) -> dict[int, Rollouts]:
    """An update's rollouts by Ray, which are those of one process bit for bit."""
    policy = open_policy(config, torch.device("cpu"))
    blocks = training_blocks(config, load_prompts(config.prompts), update=0)
    with session.running_actors(config) as (actors, judges):
        options = {"actors": actors, "judges": judges}
        with launch._collecting(config, policy, Accelerator(cpu=True), options, lambda: None) as collector:
            found = {r.block.index: r for r in collector.start(blocks, policy.weights(), 0)}
    assert found.keys() == {block.index for block in blocks}
    return found


@pytest.mark.slow
def test_judges_that_are_killed_raise_and_hang_change_no_number_and_nor_does_a_stop(
    chaos: Path, tmp_path: Path
) -> None:
    plain, run = tmp_path / "plain", tmp_path / "run"
    plan(chaos)
    train_alone(load("toy-ddpo", SETTINGS), plain)
    plan(chaos, "6-kill", "9-raise", "12-hang", "16-wait")
    config = load("toy-ddpo", JUDGED)
    launch.claim(config, run, ["test"])
    thread = when(chaos, "16-wait", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(launch.Stopped, match="stopped by SIGINT after"):
        launch.train(config, run)
    thread.join()
    assert not list(chaos.glob("[0-9]*"))  # all of it struck
    until(lambda: not called("JudgeActor"), "the end of all judges")
    plan(chaos)
    launch.claim(config, run, ["test"])
    launch.train(config, run)
    redone = check_equal(run, plain)
    assert redone["images_scored"] > redone["images_decoded"]  # judges that were lost drew nothing in vain
    assert json.loads((run / "ledger.json").read_text())["scoring"]["seconds"] > 6  # one question hung for so long


@pytest.mark.slow
@pytest.mark.parametrize("actors", ["1", "0"])
def test_drawing_goes_on_while_judges_score(actors: str, chaos: Path) -> None:
    """Each judge waits until both have been asked: the second block was drawn before the first was scored. In the drawing process
    itself, be it an actor or a learner, one is scored after the other.
    """
    plan(chaos)
    together = drawn(judged("together", judges="2", **{"cluster.actors": actors}))
    assert len(list(chaos.glob("asked-*"))) == 2 and len(together) == 2


@pytest.mark.slow
def test_a_judge_that_always_hangs_raises_or_ends_is_named(chaos: Path) -> None:
    plan(chaos)
    with pytest.raises(
        UserError, match=r"hangs_on_left to answer within 1 seconds, it did not; the prompts were 'left'"
    ):
        drawn(judged("hangs_on_left", seconds="1"))
    with pytest.raises(
        UserError,
        match=r"fails_on_right raised RuntimeError: out of paint \(rewards.py, line \d+\); the prompts were .*right",
    ):
        drawn(judged("fails_on_right"))
    with pytest.raises(
        UserError,
        match=r"^the reward .*NoPaint could not be made, it raised RuntimeError: out of paint \(rewards.py, line \d+\)$",
    ):
        drawn(judged("NoPaint"))
    with pytest.raises(UserError, match=r"expected a judge of tests.cluster.rewards:ends to go on, its process ended"):
        drawn(judged("ends"))


def test_a_reward_that_spoils_the_process_changes_no_picture(chaos: Path) -> None:
    """It sets torch's default type, threads and seed while the next block is drawn."""
    plan(chaos)
    config = load(
        "toy-ddpo", {**SETTINGS, "rewards": "[{name: 'tests.cluster.rewards:spoils'}]", "rollouts.prompts": "2"}
    )
    policy = open_policy(config, torch.device("cpu"))
    blocks = training_blocks(config, load_prompts(config.prompts), update=0)
    blocks += training_blocks(config, load_prompts(config.prompts), update=1)
    clean = config.model_copy(update={"rewards": load("toy-ddpo", {}).rewards})
    expected = list(LocalCollector(policy, clean).start(blocks, policy.weights(), 0))
    with session.running_actors(config) as (actors, _):
        found = {(r.block.update, r.block.index): r for r in RayCollector(actors).start(blocks, policy.weights(), 0)}
    for want in expected:
        got = found[want.block.update, want.block.index]
        assert got.latents_NK.dtype == np.float32
        assert np.array_equal(got.latents_NK, want.latents_NK) and np.array_equal(got.logp_NK, want.logp_NK)


@pytest.mark.slow
def test_a_judge_has_packages_that_nobody_else_has(chaos: Path, tmp_path: Path) -> None:
    plan(chaos)
    code = "import numpy as np\n\ndef red(images, prompts, metadata):\n    return images[..., 0].astype(float).mean((1, 2))\n"
    package = wheel(tmp_path, "reds_of_a_judge", code)

    def settings(*packages: Path) -> dict[str, str]:
        name = "reds_of_a_judge:red"
        judges = {name: {"cpus": 0.25, "pip": [str(of) for of in packages]}}
        return {**SETTINGS, "rewards": json.dumps([{"name": name}]), "cluster.judges": json.dumps(judges)}

    found = drawn(load("toy-ddpo", settings(package)))
    with pytest.raises(ImportError):
        importlib.import_module("reds_of_a_judge")
    plain = load("toy-ddpo", SETTINGS)
    policy = open_policy(plain, torch.device("cpu"))
    blocks = training_blocks(plain, load_prompts(plain.prompts), update=0)
    for expected in LocalCollector(policy, plain).start(blocks, policy.weights(), 0):
        assert np.array_equal(found[expected.block.index].reward_N, expected.reward_N)
    with pytest.raises(UserError, match=r"expected the environment of cluster.judges.reds_of_a_judge:red, Ray could"):
        drawn(load("toy-ddpo", settings(tmp_path / "missing-1.0-py3-none-any.whl")))


def test_an_environment_is_what_ray_is_told() -> None:
    assert Judge().environment is None
    assert Judge(pip=("hpsv2==1.2",)).environment == {"pip": ["hpsv2==1.2"]}
    assert Judge(conda="scores").environment == {"conda": "scores"}
    with pytest.raises(UserError, match="expected pip or conda for a judge, got both"):
        load("toy-ddpo", {"cluster.judges": "{redness: {pip: [a], conda: b}}"})
    with pytest.raises(UserError, match=r"expected cluster.judges of the run's rewards \(redness\), got rednes"):
        load("toy-ddpo", {"cluster.judges": "{rednes: {}}"})


def test_room_is_counted_with_the_judges() -> None:
    cluster = Cluster(actors=2, judges={"a": {"actors": 3, "gpus": 0.25, "cpus": 2}, "b": {}})
    assert (cluster.wanted("cpus", workers=1), cluster.wanted("gpus", workers=1)) == (1 + 2 + 6 + 1, 0.75)
    colocated = Cluster(worker_gpus=0.6, actors=2, actor_gpus=0.6)
    assert colocated.wanted("gpus", workers=1) == 3  # not 1.8: a GPU has room for one of them
    assert Cluster(worker_gpus=0.6, actors=8, actor_gpus=0.4).wanted("gpus", workers=8) == 8
    assert blocks_at_once(cluster) == 4 and blocks_at_once(Cluster(actors=2)) == 2
    assert blocks_at_once(cluster.model_copy(update={"actors": 0})) == 6
