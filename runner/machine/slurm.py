"""Ask Slurm about jobs with its own commands; nothing here depends on what the jobs do.

All questions go to the controller (``squeue``, ``scontrol``), which every cluster has; the
accounting that ``sacct`` reads is off on many. The controller forgets a job some minutes after its
end (``MinJobAge``).
"""

import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from runner.errors import ConfigError, StorageError

_SECONDS = 60  # to wait for an answer of the controller


@dataclass(frozen=True)
class QueuedJob:
    """A job as Slurm sees it.

    Attributes:
        id: ``12_3`` of a job in an array, otherwise ``12``.
        state: in Slurm's words, such as PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, CANCELLED,
            TIMEOUT, NODE_FAIL or OUT_OF_MEMORY.
        reason: in Slurm's words, why the job waits or how it failed; empty if Slurm gives none.
        node: the machine of the job; empty if it has none.
    """

    id: str
    state: str
    reason: str = ""
    node: str = ""

    @property
    def is_waiting(self) -> bool:
        """Whether the job has not begun, or waits to begin again."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")

    @property
    def is_over(self) -> bool:
        """Whether the job has ended and Slurm will not begin it again."""
        return self.state in _OVER

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody cancelled the job."""
        return self.state == "CANCELLED"


_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """The most that a job can get; None if there is no limit or the limit is not known.

    Attributes:
        name: name of the partition; several, with commas, if a job may run in any of them.
        max_minutes: longest duration of a job, minutes.
        cores_per_node: cores of the node with the most cores.
        memory_gb: memory of the node with the most memory, GiB.
    """

    name: str
    max_minutes: int | None
    cores_per_node: int | None
    memory_gb: float | None


def queue(ids: Iterable[str]) -> dict[str, QueuedJob]:
    """Return the jobs with these ids, by id; without those that Slurm no longer knows.

    Args:
        ids: ids such as ``12_3`` and ``12``; the id of an array means all of its jobs.

    Raises:
        StorageError: Slurm does not answer.
    """
    wanted = sorted({*ids})
    if not wanted:
        return {}
    arrays = ",".join(sorted({one.partition("_")[0] for one in wanted}))
    try:
        # The reason comes last, because it is free text.
        said = _run("squeue", "--noheader", "--array", "--states=all", f"--jobs={arrays}",
                    "--format=%i|%T|%N|%r")  # fmt: skip
    except StorageError as error:
        if "Invalid job id" in error.what:  # it knows none of them
            return {}
        raise
    found = {}
    for line in said.splitlines():
        if line.count("|") < 3:  # such as CLUSTER: name, if there are several
            continue
        number, state, node, reason = (part.strip() for part in line.split("|", 3))
        reason = "" if reason in ("None", "(null)") else reason
        for one in _expanded(number.partition(".")[0]):
            found[one] = QueuedJob(one, _plain(state), reason, node)
    return found


def _plain(state: str) -> str:
    """Return ``CANCELLED`` for ``CANCELLED by 0``; ``OUT_OF_MEMORY`` for ``OUT_OF_ME+``."""
    word = state.split()[0].upper() if state else ""
    if word.endswith("+"):
        return next((one for one in sorted(_OVER) if one.startswith(word[:-1])), word[:-1])
    return word


def _expanded(number: str) -> Iterator[str]:
    """Yield ``12_1``, ``12_2`` and ``12_5`` for ``12_[1-2,5%4]``."""
    array, _, indexes = number.partition("_")
    if not indexes.startswith("["):
        yield number
        return
    for part in indexes.strip("[]").partition("%")[0].split(","):
        if found := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part):
            first, last, step = found.groups()
            for index in range(int(first), int(last or first) + 1, int(step or 1)):
                yield f"{array}_{index}"


def limits(partition: str | None) -> Limits:
    """Return the most that a job can get in a partition.

    Args:
        partition: name; several, with commas, if a job may run in any of them; None for the
            cluster's default. If the cluster names no default, no limit is known.

    Raises:
        ConfigError: there is no such partition.
        StorageError: Slurm does not answer.
    """
    said = _run("sinfo", "--noheader", "--all", "--exact", "--format=%P|%l|%c|%m")
    rows = [line.split("|") for line in said.splitlines() if line.count("|") == 3]
    known = {row[0].removesuffix("*") for row in rows}
    wanted = partition.split(",") if partition else []
    default = next((row[0].removesuffix("*") for row in rows if row[0].endswith("*")), None)
    fix = f"hydra.launcher.partition={default or next(iter(sorted(known)), 'NAME')}"
    for name in wanted:
        if name not in known:
            what = f"the cluster has no partition {name}; it has {', '.join(sorted(known))}"
            raise ConfigError(what, where=f"hydra.launcher.partition={partition}", fix=fix)
    if not wanted:
        wanted = [default] if default else []
    chosen = [row for row in rows if row[0].removesuffix("*") in wanted]
    minutes = [_minutes(row[1]) for row in chosen]
    cores = [int(found) for row in chosen if (found := row[2].rstrip("+")).isdecimal()]
    megabytes = [int(found) for row in chosen if (found := row[3].rstrip("+")).isdecimal()]
    bounded = [one for one in minutes if one is not None]
    return Limits(
        name=",".join(wanted),
        max_minutes=max(bounded) if chosen and len(bounded) == len(minutes) else None,
        cores_per_node=max(cores, default=0) or None,
        memory_gb=max(megabytes, default=0) / 1024 or None,
    )


def _minutes(text: str) -> int | None:
    """Whole minutes of ``2-12:00:00`` (days, hours …) or ``10:00`` (minutes, seconds)."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if found is None:  # infinite, UNLIMITED, n/a
        return None
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes


def own_id() -> str | None:
    """Return the id of the job that this process is in, such as ``12_3``; None outside Slurm."""
    array, index = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    if array and index:
        return f"{array}_{index}"
    return os.environ.get("SLURM_JOB_ID")


def rename(number: str, name: str) -> None:
    """Give a job the name under which ``squeue`` lists it.

    Raises:
        StorageError: Slurm refuses it or does not answer.
    """
    _run("scontrol", "update", f"jobid={number}", f"jobname={name}")


class Ending(StrEnum):
    """Why a job has to end."""

    TIME_LIMIT = "time limit"
    PREEMPTED = "preempted"
    REQUEUED = "requeued by Slurm"
    """Preempted, or by an administrator; the job is in the queue again already."""
    CANCELLED = "cancelled"
    NONE = "signal"
    """Slurm lets the job run: somebody sent it a signal, or Slurm did before the time limit."""


def ending(number: str) -> Ending:
    """Return why the job that this process is in has to end.

    Args:
        number: id of the job.

    Raises:
        StorageError: Slurm does not answer, or does not know the job.
    """
    said = _run("scontrol", "--oneliner", "show", "job", number)
    found = dict(re.findall(r"(\w+)=(\S+)", said))  # spaces are in values that nobody needs
    if "JobState" not in found:
        raise StorageError("Slurm does not know this job", where=f"scontrol show job {number}")
    preempted, ended = found.get("PreemptTime"), found.get("EndTime")
    is_preempted = preempted not in (None, "None", "Unknown", "N/A")
    # While the processes of a job end, Slurm states no more than COMPLETING.
    restarts = found.get("Restarts", "0")
    known = os.environ.get("SLURM_RESTART_COUNT", "0")
    if restarts.isdecimal() and int(restarts) > (int(known) if known.isdecimal() else 0):
        return Ending.REQUEUED
    if found["JobState"] == "RUNNING":
        return Ending.PREEMPTED if is_preempted else Ending.NONE
    if is_preempted and preempted == ended:  # else it was cancelled while it saved
        return Ending.PREEMPTED
    ran, limit = (_minutes(found.get(key, "")) for key in ("RunTime", "TimeLimit"))
    if ran is not None and limit is not None and ran >= limit:
        return Ending.TIME_LIMIT
    return Ending.CANCELLED


def requeue(number: str) -> None:
    """Put a job that runs or has just ended back into the queue, and end its processes.

    Raises:
        StorageError: Slurm refuses, as for a job that is already in the queue, or does not
            answer.
    """
    _run("scontrol", "requeue", number)


def cancel(ids: Sequence[str], *, is_waiting: bool = False) -> None:
    """Cancel jobs; ignore those that have ended or are not known.

    Args:
        ids: ids of the jobs.
        is_waiting: cancel only jobs that have not begun.

    Raises:
        StorageError: Slurm refuses it or does not answer.
    """
    _run("scancel", "--quiet", *(["--state=PENDING"] if is_waiting else []), *ids)


def scancel(ids: Iterable[str], others: Iterable[str] = ()) -> str:
    """Return the command that cancels jobs.

    Args:
        ids: ids of jobs whose arrays may be cancelled as a whole.
        others: ids of jobs in arrays whose other jobs must continue.
    """
    arrays = dict.fromkeys(one.partition("_")[0] for one in ids)
    parts = [shlex.quote(part) for part in compressed(others).split()]
    return " ".join(["scancel", *arrays, *parts])


def compressed(ids: Iterable[str]) -> str:
    """Write ids for ``scancel`` in few characters: ``12_[0-2,5] 13``."""
    arrays: dict[str, list[int]] = {}
    for one in ids:
        array, _, index = one.partition("_")
        arrays.setdefault(array, []).extend([int(index)] if index else [])
    parts = []
    for array, indexes in arrays.items():
        ranges = _ranges(sorted({*indexes}))
        parts.append(
            f"{array}_[{ranges}]" if len({*indexes}) > 1 else f"{array}_{ranges}".rstrip("_")
        )
    return " ".join(parts)


def max_array_size() -> int:
    """Return the largest number of jobs in an array of this cluster, at least 1.

    Raises:
        StorageError: Slurm does not answer.
    """
    for line in _run("scontrol", "show", "config").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdecimal():
            return max(int(value), 1)  # 0 turns arrays off
    return 1001  # Slurm's default


def _ranges(indexes: list[int]) -> str:
    parts: list[list[int]] = []
    for index in indexes:
        if parts and index == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], index]
        else:
            parts.append([index])
    return ",".join("-".join(map(str, part)) for part in parts)


# The commands print this if the controller cannot be reached, or is too busy.
_SILENCE = re.compile(
    r"Unable to contact|timed out|connection failure|Connection refused|Zero Bytes|try again|"
    r"temporarily|Transport endpoint|not running|Protocol authentication|Invalid credential",
    re.IGNORECASE,
)
# The commands print this if the machine is not part of a cluster.
_NO_CLUSTER = re.compile(
    r"configuration source|cannot stat file|process configuration file", re.IGNORECASE
)


def _run(*words: str) -> str:
    """Return the output of a Slurm command."""
    # A user's defaults for these commands, such as SQUEUE_PARTITION, would hide jobs.
    own = ("SQUEUE_", "SINFO_", "SCONTROL_", "SCANCEL_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    where = " ".join(words)
    try:
        done = subprocess.run(  # noqa: S603
            words, env=environment, capture_output=True, text=True, errors="replace",
            timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise StorageError(
            f"this machine has no Slurm: {words[0]} is not on PATH",
            where=where,
            fix=f"use a login node of the cluster, where `command -v {words[0]}` finds it, "
            "often after: module load slurm",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise StorageError(
            f"Slurm did not answer within {_SECONDS} s", where=where, fix="scontrol ping"
        ) from error
    except OSError as error:
        raise StorageError(
            f"{words[0]} cannot be run: {error.strerror}", where=where, fix=f"{words[0]} --version"
        ) from error
    if done.returncode == 0:
        return done.stdout
    said = _message(done.stderr) or f"exit code {done.returncode}, without a message"
    if no_answer := silence(said):
        what, fix = no_answer
    else:
        what, fix = "Slurm refuses", where
    raise StorageError(f"{what}: {said}", where=where, fix=fix)


def silence(said: str) -> tuple[str, str] | None:
    """Return the problem, and a command that helps, if a Slurm command reached no controller.

    Args:
        said: the output of the command.
    """
    if _NO_CLUSTER.search(said):
        return "this machine knows no Slurm cluster", "export SLURM_CONF=/etc/slurm/slurm.conf"
    if _SILENCE.search(said):
        return "Slurm does not answer", "scontrol ping"
    return None


def _message(stderr: str) -> str:
    """Return the error of a command in one line, without the name of the command."""
    lines = [re.sub(r"^\w+:? (error|fatal): ", "", one) for one in stderr.strip().splitlines()]
    return "; ".join(dict.fromkeys(lines))[:400]
