"""How every command that takes a configuration starts and ends: Hydra in, exit code out."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from runner import compose
from runner.errors import RunnerError
from runner.schema import RunConfig

Work = Callable[[RunConfig, list[str]], dict[str, Any]]
"""Does one job: takes its configuration and the words it was asked for with, returns a summary."""


def hydra_command(work: Work) -> None:
    """Run ``work`` for the command line, once or as a sweep, and exit on an error.

    Exit codes are those of ``runner.errors``; 130 after an interrupt.
    """
    # Hydra's own handler would print a traceback and exit with 1; this hands the error to ours.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    outcomes: list[dict[str, Any]] = []

    def job(composed: DictConfig) -> dict[str, Any]:
        try:
            words = list(HydraConfig.get().overrides.task)
            outcome = work(compose.run_config(composed), words)
        except RunnerError as error:
            # Returned, not raised: Hydra would add its own lines to the message.
            outcome = {"error": error}
        outcomes.append(outcome)
        return outcome

    try:
        compose.check_arguments(sys.argv[1:])
        compose.register()
        hydra.main(version_base="1.3", config_path=str(compose.CONF_DIR), config_name="config")(
            job
        )()
        # A sweep has told its failures itself by now; a single run has one outcome.
        for outcome in outcomes:
            if "error" in outcome:
                raise outcome["error"]
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # `| head` closed our output. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        known = error if isinstance(error, RunnerError) else compose.translated(error)
        if known is None or os.environ.get("RUNNER_DEBUG"):
            traceback.print_exc()
        if known is None:
            print("this is a bug of trick-runner", file=sys.stderr)
            sys.exit(1)
        print(f"error: {known}", file=sys.stderr)
        sys.exit(known.exit_code)
