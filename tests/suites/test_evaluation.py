"""An evaluation on a suite, in one process: what is pinned, what is drawn, and what is refused before anything slow begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raysuite.cli.evaluation import evaluate_suite
from raysuite.cluster import suites
from raysuite.config import Reward, RunConfig
from raysuite.config.sections import Judge
from raysuite.errors import UserError
from raysuite.families import open_policy
from raysuite.rewards import score
from raysuite.stages import checkpoint, files
from raysuite.stages.collect import LocalCollector
from raysuite.stages.files import RunDirectory
from raysuite.suites import evaluation
from raysuite.suites.declared import SUITES, prompts_of
from raysuite.suites.protocol import Member, Protocol, content, declare, known
from raysuite.types import Cost, Rollouts
from tests.stages.worker import train_alone

PROMPTS = (
    "Prompt\tCategory\n"
    + "\n".join(f"{n} {kind}\t{kind}" for kind in ("red circles", "blue squares") for n in ("two", "three"))
    + "\nlife\tred circles\n"
)


@dataclass(frozen=True)
class Runs:
    """Two runs of one model, and what is asked of them unless told."""

    first: Path
    second: Path
    prompts: Path

    def declare(self, directory: Path, runs: Sequence[Path] | None = None, **options: Any) -> Protocol:
        asked: dict[str, Any] = {
            "rewards": ["redness", "jpeg_compressibility"],
            "settings": {"sampler.steps": "2"},
            "updates": None,
            "ema": False,
            "samples": 2,
            "seed": 0,
            "batch": 2,
            "all_images": False,
            **options,
        }
        suite = SUITES["partiprompts"]
        prompts = prompts_of(suite, str(self.prompts))
        asked_of = [self.first] if runs is None else runs
        return declare(suite, prompts, asked_of, file=directory / evaluation.PROMPTS, **asked)


@pytest.fixture(scope="module")
def runs(run_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    for name, changes in (("first", {}), ("second", {"sampler": {"steps": 3}, "learn": {"ema": 0.5}})):
        learn = {"learning_rate": 0.01, **changes.pop("learn", {})}
        evaluation = {"prompts": 1, "final_samples": 1, "kl": False}
        train_alone(run_config("epsilon-lora-1", evaluation=evaluation, learn=learn, **changes), root / name)
    (root / "PartiPrompts.tsv").write_text(PROMPTS)
    return Runs(root / "first", root / "second", root / "PartiPrompts.tsv")


def draw(protocol: Protocol, directory: Path, *, stop_after: int | None = None) -> None:
    """What `cluster.suites.evaluate` does, without Ray."""
    evaluation.claim(protocol, directory, ["test"])
    for member in protocol.members:
        policy = open_policy(member.config, torch.device("cpu"))
        collector, weights = LocalCollector(policy, member.config), policy.weights()
        if member.checkpoint is not None:
            state = checkpoint.load(member.checkpoint, policy)
            weights = state.ema if member.ema and state.ema is not None else policy.weights()
        blocks = evaluation.missing(protocol, directory, member)
        for done in collector.start(blocks[:stop_after], weights, 0):
            evaluation.write(protocol, directory, member, done)


def begin(protocol: Protocol, directory: Path) -> None:
    """A directory in which there is something to lose of every member."""
    evaluation.claim(protocol, directory, ["test"])
    for member in protocol.members:
        file = evaluation.of(directory, member) / "scores" / "00000.parquet"
        file.parent.mkdir()
        file.touch()


def scores(directory: Path, label: str) -> dict[tuple[int, int, str], float]:
    files = sorted((directory / "members" / label / "scores").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return {(row["prompt"], row["sample"], row["reward"]): row["value"] for row in rows}


def test_every_prompt_is_drawn_as_often_as_asked_and_scored(runs: Runs, tmp_path: Path) -> None:
    protocol = runs.declare(tmp_path / "e", all_images=True)
    assert [member.label for member in protocol.members] == ["base-epsilon", "first@1"]
    draw(protocol, tmp_path / "e")
    for label in ("base-epsilon", "first@1"):
        found = scores(tmp_path / "e", label)
        assert set(found) == {
            (p, s, r) for p in range(5) for s in range(2) for r in ("redness", "jpeg_compressibility")
        }
        picture = np.asarray(Image.open(tmp_path / "e" / "members" / label / "images" / "3-1.png"))
        assert found[3, 1, "redness"] == score("redness", picture[None], ["x"], [{}])[0]
    assert scores(tmp_path / "e", "first@1") != scores(tmp_path / "e", "base-epsilon")
    rows = [json.loads(line) for line in (tmp_path / "e" / "prompts.jsonl").read_text().splitlines()]
    assert rows[4] == {"prompt": "life", "category": "red circles", "metadata": {"Category": "red circles"}}


@pytest.mark.slow
def test_the_noise_of_a_picture_is_the_same_for_every_model_and_batch(runs: Runs, tmp_path: Path) -> None:
    """A second evaluation with other blocks, of a base alone, gives the pictures of the first, but for rounding."""
    draw(runs.declare(tmp_path / "twos"), tmp_path / "twos")
    draw(runs.declare(tmp_path / "threes", [runs.second], batch=3, samples=1), tmp_path / "threes")
    twos, threes = (scores(tmp_path / name, "base-epsilon") for name in ("twos", "threes"))
    assert threes == {key: pytest.approx(twos[key], abs=0.02) for key in threes}
    other = runs.declare(tmp_path / "other", seed=1, samples=1)
    draw(other, tmp_path / "other")
    assert scores(tmp_path / "other", "base-epsilon") != {k: v for k, v in twos.items() if k[1] == 0}


@pytest.mark.slow
def test_what_was_stopped_goes_on_and_gives_the_same_bytes(runs: Runs, tmp_path: Path) -> None:
    protocol = runs.declare(tmp_path / "whole", [runs.first, runs.second], ema=False)
    draw(protocol, tmp_path / "whole")
    stopped = runs.declare(tmp_path / "stopped", [runs.first, runs.second], ema=False)
    draw(stopped, tmp_path / "stopped", stop_after=2)
    assert [len(evaluation.missing(stopped, tmp_path / "stopped", member)) for member in stopped.members] == [4, 4, 4]
    draw(stopped, tmp_path / "stopped")
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.*"))
    assert len(files) == 3 + 3 * (1 + 6 + 5)
    for file in files:
        if file.name != "provenance.json":
            assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "stopped" / file).read_bytes(), file


def test_later_commands_may_add_models(runs: Runs, tmp_path: Path) -> None:
    draw(runs.declare(tmp_path / "e"), tmp_path / "e")
    protocol = runs.declare(tmp_path / "e", [runs.second], ema=True)
    assert protocol.members[-1].label == "second@1-ema"
    evaluation.claim(protocol, tmp_path / "e", ["test"])
    assert not evaluation.missing(protocol, tmp_path / "e", protocol.members[0])  # the base was drawn before
    assert len(evaluation.missing(protocol, tmp_path / "e", protocol.members[1])) == 6
    draw(protocol, tmp_path / "e")
    assert scores(tmp_path / "e", "second@1-ema") != scores(tmp_path / "e", "base-epsilon")


def test_who_is_compared_with_nobody_is_told_before_anything_is_drawn(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models of earlier commands may be named; here it is the second run."""

    def begins(protocol: Protocol) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(suites, "preflight", begins)
    evaluation.claim(runs.declare(tmp_path, [runs.second]), tmp_path, ["test"])
    protocol = runs.declare(tmp_path)
    with pytest.raises(UserError, match="expected --against one of base-epsilon, first@1, second@1, got third"):
        evaluate_suite(protocol, tmp_path, "third")
    with pytest.raises(KeyboardInterrupt):
        evaluate_suite(protocol, tmp_path, "second")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": 1}, r"differs in samples \(2 there, 1 here\)"),
        ({"seed": 3}, r"differs in seed \(0 there, 3 here\)"),
        ({"batch": 4}, r"differs in batch \(2 there, 4 here\)"),
        ({"all_images": True}, r'differs in images \("some" there, "all" here\)'),
        ({"settings": {"sampler.steps": "4"}}, r"differs in sampler.steps \(2 there, 4 here\)"),
        (
            {"settings": {"sampler.steps": "2", "sampler.noise.level": "0"}},
            r"sampler.noise.level \(1.0 there, 0.0 here\)",
        ),
        ({"settings": {"sampler.steps": "2", "sampler.guidance": "3"}}, r"sampler.guidance \(1.0 there, 3.0 here\)"),
        ({"rewards": ["redness"]}, r"rewards.jpeg_compressibility \({.*} there, null here\)"),
    ],
)
def test_a_directory_begun_with_another_protocol_is_refused(
    changes: dict[str, Any], said: str, runs: Runs, tmp_path: Path
) -> None:
    begin(runs.declare(tmp_path / "e"), tmp_path / "e")
    with pytest.raises(UserError, match=said):
        evaluation.claim(runs.declare(tmp_path / "e", **changes), tmp_path / "e", ["test"])


def test_other_prompts_and_other_weights_are_refused(runs: Runs, tmp_path: Path) -> None:
    begin(runs.declare(tmp_path / "e"), tmp_path / "e")
    (tmp_path / "p.tsv").write_text(PROMPTS + "a cat\tred circles\n")
    other = Runs(runs.first, runs.second, tmp_path / "p.tsv")
    with pytest.raises(UserError, match=r"differs in prompts.number .*; prompts.sha256"):
        evaluation.claim(other.declare(tmp_path / "e"), tmp_path / "e", ["test"])
    (tmp_path / "first").symlink_to(runs.second)  # the same name, and as many updates
    protocol = runs.declare(tmp_path / "e", [tmp_path / "first"])
    with pytest.raises(UserError, match="first@1 to hold this model, got one that differs in checkpoint"):
        evaluation.claim(protocol, tmp_path / "e", ["test"])


def test_what_decides_scores_beside_a_model_is_part_of_the_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of a reward of one's own, the packages that bring a reward's network, and the environment of its process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("raysuite.suites.protocol.content", files.content)  # which looks again
    written = tmp_path / "brightness.py"
    written.write_text("def bright(images, prompts, metadata):\n    return [1.0] * len(images)\n")
    before = known(Reward(name="brightness:bright"), None)
    written.write_text("def bright(images, prompts, metadata):\n    return [2.0] * len(images)\n")
    assert known(Reward(name="brightness:bright"), None) != before
    assert known(Reward(name="redness"), None) == {"model": None, "options": {}, "sha256": None}
    assert set(known(Reward(name="ocr"), None)["versions"]) == {"rapidocr", "onnxruntime"}
    judge = Judge(pip=("paint==1.0",))
    assert known(Reward(name="redness"), judge)["environment"] == {"pip": ["paint==1.0"]}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"settings": {"objective.beta": "3"}},
            "a setting of sampler, model.size, .* got objective.beta: an evaluation",
        ),
        ({"settings": {"model.path": "toy"}}, "got model.path: an evaluation"),
        ({"settings": {"sampler.step": "3"}}, "did you mean sampler.steps"),
        ({"settings": {"sampler.steps": "-1"}}, "sampler.steps"),
        ({"updates": 7}, "a checkpoint of .*first, which has 1, got 7"),
        ({"updates": 0}, "the model as it came is evaluated in any case"),
        ({"ema": True}, "the run has no learn.ema"),
        ({"rewards": ["3"]}, "a reward's name, or an entry such as"),
        ({"rewards": ["redness", "redness"]}, "every reward once"),
        ({"rewards": ["{name: redness, wieght: 2}"]}, "wieght"),
    ],
)
def test_what_makes_no_evaluation_is_refused(options: dict[str, Any], said: str, runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        runs.declare(tmp_path / "e", **options)


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        (["nothing"], r"expected a reward \(.*\) or package.module:function, got 'nothing'"),
        (["geneval"], "geneval"),
        (["soft_tifa"], "vqa_list"),
        (["hps_v2"], "hps_v2"),
        (["ocr"], "in double quotes|pip install"),
        (["scenes_strict"], "such as 'three red circles', got "),
    ],
)
def test_rewards_that_do_not_fit_the_prompts_are_refused(
    rewards: list[str], said: str, runs: Runs, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        suites.preflight(runs.declare(tmp_path / "e", rewards=rewards))


def test_models_that_are_no_runs_are_drawn_as_the_runs_are(runs: Runs, tmp_path: Path) -> None:
    """The pipeline that a run began with has its base's scores, with the LoRA of the run's checkpoint the run's."""
    path = RunDirectory(runs.first).config().model.path
    (lora,) = (checkpoint.by_updates(runs.first)[1] / "model").glob("*.safetensors")
    models = [path, f"{{path: {path}, lora: {lora}, name: published}}"]
    protocol = runs.declare(tmp_path / "e", models=models)
    assert [member.label for member in protocol.members] == ["base-epsilon", "first@1", "epsilon", "published"]
    assert [member.base for member in protocol.members] == ["base-epsilon", "base-epsilon", "epsilon", "published"]
    plain = runs.declare(tmp_path / "all", models=[f"{{path: {path}, kind: all}}"]).members[-1]
    assert plain.config.parameters.kind == "all"
    draw(protocol, tmp_path / "e")
    drawn = {member.label: scores(tmp_path / "e", member.label) for member in protocol.members}
    assert drawn["epsilon"] == drawn["base-epsilon"] != drawn["first@1"]
    assert drawn["published"] == {key: pytest.approx(value, abs=0.02) for key, value in drawn["first@1"].items()}
    alone = runs.declare(
        tmp_path / "alone", [], models=models, settings={"sampler.steps": "2", "sampler.guidance": "1"}
    )
    assert [member.label for member in alone.members] == ["epsilon", "published"]


@pytest.mark.parametrize(
    ("models", "settings", "said"),
    [
        (["{lora: x}"], {}, "expected a directory, a hub id or"),
        (["{path: scenes, loras: x}"], {}, "expected a directory, a hub id or"),
        (["{path: scenes, name: a/b}"], {}, "expected a name that a directory can have"),
        (["scenes", "scenes"], {}, "got scenes twice: .* or give a --model a name"),
        (["scenes"], {"sampler.steps": "2"}, "expected sampler.guidance where there is no RUN"),
    ],
)
def test_models_that_nobody_knows_how_to_draw_are_refused(
    models: list[str], settings: dict[str, str], said: str, runs: Runs, tmp_path: Path
) -> None:
    decided = settings or {"sampler.steps": "2", "sampler.guidance": "1"}
    with pytest.raises(UserError, match=said):
        runs.declare(tmp_path / "e", [], models=models, settings=decided)


@pytest.mark.parametrize(
    ("options", "said"), [({"updates": 3}, "RUN with --checkpoint"), ({"ema": True}, "RUN with --ema")]
)
def test_models_that_are_no_runs_have_no_checkpoints(
    options: dict[str, Any], said: str, runs: Runs, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"expected a {said}, got models alone"):
        runs.declare(tmp_path / "e", [], models=["scenes"], settings={"sampler.steps": "2"}, **options)


def test_the_last_checkpoint_is_meant_and_any_may_be(
    run_config: Callable[..., RunConfig], runs: Runs, tmp_path: Path
) -> None:
    evaluation = {"prompts": 1, "final_samples": 1, "kl": False}
    train_alone(
        run_config("epsilon-lora-1", updates=2, evaluation=evaluation, checkpoints={"every": 1}), tmp_path / "run"
    )
    for updates, label in ((None, "run@2"), (1, "run@1")):
        assert runs.declare(tmp_path / "e", [tmp_path / "run"], updates=updates).members[1].label == label


def test_without_rewards_a_suite_has_its_own_or_those_of_the_run(runs: Runs, tmp_path: Path) -> None:
    assert runs.declare(tmp_path / "e", rewards=[]).config.reward_names == ("pickscore", "clip_score")
    mine = prompts_of(SUITES["prompts"], str(runs.prompts))
    options: dict[str, Any] = {"updates": None, "ema": False, "samples": 1, "seed": 0, "batch": 2, "all_images": False}
    found = declare(SUITES["prompts"], mine, [runs.first], file=tmp_path / "p", rewards=[], settings={}, **options)
    assert found.config.reward_names == RunDirectory(runs.first).config().reward_names


def test_runs_that_would_be_drawn_otherwise_are_refused(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"second \(there\) and first \(here\) differ in sampler.steps \(3 there, 4 here\)"
    ):
        runs.declare(tmp_path / "e", [runs.first, runs.second], settings={})
    protocol = runs.declare(tmp_path / "e", [runs.first, runs.second], settings={"sampler.steps": "3"})
    assert [member.label for member in protocol.members] == ["base-epsilon", "first@1", "second@1"]
    with pytest.raises(UserError, match="got first@1 twice"):
        runs.declare(tmp_path / "e", [runs.first, runs.first])


def test_a_reward_has_the_model_that_the_run_knows_it_with(
    run_config: Callable[..., RunConfig], runs: Runs, tmp_path: Path
) -> None:
    config = run_config("toy", rewards=[{"name": "redness", "weight": 3.0, "seconds": 7.0}])
    train_alone(config, tmp_path / "run")
    (reward,) = runs.declare(tmp_path / "e", [tmp_path / "run"], rewards=["redness"]).config.rewards
    assert (reward.weight, reward.seconds) == (1.0, 7.0)


def test_content_knows_a_model_again_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "weights").write_bytes(b"x" * 100)
        (tmp_path / name / "model_index.json").write_text("{}")
    assert content(str(tmp_path / "a")) == content(str(tmp_path / "b"))
    (tmp_path / "c" / "unet").mkdir(parents=True)
    (tmp_path / "c" / "unet" / "weights").write_bytes(b"x" * 99 + b"y")
    (tmp_path / "c" / "model_index.json").write_text("{}")
    assert content(str(tmp_path / "c")) != content(str(tmp_path / "a"))
    assert content("owner/name") == "owner/name" and content("toy") == "toy"


def test_distributions_of_prompts_that_began_otherwise_have_bases_of_their_own(
    run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """A run of soft prompts begins with noise of its seed."""

    def known(seed: int, kind: str) -> dict[str, Any]:
        config = run_config("epsilon-lora-1", seed=seed, parameters={"kind": kind, "rank": 16})
        return Member(label="base", base="base", config=config, checkpoint=None).settings()

    assert known(0, "lora") == known(1, "lora")
    assert known(0, "prompts") != known(1, "prompts")


def test_first_pictures_are_kept_from_all_over_the_suite(runs: Runs, tmp_path: Path) -> None:
    few = runs.declare(tmp_path)
    many = replace(few, prompts=tuple(replace(few.prompts[0], number=number) for number in range(144)))
    assert many.shown == frozenset(range(0, 144, 3)) and few.shown == frozenset(range(5))
    assert [block.pictures for block in many.blocks()] == [2, 2, 0] * 24 + [0] * 72
    second = many.blocks()[1]  # of prompts 2 and 3
    known = {"scores": {"redness": np.zeros(2)}, "reward_N": np.zeros(2), "kl_N": None, "cost": Cost(), "version": 0}
    nothing = dict.fromkeys(("latents_NK", "logp_NK", "credit_NK"))
    done = Rollouts(block=second, pictures=np.zeros((2, 8, 8, 3), np.uint8), **known, **nothing)
    evaluation.write(many, tmp_path, many.members[0], done)
    assert [file.name for file in tmp_path.glob("members/*/images/*")] == ["3-0.png"]


def test_what_decides_weights_and_numbers_is_told_apart(runs: Runs, tmp_path: Path) -> None:
    """What is asked of a prompt, the order of rewards, an average of the weights, a variant, and a LoRA."""
    protocol = runs.declare(tmp_path)
    member, (first, *rest) = protocol.members[-1], protocol.prompts
    asked = replace(protocol, prompts=(replace(first, metadata={"Category": "red circles", "count": 2}), *rest))
    assert asked.settings()["prompts"] != protocol.settings()["prompts"]
    assert runs.declare(tmp_path, rewards=["jpeg_compressibility", "redness"]).settings() != protocol.settings()
    (lora,) = (checkpoint.by_updates(runs.first)[1] / "model").glob("*.safetensors")
    config = member.config
    others = [
        replace(member, ema=True),
        replace(
            member, config=config.model_copy(update={"model": config.model.model_copy(update={"variant": "fp16"})})
        ),
        replace(
            member,
            config=config.model_copy(update={"parameters": config.parameters.model_copy(update={"start": str(lora)})}),
        ),
    ]
    assert all(other.settings() != member.settings() for other in others)


def test_the_clip_of_a_reward_is_known_by_its_content(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    one, other = (
        known(Reward(name="aesthetic", options={"clip": str(tmp_path / name)}), None)["clip"]
        for name in ("one", "other")
    )
    assert one != other


def test_runs_of_other_models_rewards_or_arguments_are_not_taken_for_alike(runs: Runs, tmp_path: Path) -> None:
    """Of which one began with another model of the same name, or knows a reward by the same name with other options."""

    def altered(name: str, change: Callable[[dict[str, Any]], None]) -> Path:
        shutil.copytree(runs.first, tmp_path / name)
        file = tmp_path / name / "config.json"
        tree = json.loads(file.read_text())
        change(tree)
        file.write_text(json.dumps(tree))
        return tmp_path / name

    path = RunDirectory(runs.first).config().model.path
    shutil.copytree(path, tmp_path / "elsewhere" / Path(path).name)
    (tmp_path / "elsewhere" / Path(path).name / "more.json").write_text("{}")
    model = altered("model", lambda tree: tree["model"].update(path=str(tmp_path / "elsewhere" / Path(path).name)))
    with pytest.raises(UserError, match="got base-epsilon twice"):
        runs.declare(tmp_path / "e", [runs.first, model])
    reward = altered("reward", lambda tree: tree["rewards"][0].update(options={"limit": 3}))
    name = RunDirectory(runs.first).config().rewards[0].name
    with pytest.raises(UserError, match=r"reward \(there\) and first \(here\) differ in rewards"):
        runs.declare(tmp_path / "e", [runs.first, reward], rewards=[name])
    skipping = {"sampler.steps": "2", "model.arguments": "{clip_skip: 1}"}
    assert runs.declare(tmp_path / "e", settings=skipping).settings() != runs.declare(tmp_path / "e").settings()
