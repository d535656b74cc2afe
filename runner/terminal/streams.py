"""Standard output and error that no reader has to stay for: a run does not depend on a terminal.

A pipe may close, a disk may be full, and the terminal of a run under ``nohup`` goes away. Writing
then raises, in any print of any library. Here it does not: what cannot be written is dropped, and
the first error is kept for the end of the command.
"""

import io
import os
import sys
from typing import Any


class _Outlet(io.RawIOBase):
    """A file descriptor to which writing never fails; ``error`` is why it did."""

    def __init__(self, descriptor: int, error: OSError | None) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._was_closed = error
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        view = memoryview(data)
        size = view.nbytes
        self.error = self.error or self._was_closed
        while self.error is None and view.nbytes:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                continue  # a reader of a pipe without blocking is slow
            except OSError as error:
                self.error = error
        return size


def open_outlets() -> None:
    """Replace the process's own standard output and error by ones that never raise.

    Closed descriptors are opened first, so that no other file gets their numbers. Streams that are
    redirected inside Python stay as they are.
    """
    closed = {descriptor for descriptor in range(3) if not _is_open(descriptor)}
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        error = OSError("it is closed") if descriptor in closed else None
        if stream is not None:
            if type(stream) is not io.TextIOWrapper or _outlet(stream) is not None:
                continue
            if stream.fileno() != descriptor:
                continue
        encoding = "utf-8" if stream is None else stream.encoding
        is_lines = descriptor == 2 or (stream is not None and stream.line_buffering)
        setattr(
            sys,
            name,
            io.TextIOWrapper(
                io.BufferedWriter(_Outlet(descriptor, error)),
                encoding=encoding,
                errors="backslashreplace",  # a terminal may not know all characters
                line_buffering=is_lines,
            ),
        )


def output_error() -> OSError | None:
    """Return why standard output could not be written, if so."""
    if sys.stdout is not None:
        sys.stdout.flush()
    outlet = _outlet(sys.stdout)
    return outlet.error if outlet is not None else None


def _outlet(stream: object) -> _Outlet | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Outlet) else None


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
