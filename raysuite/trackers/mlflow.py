"""MLflow: a tracking server, or a local directory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from PIL import Image

from raysuite.errors import UserError
from raysuite.trackers.tracker import Picture, TrackedRun, Tracker

IDENTITY = "raysuite.run"
"""The tag that a run which goes on is found by."""
LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "15", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""A run's end waits for no server longer than that, unless the environment says so; what is not told is told the next time."""
BY_NAME = ("databricks", "databricks-uc")
"""Servers that have a name in place of an address."""
MOST_PARAMETERS = 100
"""That MLflow takes at once."""


def _name(metric: str) -> str:
    group, _, rest = metric.partition("/")
    return f"{group}/{rest.replace('/', '.')}"


class Mlflow(Tracker):
    """An MLflow run. Without an address it is in the run's trackers/mlflow."""

    errors = (MlflowException,)

    def __init__(self, run: TrackedRun) -> None:
        wanted = run.config.trackers.mlflow
        address = wanted.uri or os.environ.get("MLFLOW_TRACKING_URI") or str(run.place / "mlflow")
        if "://" not in address and address not in BY_NAME:  # a directory, which MLflow keeps to itself unless asked
            address = os.path.abspath(address)  # noqa: PTH100 - beside the run directory it is absolute
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
        self.destination = f"{wanted.experiment} at {address}"
        for limit, value in LIMITS.items():
            os.environ.setdefault(limit, value)
        try:
            self._client = MlflowClient(tracking_uri=address)
            self._id = self._opened(run, str(wanted.experiment))
            self._client.update_run(self._id, status="RUNNING")
        except MlflowException as error:
            raise UserError(
                f"expected MLflow at {address} to take the run, got: {error.message}; set trackers.mlflow.uri to a server "
                "that answers, or to a directory"
            ) from error

    def _opened(self, run: TrackedRun, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found: Any = self._client.search_runs([number], filter_string=f"tags.`{IDENTITY}` = '{run.identity}'")
        if found:
            return str(found[0].info.run_id)
        begun = self._client.create_run(number, run_name=run.name, tags={IDENTITY: run.identity})
        settings = [Param(path, str(value)) for path, value in run.settings().items()]
        for first in range(0, len(settings), MOST_PARAMETERS):
            self._client.log_batch(begun.info.run_id, params=settings[first : first + MOST_PARAMETERS])
        return str(begun.info.run_id)

    def scalars(self, update: int, values: Mapping[str, float]) -> None:
        """Take metrics: `train/reward/redness` is called `train/reward.redness`.

        In a directory every slash is a folder, and `train/reward` is a file.
        """
        named = {_name(name): value for name, value in values.items()}
        self._client.log_batch(self._id, metrics=[Metric(n, v, timestamp=0, step=update) for n, v in named.items()])

    def pictures(self, update: int, pictures: Sequence[Picture]) -> None:
        """Take an evaluation's pictures; their prompts are the run's tags."""
        for picture in pictures:
            self._client.set_tag(self._id, f"prompt/{picture.name}", picture.prompt)
            self._client.log_image(self._id, Image.open(picture.file), key=picture.name, step=update)

    def close(self, *, completed: bool) -> None:
        """Mark the run as finished or failed."""
        self._client.set_terminated(self._id, status="FINISHED" if completed else "FAILED")
