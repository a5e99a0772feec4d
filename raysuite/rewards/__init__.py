"""Rewards, one file each, imported when a run names it. To add one: write the file, and give it an entry in `REWARDS`.

A reward is a function `(images, prompts, metadata) -> scores`: images are uint8 (N, H, W, 3), prompts N sentences,
metadata N mappings (what the prompt file says besides the prompt), and scores N numbers, higher is better. They may be a tensor
of any device and type, and may come as a pair `(scores, information)`, of which the second is left alone.

A class is a reward, too: it is made once in every process that scores, with the keyword arguments of the reward's `options`, with
`model` if one is named, and with `device` if it takes one; then it is called like a function. A function or class with an attribute
`whole_groups` that is true is called once for every prompt, with all pictures that the batch has of it, so that it may rank them.
One with an attribute `check_prompts(prompts, metadata)` is shown all prompts before anything slow begins, and raises a `UserError`
for those that it cannot judge.
"""

from __future__ import annotations

import inspect
import itertools
import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np

from raysuite.config import one_of, with_colon
from raysuite.errors import RewardHung, UserError, in_words
from raysuite.imported import imported, in_a_sentence, where

RewardFunction = Callable[[np.ndarray, Sequence[str], Sequence[Mapping[str, Any]]], Sequence[float] | np.ndarray]

PAUSE_SECONDS = 1.0
"""Between a call that raised and its repetition."""


@dataclass(frozen=True)
class Registered:
    """What is known of a reward without importing it."""

    place: str
    """`module:attribute`."""
    measures: str
    range: str
    """Of its scores, as they are published."""
    needs: str = "nothing"
    licence: str = "this package's"
    """Of the weights that it needs."""


REWARDS = {
    "aesthetic": Registered(
        "raysuite.rewards.aesthetic:Aesthetic",
        "how much people like a picture, whatever its prompt (LAION, version 2)",
        "about 1 to 10",
        "CLIP ViT-L/14 (1.7 GB) and a head of 4 MB: raysuite rewards convert",
        "Apache-2.0 (head), MIT (CLIP)",
    ),
    "clip_score": Registered(
        "raysuite.rewards.clip:ClipScore",
        "100 times the cosine of picture and prompt",
        "about 15 to 40",
        "CLIP ViT-L/14 (1.7 GB)",
        "MIT",
    ),
    "geneval": Registered(
        "raysuite.rewards.geneval:GenEval",
        "whether a picture shows the objects, numbers, colours and relations that its prompt names",
        "0 or 1; graded: at most 1",
        "Mask2Former Swin-S (0.3 GB), CLIP ViT-L/14 (1.7 GB), and GenEval's rows as metadata",
        "that of the detector's hub page, MIT (CLIP)",
    ),
    "hps_v2": Registered(
        "raysuite.rewards.hps:HpsV2",
        "what people preferred on HPDv2, versions 2.0 and 2.1",
        "about 0.15 to 0.35",
        "CLIP ViT-H/14 (3.9 GB): raysuite rewards convert",
        "Apache-2.0",
    ),
    "hps_v3": Registered(
        "raysuite.rewards.hps_v3:HpsV3",
        "what people preferred on HPDv3",
        "means of models are -0.2 to 10.6",
        "Qwen2-VL-7B with a head (17 GB): raysuite rewards convert",
        "MIT (head), Apache-2.0 (Qwen2-VL)",
    ),
    "http": Registered(
        "raysuite.rewards.http:Http",
        "what a server says that speaks the protocol of raysuite rewards serve",
        "the server's",
        "a server: options {url: http://host:port}",
        "the server's",
    ),
    "image_reward": Registered(
        "raysuite.rewards.image_reward:ImageReward",
        "what people preferred among pictures of a prompt",
        "about -2.3 to 2",
        "BLIP-large (1.8 GB): raysuite rewards convert",
        "Apache-2.0",
    ),
    "jpeg_compressibility": Registered(
        "raysuite.rewards.jpeg:jpeg_compressibility", "how small a picture is as a JPEG", "kilobytes, negative"
    ),
    "jpeg_incompressibility": Registered(
        "raysuite.rewards.jpeg:jpeg_incompressibility", "how large a picture is as a JPEG", "kilobytes"
    ),
    "ocr": Registered(
        "raysuite.rewards.ocr:Ocr",
        "whether a picture says what its prompt wants written in it",
        "0 to 1",
        "pip install 'raysuite[ocr]', which brings its weights (32 MB)",
        "Apache-2.0",
    ),
    "pickscore": Registered(
        "raysuite.rewards.pickscore:PickScore",
        "what people preferred on Pick-a-Pic",
        "about 15 to 26",
        "CLIP ViT-H/14 (3.9 GB)",
        "MIT",
    ),
    "redness": Registered("raysuite.rewards.redness:redness", "red, and neither green nor blue", "-1 to 1"),
    "scenes": Registered(
        "raysuite.rewards.scenes:scenes", "how far a picture of the scenes world shows what was meant", "0 to 1"
    ),
    "scenes_strict": Registered(
        "raysuite.rewards.scenes:scenes_strict", "whether a picture of the scenes world shows what was meant", "0 or 1"
    ),
    "soft_tifa": Registered(
        "raysuite.rewards.vqa:SoftTifa",
        "how probable a vision-language model finds the right answers to a row's questions (GenEval 2)",
        "0 to 1",
        "Qwen3-VL-8B (18 GB), and GenEval 2's rows as metadata",
        "Apache-2.0 (Qwen3-VL-8B)",
    ),
    "vlm": Registered(
        "raysuite.rewards.vlm:Vlm",
        "what a vision-language model answers when it is asked to judge a picture",
        "the question's",
        "an OpenAI-shaped endpoint (options {url: https://host/v1}), or a Qwen-VL",
        "the model's",
    ),
    "vqa": Registered(
        "raysuite.rewards.vqa:VqaScore",
        'the probability of "yes" when a vision-language model is asked whether a picture shows its prompt',
        "0 to 1",
        "Qwen3-VL-8B (18 GB)",
        "Apache-2.0 (Qwen3-VL-8B)",
    ),
}


def weights_of(name: str) -> str | None:
    """The published network that a reward of this package needs, with its size; None where it needs none."""
    needs = REWARDS[name].needs if name in REWARDS else ""
    return needs.partition(":")[0] if "GB" in needs else None


def resolve(name: str) -> Any:
    """The reward of a registered name, or the user's function or class at `package.module:function`.

    Raises:
        UserError: there is none.
    """
    place = REWARDS[name].place if name in REWARDS else name
    if not place.partition(":")[2]:
        hint = f": did you mean {meant}?" if (meant := with_colon(name)) else ""
        raise UserError(
            f"expected a reward ({one_of(name, REWARDS)}) or package.module:function, got {name!r}{hint}; "
            "`raysuite rewards` lists them"
        )
    function = imported(place, "a function")
    if not callable(function):
        raise UserError(f"expected a function at {name}, got {type(function).__name__}")
    return function


def check(
    name: str,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    prompts: Sequence[str] = (),
    metadata: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Look at a reward, and at the prompts that it will be asked about, before anything slow begins; weights are not read.

    Raises:
        UserError: there is none, or what it is given does not fit it.
    """
    found = resolve(name)
    if inspect.isfunction(found):
        try:
            inspect.signature(found).bind([], [], [])
        except TypeError as error:
            raise UserError(
                f"expected the reward {name} to take images, prompts and metadata, it does not ({error}): write "
                f"{found.__name__}(images, prompts, metadata)"
            ) from error
    if not isinstance(found, type):
        if model is not None or options:
            raise UserError(
                f"expected no model and no options for the reward {name}, which is a function: leave them out"
            )
    else:
        _check_class(name, found, model, options or {})
    if hasattr(found, "check_prompts"):
        _check_prompts(name, found, prompts, metadata)


def _check_prompts(name: str, found: Any, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
    if isinstance(found, type) and inspect.isfunction(inspect.getattr_static(found, "check_prompts")):
        raise UserError(
            f"expected check_prompts of the reward {name} as a static or a class method, since it is asked before the reward is made, "
            "got a method of what is made: put @staticmethod above it, without self"
        )
    with in_a_sentence(f"the reward {name} could not look at the prompts, check_prompts raised"):
        found.check_prompts(prompts, metadata)


def _check_class(name: str, found: type, model: str | None, options: Mapping[str, Any]) -> None:
    others, ours = sorted(set(options) - _names(found)), found.__module__.startswith(f"{__name__}.")
    if others and ours:  # users' own may do with theirs what they like
        known = one_of(others[0], _names(found))
        raise UserError(f"expected options that the reward {name} takes ({known}), got {others[0]}")
    try:
        inspect.signature(found).bind(**_arguments(found, model, options))
    except TypeError as error:
        raise UserError(f"expected options that the reward {name} takes, got others: {error}") from error
    if ours and hasattr(found, "check"):
        found.check(model, **options)


def made(name: str, *, model: str | None = None, options: Mapping[str, Any] | None = None) -> RewardFunction:
    """A reward that can be called; classes are made once in a process.

    Raises:
        UserError: there is none, or it cannot be made.
    """
    found = resolve(name)
    if not isinstance(found, type):
        return found
    key = json.dumps([name, model, options or {}], sort_keys=True)
    with _MAKING:
        if key not in _MADE:
            with in_a_sentence(f"the reward {name} could not be made, it raised"):
                _MADE[key] = found(**_arguments(found, model, options or {}))
        return _MADE[key]


_MADE: dict[str, RewardFunction] = {}
_MAKING = threading.Lock()


def _arguments(found: type, model: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    arguments = dict(options)
    if model is not None:
        arguments["model"] = model
    if "device" in _names(found) and "device" not in arguments:
        import torch

        arguments["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    return arguments


def _names(found: type) -> set[str]:
    """Of the arguments of a class, those that it hands on to the class that it extends included."""
    names: set[str] = set()
    for cls in found.__mro__[:-1]:
        parameters = inspect.signature(cls).parameters
        names |= {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return names


@dataclass(frozen=True)
class Limit:
    """A reward's time, and the thread in which it is kept. Only a process that may be replaced can keep it: nothing ends
    a thread.
    """

    seconds: float
    thread: ThreadPool


def score(
    name: str,
    images_N: np.ndarray,
    prompts_N: Sequence[str],
    metadata_N: Sequence[Mapping[str, Any]],
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    retries: int = 0,
    limit: Limit | None = None,
    told: Callable[[UserError], None] = lambda error: None,
) -> np.ndarray:
    """Scores of one reward, float64 (N,), checked.

    Args:
        name: of the reward.
        images_N: uint8 (N, H, W, 3).
        prompts_N: N sentences.
        metadata_N: N mappings.
        model: of a reward that is a class.
        options: other arguments of it.
        retries: how often it is asked again when it raises.
        limit: of one call; None lets it take what it takes.
        told: of every failure that was followed by another call.

    Raises:
        RewardHung: it took longer than the limit.
        UserError: it raised, returned another number of scores, or a score that is not a number.
    """
    function, prompts = made(name, model=model, options=options), _some(prompts_N)
    asked = _by_group(function) if getattr(function, "whole_groups", False) else function
    for attempt in range(retries + 1):
        # copies: what a reward does to its pictures in place must reach neither other rewards nor those that are kept
        arguments = (images_N.copy(), list(prompts_N), list(map(dict, metadata_N)))
        try:
            if limit is None:
                answer: Any = asked(*arguments)
                break
            answer = limit.thread.apply_async(_answer, (asked, arguments)).get(limit.seconds)
            break
        except multiprocessing.TimeoutError as error:
            assert limit is not None
            raise RewardHung(
                f"expected the reward {name} to answer within {limit.seconds:g} seconds, it did not; the prompts were "
                f"{prompts}: mend it, or give it more time (seconds in its entry of rewards)",
                retries,
            ) from error
        except (Exception, SystemExit) as error:  # of a user's function, reported with the prompts that it was given
            times = f", {attempt + 1} times in a row" if attempt else ""
            raised = str(error) if isinstance(error, _Left) else f"{in_words(error)}{where(error)}"
            failure = UserError(f"the reward {name} raised {raised}; the prompts were {prompts}{times}")
            if attempt == retries:
                raise failure from error
            told(failure)
            time.sleep(PAUSE_SECONDS)
    return _checked(name, answer, prompts_N)


def _checked(name: str, answer: Any, prompts_N: Sequence[str]) -> np.ndarray:
    """What a reward returned, as scores (N,)."""
    wanted = f"expected {len(prompts_N)} scores from the reward {name}, one number a picture,"
    if answer is None:
        raise UserError(f"{wanted} got None: let it return them")
    try:
        scores = _numbers(answer)
    except (TypeError, ValueError, RuntimeError) as error:  # torch has the last for what is no number
        raise UserError(
            f"{wanted} got {type(answer).__name__}, which holds others; the prompts were {_some(prompts_N)}: {in_words(error)}"
        ) from error
    if scores.shape != (len(prompts_N),):
        raise UserError(
            f"{wanted} got an array of shape {scores.shape}; the prompts were {_some(prompts_N)}: let it return a list, or an array "
            "of one axis"
        )
    bad = ~np.isfinite(scores)
    if bad.any():
        first = int(bad.argmax())
        raise UserError(
            f"expected finite scores from the reward {name}, got {scores[first]} for the prompt {prompts_N[first]!r}: let it return a "
            "number for every picture, such as its lowest where there is nothing to score"
        )
    return scores


def _numbers(answer: Any) -> np.ndarray:
    """Scores as float64: from numbers, from a tensor wherever it is, or from a pair of such and something else."""
    if isinstance(answer, tuple) and len(answer) == 2 and not np.isscalar(answer[0]) and np.ndim(answer[0]) != 0:
        answer = answer[0]
    if isinstance(answer, list | tuple):
        answer = [float(score.detach()) if hasattr(score, "detach") else score for score in answer]
    if hasattr(answer, "detach"):
        answer = answer.detach().cpu().double().numpy()
    return np.asarray(answer, dtype=np.float64)


def _by_group(function: RewardFunction) -> RewardFunction:
    """A reward of whole groups, asked once for every prompt in a batch: neighbours of one prompt and metadata are a group."""

    def asked(images_N: np.ndarray, prompts_N: Sequence[str], metadata_N: Sequence[Mapping[str, Any]]) -> np.ndarray:
        of_N = list(zip(prompts_N, metadata_N, strict=True))
        starts = [i for i in range(len(of_N)) if i == 0 or of_N[i] != of_N[i - 1]]
        groups = [slice(first, end) for first, end in itertools.pairwise([*starts, len(of_N)])]
        return np.concatenate([_numbers(function(images_N[g], prompts_N[g], metadata_N[g])) for g in groups])

    return asked


class _Left(Exception):
    """What a reward raised to end its process: a thread that it ended would leave whoever waits for the answer waiting."""


def _answer(function: RewardFunction, arguments: tuple[Any, Any, Any]) -> Sequence[float] | np.ndarray:
    """The answer, in a thread, where Ctrl-C never arrives: an interrupt is the reward's own doing."""
    try:
        return function(*arguments)
    except (SystemExit, KeyboardInterrupt) as error:
        raise _Left(in_words(error)) from error


def _some(prompts_N: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(prompts_N))
    return ", ".join(repr(prompt) for prompt in distinct[:3]) + (", ..." if len(distinct) > 3 else "")
