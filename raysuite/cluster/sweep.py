"""Many runs at once: a Ray Tune experiment whose trials are whole runs, each with its actors and learners.

Ray Tune starts, watches and ends them. What a sweep knows lies in its own files (`sweeps.trials`) and in the runs' directories;
what Ray Tune writes is never read again. So a sweep that goes on begins a new experiment with what is left.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.search import Searcher

from raysuite.background import meanwhile
from raysuite.cluster import launch, session
from raysuite.cluster.interrupt import Interruption
from raysuite.cluster.placement import places_beside, worker_resources
from raysuite.config import Cluster, RunConfig, validate
from raysuite.errors import Stopped, UserError
from raysuite.stages.files import write_json
from raysuite.stages.lock import locked
from raysuite.stages.stop import StopFile
from raysuite.sweeps.declared import Planned, Sweep
from raysuite.sweeps.trials import ENDED, Book, Outcome, outcomes

REDUCTION, RUNGS = 3, 2
"""ASHA lets a third of an objective's runs past each of two rungs, at a ninth and a third of the budget."""
POLL_SECONDS = 1.0
SILENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, as that of a run
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def sweep(book: Book, command: Sequence[str]) -> None:
    """Run all runs of a sweep, or those that are left. Its book says what became of them.

    Raises:
        Stopped: a signal came; runs that were going on have their last update in a checkpoint.
        UserError: the cluster is too small for a run.
    """
    if not book.left():
        return
    os.environ.update(SILENT)
    first = book.sweep.runs[0]
    cluster = book.sweep.config(first, book.settings(first)).cluster
    queue = Queue(book, command, cluster)
    with Interruption(queue.stop, lambda: not queue.going) as interruption:
        _fit(book, queue, cluster, interruption)
        if interruption.signum and book.left():
            done = sum(trial.status in ENDED for trial in book.trials.values())
            raise Stopped(
                f"stopped by {interruption.signum.name} after {done} of {len(book.trials)} runs: the same command goes on with what "
                "is left",
                interruption.signum,
                left=interruption.waiting,
            )


def _fit(book: Book, queue: Queue, cluster: Cluster, interruption: Interruption) -> None:
    session.connect()
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told as sentences
    session.check_resources(cluster, workers=cluster.workers)
    notes = book.directory / "ray"
    shutil.rmtree(notes, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(_run, _reserved(cluster)),
        tune_config=tune.TuneConfig(
            search_alg=queue,
            scheduler=Halving(book) if book.sweep.scheduler == "asha" else None,
            num_samples=-1,  # until the queue says that it is empty
            trial_dirname_creator=lambda trial: trial.config["name"],
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(notes), verbose=0),
    )
    try:
        interruption.wait_for(tuner.fit)
    finally:
        shutil.rmtree(notes, ignore_errors=True)


def preflight(declared: Sweep) -> None:
    """Find out early whether runs could start: one of each objective, and one that confirms.

    Raises:
        UserError: one could not.
    """
    for label in declared.labels:
        launch.preflight(declared.config(Planned(label, 0, declared.seeds[0]), declared.drawn(label, 0)))
    if declared.confirm is not None:
        label = declared.labels[0]
        launch.preflight(declared.config(Planned(label, None, declared.confirm.seeds[0]), declared.drawn(label, 0)))


def _reserved(cluster: Cluster) -> tune.PlacementGroupFactory:
    """A run's actors and judges, all or none. Ray Train makes a group of its own for learners; the process between needs nothing,
    unless it does everything.
    """
    if cluster.alone:
        return tune.PlacementGroupFactory([worker_resources(cluster)])
    beside = places_beside(cluster)
    # where learners have nobody beside them, Ray Tune still has to set something aside
    return tune.PlacementGroupFactory([{}, *beside] if beside else [{"memory": 1}], strategy="SPREAD")


class Places:
    """How many runs may go on, and how many of them may be starting, so that none waits for what another that waits holds.

    A run takes its actors at once and then its learners at once. Up to `sure` runs find room whatever lies where: a piece
    finds none only if every node has as many pieces as the largest of them would allow. Above that one may start when all
    others have what they need: those end, and make room.
    """

    def __init__(self, *, sure: int, most: int) -> None:
        self.sure, self.most = sure, most

    @classmethod
    def of(cls, cluster: Cluster, *, wanted: int | None) -> Places:
        """From the nodes that are there, for runs that want `cluster` each; `wanted` is the user's number."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return cls.among(nodes, cluster, wanted=wanted)

    @classmethod
    def among(cls, nodes: Sequence[Mapping[str, float]], cluster: Cluster, *, wanted: int | None) -> Places:
        """The same from the resources of every node."""
        judges, drawing = cluster.judges.values(), cluster.with_actors()
        pieces = {
            "CPU": (cluster.worker_cpus, drawing.actor_cpus, *(judge.cpus for judge in judges)),
            "GPU": (cluster.worker_gpus, drawing.actor_gpus, *(judge.gpus for judge in judges)),
        }
        whole = {
            "CPU": cluster.wanted("cpus", workers=cluster.workers),
            "GPU": cluster.wanted("gpus", workers=cluster.workers),
        }
        most = min(int(sum(n.get(kind, 0) for n in nodes) / need + 1e-6) for kind, need in whole.items() if need)
        room = sum(
            min(int(node.get(kind, 0) / max(sizes) + 1e-6) for kind, sizes in pieces.items() if max(sizes))
            for node in nodes
        )
        sure = room // (cluster.workers + cluster.actors + sum(judge.actors for judge in judges))
        most = max(1, most if wanted is None else wanted)
        return cls(sure=max(1, min(sure, most)), most=most)

    def free(self, going: int, starting: int) -> bool:
        """Whether one more may start."""
        return going < self.sure or (going < self.most and not starting)


class Queue(Searcher):
    """What Ray Tune asks for the next run, and tells when one has ended."""

    def __init__(self, book: Book, command: Sequence[str], cluster: Cluster) -> None:
        super().__init__()
        self._book, self._command, self._cluster = book, command, cluster
        self.going: dict[str, tuple[Planned, RunConfig]] = {}
        """Runs that were begun and have not ended, by what Ray Tune calls them."""
        self._deaths: Counter[str] = Counter()
        self._stopping = False

    @cached_property
    def _places(self) -> Places:
        """Where runs find room, on the nodes that are there when the first one is asked for."""
        return Places.of(self._cluster, wanted=self._book.sweep.concurrent)

    def stop(self, who: str) -> None:
        """Begin nothing more, and ask the runs that go on to stop."""
        self._stopping = True
        for run, _ in list(self.going.values()):
            StopFile(self._book.run_directory(run)).request(who)

    def suggest(self, trial_id: str) -> Any:
        """The next run, None while there is no place for it, or that there are no more."""
        while self._book.left() and not self._stopping:
            waiting = self._book.waiting()
            if not waiting:  # what is left confirms what has not ended
                return None
            starting = sum(not (self._book.run_directory(r) / "progress.json").exists() for r, _ in self.going.values())
            if not self._places.free(len(self.going), starting):
                return None
            if (config := self._begin(trial_id, waiting[0])) is not None:
                directory = self._book.run_directory(waiting[0])
                named = {"name": waiting[0].name, "objective": waiting[0].objective}
                joined = os.environ.get("RAY_ADDRESS")
                return {**named, "directory": str(directory), "config": config.canonical(), "joined": joined}
        # nobody would ask again, and one of those that go on may be lost
        return None if self.going and not self._stopping else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note how a run ended. One whose process died is tried again, as its learners would be: what confirms has to wait for it, or
        it would settle for the best of the others.
        """
        run, config = self.going.pop(trial_id)
        directory = self._book.run_directory(run)
        sentence = launch.failed(directory)
        if self._book.trials[run.name].status == "stopped":
            return
        if sentence is None and not launch.finished(config, directory):
            lines = self._last_words(run)
            sentence = f"its process died: {lines[-1] if lines else 'nothing more is known'}"
            self._deaths[run.name] += 1
            if not self._stopping and self._deaths[run.name] <= config.cluster.max_failures:
                self._book.note(run, status="waiting", message=sentence)
                return
        if sentence is not None and self._stopping:  # it goes on with the sweep
            self._book.note(run, status="waiting")
            return
        status = "done" if sentence is None else "failed"
        self._book.note(run, status=status, message=sentence, **self._book.outcome(run, config))

    def _last_words(self, run: Planned) -> list[str]:
        notes = self._book.directory / "ray" / "tune"
        # where a run is tried again, Ray Tune adds four characters to its name
        logs = [*notes.glob(f"{run.name}/error.txt"), *notes.glob(f"{run.name}_????/error.txt")]
        return max(logs, key=lambda log: log.stat().st_mtime).read_text().strip().splitlines() if logs else []

    def save(self, checkpoint_path: str) -> None:
        """Nothing: trials.json has it."""

    def _begin(self, trial_id: str, run: Planned) -> RunConfig | None:
        """The configuration of a run that is to start, which from then on is among those that go on; None if it has ended before, or
        cannot, or is not to start any more.
        """
        directory = self._book.run_directory(run)
        try:
            settings = self._book.settings(run)
            config = _placed(self._book.sweep.config(run, settings), at_once=self._places.most)
            self._book.note(run, settings=settings)  # before the directory is made: another draw would not fit it
            finished = launch.claim(config, directory, self._command)
        except UserError as error:
            self._book.note(run, status="failed", message=str(error))
            return None
        if finished:
            self._book.note(run, status="done", **self._book.outcome(run, config))
            return None
        for told in ("progress.json", "failure.json"):  # of an earlier attempt
            (directory / told).unlink(missing_ok=True)
        self._book.note(run, status="running", message=None)
        self.going[trial_id] = run, config
        if self._stopping:  # since it was looked at: the run may have been asked to stop, or not have been known
            del self.going[trial_id]
            self._book.note(run, status="waiting")
            return None
        return config


def _placed(config: RunConfig, *, at_once: int) -> RunConfig:
    """With threads such that the runs that go on at once do not outnumber the cores of one machine."""
    cluster = config.cluster
    if at_once == 1 or cluster.threads or len(ray.nodes()) > 1:
        return config
    cores, busy = int(ray.cluster_resources()["CPU"]), at_once * max(cluster.actors, cluster.workers)
    return config.model_copy(update={"cluster": cluster.model_copy(update={"threads": max(1, cores // busy)})})


class Halving(FIFOScheduler):
    """ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020), each objective's runs among themselves.

    Compared is the first evaluation at or after each rung, in network evaluations; runs of an earlier part of the sweep count.
    """

    def __init__(self, book: Book) -> None:
        super().__init__()
        self._book = book
        budget = book.sweep.budget
        self._of = {
            label: AsyncHyperBandScheduler(
                time_attr="network_evaluations",
                metric="held_out",
                mode="max",
                max_t=budget,
                grace_period=budget / REDUCTION**RUNGS,
                reduction_factor=REDUCTION,
                stop_last_trials=False,
            )
            for label in book.sweep.labels
        }
        for run in book.sweep.searched:
            # those that a kill interrupted, too: they were judged against what had come before them, not against all that came since
            if book.trials[run.name].settings is not None:
                self._replay(run)

    def _replay(self, run: Planned) -> None:
        past = _by_name(run.name)
        self._of[run.objective].on_trial_add(None, past)  # type: ignore[arg-type]
        config = self._book.sweep.config(run, self._book.settings(run))
        for outcome in outcomes(self._book.run_directory(run), config):
            self._of[run.objective].on_trial_result(None, past, _result(outcome))  # type: ignore[arg-type]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tell the objective's own ASHA."""
        self._of[trial.config["objective"]].on_trial_add(tune_controller, _by_name(trial.config["name"]))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the run goes on; if not, why."""
        run = next(run for run in self._book.sweep.runs if run.name == trial.config["name"])
        if run.trial is None:  # it confirms
            return self.CONTINUE
        decision = self._of[run.objective].on_trial_result(tune_controller, _by_name(run.name), result)
        spent, reward = result["network_evaluations"], result["held_out"]
        if spent >= self._book.sweep.budget:  # ASHA's last rung: such a run ends by itself, with its checkpoint
            return self.CONTINUE
        if decision == self.STOP:
            said = f"stopped by ASHA after {spent:,.0f} network evaluations, with {reward:.3g} on held-out prompts"
            self._book.note(run, status="stopped", message=said, network_evaluations=spent, held_out=reward)
        return decision


def _by_name(name: str) -> Any:
    """A run as ASHA is told of it: the same one when it is tried again, which Ray Tune calls by another name."""
    return SimpleNamespace(trial_id=name)


def _run(options: dict[str, Any]) -> None:
    """One run, in a process of its own: what Ray Tune calls a trial."""
    config, directory = validate(options["config"]), Path(options["directory"])
    if options["joined"]:  # a job has it in its driver only; a run waits for a cluster, as one that is alone does
        os.environ["RAY_ADDRESS"] = options["joined"]
    try:
        # whoever was in its place may end a little later than a sweep that was killed, or have been lost with its machine
        with locked(directory, wait=True), _reported(config, directory):
            launch.train(config, directory, placed=True)
    except UserError as error:
        write_json(directory / "failure.json", {"message": str(error)})


@contextmanager
def _reported(config: RunConfig, directory: Path) -> Iterator[None]:
    """Tell Ray Tune of every evaluation that the run writes, until the block ends."""

    def report(ended: threading.Event) -> None:
        told = 0
        while not ended.wait(POLL_SECONDS):
            for outcome in outcomes(directory, config)[told:]:
                tune.report(_result(outcome))
                told += 1

    with meanwhile(report):
        yield


def _result(outcome: Outcome) -> dict[str, Any]:
    return {"network_evaluations": outcome.network_evaluations, "held_out": outcome.held_out}
