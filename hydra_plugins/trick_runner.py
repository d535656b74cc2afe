"""A sweep: Hydra's grid, checked whole before it starts and counted whole when it ends.

Hydra's own sweeper writes ``multirun.yaml`` before it looks at the jobs, and reports only the first
failure. This one composes and checks every job first, so that a mistake in the last of a hundred
jobs is told at once and nothing is written; a job that fails stops no other, and all failures are
listed at the end.

Hydra takes plugins from the namespace package ``hydra_plugins`` alone, so it lives here.
"""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from runner import compose
from runner.display import print_sweep
from runner.errors import ConfigError, RunnerError, SweepError


class CheckedSweeper(Sweeper):  # type: ignore[misc]  # Hydra is untyped to mypy
    """Runs every combination of the comma-separated values, through the chosen launcher."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before :meth:`sweep`."""
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Check, launch, and tell how each job ended.

        Raises:
            ConfigError: when any job's configuration is wrong; nothing has been written then.
            SweepError: when jobs failed; the others have finished.
        """
        assert self.config is not None
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(arguments), None)
        self._check(jobs)
        results = list(self.launcher.launch([list(job) for job in jobs], initial_job_idx=0))
        outcomes = [_outcome(list(job), result) for job, result in zip(jobs, results, strict=True)]
        print_sweep(outcomes)
        if failed := [outcome for outcome in outcomes if outcome["error"]]:
            raise SweepError(
                f"{len(failed)} of {len(outcomes)} jobs failed",
                fix="mend the cause and run the same command again: finished jobs are not repeated",
            )
        return results

    def _check(self, jobs: Sequence[Sequence[str]]) -> None:
        problems: dict[str, RunnerError] = {}
        for job in jobs:
            try:
                composed = self.hydra_context.config_loader.load_sweep_config(
                    self.config, list(job)
                )
                compose.run_config(composed)
            except Exception as error:
                problem = error if isinstance(error, RunnerError) else compose.translated(error)
                if problem is None:
                    raise
                problems.setdefault(f"{problem.what}  [{' '.join(job)}]", problem)
        if problems:
            first = next(iter(problems.values()))
            raise ConfigError("\n".join(problems), where=first.where, fix=first.fix)


def _outcome(job: list[str], result: JobReturn) -> dict[str, Any]:
    """How one job ended: its words, and a summary of its result or its error."""
    returned = result.return_value if result.status == JobStatus.COMPLETED else {}
    error = returned.get("error", result._return_value)
    if not isinstance(error, Exception):
        return {"job": job, "summary": returned, "error": ""}
    text = error.what if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
    return {"job": job, "summary": None, "error": text}
