"""What ``python -m runner.show`` prints of a sweep: once, or again and again until its end.

In a terminal a table is drawn anew; a file or a pipe gets it once, and then a line per change.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from runner.errors import SweepError
from runner.jobs.overview import JobState, Overview
from runner.jobs.states import LATE_SECONDS, Queue, reasons
from runner.machine.slurm import compressed
from runner.records.sweep_folder import ALIVE, ENDED, SweepFolder, from_here
from runner.terminal.command import program
from runner.terminal.console import LiveConsole, PipeConsole, printable, table_console
from runner.terminal.sweeps import counted, print_line, print_sweep
from runner.terminal.tables import Table

_SECONDS = 1.0  # between two looks
_ROOM = 3  # lines of a terminal that stay free, for the prompt of a shell
_TABLE_LINES = 5  # of a table besides its rows
_FIRST = (
    "running", "waiting", "failed", "crashed", "cancelled", "interrupted", "queued", "busy",
    "pending",
)  # fmt: skip
"""What is listed first where there is no room for all jobs."""


def show_sweep(folder: SweepFolder, *, once: bool) -> None:
    """Print the states of the jobs of a sweep, until they have ended.

    Args:
        folder: the folder of the sweep.
        once: print and return, whether the jobs have ended or not.

    Raises:
        SweepError: all jobs have ended, some without a result.
        SystemExit: a signal came; it ends the watching alone, which has been said.
    """
    overview = Overview(folder)
    overview.look()
    if once and overview.is_doubtful:
        time.sleep(LATE_SECONDS)
        overview.look()
    if overview.is_at_work and not once:
        try:
            _watch(overview)
        except KeyboardInterrupt as interrupt:
            again = f"{program('show')} {folder.pasted}"
            print(
                f"not watched any more; the jobs go on. To watch again:\n  {again}", file=sys.stderr
            )
            sys.exit(getattr(interrupt, "exit_code", 130))
    if overview.is_at_work:
        _print_table(overview)
    else:
        _print_end(overview)


def _watch(overview: Overview) -> None:
    console = LiveConsole(highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        _print_table(overview)
        changes = _Changes(overview)
        while overview.is_at_work:
            time.sleep(_SECONDS)
            overview.look()
            changes.tell()
        return

    def renderable() -> RenderableType:
        return drawn(overview, console.width, console.height - _ROOM)

    with Live(
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        get_renderable=renderable,
    ) as live:
        while overview.is_at_work:
            live.refresh()
            began = time.monotonic()
            overview.look()
            # Many files on a slow file system are read more rarely.
            time.sleep(max(_SECONDS, 5 * (time.monotonic() - began)))


def _print_table(overview: Overview) -> None:
    """Print the table once; lines above and below it stay whole, so that they can be pasted."""
    console = table_console()
    above, table, below = _parts(overview, console.width, None)
    for line in above:
        _print(line)
    table.print(console)
    for line in below:
        _print(line)


def _print_end(overview: Overview) -> None:
    """Print the table with which the sweep itself ends.

    Raises:
        SweepError: jobs have no result.
    """
    outcomes = [
        {"job": job, **one.state} for job, one in zip(overview.jobs, overview.states, strict=True)
    ]
    folder = overview.folder
    print_sweep(outcomes, folder.log, from_here(folder.outputs))
    if bad := [one for one in overview.states if not one.is_good]:
        has_begun = any(one.status not in ("pending", "interrupted", "busy") for one in bad)
        what = "failed" if has_begun else "have no result, and nothing is at work on them"
        fix = "fix the cause and run the command of the sweep again: finished jobs are not repeated"
        if all(one.status == "cancelled" for one in bad):
            what, fix = "were cancelled", "the command of the sweep again, which resumes them"
        raise SweepError(
            f"{len(bad)} of {len(outcomes)} jobs {what}", where=str(folder.path), fix=fix
        )


class _Changes:
    """Prints a line for each job whose status has changed, and for each new reason to wait."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._statuses = [one.status for one in overview.states]
        self._notes = _notes(overview)

    def tell(self) -> None:
        """Print what has changed since the last call."""
        for one, before in zip(self._overview.states, self._statuses, strict=True):
            if one.status != before:
                print_line({"error": _at(one), **one.state}, one.name)
        notes = _notes(self._overview)
        for what, note in notes.items():
            if what not in self._notes:
                _print(note)
        self._statuses = [one.status for one in self._overview.states]
        self._notes = notes


def _at(one: JobState) -> str:
    """Return where a job is."""
    if one.status not in ALIVE:
        return ""
    return " ".join(filter(None, [one.id, f"on {one.node}" if one.node else ""]))


def drawn(overview: Overview, width: int, height: int) -> RenderableType:
    """Return the table of a sweep that is at work, with what is above and below it.

    Args:
        overview: how the jobs stand.
        width: of the terminal, in characters.
        height: lines that there is room for.
    """
    above, table, below = _parts(overview, width, height)
    return Group(*map(_text, above), table.drawn(width), *map(_text, below))


def _parts(
    overview: Overview, width: int, height: int | None
) -> tuple[list[str], Table, list[str]]:
    """Return the table and the lines around it; without a height, there is room for all jobs."""
    above, below = [*_heading(overview)], [*_notes(overview).values()]
    states = overview.states
    if height is not None:
        taken = sum(_num_lines(line, width) for line in (*above, *below))
        room = max(1, height - taken - _TABLE_LINES)
        if room < len(states):
            states = _first(states, room - 1)
            kept = {one.number for one in states}
            rest = [one.state for one in overview.states if one.number not in kept]
            below.insert(0, f"and {counted(rest)}")
    return above, _table(states, counted([one.state for one in overview.states])), below


def _text(line: str) -> Text:
    return Text(printable(line))


def _num_lines(line: str, width: int) -> int:
    """Return the number of terminal lines that a line of text takes."""
    return len(_text(line).wrap(Console(width=width), width))


def _first(states: Sequence[JobState], count: int) -> list[JobState]:
    """As many jobs as there is room for, in their order: those first that need a look."""
    rank = {status: number for number, status in enumerate(_FIRST)}
    by_need = sorted(states, key=lambda one: rank.get(one.status, len(rank)))
    return sorted(by_need[:count], key=lambda one: one.number)


def _table(states: Sequence[JobState], title: str) -> Table:
    rows = []
    for one in states:
        accuracy, tta = one.state.get("accuracy"), one.state.get("tta")
        state = "" if one.queued is None else one.queued.state
        epochs = "" if one.epochs is None else f"/{one.epochs:g}"
        rows.append(
            (
                one.name,
                one.status,
                f"{one.id} {state}".strip(),
                one.node,
                "" if one.epoch is None else f"{one.epoch}{epochs}",
                "" if accuracy is None else f"{accuracy:.2%}",
                "" if tta is None else f"{tta:.2%}",
            )
        )
    columns = ("job", "status", "Slurm", "node", "epoch", "accuracy", "TTA")
    empty = [name for at, name in enumerate(columns) if at > 1 and not any(row[at] for row in rows)]
    return Table(title, columns, tuple(rows), columns[:4]).without(*empty)


def _heading(overview: Overview) -> Iterator[str]:
    folder = overview.folder
    alive = {one.number: one.id for one in overview.states if one.id and one.status in ALIVE}
    yield f"sweep {folder.path.name}"
    yield f"  logs: {folder.pasted}/N.log"
    if alive:
        ids, command = compressed(alive.values()), folder.scancel(alive)
        yield f"  Slurm: {ids}; {command} ends them, and what runs is saved"
    elif folder.leader is not None:
        pid, host = folder.leader
        if folder.is_led:
            yield f"  Ctrl-C in its terminal or kill {pid} ends it, and what runs is saved"
        elif folder.is_led is None:
            yield f"  begun by process {pid} on {host}: whether it lives cannot be seen from here"


def _notes(overview: Overview) -> dict[str, str]:
    """Explain why jobs wait, by Slurm's reason, and Slurm's silence, by its message."""
    notes = reasons(
        one.queued
        for one in overview.states
        if one.queued is not None and one.queued.is_waiting and one.status in ALIVE
    )
    if problem := overview.queue.problem:
        text = "it is asked again, and what is known may be old"
        notes[problem] = f"{problem}; {text}"
    return notes


def _may_be_at_work(folder: SweepFolder) -> bool:
    """Return whether a job of a sweep has not recorded its end."""
    ends = (*ENDED, "cancelled")
    return any(folder.read(number)["status"] not in ends for number in range(len(folder.names())))


def under_way(outputs: Path) -> Iterator[str]:
    """Yield a line per sweep below ``outputs`` whose jobs are at work."""
    queue = Queue()
    overviews = [
        Overview(folder, queue) for folder in SweepFolder.all_in(outputs) if _may_be_at_work(folder)
    ]
    ids = [record.id for one in overviews for record in one.folder.slurm.values()]
    queue.ask(ids, every=0)  # once for all sweeps
    for overview in overviews:
        if overview.jobs and overview.look() and overview.is_at_work:
            states = [one.state for one in overview.states]
            yield f"sweep {overview.folder.path.name}: {counted(states)}"


def _print(line: str) -> None:
    PipeConsole(highlight=False).print(printable(line), markup=False, soft_wrap=True)
