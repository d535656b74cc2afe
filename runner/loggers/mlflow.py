"""MLflow: a file store, or the tracking server that its environment names if it is online."""

import io
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image

from runner.loggers.tool import Ending, LoggedRun

_STATUS = {"finished": "FINISHED", "failed": "FAILED"}
_LONGEST = 500  # characters of a value that every store takes
_MOST = 100  # values in one call


class Mlflow:
    """See :class:`runner.loggers.tool.Tool`; the id is MLflow's own."""

    def __init__(self, run: LoggedRun) -> None:
        place = None if run.online else Path(run.folder).as_uri()
        self._client = MlflowClient(tracking_uri=place)
        if run.id is not None:
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")
            return
        tags = {"identity": run.identity, "tricks": ", ".join(run.tags)}
        tags |= {f"trick.{name}": "on" for name in run.tags}
        opened = self._client.create_run(
            _experiment(self._client, run.project), run_name=run.name, tags=tags
        )
        self.id = str(opened.info.run_id)
        values = [Param(key, str(value)[:_LONGEST]) for key, value in run.config.items()]
        for first in range(0, len(values), _MOST):
            self._client.log_batch(self.id, params=values[first : first + _MOST])
        self._client.log_dict(self.id, dict(run.config), "config.json")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`runner.loggers.tool.Tool`."""
        now = int(1000 * time.time())
        metrics = [Metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def end(self, step: int, ending: Ending) -> None:
        """See :class:`runner.loggers.tool.Tool`."""
        if ending.table:
            self.scalars(step, ending.summary)
            self._client.log_dict(self.id, {"rows": list(ending.table)}, "final.json")
        for name, png in ending.figures.items():
            self._client.log_image(self.id, Image.open(io.BytesIO(png)), f"figures/{name}.png")
        tags = [RunTag("status", ending.status)]
        self._client.log_batch(self.id, tags=tags)
        self._client.set_terminated(self.id, _STATUS.get(ending.status, "KILLED"))


def _experiment(client: MlflowClient, name: str) -> str:
    """Return the id of an experiment; runs that begin together may all try to create it."""
    try:
        return str(client.create_experiment(name))
    except MlflowException:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)
