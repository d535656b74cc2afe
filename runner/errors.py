"""The errors a user can cause or meet, and the exit code of each.

Every error says *what* is wrong, *where* (a dotted config key with its value, or a file) and
how to *fix* it (something to paste). Commands print it without a traceback and exit with
``exit_code``; any other exception is a bug of ours and exits with 1.
"""

import errno
import os
from typing import ClassVar


class RunnerError(Exception):
    """An error with a cause outside this code: one line each for what, where and fix.

    Attributes:
        run: the folder of the run that met the error, if it is known.
    """

    exit_code: ClassVar[int] = 1
    run: str | None = None

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"where: {self.where}")
        if self.fix:
            lines.append(f"fix: {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        # Launchers pickle a job's error, and pickle does not keep keyword arguments by itself.
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _rebuild(kind: type[RunnerError], what: str, where: str, fix: str) -> RunnerError:
    return kind(what, where=where, fix=fix)


class ConfigError(RunnerError):
    """Wrong usage or configuration: unknown key, option or value out of range."""

    exit_code = 2


class DataError(RunnerError):
    """The data cannot be used as requested: missing folder, broken image, class mismatch."""

    exit_code = 3


class StorageError(RunnerError):
    """The environment failed: disk full, no permission, no network, checksum mismatch."""

    exit_code = 4


class TrainingError(RunnerError):
    """Training could not continue: numbers that are not finite, out of memory, lost worker."""

    exit_code = 5


class DivergedError(TrainingError):
    """The loss, a gradient, a prediction or a weight is NaN or infinite."""


class CodeError(TrainingError):
    """A function of the user's own code failed, or returned what it must not."""


class ProcessError(TrainingError):
    """A TrainingError with a cause in this process alone, where several share a run."""


class SweepError(RunnerError):
    """A sweep ended with failed jobs; the others finished."""

    exit_code = 6


class ArtefactError(RunnerError):
    """A file was refused: corrupt, untrusted or not matching what it is used with."""

    exit_code = 7


class BusyError(RunnerError):
    """Another process owns this run at the moment."""

    exit_code = 75


def of_system(error: BaseException) -> StorageError | None:
    """Return the error of the operating system in our form; None if ``error`` is of another kind.

    Its cause is outside this code: a full disk, a name that is too long, a lost file system.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return None
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    return StorageError(
        error.strerror or str(error), where=" → ".join(names), fix=_FIXES.get(error.errno, "")
    )


_FIXES = {
    errno.ENOSPC: "free space on the disk, then the same command again",
    errno.EDQUOT: "free space within your quota, then the same command again",
    errno.ENAMETOOLONG: "a shorter name",
    errno.EMFILE: "a higher limit of open files (ulimit -n), or fewer data.num_workers",
    errno.EACCES: "other permissions, or another folder",
    errno.EROFS: "a folder that can be written",
}


def first_line(error: Exception) -> str:
    """Return the first line of the message of ``error``."""
    return str(error).strip().partition("\n")[0]
