"""What the functions of Python return: plain objects, each with a table of plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from runner.records import evaluations
from runner.records.run_folder import RunFolder

if TYPE_CHECKING:
    from runner.report.comparisons import ComparisonAnswer

Rows = list[dict[str, Any]]


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run.

    Attributes:
        folder: the folder of the run.
        result: content of ``result.json``: metrics, budget, configuration, environment.
        status: how this call came to the result, such as ``finished``, ``resumed`` or ``skipped``
            (it was finished before).
    """

    folder: Path
    result: Mapping[str, Any]
    status: str = "finished"

    @property
    def tricks(self) -> list[str]:
        """Names of the tricks that are on; none for the baseline."""
        return list(self.result["tricks"])

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics on the validation images, with TTA if it is one of the tricks."""
        metrics = self.result["metrics"]
        return dict(metrics["tta" if "tta" in self.tricks else "plain"])

    @property
    def accuracy(self) -> float:
        """Validation accuracy, 0..1, with TTA if it is one of the tricks."""
        return float(self.metrics["accuracy"])

    def epochs(self) -> Rows:
        """Return a row per evaluated epoch: losses, accuracy, learning rate, image size."""
        return RunFolder(self.folder).rows()

    def predictions(self) -> dict[str, NDArray[Any]]:
        """Return labels and predictions of the validation images.

        Returns:
            ``labels`` (N,), ``plain`` (N, K) probabilities of the plain view, and if TTA is one of
            the tricks ``tta`` (N, K).

        Raises:
            ArtefactError: a file is missing or damaged.
        """
        folder = RunFolder(self.folder)
        found = dict(folder.predictions())
        if evaluation := self.result.get("evaluation"):
            found["tta"] = evaluations.probabilities(folder, evaluation["name"])
        return found

    def row(self) -> dict[str, Any]:
        """Return what a table says of the run: plain values by name."""
        numbers = {
            name: value for name, value in self.metrics.items() if isinstance(value, int | float)
        }
        budget = self.result["budget"]
        return {
            "run": self.folder.name,
            "data": self.result["data"]["name"],
            "tricks": "+".join(self.tricks) or "baseline",
            "seed": self.result["seed"],
            **numbers,
            "epochs": budget["epochs"],
            "seconds": budget["seconds"],
            "folder": str(self.folder),
        }

    def __repr__(self) -> str:
        return f"Run({self.folder.name}: accuracy {self.accuracy:.2%}, {self.status})"


class Runs(Sequence[Run]):
    """Finished runs, in the order of their names."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = tuple(runs)

    def __getitem__(self, index: Any) -> Any:
        found = self._runs[index]
        return Runs(found) if isinstance(index, slice) else found

    def __len__(self) -> int:
        return len(self._runs)

    def table(self) -> Rows:
        """Return a row per run, of plain values: ``pandas.DataFrame(runs.table())``."""
        return [run.row() for run in self._runs]

    def __repr__(self) -> str:
        lines = [f"{len(self)} finished runs", *map(repr, self._runs)]
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class Comparison:
    """The answer of a comparison.

    Attributes:
        answer: every number; see :class:`runner.report.comparisons.ComparisonAnswer`.
        folder: the folder of the comparison.
    """

    answer: "ComparisonAnswer"
    folder: Path

    @property
    def verdicts(self) -> dict[str, str]:
        """``helps``, ``hurts``, ``no difference``, ``cannot tell`` or ``failed``, by arm."""
        return {one.label: one.outcome for one in self.answer.standings}

    def table(self) -> Rows:
        """Return a row per arm: verdict, difference with its interval (units of the metric), n."""
        rows = []
        for one in self.answer.standings:
            low, high = one.interval or (None, None)
            rows.append(
                {
                    "arm": one.label, "verdict": one.outcome, "difference": one.mean,
                    "low": low, "high": high, "n": len(one.seeds),
                    "p": one.p_zero,
                }
            )  # fmt: skip
        return rows

    def page(self) -> str:
        """Return the answer as an HTML page with figures, which needs no other file."""
        from runner.records.comparison_folder import ComparisonFolder
        from runner.report.comparisons import compared_runs, counted_runs
        from runner.report.page import comparison_page

        folder = ComparisonFolder(self.folder)
        known = counted_runs(self.answer, folder.runs(), folder.outputs)
        return comparison_page(self.answer, compared_runs(self.answer, known), None)

    def __repr__(self) -> str:
        from runner.report.comparison_words import verdict_line

        plan, metric = self.answer.plan, self.answer.metric
        return "\n".join(verdict_line(one, plan.margin, metric) for one in self.answer.standings)

    def _repr_html_(self) -> str:
        style = "width: 100%; height: 34rem; border: 0"
        return f'<iframe srcdoc="{escape(self.page())}" style="{style}"></iframe>'
