"""Finished runs: their summaries for jobs, and the jobs that have a finished run already."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.idea import idea_of
from runner.config.requested import Requested
from runner.config.schema import Data, RunConfig
from runner.errors import ArtefactError
from runner.records import evaluations
from runner.records.identity import evaluation_identity, folder_name, identified
from runner.records.run_folder import RunFolder
from runner.terminal.display import Display

if TYPE_CHECKING:
    from runner.data.dataset import Dataset


def shown_result(
    folder: RunFolder, config: RunConfig, result: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the result of a finished run with the evaluation that ``config`` requests, if any.

    None if the run lacks that evaluation.

    Raises:
        ArtefactError: the evaluation is damaged.
    """
    requested = evaluation_identity(config)
    evaluation = None if requested is None else evaluations.read(folder, requested)
    if requested is not None and evaluation is None:
        return None
    return evaluations.joined(result, evaluation)


def summary(status: str, folder: RunFolder, result: dict[str, Any]) -> dict[str, Any]:
    """Return what a sweep records about a job with this result."""
    metrics, evaluation = result["metrics"], result.get("evaluation")
    return {
        "status": status,
        "folder": str(folder.path),
        "accuracy": metrics["plain"]["accuracy"],
        "tta": metrics["tta"]["accuracy"] if "tta" in result["tricks"] else None,
        "evaluation": evaluation["name"] if evaluation else None,
        "seconds": result["budget"]["seconds"] + (evaluation["seconds"] if evaluation else 0.0),
    }


def summaries_of_others(
    folder: RunFolder, others: Sequence[Requested], before: frozenset[str]
) -> list[dict[str, Any] | None]:
    """Return the summaries of other jobs that request an evaluation of a finished run.

    Args:
        folder: the folder of the run.
        others: the requests.
        before: names of the evaluations that the run had before.

    Returns:
        For each request: its summary; None if the run lacks the evaluation or it is damaged, which
        the job itself reports.
    """
    found: list[dict[str, Any] | None] = [None] * len(others)
    result = folder.result() if others else None
    for number, other in enumerate(others if result is not None else ()):
        with suppress(ArtefactError):
            shown = shown_result(folder, other.config, result or {})
            if shown is not None:
                name = evaluation_identity(other.config)
                status = "skipped" if name is None or name in before else "evaluated"
                found[number] = summary(status, folder, shown)
    return found


def finished_before(configs: Sequence[RunConfig]) -> list[dict[str, Any] | None]:
    """Return the summaries of the jobs whose runs are finished, as the jobs would return them.

    None for every other job, and for a job that must decide by itself, because its data was
    never read on this machine, or because of an error, which the job will report. Data and
    weights are read once, however many jobs have them, and only if a run may match.
    """
    finished = _Finished()
    return [finished.summary(config) for config in configs]


class _UnreadError(Exception):
    """Data must be downloaded, hashed or decoded first, which is the work of a job."""


def refuse_work(what: str, done: int, total: int) -> None:
    """Raise if data must be downloaded, hashed or decoded first; as the progress of reading it."""
    if not total or done < total:
        raise _UnreadError(what)


class _Finished:
    def __init__(self) -> None:
        self._names = cache(_names_below)
        self._dataset = cache(_dataset)
        self._find_weights: Callable[..., Any] | None = None

    def summary(self, config: RunConfig) -> dict[str, Any] | None:
        """Return the summary of a job whose run is finished; None if the job must begin."""
        if config.force:
            return None
        try:
            return self._summary(config)
        except Exception:  # the job itself reports any error, and ends no other job
            return None

    def _summary(self, config: RunConfig) -> dict[str, Any] | None:
        outputs = Path(config.outputs).expanduser()
        place = Path(config.run_dir).expanduser() if config.run_dir else None
        if place is not None and not (place / "result.json").is_file():
            return None
        code = idea_of(config)
        weights = None
        if config.names_weights:
            if place is None and not self._may_be_below(outputs, f"{config.data.name}-"):
                return None
            from runner.training.learners import fitted_to_weights

            if self._find_weights is None:
                from runner.models import find_weights

                self._find_weights = cache(find_weights)
            config, weights = fitted_to_weights(
                config, Display(quiet=True), code, find=self._find_weights
            )
        if place is None and not self._may_be_below(outputs, folder_name(config, "")):
            return None
        dataset = self._dataset(config.data, config.largest_size, outputs / "cache")
        if dataset is None:
            return None
        config, what = identified(config, dataset, weights.identity if weights else None, code)
        folder = RunFolder(place or outputs / folder_name(config, what["identity"]))
        if not folder.is_begun:
            return None
        folder.check(what)
        result = folder.whole_result()
        if result is not None:
            folder.drop_checkpoints()  # left by a process that was killed after writing the result
        shown = None if result is None else shown_result(folder, config, result)
        return None if shown is None else summary("skipped", folder, shown)

    def _may_be_below(self, outputs: Path, start: str) -> bool:
        """Return whether a finished run below ``outputs`` has a name with this start."""
        return any(
            name.startswith(start) and (outputs / name / "result.json").is_file()
            for name in self._names(outputs)
        )


def _names_below(outputs: Path) -> tuple[str, ...]:
    return tuple(path.name for path in outputs.iterdir()) if outputs.is_dir() else ()


def _dataset(data: Data, size: int, folder: Path) -> "Dataset | None":
    """Return the data set; None if reading it takes work or fails."""
    from runner.data.dataset import load_dataset
    from runner.data.shared import kept_dataset

    try:
        kept = kept_dataset(data, size, folder)
        return kept or load_dataset(data, size, folder, refuse_work)
    except Exception:  # the job itself reports any error
        return None
