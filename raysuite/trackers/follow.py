"""From a run directory to its trackers: what has been written since they were last told."""

from __future__ import annotations

import http.client
import importlib.util
import json
import logging
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from raysuite.background import meanwhile
from raysuite.config import RunConfig, Trackers
from raysuite.errors import UserError, in_a_line
from raysuite.stages.files import RunDirectory, write_json
from raysuite.stages.lock import locked
from raysuite.trackers.tracker import Picture, TrackedRun, Tracker

POLL_SECONDS = 2.0
ANSWER_SECONDS = 4.0
"""How long a tracker's server may take for its first answer."""
PICTURES = "(pictures)"
"""Stands for the pictures among the names of metrics."""
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


def wanted(trackers: Trackers) -> list[str]:
    """Names of the trackers that are on."""
    on = {
        "tensorboard": trackers.tensorboard,
        "wandb": trackers.wandb.project is not None,
        "mlflow": trackers.mlflow.experiment is not None,
    }
    return [name for name, is_on in on.items() if is_on]


def preflight(trackers: Trackers) -> None:
    """Find in a few seconds whether a tracker's package is there, and its server.

    Raises:
        UserError: it is not.
    """
    for name in wanted(trackers):
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(
                f"expected the package {PACKAGES[name]} for trackers.{name}, which is not installed: pip install "
                f"'raysuite[{name}]', or leave trackers.{name} out"
            )
        if (address := _server(name, trackers)) is not None:
            _check_answer(name, address)


def _server(name: str, trackers: Trackers) -> str | None:
    """The address of the server that is to be told, if one is."""
    if name == "wandb" and (trackers.wandb.mode or os.environ.get("WANDB_MODE") or "online") == "online":
        return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    if name == "mlflow":
        address = trackers.mlflow.uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
        return address if address.startswith(("http://", "https://")) else None
    return None


def _check_answer(name: str, address: str) -> None:
    """Ask a server for anything: libraries wait for minutes until somebody answers.

    Raises:
        UserError: nobody does.
    """
    try:
        urllib.request.urlopen(address, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:  # an answer, too
        pass
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # somebody is there; whether to be trusted is for the library to say
            return
        instead = {"wandb": "set trackers.wandb.mode=offline", "mlflow": "set trackers.mlflow.uri to a directory"}[name]
        raise UserError(
            f"expected the server of trackers.{name} at {address} to answer within {ANSWER_SECONDS:g} seconds, it did not ({reason}): "
            f"check the address, or {instead}"
        ) from error


def open_tracker(name: str, run: TrackedRun) -> Tracker:
    """A tracker by its name; only then is its library imported.

    Raises:
        UserError: it does not take the run.
    """
    if name == "tensorboard":
        from raysuite.trackers.tensorboard import TensorBoard

        return TensorBoard(run)
    if name == "wandb":
        from raysuite.trackers.wandb import WeightsAndBiases

        return WeightsAndBiases(run)
    from raysuite.trackers.mlflow import Mlflow

    return Mlflow(run)


@contextmanager
def following(config: RunConfig, directory: Path, *, completed: bool = True) -> Iterator[None]:
    """Tell a run's trackers what it writes, until the block ends; they never hold it up.

    Args:
        config: of the run.
        directory: of the run.
        completed: whether the run has come to its end when the block ends well.

    Raises:
        UserError: a tracker does not take the run.
    """
    run = TrackedRun(directory, config)
    with ExitStack() as stack:
        if wanted(config.trackers):
            stack.enter_context(locked(run.place))
        for name in wanted(config.trackers):
            stack.enter_context(_told(name, run, completed=completed))
        yield


def tell(config: RunConfig, directory: Path, *, completed: bool) -> None:
    """Tell the trackers of a configuration what a run has written and they do not have yet.

    Args:
        config: of the run, with trackers.
        directory: of the run.
        completed: whether it has come to its end; one that was killed says nothing of that itself.

    Raises:
        UserError: none is on, or one does not take the run.
    """
    if not wanted(config.trackers):
        raise UserError(
            "expected a tracker, got none: --set trackers.tensorboard=true, trackers.wandb.project=<name> or "
            "trackers.mlflow.experiment=<name>"
        )
    preflight(config.trackers)
    with following(config, directory, completed=completed):
        pass


@contextmanager
def _told(name: str, run: TrackedRun, *, completed: bool) -> Iterator[None]:
    """One tracker hears of the run until the block ends."""
    told, well = _Told(name, run), False
    try:
        with meanwhile(told.follow):
            yield
        # a learner that could not go on ends without a word of its own: the sentence is on disk
        well = completed and not (run.directory / "failure.json").exists()
    finally:
        told.end(completed=well)


class _Told:
    """One tracker, and how far it has been told: trackers/told-<name>.json has the last update of every metric by destination."""

    def __init__(self, name: str, run: TrackedRun) -> None:
        self._name, self._run, self._file = name, run, run.place / f"told-{name}.json"
        self._tracker = open_tracker(name, run)
        self._all: dict[str, dict[str, int]] = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._last = self._all.setdefault(self._tracker.destination, {})
        self._trouble: Exception | None = None
        self._given_up = False

    def follow(self, ended: threading.Event) -> None:
        """Tell what is new every now and then."""
        while not self._given_up and not ended.wait(POLL_SECONDS):
            self._try(self._tell)

    def end(self, *, completed: bool) -> None:
        """Tell the rest, and warn of what could not be told."""
        if not self._given_up:
            self._try(self._tell)
        self._try(lambda: self._tracker.close(completed=completed))
        if self._trouble is not None:
            logging.getLogger("raysuite").warning(
                "WARNING: the tracker %s could not be told everything: %s. The run is not harmed: `raysuite track %s` with the "
                "same settings tells it the rest.",
                self._name,
                in_a_line(self._trouble),
                self._run.directory,
            )

    def _try(self, work: Callable[[], None]) -> None:
        """Ask something of the tracker that it may not be able to do now."""
        try:
            work()
        except Exception as trouble:  # noqa: BLE001 (libraries raise whatever those raise that they call: none may end the run)
            self._trouble = trouble
            self._given_up = not isinstance(trouble, (OSError, *self._tracker.errors))  # they may pass

    def _tell(self) -> None:
        """Tell what is new; what cannot be told remains new."""
        by_update: dict[int, dict[str, float]] = {}
        for name, values in RunDirectory(self._run.directory).metrics().items():
            for update, value in values.items():
                if update > self._last.get(name, -1):
                    by_update.setdefault(update, {})[name] = value
        for update in sorted(by_update):
            self._tracker.scalars(update, by_update[update])
            evaluated = any(name.startswith("evaluation/") for name in by_update[update])
            if evaluated and update > self._last.get(PICTURES, -1) and (pictures := self._pictures(update)):
                self._tracker.pictures(update, pictures)
                self._last[PICTURES] = update
            self._last.update(dict.fromkeys(by_update[update], update))
            write_json(self._file, self._all)
        self._trouble = None

    def _pictures(self, update: int) -> Sequence[Picture]:
        images = self._run.directory / "images"
        prompts: dict[str, str] = json.loads((images / "prompts.json").read_text()) if images.is_dir() else {}
        files = {place: images / f"{update:06d}" / f"{place}-0.png" for place in prompts}
        return [
            Picture("/".join(place.rsplit("-", 1)), prompts[place], file)
            for place, file in files.items()
            if file.exists()
        ]
