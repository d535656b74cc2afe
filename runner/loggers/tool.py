"""The actions of every logger, and the facts of a run that it receives."""

import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from runner.config.logger import Logger
from runner.errors import ConfigError

FOLDERS = {
    "tensorboard": "tensorboard",
    "mlflow": "mlruns",
    "wandb": "wandb",
    "trackio": "trackio",
}
"""Where each tool keeps its files, below ``outputs``."""

VIEWERS = {
    "tensorboard": "tensorboard --logdir {folder}",
    "mlflow": "MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {folder}",
    "wandb": "wandb sync {folder}/wandb/offline-run-*",
    "trackio": "TRACKIO_DIR={folder} trackio show --project {project}",
}
"""The command that shows the files of each tool."""


@dataclass(frozen=True)
class LoggedRun:
    """The facts that a tool receives when it opens a run.

    Attributes:
        name: name of the run, as that of its folder.
        identity: identity of the run.
        tags: the tricks that are on; ``baseline`` if none is.
        config: every key of the configuration by its dotted name.
        id: what the tool called the run before; None if the run is new to the tool.
        folder: where the tool keeps its files.
        project: the project or experiment of the run.
        online: whether the tool sends to its server.
    """

    name: str
    identity: str
    tags: Sequence[str]
    config: Mapping[str, Any]
    id: str | None
    folder: str
    project: str
    online: bool


@dataclass(frozen=True)
class Ending:
    """What is known of a run at its end.

    Attributes:
        status: ``finished``, ``failed``, ``interrupted`` or ``killed``.
        table: a row per view of the images, with its metrics by name; empty without a result.
        figures: PNG files by name.
    """

    status: str
    table: Sequence[Mapping[str, Any]] = ()
    figures: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the table."""
        return list(dict.fromkeys(name for row in self.table for name in row))

    @property
    def summary(self) -> dict[str, float]:
        """The numbers of the table: ``final/accuracy``; of TTA ``final/tta/accuracy``."""
        return {
            f"final/{'' if row['view'] == 'plain' else row['view'] + '/'}{name}": value
            for row in self.table
            for name, value in row.items()
            if isinstance(value, int | float)
        }


class Tool(Protocol):
    """A tool with one run open.

    Attributes:
        id: what the tool calls the run; opening the run with it again continues it.
    """

    id: str

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of an evaluation after ``step`` steps of training."""

    def end(self, step: int, ending: Ending) -> None:
        """Log the end of the run, after ``step`` steps, and write everything out."""


def require_package(config: Logger) -> None:
    """Raise ConfigError if the package of the logger is not installed; imports nothing."""
    if not config.is_on:
        return
    spec = None
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(config.name)
    # A folder of that name, as wandb makes one, is found as a package without a file.
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"the logger needs the package {config.name}, which is not installed",
            where=f"logger={config.name}",
            fix=f"pip install 'trick-runner[{config.name}]'",
        )
