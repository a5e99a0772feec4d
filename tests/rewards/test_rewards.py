"""Rewards: what each says of pictures by hand, and what is said of rewards that fail."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raysuite import rewards
from raysuite.errors import RewardHung, UserError
from raysuite.rewards import REWARDS, Limit, resolve, score
from raysuite.worlds.scenes.grammar import parse
from raysuite.worlds.scenes.render import render

WITHOUT_WEIGHTS = [name for name, reward in REWARDS.items() if reward.needs == "nothing"]
"""tests/rewards/test_networks.py has the others."""
PROMPTS = ("three red circles", "one blue square", "a red circle left of a blue square")


def flat(*colour: int, size: int = 32) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (size, size, 3)).copy()


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def scored(name: str, *images: np.ndarray, prompts: Sequence[str] | None = None) -> np.ndarray:
    prompts = prompts or ["one red circle"] * len(images)
    return score(name, np.stack(images), prompts, [{}] * len(images))


# every reward


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_one_finite_number_a_picture(name: str) -> None:
    images = [noise(), flat(0, 0, 0), flat(255, 255, 255)]
    scores = scored(name, *images, prompts=PROMPTS)
    assert scores.shape == (3,) and scores.dtype == np.float64
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_pictures_do_not_see_each_other(name: str) -> None:
    images = [render(parse(prompt), np.random.default_rng(i)) for i, prompt in enumerate(PROMPTS)]
    together = scored(name, *images, prompts=PROMPTS)
    apart = [scored(name, image, prompts=[prompt])[0] for image, prompt in zip(images, PROMPTS, strict=True)]
    assert together.tolist() == apart


# each reward


def nothing(images: Any, prompts: Any, metadata: Any) -> Any:
    """Forgets to return its scores."""


def words(images: Any, prompts: Any, metadata: Any) -> Any:
    return ["good" for _ in prompts]


def column(images: Any, prompts: Any, metadata: Any) -> Any:
    return np.zeros((len(prompts), 1))


def two(images: Any, prompts: Any) -> Any:
    return [0.0 for _ in prompts]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nothing", "one number a picture, got None: let it return them"),
        (
            "words",
            "got list, which holds others; the prompts were 'a': ValueError: could not convert string to float: 'good'",
        ),
        ("column", r"got an array of shape \(1, 1\); .*: let it return a list, or an array of one axis"),
    ],
)
def test_answers_that_are_no_scores_are_told_once(name: str, told: str) -> None:
    """The reward raised nothing, so that asking again cannot help."""
    with pytest.raises(UserError, match=rf"expected 1 scores from the reward {__name__}:{name}, .*{told}$"):
        rewards.score(f"{__name__}:{name}", flat(0, 0, 0)[None], ["a"], [{}], retries=1)


def test_a_function_of_two_arguments_is_refused_before_anything_is_drawn() -> None:
    with pytest.raises(
        UserError, match=r"to take images, prompts and metadata, it does not \(.*\): write two\(images, prompts"
    ):
        rewards.check(f"{__name__}:two")


def test_jpeg_sizes() -> None:
    """D6, and kilobytes are of 1000 bytes, counted in a file of quality 95."""
    image = noise()
    size, opposite = (
        scored("jpeg_incompressibility", image, flat(9, 9, 9)),
        scored("jpeg_compressibility", image, flat(9, 9, 9)),
    )
    assert size[0] > 2 * size[1]
    assert (opposite == -size).all()
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=95)
    assert size[0] * 1000 == pytest.approx(len(buffer.getvalue()))


def test_redness_by_arithmetic() -> None:
    red, white, teal, some = flat(255, 0, 0), flat(255, 255, 255), flat(0, 255, 255), flat(102, 51, 0)
    assert scored("redness", red, white, teal, some).tolist() == pytest.approx([1, 0, -1, 0.4 - 0.1])
    half = flat(0, 0, 0)
    half[:16, :, 0] = 255
    assert scored("redness", half).tolist() == pytest.approx([0.5])


def test_scenes_are_graded_and_passed() -> None:
    rng = np.random.default_rng(0)
    images = [render(parse(prompt), rng) for prompt in PROMPTS]
    assert scored("scenes", *images, prompts=PROMPTS).tolist() == [1, 1, 1]
    assert scored("scenes_strict", *images, prompts=PROMPTS).tolist() == [1, 1, 1]
    asked = ["two red circles", "one red square", "a blue square left of a red circle"]
    graded = scored("scenes", *images, prompts=asked)
    assert graded.tolist() == pytest.approx([2 / 3, 1 / 2, 2 / 3])
    assert scored("scenes_strict", *images, prompts=asked).tolist() == [0, 0, 0]


def test_scenes_judge_what_was_meant_and_not_what_the_model_was_told() -> None:
    image = render(parse("three red circles"), np.random.default_rng(0))
    asked, meant = ["three red circles", "3 discs"], [{"scene": "two red circles"}, {"scene": "three red circles"}]
    for name, scores in (("scenes", [2 / 3, 1]), ("scenes_strict", [0, 1])):
        assert rewards.score(name, np.stack([image] * 2), asked, meant).tolist() == pytest.approx(scores)


def test_scenes_refuses_other_prompts_with_a_sentence() -> None:
    with pytest.raises(UserError, match=r"scenes raised ValueError.*expected a prompt of the scenes world"):
        scored("scenes", flat(0, 0, 0), prompts=["a wolf"])


@pytest.mark.parametrize("name", ["scenes", "scenes_strict"])
def test_prompts_that_scenes_cannot_judge_are_found_before_anything_is_drawn(name: str) -> None:
    rewards.check(name, prompts=["a wolf", PROMPTS[0]], metadata=[{"scene": PROMPTS[1]}, {}])
    with pytest.raises(UserError, match=r"such as 'three red circles', got 'a wolf': say under scene in its row"):
        rewards.check(name, prompts=[PROMPTS[0], "a wolf"], metadata=[{}, {}])
    with pytest.raises(UserError, match=r"got \['three', 'red circles'\]: say under scene in its row"):
        rewards.check(name, prompts=[PROMPTS[0]], metadata=[{"scene": ["three", "red circles"]}])


# the user's own


class WithMethods:
    """A reward whose methods are called as hooks are, and are none."""

    def check(self, image: np.ndarray) -> bool:
        return bool(image.any())

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None: ...

    def __call__(self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[int]:
        return [int(self.check(image)) for image in images]


class WithAStumble(WithMethods):
    @staticmethod
    def check_prompts(prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        raise KeyError("colour")


def test_methods_that_are_called_as_hooks_are() -> None:
    with pytest.raises(UserError, match=r"expected check_prompts of the reward .* as a static or a class method"):
        rewards.check(f"{__name__}:WithMethods")
    with pytest.raises(UserError, match="could not look at the prompts, check_prompts raised KeyError: 'colour'"):
        rewards.check(f"{__name__}:WithAStumble")


def test_a_function_beside_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards_of_a_test.py").write_text(
        "def length(images, prompts, metadata):\n"
        "    return [len(p) + m.get('bonus', 0) for p, m in zip(prompts, metadata)]\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    name = "my_rewards_of_a_test:length"
    scores = score(name, np.stack([noise(), noise()]), ["ab", "abcd"], [{}, {"bonus": 10}])
    assert scores.tolist() == [2.0, 14.0] and scores.dtype == np.float64
    assert resolve(name) is resolve(name)
    for wrong, mentions in (
        (
            "my_rewards_of_a_test:width",
            "expected a function at my_rewards_of_a_test:width, my_rewards_of_a_test has none",
        ),
        ("my_rewards_of_a_test:number", "expected a function at my_rewards_of_a_test:number, got int"),
        ("no_such_module_at_all:f", "expected a function at no_such_module_at_all:f, could not import it"),
    ):
        with pytest.raises(UserError, match=mentions):
            resolve(wrong)


@pytest.mark.parametrize(
    "source", ["def f(:\n", "1 / 0\n", "raise RuntimeError('no licence')\n"], ids=["syntax", "division", "runtime"]
)
def test_a_module_that_cannot_be_imported(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_rewards_of_a_test.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"broken_rewards_of_a_test:f"):
        resolve("broken_rewards_of_a_test:f")


@pytest.mark.parametrize("name", ["rednes", "", "raysuite.rewards.jpeg", ":", ":f", "a b:c"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UserError, match=r"expected a (reward|function)"):
        resolve(name)


def returning(value: Any) -> Any:
    def reward(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Any:
        return value

    return reward


def raising(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
    raise KeyError("colour")


@pytest.mark.parametrize(
    ("function", "mentions"),
    [
        (returning([1.0, 2.0]), ["expected 3 scores", "(2,)", "three red circles"]),
        (returning([[1.0], [2.0], [3.0]]), ["expected 3 scores", "(3, 1)"]),
        (returning(1.0), ["expected 3 scores", "()"]),
        (returning([]), ["expected 3 scores", "(0,)"]),
        (returning([1.0, float("nan"), 2.0]), ["nan", "'one blue square'"]),
        (returning([1.0, 2.0, float("inf")]), ["inf", "'a red circle left of a blue square'"]),
        (returning(["high", "low", "low"]), ["ValueError", "'three red circles'"]),
        (returning(None), ["expected 3 scores"]),
        (raising, ["KeyError", "colour", "'three red circles', 'one blue square'"]),
    ],
)
def test_rewards_that_fail_name_the_prompts(
    function: Any, mentions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards, "resolve", {"bad": function}.__getitem__)
    with pytest.raises(UserError) as error:
        scored("bad", noise(), noise(), noise(), prompts=PROMPTS)
    assert all(mention in str(error.value) for mention in ["bad", *mentions])
    assert "\n" not in str(error.value)


def test_many_prompts_are_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "resolve", {"bad": raising}.__getitem__)
    prompts = [f"prompt {i}" for i in range(50)]
    with pytest.raises(UserError, match=r"'prompt 0', 'prompt 1', 'prompt 2', \.\.\.$"):
        scored("bad", *[noise()] * 50, prompts=prompts)


def test_integers_and_lists_are_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ([1, 0, True], np.array([1, 0, 1], np.int8), (1.0, 0.0, 1.0)):
        monkeypatch.setattr(rewards, "resolve", {"good": returning(value)}.__getitem__)
        assert scored("good", noise(), noise(), noise(), prompts=PROMPTS).tolist() == [1.0, 0.0, 1.0]


@pytest.fixture
def thread() -> Iterator[ThreadPool]:
    with ThreadPool(1) as pool:
        yield pool


def failing(times: int) -> tuple[Callable[..., list[float]], list[int]]:
    calls: list[int] = []

    def reward(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
        calls.append(len(images))
        if len(calls) <= times:
            raise TimeoutError("the network is down")
        return [1.0] * len(images)

    return reward, calls


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize(("failures", "retries"), [(0, 1), (1, 1), (2, 2), (1, 0), (3, 1)])
def test_a_reward_that_raised_is_asked_again_as_often_as_stated(
    failures: int, retries: int, limited: bool, thread: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, calls = failing(failures)
    monkeypatch.setattr(rewards, "resolve", {"shaky": function}.__getitem__)
    monkeypatch.setattr(rewards, "PAUSE_SECONDS", 0.0)
    told: list[UserError] = []
    limit = Limit(300.0, thread) if limited else None
    arguments = ("shaky", np.stack([noise()]), PROMPTS[:1], [{}])
    if failures <= retries:
        scores = score(*arguments, retries=retries, limit=limit, told=told.append)
        assert scores.tolist() == [1.0]
        assert len(calls) == failures + 1
    else:
        with pytest.raises(
            UserError,
            match=r"raised TimeoutError: the network is down .test_rewards.py, line [0-9]+.; the prompts were 'three",
        ) as error:
            score(*arguments, retries=retries, limit=limit, told=told.append)
        assert len(calls) == retries + 1
        assert str(error.value).endswith(f", {retries + 1} times in a row" if retries else "circles'")
    assert len(told) == min(failures, retries)
    assert all("the network is down" in str(failure) for failure in told)


def test_a_reward_that_hangs_is_named_with_its_prompts_and_its_time(
    thread: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(rewards, "resolve", {"asleep": lambda images, prompts, metadata: release.wait()}.__getitem__)
    expected = (
        "reward asleep to answer within 0.05 seconds, it did not; the prompts were 'three red circles', 'one blue"
    )
    with pytest.raises(RewardHung, match=expected) as error:
        score("asleep", np.stack([noise()] * 3), PROMPTS, [{}] * 3, retries=4, limit=Limit(0.05, thread))
    release.set()
    assert error.value.retries == 4  # for who can replace the process


def test_what_a_reward_does_to_its_pictures_in_place_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def blackens(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        means = images.mean(axis=(1, 2, 3))
        images[:] = 0
        return means

    monkeypatch.setattr("raysuite.rewards.resolve", lambda name: blackens)
    images = np.full((2, 4, 4, 3), 200, np.uint8)
    for _ in range(2):
        assert score("blackens", images, ["a", "b"], [{}, {}]).tolist() == [200.0, 200.0]
    assert (images == 200).all()


# what rewards may answer, and what they may be


@pytest.mark.parametrize(
    "answer",
    [
        torch.tensor([1.0, 0.0, 0.5], dtype=torch.bfloat16),
        [torch.tensor(value, dtype=torch.bfloat16, requires_grad=True) for value in (1.0, 0.0, 0.5)],
        torch.tensor([1.0, 0.0, 0.5], requires_grad=True),
        (np.array([1.0, 0.0, 0.5]), {"model": "x"}),
        (torch.tensor([1.0, 0.0, 0.5]), {}),
        ([1.0, 0.0, 0.5], [{}, {}, {}]),
        (1.0, 0.0, 0.5),
    ],
    ids=[
        "bfloat16",
        "list with gradients",
        "with gradient",
        "pair",
        "pair with a tensor",
        "pair of lists",
        "tuple of numbers",
    ],
)
def test_scores_come_in_many_forms(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "resolve", {"some": returning(answer)}.__getitem__)
    assert scored("some", noise(), noise(), noise(), prompts=PROMPTS).tolist() == [1.0, 0.0, 0.5]


def test_two_numbers_are_two_scores_and_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "resolve", {"some": returning((3.0, 4.0))}.__getitem__)
    assert scored("some", noise(), noise()).tolist() == [3.0, 4.0]


class Constant:
    made = 0

    def __init__(self, value: float, model: str = "none", device: str = "unknown") -> None:
        Constant.made += 1
        self.value, self.model, self.device = value, model, device

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        assert self.device in ("cpu", "cuda")
        return [self.value + len(self.model)] * len(images)


class Open:
    """Takes whatever else it is given, as users' classes may."""

    def __init__(self, device: str = "unknown", **others: Any) -> None:
        self.device, self.others = device, others

    def __call__(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        assert self.device in ("cpu", "cuda")
        return [float(self.others["anything"])] * len(images)


def test_a_class_of_the_users_may_take_whatever_it_likes_and_is_told_its_device() -> None:
    name, images = "tests.rewards.test_rewards:Open", np.stack([noise()])
    rewards.check(name, options={"anything": 1})
    assert score(name, images, PROMPTS[:1], [{}], options={"anything": 1}).tolist() == [1.0]


def test_a_class_is_made_once_for_each_of_its_settings() -> None:
    name, images, before = "tests.rewards.test_rewards:Constant", np.stack([noise()]), Constant.made
    for options, model, expected in (
        ({"value": 1.0}, None, 5.0),
        ({"value": 2.0}, "ab", 4.0),
        ({"value": 1.0}, None, 5.0),
    ):
        assert score(name, images, PROMPTS[:1], [{}], model=model, options=options).tolist() == [expected]
    assert Constant.made == before + 2


@pytest.mark.parametrize(
    ("name", "settings", "mentions"),
    [
        ("redness", {"model": "x"}, "no model and no options for the reward redness"),
        ("redness", {"options": {"a": 1}}, "no model and no options"),
        ("tests.rewards.test_rewards:Constant", {}, "options that the reward .*missing a required argument: 'value'"),
        (
            "tests.rewards.test_rewards:Constant",
            {"options": {"value": 1, "size": 2}},
            "unexpected keyword argument 'size'",
        ),
        ("pickscore", {"model": "/nothing/here"}, "expected a directory at /nothing/here"),
        ("aesthetic", {}, "raysuite rewards convert aesthetic"),
        ("hps_v2", {}, "raysuite rewards convert hps_v2"),
        ("hps_v2", {"model": "models/hps"}, "expected a directory at models/hps for the reward hps_v2"),
        ("pickscore", {"options": {"precision": "fp16"}}, "precision of float32, bfloat16 or float16 .*got 'fp16'"),
        ("clip_score", {"options": {"precison": "float32"}}, "takes .did you mean precision.., got precison"),
        ("clip_score", {"options": {"batch": 0}}, "batch of at least 1"),
        ("geneval", {"options": {"threshold": "high"}}, "threshold of 0 to 1 for the reward geneval, got 'high'"),
    ],
)
def test_a_reward_is_checked_before_it_is_made(name: str, settings: dict[str, Any], mentions: str) -> None:
    with pytest.raises(UserError, match=mentions):
        rewards.check(name, **settings)


def test_a_reward_of_whole_groups_sees_all_pictures_of_a_prompt_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def rank(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        assert len(set(prompts)) == 1
        return images.mean(axis=(1, 2, 3)).argsort().argsort() / (len(images) - 1)

    rank.whole_groups = True  # type: ignore[attr-defined]
    monkeypatch.setattr(rewards, "resolve", {"rank": rank}.__getitem__)
    images = np.stack([flat(g, g, g) for g in (30, 10, 20, 5, 6)])
    answer = score("rank", images, ["a", "a", "a", "b", "b"], [{}] * 5)
    assert answer.tolist() == [1.0, 0.0, 0.5, 0.0, 1.0]
    answer = score("rank", images[:4], ["a"] * 4, [{"n": 1}, {"n": 1}, {"n": 2}, {"n": 2}])  # one text, two prompts
    assert answer.tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("raised", [SystemExit(3), SystemExit(), KeyboardInterrupt("x")], ids=repr)
def test_a_reward_that_leaves_is_named(
    raised: BaseException, limited: bool, thread: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaves(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
        raise raised

    monkeypatch.setattr("raysuite.rewards.resolve", lambda name: leaves)
    limit = Limit(300.0, thread) if limited else None
    if isinstance(raised, KeyboardInterrupt) and not limited:  # in the main thread it is Ctrl-C
        with pytest.raises(KeyboardInterrupt):
            score("leaves", np.stack([noise()]), PROMPTS[:1], [{}])
        return
    with pytest.raises(UserError, match=f"the reward leaves raised {type(raised).__name__}"):
        score("leaves", np.stack([noise()]), PROMPTS[:1], [{}], limit=limit)


@pytest.mark.parametrize(
    ("name", "mentions"),
    [
        ("rednes", "did you mean redness?"),
        ("beauty", "aesthetic, clip_score"),
        ("raysuite.rewards.redness:rednes", "raysuite.rewards.redness has none of that name"),
        ("nowhere.at_all:reward", "No module named 'nowhere'"),
        ("raysuite.rewards.redness:np", "got module"),
        ("leaves_as_it_is_imported:reward", "could not import it: SystemExit: 4"),
    ],
)
def test_a_reward_that_is_not_there(name: str, mentions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaves_as_it_is_imported.py").write_text("import sys\n\nsys.exit(4)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as refused:
        rewards.resolve(name)
    assert mentions in str(refused.value)
