"""Signals that ask this process to end: an exception where that is safe, deferred where it is not.

SIGTERM comes from schedulers and ``kill``, SIGINT from Ctrl-C, SIGHUP from a terminal that is
closed, SIGUSR2 from Slurm shortly before a job's time is up.

A second signal ends the process immediately, except in a Slurm job: Slurm itself sends several.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OF_SLURM = (signal.SIGTERM, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1  # from Linux's prctl.h


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end.

    Attributes:
        signum: number of the signal.
        exit_code: 129 for SIGHUP, 130 for SIGINT and 143 for SIGTERM, as in shells.

    Args:
        reason: why the signal came; by default the name of the signal.
    """

    def __init__(self, signum: int = signal.SIGINT, reason: str = "") -> None:
        super().__init__(reason or signal.Signals(signum).name)
        self.signum = signum
        self.exit_code = 128 + signum


def _raise(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


def raise_on_signals() -> None:
    """Let signals raise :class:`Interrupted` in this process from now on.

    An ignored SIGHUP stays ignored: under ``nohup``, a run outlives its terminal.
    """
    if threading.current_thread() is threading.main_thread():
        for signum in _ENDING:
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                signal.signal(signum, _raise)


class OneInterruption:
    """A handler that raises :class:`Interrupted` once, and ignores all signals after that.

    For a job of Slurm. It gets SIGUSR2 shortly before its time is up, and two SIGTERMs within
    milliseconds, or half a minute apart, when it is preempted; after half a minute more, SIGKILL.

    Args:
        reason: called with the first signal, before the exception is raised and after the work
            that :func:`deferred` lets complete; returns why the signal came.
    """

    def __init__(self, reason: Callable[[int], str]) -> None:
        self._reason = reason
        self._is_over = False

    def install(self) -> None:
        """Handle signals from now on; only the main thread can call this."""
        for signum in _OF_SLURM:
            signal.signal(signum, self)
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGCONT):
            signal.signal(signum, signal.SIG_IGN)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal, as Python calls handlers."""
        if not self._is_over:
            self.ignore_further()
            raise Interrupted(signum, self._reason(signum))

    def ignore_further(self) -> None:
        """Ignore signals from now on, until this process ends."""
        self._is_over = True
        for signum in _OF_SLURM:
            signal.signal(signum, signal.SIG_IGN)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Defer signals during the block, and deliver the first one when the block ends.

    Yield a function that returns whether a signal is waiting; the block should then complete its
    work and end. A second signal is not deferred: it ends the process at once, except in a job of
    Slurm, where it is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []
    handled = [signum for signum in _ENDING if signal.getsignal(signum) != signal.SIG_IGN]

    once = _of_slurm()
    second = signal.SIG_IGN if once else signal.SIG_DFL

    def hold(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        for each in handled:
            signal.signal(each, second)

    if callable(
        signal.getsignal(signal.SIGUSR2)
    ):  # of submitit, which puts the job back into the queue
        handled.append(signal.SIGUSR2)
    before = {signum: signal.signal(signum, hold) for signum in handled}
    try:
        yield lambda: bool(received)
    except Interrupted:  # another process of the run received its signal first
        if once and not received:
            once.ignore_further()
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if received:  # also if the block failed: the sender wants this process to end
            signal.raise_signal(received[0])


def _of_slurm() -> OneInterruption | None:
    """Return the handler of this process if it is in a job of Slurm."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler if isinstance(handler, OneInterruption) else None


@contextmanager
def held_back() -> Iterator[None]:
    """Hold signals back until the block ends; a process forked in the block does not get them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_ENDING, signal.SIGUSR2))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def at_once() -> Iterator[None]:
    """Let signals end the process without a message.

    For waits outside Python with nothing to save: Python's own handlers would run only
    after the wait. In a Slurm job those handlers stay: the job must not fail, and Slurm kills it in
    the end.
    """
    if threading.current_thread() is not threading.main_thread() or _of_slurm():
        yield
        return
    handled = [signum for signum in _ENDING if signal.getsignal(signum) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in handled}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def ignore_signals() -> None:
    """Ignore signals in a helper process: its parent ends it, even after a signal to the group."""
    for signum in (*_ENDING, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)


def end_with_parent() -> None:
    """Let the kernel kill this helper process when its parent dies, for any reason; on Linux.

    A worker of torch's DataLoader notices that its parent is dead, but then waits forever, with
    all its memory, for a reader of its last items. The parent is the thread that made the process.
    """
    _signal_at_death_of_parent(signal.SIGKILL)


@contextmanager
def outliving_parent(parent: int) -> Iterator[None]:
    """Complete the block even if the parent dies; after the block, end when the parent does.

    For a worker that gets its jobs from its parent: without a parent, it would wait for the next
    job until the machine is turned off.

    Args:
        parent: process ID of the parent.
    """
    _signal_at_death_of_parent(0)
    try:
        yield
    finally:
        _signal_at_death_of_parent(signal.SIGKILL)
        if os.getppid() != parent:  # it has died already
            sys.stdout.flush()
            os._exit(1)


def _signal_at_death_of_parent(signum: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum)
