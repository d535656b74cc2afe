"""Weights & Biases: offline files, or its server if it is online."""

import io
import secrets
from collections.abc import Mapping
from pathlib import Path

import wandb
from PIL import Image

from runner.loggers.tool import Ending, LoggedRun

_CODES = {"finished": 0}


class Wandb:
    """See :class:`runner.loggers.tool.Tool`; the id begins with the identity of the run."""

    def __init__(self, run: LoggedRun) -> None:
        self.id = run.id or f"{run.identity}-{secrets.token_hex(4)}"
        Path(run.folder).mkdir(parents=True, exist_ok=True)
        # Nothing of the machine, the code or the terminal is collected.
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        self._run = wandb.init(
            project=run.project,
            id=self.id,
            name=run.name,
            tags=[tag[:64] for tag in run.tags],  # longer ones are refused
            config=dict(run.config),
            dir=run.folder,
            mode="online" if run.online else "offline",
            resume="allow",
            settings=settings,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`runner.loggers.tool.Tool`."""
        self._run.log(dict(values), step=step, commit=True)

    def end(self, step: int, ending: Ending) -> None:
        """See :class:`runner.loggers.tool.Tool`."""
        found = {
            f"figures/{name}": wandb.Image(Image.open(io.BytesIO(png)))
            for name, png in ending.figures.items()
        }
        if ending.table:
            columns = ending.columns
            rows = [[row.get(name) for name in columns] for row in ending.table]
            found["final"] = wandb.Table(columns=columns, data=rows)
            # After the last step, whose values are complete.
            self._run.log(found, step=step + 1, commit=True)
            self._run.summary.update(ending.summary)
        self._run.summary["status"] = ending.status
        self._run.finish(exit_code=_CODES.get(ending.status, 1))
