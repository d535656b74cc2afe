"""The words and the code of jobs, checked before anything is written."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from runner.config import compose
from runner.config.complaints import translated
from runner.config.idea import idea_of, read_idea
from runner.config.schema import RunConfig
from runner.errors import CodeError, ConfigError, RunnerError
from runner.jobs.architectures import is_of_library, unknown_architectures
from runner.machine.children import can_fork, ending, in_child
from runner.machine.signals import Interrupted

_PATIENCE_SECONDS = 3.0  # without a word


def check_jobs(
    jobs: Sequence[Sequence[str]],
    loader: ConfigLoader,
    config: DictConfig,
    finished_before: Callable[[Sequence[RunConfig]], Sequence[object | None]] | None = None,
) -> list[RunConfig]:
    """Return the configuration of every job, checked, its code and its architecture as well.

    Args:
        jobs: the words of each job.
        loader: Hydra's, inside :func:`runner.config.compose.opened`.
        config: the composed configuration of the command that has these jobs.
        finished_before: see :class:`runner.terminal.start.Work`.

    Raises:
        ConfigError: with the mistakes of all jobs.
        Interrupted: a signal came.
    """
    problems: dict[str, RunnerError] = {}
    codes, trainings = set[str](), set[str]()
    configs, composed = list[RunConfig](), compose.job_configs(config)
    began, is_told = time.monotonic(), False
    for job in jobs:
        if not is_told and time.monotonic() - began > _PATIENCE_SECONDS:
            is_told = True
            print(f"checking {len(jobs):,} jobs …", file=sys.stderr, flush=True)
        try:
            one = composed.of(job)
            if one.force and repr(one.training) in trainings:
                raise ConfigError(
                    "jobs that differ only in their evaluation are one training, which "
                    "force=true would repeat for each of them",
                    where="-m force=true",
                    fix="force=true for one of them, then all of them without it",
                )
            trainings.add(repr(one.training))
            idea_of(one)
            if one.code is not None and one.code not in codes:
                codes.add(one.code)
                check_code(one.code)
            configs.append(one)
        except Exception as error:  # of Hydra, of any kind; those that are not known are raised
            problem = error if isinstance(error, RunnerError) else translated(error)
            if problem is None:
                raise
            problems.setdefault(f"{problem.what}  [{' '.join(job)}]", problem)
    _raise_all(problems)
    _check_architectures(jobs, configs, finished_before)
    return configs


def _raise_all(problems: Mapping[str, RunnerError]) -> None:
    """Raise one error for all problems, each by its text with the job; return if there are none."""
    if problems:
        first = next(iter(problems.values()))
        raise ConfigError("\n".join(problems), where=first.where, fix=first.fix)


def _check_architectures(
    jobs: Sequence[Sequence[str]],
    configs: Sequence[RunConfig],
    finished_before: Callable[[Sequence[RunConfig]], Sequence[object | None]] | None,
) -> None:
    """Refuse jobs whose library does not have their architecture.

    A job that would train alone is not looked up, because it reports the same within seconds
    itself; nor is an architecture of which a run is finished.

    Raises:
        ConfigError: with the mistakes of all jobs.
    """
    named = [number for number, config in enumerate(configs) if is_of_library(config.model)]
    finished = set[int]()
    # To know that a run with pretrained weights is finished takes torch.
    quick = [number for number in named if not configs[number].names_weights]
    if quick and len(configs) > 1 and finished_before is not None:
        summaries = finished_before([configs[number] for number in quick])
        finished = {number for number, found in zip(quick, summaries, strict=True) if found}
    if len(configs) - len(finished) < 2:
        return
    known = {configs[number].model for number in finished}
    unknown = unknown_architectures(
        configs[number].model for number in named if configs[number].model not in known
    )
    problems: dict[str, RunnerError] = {}
    for number in named:
        model = configs[number].model
        if (problem := unknown.get((model.source, model.name))) is not None:
            problems[f"{problem.what}  [{' '.join(jobs[number])}]"] = problem
    _raise_all(problems)


def check_code(path: str) -> None:
    """Run an idea file as its jobs will; imports torch, so only when there is one.

    In a child: what the file computes would start threads, which children of this process lack.

    Raises:
        ConfigError: the file is refused.
    """
    from runner.tricks.idea import load_idea

    file = read_idea(path)
    if not can_fork():
        load_idea(file)
        return
    reader, writer = os.pipe()

    def work() -> None:
        try:
            load_idea(file)
        except RunnerError as error:
            said = [type(error).__name__, error.what, error.where, error.fix]
            os.write(writer, json.dumps(said).encode())

    signals = list[int]()

    def on_signal(signum: int) -> bool:
        signals.append(signum)
        return len(signals) == 1

    try:
        try:
            code = in_child(work, on_signal)
        finally:
            os.close(writer)
        said = os.read(reader, 65_536)  # what a pipe holds; a message is shorter
    finally:
        os.close(reader)
    if signals:
        raise Interrupted(signals[0])
    if said:
        kind, what, where, fix = json.loads(said)
        raise (CodeError if kind == "CodeError" else ConfigError)(what, where=where, fix=fix)
    if code != 0:
        raise ConfigError(
            f"the file ends the process that imports it ({ending(code)})",
            where=f"code={path}",
            fix="code that runs only in the functions of the file",
        )
