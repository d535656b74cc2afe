"""The comparisons below the folders of a report."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runner.errors import ArtefactError
from runner.records.comparison_folder import ComparisonFolder, PairedRun
from runner.report.comparison_json import from_json
from runner.report.comparisons import (
    ComparisonAnswer,
    compared_runs,
    counted_runs,
    standings,
    timed,
)
from runner.report.confirmation import with_recorded
from runner.report.groups import RunGroup
from runner.report.runs import FinishedRun, Unranked
from runner.report.scores import ScoreBook


@dataclass(frozen=True)
class FoundComparisons:
    """The comparisons below some folders.

    Attributes:
        answers: their answers, or their states so far.
        members: the runs that belong to a comparison, path of the run and evaluation, each with the
            name of the comparison.
        failed: paths of the trainings of comparisons that failed.
        damaged: comparisons that cannot be read, with the reasons.
        groups: for each of ``answers``, its runs; None where one can no longer be read.
    """

    answers: tuple[ComparisonAnswer, ...] = ()
    members: Mapping[tuple[Path, str | None], str] = field(default_factory=dict)
    failed: frozenset[Path] = frozenset()
    damaged: tuple[Unranked, ...] = ()
    groups: tuple[RunGroup | None, ...] = ()

    def holder(self, run: FinishedRun, view: str) -> str | None:
        """Return the name of a comparison that a view of a run belongs to; None if there is none.

        The plain view of a training belongs to it also where the comparison is of views with TTA.
        """
        evaluation = run.evaluation if view == "tta" else None
        return self.members.get((run.path, evaluation))


def find_comparisons(places: Iterable[Path], book: ScoreBook) -> FoundComparisons:
    """Read every comparison below ``places``, folders of runs; in others there is none.

    A comparison with a damaged file or run is among ``damaged``. If its runs are known, they are
    among ``members`` in any case: a verdict of a fixed design would be wrong for them.
    """
    answers: list[ComparisonAnswer] = []
    members: dict[tuple[Path, str | None], str] = {}
    failed: set[Path] = set()
    damaged: list[Unranked] = []
    groups: list[RunGroup | None] = []
    known: dict[Path, None] = {}
    for place in places:
        for folder in ComparisonFolder.all_in(place.absolute()):
            known.setdefault(folder.path)
    for path in known:
        folder, outputs = ComparisonFolder(path), path.parent.parent
        try:
            runs = folder.runs()
            jobs = [one for by_seed in runs.values() for one in by_seed.values()]
            _add_members(members, failed, jobs, folder)
            searched = folder.tuning() or {}
            tried = (by_seed for one in searched.values() for by_seed in one.runs.values())
            jobs = [one for by_seed in tried for one in by_seed.values()]
            _add_members(members, failed, jobs, folder)
            content = folder.answer()
            if content is not None:
                found = with_recorded(from_json(content), folder)
            else:
                found = standings(folder.plan(), runs, outputs, book, searched)
            counted = counted_runs(found, runs, outputs)
            answers.append(timed(found, counted))
            groups.append(compared_runs(found, counted))
        except ArtefactError as error:
            damaged.append(Unranked(f"comparison {path.name}", "unreadable", error.what))
    return FoundComparisons(
        tuple(answers), members, frozenset(failed), tuple(damaged), tuple(groups)
    )


def _add_members(
    members: dict[tuple[Path, str | None], str],
    failed: set[Path],
    jobs: Iterable[PairedRun],
    folder: ComparisonFolder,
) -> None:
    """Note each run of a comparison as it is compared, its plain view, and what failed."""
    for one in jobs:
        if one.run is not None:
            for evaluation in (None, one.evaluation):
                members.setdefault((folder.outputs / one.run, evaluation), folder.name)
        elif one.folder:
            failed.add(folder.outputs / one.folder)
