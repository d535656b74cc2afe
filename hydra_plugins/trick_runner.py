"""The sweeper that Hydra finds here, because it loads plugins only from ``hydra_plugins``.

Hydra's own sweeper writes ``multirun.yaml`` before it looks at the jobs, loses the results of all
jobs when one process dies, and reports only the first failure. Here every job is composed and
checked first, so that a mistake in the last of a hundred jobs is reported at once and nothing is
written. A job that fails or crashes does not stop the others. The sweep waits for a run that
another process has locked. The same command again runs the missing jobs.
"""

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from runner.jobs.launch import run_sweep


class CheckedSweeper(Sweeper):  # type: ignore[misc]  # Hydra is untyped to mypy
    """Runs every combination of the comma-separated values, through the chosen launcher."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.is_detached = False  # set by the command

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra provides; Hydra calls this before :meth:`sweep`."""
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function

    def sweep(self, arguments: list[str]) -> Any:
        """Split the grid, and run its jobs; see :func:`runner.jobs.launch.run_sweep`."""
        assert self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        (grid,) = BasicSweeper.split_arguments(parser.parse_overrides(arguments), None)
        run_sweep(
            self.config,
            self.hydra_context,
            self.task_function,
            grid,
            is_detached=self.is_detached,
        )
