"""The start of every command that takes its words through Hydra."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from runner.config import compose
from runner.config.complaints import translated
from runner.config.describe import describe
from runner.config.idea import blamed
from runner.config.requested import Requested
from runner.config.schema import RunConfig
from runner.errors import ConfigError, RunnerError
from runner.machine.children import Barrier
from runner.machine.processes import from_environment
from runner.terminal.command import command, program
from runner.terminal.usage import Usage, WordsParser

Rate = Callable[[int, Barrier, Barrier, float], float]
"""Measures images per second: takes the number of threads, where the processes that measure begin
and end together, and the seconds; see :func:`runner.training.rate.training_rate`."""


@dataclass(frozen=True)
class Work:
    """What a job does.

    Attributes:
        run: does one job: takes its configuration and the user's words, returns a summary.
        finished_before: takes the configurations of jobs, returns the summary of each job that
            would only show what is finished, and None for the others. None if there are no such
            jobs.
        can_share: whether ``run`` takes a third argument: what other jobs request of the same
            training. Its summary then has ``others``, with the summary of each of these jobs, or
            None for a job that has to run itself.
        prepare: takes the configuration of a job, and does once, in the process that is about to
            fork the job, what later jobs need as well. None if there is nothing.
        rate_of: takes the configuration of a job, and returns what measures how fast this machine
            does such a job. None if that decides nothing.
    """

    run: Callable[..., dict[str, Any]]
    finished_before: Callable[[Sequence[RunConfig]], Sequence[dict[str, Any] | None]] | None = None
    can_share: bool = False
    prepare: Callable[[RunConfig], None] | None = None
    rate_of: Callable[[RunConfig], Rate] | None = None


@dataclass(frozen=True)
class Task:
    """Does one job that Hydra composed; it can be pickled if ``work`` can.

    Attributes:
        work: what a job does.
    """

    work: Work

    def __call__(self, composed: DictConfig, others: Sequence[Requested] = ()) -> dict[str, Any]:
        """Do the job; return a summary, or ``{"error": ERROR}``.

        Args:
            composed: the configuration of the job.
            others: what other jobs request of the same training; see ``Work.can_share``.
        """
        try:
            # A launcher passes on the node of a job's own configuration only.
            node = composed.hydra if "hydra" in composed else HydraConfig.get()
            words = [str(word) for word in node.overrides.task]
            config = compose.run_config(composed)
        except RunnerError as error:
            # Returned, not raised: Hydra would add its own lines to the message.
            return {"error": error}
        return self.run(config, words, others)

    def run(
        self, config: RunConfig, words: list[str], others: Sequence[Requested] = ()
    ) -> dict[str, Any]:
        """Do the job with this configuration; return a summary, or ``{"error": ERROR}``."""
        try:
            return self.work.run(config, words, *((others,) if others else ()))
        except RunnerError as error:
            return {"error": error}
        except Exception as error:
            if (problem := blamed(error)) is None:
                raise
            problem.__cause__ = error
            return {"error": problem}


def hydra_context() -> HydraContext:
    """Return what Hydra's plugins want to know, inside :func:`runner.config.compose.opened`."""
    loader = _Loader(GlobalHydra.instance().config_loader().get_search_path())
    return HydraContext(config_loader=loader, callbacks=Callbacks())


class _Loader(ConfigLoaderImpl):  # type: ignore[misc]  # Hydra is untyped to mypy
    """Hydra's, in the process of a job too.

    A launcher there lets Hydra find its plugins anew. Their entries would take the names of our
    option files again, which Hydra reads if the user has a folder of option files.
    """

    def load_sweep_config(self, *arguments: Any) -> DictConfig:
        compose.register()
        config: DictConfig = super().load_sweep_config(*arguments)
        return config


def hydra_command(name: str, work: Work, usage: Usage) -> None:
    """Do ``work`` for the command line, once or as a sweep, and end as every command ends.

    ``hydra.main`` is not used: its parser has options that run code, and accepts abbreviations.

    Args:
        name: of the command, for its usage.
        work: what one job does.
        usage: of the command, for ``--help``, and whether ``-m`` and several processes are allowed.
    """
    job = Task(work)

    def body() -> None:
        parser = WordsParser(program(name), can_sweep=usage.can_sweep)
        arguments = parser.parse_intermixed_args()
        folder = arguments.config_dir
        if arguments.help:
            subjects = [describe(word, folder) for word in arguments.words]
            print("\n\n".join(subjects) or usage.text(program(name), folder))
            return
        _check_mode(arguments, usage.can_sweep)
        words = compose.words_to_compose(arguments.words, folder)
        compose.register()
        with compose.opened():
            if arguments.multirun:
                sweep = compose.composed(words, is_sweep=True)
                _sweep(sweep, job, is_detached=arguments.detach)
                return
            composed = compose.composed(words)
            if arguments.cfg:
                compose.run_config(composed)
                _print(composed, arguments.cfg, arguments.resolve)
                return
        outcome = job(composed)
        if "error" in outcome:
            raise outcome["error"]

    command(
        body,
        translated,
        if_interrupted="interrupted; the same command goes on from here"
        if usage.can_sweep
        else "interrupted",
        prints_result=not usage.can_sweep,  # those that can keep their results in folders
    )


def _sweep(composed: DictConfig, job: Task, *, is_detached: bool) -> None:
    """Run all jobs of a sweep; inside :func:`runner.config.compose.opened`."""
    sweeper = Plugins.instance().instantiate_sweeper(
        hydra_context=hydra_context(), task_function=job, config=composed
    )
    sweeper.is_detached = is_detached
    sweeper.sweep([str(word) for word in composed.hydra.overrides.task])


def _print(composed: DictConfig, part: str, is_resolved: bool) -> None:
    """Print the configuration, that of Hydra, or both."""
    shown = composed.hydra if part == "hydra" else composed
    if part == "job":
        with open_dict(composed):
            del composed["hydra"]
    if is_resolved:
        OmegaConf.resolve(shown)
    print(OmegaConf.to_yaml(shown), end="")


def _check_mode(arguments: Any, can_sweep: bool) -> None:
    """Refuse modes that do not combine."""
    is_sweep, cfg = arguments.multirun, arguments.cfg
    if is_sweep and not can_sweep:
        raise ConfigError("this command takes one configuration", where="-m", fix="leave out -m")
    if arguments.detach and not is_sweep:
        raise ConfigError(
            "--detach leaves the jobs of a sweep to their cluster, and this is no sweep",
            where="--detach",
            fix="-m --detach hydra/launcher=submitit_slurm … for a sweep on Slurm; nohup … & for "
            "a single run",
        )
    is_shared = from_environment().count > 1
    if is_shared and not can_sweep:
        raise ConfigError("this command takes one process", where="torchrun", fix="leave it out")
    if is_shared and is_sweep:
        raise ConfigError(
            "a sweep cannot run under torchrun: its processes lose one another after a job",
            where="torchrun … -m runner.train -m",
            fix="python -m runner.train -m hydra/launcher=submitit_local "
            "hydra.launcher.tasks_per_node=2 …",
        )
    if is_sweep and cfg:
        raise ConfigError(
            "--cfg prints one configuration, -m makes several",
            where="-m --cfg",
            fix="--cfg job with the words of one job",
        )
