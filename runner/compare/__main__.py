"""Train until it is known which changes help: ``python -m runner.compare --try mixup=beta``.

Each ``--try`` is an arm: a change of the baseline. All arms and the baseline are trained with the
same seeds, in rounds, and judged after each round, until every arm is decided. Everything is
checked first, and the plan is printed before anything is trained. The same command resumes after an
interruption, and prints the answer immediately when the comparison has ended. Torch is imported
only to train.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.compare import confirm, recall
from runner.compare.asked import Asked
from runner.config.checks import known_keys
from runner.config.complaints import translated
from runner.config.options import GROUPS
from runner.config.words import nearest
from runner.errors import ConfigError, RunnerError
from runner.machine.files import require_writable
from runner.machine.processes import from_environment
from runner.records.comparison_folder import BASE, ComparisonFolder, Place, place
from runner.report.metric import METRICS, default_margins
from runner.terminal.arguments import Parser
from runner.terminal.command import command, print_page, program, write_outputs
from runner.terminal.console import PipeConsole, printable, table_console
from runner.terminal.display import Display
from runner.terminal.tables import Table, left_out_note
from runner.terminal.usage import EXIT_CODES, KeysParser

if TYPE_CHECKING:
    from runner.compare import plan as plans
    from runner.compare.confirm import HeldOut
    from runner.compare.question import Question
    from runner.compare.rounds import RoundsResult
    from runner.records.evaluations_on_test import PredictionsOnTest
    from runner.report.comparisons import ComparisonAnswer
    from runner.report.runs import FinishedRun

HELPS, NONE_HELPS, CANNOT_TELL = 0, 10, 11
"""Exit codes of ``--exit-code``."""

_EPILOG = (
    """\
examples:
  {called} data=folder data.root=PATH
        the five tricks, each alone, on your own images
  {called} --try mixup=beta --try code=my_loss.py
        two changes of the baseline, one of them your own code
  {called} --try 'mixup=beta optim.lr=1e-2' --max-seeds 6
        one arm with two changes; at most six seeds
  {called} --try +trick=mixup --tune optim.lr=1e-3,1e-2
        baseline and arm each with the learning rate that suits it best
  {called} --try ''
        the baseline again under other seeds (an A/A control)
  {called} --try mixup=beta hydra/launcher=joblib
        a training per core at the same time

Words are KEY=VALUE, GROUP=OPTION and +trick=NAME, as those of runner.train.
Those that must be equal for all belong to the baseline wherever they stand:
what decides the images (data, data.root and so on), seed (the first one),
outputs, device, threads, and hydra. Several words of one arm are quoted
together. The plan shows the baseline and each arm before anything is trained.

The number of seeds, the arms, the metric and the margin are fixed before the
first training. To change them afterwards is a new comparison, which needs
--name and uses the runs that exist.

With --exit-code: 0 an arm helps; 10 none helps (no difference, or it hurts);
11 cannot tell. The control (--try '') counts only if there is no other arm.

"""
    + EXIT_CODES
)


class _Parser(KeysParser):
    """Explains the options of a training that a comparison does not have."""

    def unknown_option(self, option: str, following: Sequence[str]) -> ConfigError:
        """Return the error for an option that does not exist."""
        if option in ("-m", "--multirun"):
            return ConfigError(
                "a comparison chooses its runs itself: it is no sweep",
                where=option,
                fix="leave it out; --try WORDS for each change",
            )
        if option.partition("=")[0] in ("--cfg", "-c", "--resolve"):
            return ConfigError(
                "a comparison has many configurations",
                where=option,
                fix="--plan, or python -m runner.train --cfg job with the words of one",
            )
        key = option.partition("=")[0].lstrip("-").replace("-", "_")
        if key not in (*known_keys(), *GROUPS) and nearest(f"--{key}", self.options()):
            return Parser.unknown_option(self, option, following)
        return super().unknown_option(option, following)


def parser() -> Parser:
    """Make the parser of the command's words."""
    called = program("compare")
    found = _Parser(
        prog=called,
        usage="%(prog)s [WORD …] [--try WORDS] …\n"
        "       [--metric NAME] [--margin MARGIN] [--max-seeds N | --seeds N]\n"
        "       [--folds K] [--budget TIME] [--confirm-on test]\n"
        "       [--tune KEY=V1,V2] [--plan] [--html FILE] [--json FILE] [--exit-code] …",
        description="Train until it is known which changes of the training help.",
        epilog=_EPILOG.format(called=called),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("words", nargs="*", metavar="WORD", help="words of the baseline")
    add(
        "--try", nargs="*", action="append", default=[], dest="tries", metavar="WORDS",
        help="what an arm changes, several words in quotes; once per arm (default: the five "
        "tricks, each alone)",
    )  # fmt: skip
    add(
        "--margin",
        help="smallest difference that matters, in percentage points, or for log loss and Brier "
        f"score in their own units (default: {default_margins()})",
    )
    add(
        "--metric", default="accuracy", metavar="NAME",
        help=f"what is compared: {', '.join(METRICS)} (default: accuracy)",
    )  # fmt: skip
    add("--max-seeds", metavar="N", help="seeds per arm at most, 3 to 20 (default: 10)")
    add("--seeds", metavar="N", help="a fixed design: all N seeds for every arm, one look")
    add(
        "--folds", metavar="K",
        help="a fixed design: K-fold cross-validation of folder or table data, with --seeds N "
        "seeds per fold (default: 1)",
    )  # fmt: skip
    add(
        "--budget", metavar="TIME",
        help="begin no training after this time, such as 2h or 1h30m, and no round that would "
        "probably last longer",
    )  # fmt: skip
    add(
        "--tune", action="append", default=[], metavar="KEY=V1,V2",
        help="search these values for the baseline and every arm, on other seeds; once per key",
    )  # fmt: skip
    add(
        "--confirm-on", metavar="test", dest="confirm_on",
        help="when the comparison has ended, evaluate its runs on the test part of the data, once; "
        "a number, no verdict",
    )  # fmt: skip
    add("--name", help="name of the comparison, for a new one whose arms were compared before")
    add("--plan", action="store_true", help="print the plan and stop: nothing is trained")
    add("--html", type=Path, metavar="FILE", help="write a page with figures; - prints it")
    add("--json", type=Path, metavar="FILE", help="write every number in full; - prints it")
    add("--exit-code", action="store_true", help="say in the exit code whether an arm helps")
    add("--config-dir", type=Path, metavar="DIR", help="add your own options, as in runner.train")
    return found


def main() -> None:
    """Run the command; see ``--help``."""
    arguments = parser().parse_intermixed_args()
    codes = list[int]()
    command(
        lambda: codes.append(_compare(arguments)),
        translated,
        if_interrupted="interrupted; the same command goes on from here",
        prints_result=arguments.plan or Path("-") in (arguments.html, arguments.json),
    )
    if any(codes):
        sys.exit(codes[0])


def asked_of(arguments: argparse.Namespace) -> Asked:
    """Return the question in the words of :func:`parser`."""
    return Asked(
        words=tuple(arguments.words),
        tries=tuple(map(tuple, arguments.tries)),
        margin=arguments.margin,
        metric=arguments.metric,
        max_seeds=arguments.max_seeds,
        seeds=arguments.seeds,
        folds=arguments.folds,
        budget=arguments.budget,
        tune=tuple(arguments.tune),
        name=arguments.name,
        config_dir=arguments.config_dir,
    )


def _compare(arguments: argparse.Namespace) -> int:
    """Check, plan, train and answer; return the exit code."""
    if from_environment().count > 1:
        raise ConfigError(
            "a comparison cannot run under torchrun: its processes lose one another after a run",
            where="torchrun … -m runner.compare",
            fix="python -m runner.compare hydra/launcher=submitit_local "
            "hydra.launcher.tasks_per_node=2 …",
        )
    targets: dict[str, Path | None] = {"html": arguments.html, "json": arguments.json}
    _check_targets(targets)
    confirm.check_word(arguments.confirm_on)
    if arguments.confirm_on is not None and arguments.folds is not None:
        raise ConfigError(
            "each fold has networks of its own, and none of them is trained on all images",
            where=f"--folds {arguments.folds} --confirm-on {arguments.confirm_on}",
            fix="--confirm-on test without --folds",
        )
    # Standard output holds only what a program reads.
    is_read = Path("-") in targets.values()
    is_confirmed = arguments.confirm_on is not None
    folder, result, confirming = _ended_or_run(
        asked_of(arguments), is_plan=arguments.plan, is_read=is_read, is_confirmed=is_confirmed
    )
    if arguments.plan:
        return 0
    from runner.report.comparison_json import from_json
    from runner.report.comparisons import counted_runs, timed
    from runner.report.confirmation import with_recorded

    runs = folder.runs()
    answer = from_json(folder.answer() or {}) if result is None else result.answer
    known = counted_runs(answer, runs, folder.outputs)
    answer = with_recorded(timed(answer, known), folder)
    problem: RunnerError | None = None
    if answer.is_ended and confirming is not None and answer.confirmation is None:
        try:
            answer = _confirmed(folder, answer, *confirming, is_read=is_read)
        except RunnerError as error:  # the answer is printed nevertheless
            problem = error
    contents: dict[str, Callable[[], str]] = {
        "html": lambda: _page(answer, known, arguments.html),
        "json": lambda: _json(answer),
    }
    is_seen = answer.is_ended or any(one.seeds for one in answer.standings)
    if not write_outputs(targets, contents) and is_seen:
        _print(answer, table_console())
    print_page(arguments.html, is_read=is_read)
    if problem is not None:
        raise problem
    if result is not None:
        result.raise_problem()
        if result.is_out_of_time:
            text = "the budget is used up; the same command goes on from here, with a new budget"
            print(text, file=sys.stderr if is_read else sys.stdout)
    return exit_code(answer) if arguments.exit_code else 0


def _ended_or_run(
    words: Asked, *, is_plan: bool, is_read: bool, is_confirmed: bool
) -> "tuple[ComparisonFolder, RoundsResult | None, tuple[Question, HeldOut] | None]":
    """Find the comparison of these words; if it has not ended, print its plan and run its rounds.

    Args:
        words: the question.
        is_plan: print the plan and stop.
        is_read: a program reads standard output, so all other output goes to standard error.
        is_confirmed: the comparison is to be confirmed on the test part of its data.

    Returns:
        The folder of the comparison; its rounds, None if it had ended, or is only planned; and what
        a confirmation needs, None without `--confirm-on`, or if one is recorded.
    """
    confirming: tuple[Question, HeldOut] | None = None
    with Display(stderr=is_read) as display:
        ended = None if is_plan else recall.ended(words, display)
        if ended is not None and not (is_confirmed and _lacks_confirmation(ended)):
            return ended, None, None
        from runner.compare import plan as plans
        from runner.compare.architectures import check_architectures
        from runner.compare.question import question

        asked = question(words)
        planned = plans.planned(asked, display)
        found = place(asked.outputs, planned.comparison, asked.name)
        planned = plans.as_recorded(planned, found.plan)
        for note in found.notes:
            print(note, file=sys.stderr)
        if is_confirmed:
            confirming = asked, confirm.read_test_part(asked, display)
        is_ended = found.folder.answer() is not None
        if is_plan or not is_ended:
            _check_code(asked)
            check_architectures(planned)
            for line in [*plans.lines(planned), *confirm.plan_lines(confirming), ""]:
                display.line(line)
    result = None if is_plan or is_ended else _run(asked, planned, found, is_read=is_read)
    recall.remember(words, asked, found.folder)
    return found.folder, result, confirming


def _lacks_confirmation(folder: "ComparisonFolder") -> bool:
    """Return whether a comparison has no confirmation of the answer that it has."""
    from runner.report.confirmation import of_answer

    return of_answer(folder) is None


def _confirmed(
    folder: ComparisonFolder,
    answer: "ComparisonAnswer",
    asked: "Question",
    part: "HeldOut",
    *,
    is_read: bool,
) -> "ComparisonAnswer":
    """Evaluate the runs of an ended comparison on the test part, and record it."""
    from runner import evaluate

    base = asked.base
    place = {
        "data": {
            "root": base.data.root,
            "num_workers": base.data.num_workers,
            "cache_gb": base.data.cache_gb,
        },
        "outputs": str(asked.outputs),
        "threads": base.threads,
    }
    with Display(stderr=is_read) as display:
        load = evaluate.loader(display, with_test=True)

        def predict(path: Path, evaluation: str | None) -> "PredictionsOnTest":
            run = evaluate.read_run(path)
            variant = evaluate.recorded_variant(run, evaluation, place)
            return evaluate.predictions_on_test(run, variant, part.fingerprint, load, display)

        return confirm.confirm(folder, answer, part, predict, display)


def _run(
    asked: "Question", planned: "plans.Planned", found: Place, *, is_read: bool
) -> "RoundsResult":
    """Run the rounds of a comparison that has not ended."""
    from runner import train
    from runner.compare import rounds
    from runner.compare.batches import How
    from runner.compare.live import Live

    require_writable(found.folder.path)
    how = How(train.WORK, asked.outputs, asked.launcher, asked.config_dir, asked.budget)
    question = planned.question
    configs = {BASE: question.base, **{arm.label: arm.config for arm in question.arms}}
    with Live(planned, stderr=is_read) as live:
        return rounds.run(found.folder, planned.comparison, how, live, planned.folders, configs)


def _check_targets(targets: Mapping[str, Path | None]) -> None:
    """Refuse files that could not be written at the end of the comparison."""
    asked = {name: path for name, path in targets.items() if path is not None}
    if len(asked) == 2 and len({*asked.values()}) == 1:
        raise ConfigError(
            "one place cannot take both",
            where=" ".join(f"--{name} {path}" for name, path in asked.items()),
            fix="two names of files",
        )
    for name, path in asked.items():
        if path == Path("-"):
            continue
        where = f"--{name} {path}"
        if path.is_dir() or not path.name:
            raise ConfigError(
                "a folder is in the place of the file", where=where, fix="another FILE"
            )
        if not path.parent.is_dir():
            raise ConfigError(
                "there is no such folder to write into",
                where=where,
                fix=f"mkdir -p {shlex.quote(str(path.parent))}",
            )
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError("the file may not be written", where=where, fix="another FILE")


def _check_code(asked: "Question") -> None:
    """Run each file of the user's code as the trainings will, so that a mistake is found now."""
    configs = (asked.base, *(arm.config for arm in asked.arms))
    files = dict.fromkeys(config.code for config in configs if config.code is not None)
    if files:
        from runner.jobs.checks import check_code

        for file in files:
            check_code(file)


def exit_code(answer: "ComparisonAnswer") -> int:
    """Return the exit code of an answer with ``--exit-code``.

    Returns:
        0 if an arm helps; 10 if no arm helps and none is undecided; else 11. The base
        again under other seeds does not count, unless there is no other arm.
    """
    changes = [one for one in answer.standings if one.words]
    verdicts = {one.verdict for one in changes or answer.standings}
    if "helps" in verdicts:
        return HELPS
    return NONE_HELPS if verdicts <= {"hurts", "no difference"} else CANNOT_TELL


def _json(answer: "ComparisonAnswer") -> str:
    from runner.report.comparison_json import to_json

    return json.dumps(to_json(answer), indent=2, allow_nan=False) + "\n"


def _page(
    answer: "ComparisonAnswer", known: "Mapping[tuple[str, int], FinishedRun]", target: Path
) -> str:
    from runner.report.comparisons import compared_runs
    from runner.report.page import comparison_page  # imports matplotlib, which takes a second

    folder = None if target == Path("-") else target.parent
    return comparison_page(answer, compared_runs(answer, known), folder)


def _print(answer: "ComparisonAnswer", console: PipeConsole) -> None:
    from runner.report.comparison_text import comparison_parts

    left_out: list[str] = []
    for part in comparison_parts(answer):
        if isinstance(part, str):
            console.print(printable(part), markup=False, emoji=False, soft_wrap=True)
        else:
            part.print(console)
        if isinstance(part, Table):
            left_out += part.left_out(console.width)
    if left_out:
        note = left_out_note(left_out, "--html FILE")
        console.print(printable(note), markup=False, emoji=False, soft_wrap=True)


if __name__ == "__main__":
    main()
