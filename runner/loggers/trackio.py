"""Trackio: a database of its own in a folder; it never leaves this machine."""

import io
from collections.abc import Mapping

import trackio
from PIL import Image

from runner.loggers.tool import Ending, LoggedRun


class Trackio:
    """See :class:`runner.loggers.tool.Tool`; the id is the name of the run."""

    def __init__(self, run: LoggedRun) -> None:
        self.id = run.id or run.name
        self._run = trackio.init(
            project=run.project,
            name=self.id,
            config={**run.config, "tricks": ", ".join(run.tags)},
            resume="never" if run.id is None else "allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`runner.loggers.tool.Tool`."""
        self._run.log(dict(values), step=step)

    def end(self, step: int, ending: Ending) -> None:
        """See :class:`runner.loggers.tool.Tool`."""
        found = {
            f"figures/{name}": trackio.Image(Image.open(io.BytesIO(png)))
            for name, png in ending.figures.items()
        }
        self._run.log({**found, **ending.summary, "status": ending.status}, step=step)
        self._run.finish()
