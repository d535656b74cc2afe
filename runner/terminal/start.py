"""The start of every command that takes its words through Hydra."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from runner.config import compose
from runner.config.complaints import translated
from runner.config.idea import blamed
from runner.config.options import CONF_DIR
from runner.config.schema import RunConfig
from runner.errors import ConfigError, RunnerError
from runner.machine.processes import from_environment
from runner.terminal.command import command, program

Work = Callable[[RunConfig, list[str]], dict[str, Any]]
"""Does one job: takes its configuration and the user's words, returns a summary."""


def hydra_command(name: str, work: Work, *, can_sweep: bool = True) -> None:
    """Run ``work`` for the command line, once or as a sweep, and end as every command ends.

    Args:
        name: of the command, for its usage.
        work: does one job.
        can_sweep: whether ``-m`` and several processes are allowed.
    """
    # Hydra's own handler would print a traceback and exit with 1; this passes the error on to ours.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    outcomes: list[dict[str, Any]] = []

    def job(composed: DictConfig) -> dict[str, Any]:
        try:
            words = list(HydraConfig.get().overrides.task)
            outcome = work(compose.run_config(composed), words)
        except RunnerError as error:
            # Returned, not raised: Hydra would add its own lines to the message.
            outcome = {"error": error}
        except Exception as error:
            if (problem := blamed(error)) is None:
                raise
            problem.__cause__ = error
            outcome = {"error": problem}
        if HydraConfig.get().mode == RunMode.RUN:  # a sweep keeps its own account
            outcomes.append(outcome)
        return outcome

    def body() -> None:
        compose.check_arguments(sys.argv[1:])
        compose.register()
        _check_mode(name, can_sweep)
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")(job)()
        for outcome in outcomes:
            if "error" in outcome:
                raise outcome["error"]

    command(
        body,
        translated,
        if_interrupted="interrupted; the same command goes on from here"
        if can_sweep
        else "interrupted",
    )


def _check_mode(name: str, can_sweep: bool) -> None:
    """Refuse modes that do not combine; check what ``--cfg`` would only print."""
    parser = get_args_parser()
    parser.prog = program(name)
    arguments = parser.parse_args()
    if arguments.multirun and not can_sweep:
        raise ConfigError("this command takes one configuration", where="-m", fix="leave out -m")
    is_shared = from_environment().count > 1
    if is_shared and not can_sweep:
        raise ConfigError("this command takes one process", where="torchrun", fix="leave it out")
    if is_shared and arguments.multirun:
        raise ConfigError(
            "a sweep cannot run under torchrun: its processes lose one another after a job",
            where="torchrun … -m runner.train -m",
            fix="python -m runner.train -m hydra/launcher=submitit_local "
            "hydra.launcher.tasks_per_node=2 …",
        )
    if arguments.multirun and arguments.cfg:
        raise ConfigError(
            "--cfg prints one configuration, -m makes several",
            where="-m --cfg",
            fix="--cfg job with the words of one job",
        )
    if arguments.cfg:
        words = list(arguments.overrides)
        if arguments.config_dir:
            words.append(f"hydra.searchpath=['file://{Path(arguments.config_dir).absolute()}']")
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
            compose.run_config(hydra.compose("config", overrides=words))
