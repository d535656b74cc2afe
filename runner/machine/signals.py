"""Signals that ask this process to end: an exception where that is safe, deferred where it is not.

SIGTERM comes from schedulers and ``kill``, SIGINT from Ctrl-C, SIGHUP from a terminal that is
closed, SIGUSR2 from submitit shortly before a job's time is up.
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
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end.

    Attributes:
        signum: number of the signal.
        exit_code: 129 for SIGHUP, 130 for SIGINT and 143 for SIGTERM, as in shells.
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signal.Signals(signum).name)
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


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Defer signals during the block, and deliver the first one when the block ends.

    The block gets a function that says whether a signal is waiting, and should then complete its
    work and end. A second signal is not deferred: it ends the process at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []
    handled = [signum for signum in _ENDING if signal.getsignal(signum) != signal.SIG_IGN]

    def hold(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        for each in handled:
            signal.signal(each, signal.SIG_DFL)

    if callable(
        signal.getsignal(signal.SIGUSR2)
    ):  # of submitit, which puts the job back into the queue
        handled.append(signal.SIGUSR2)
    before = {signum: signal.signal(signum, hold) for signum in handled}
    try:
        yield lambda: bool(received)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if received:  # also if the block failed: the sender wants this process to end
            signal.raise_signal(received[0])


@contextmanager
def held_back() -> Iterator[None]:
    """Let signals wait until the block ends; a process that it forks does not get them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def at_once() -> Iterator[None]:
    """Let signals end the process without a message.

    For waits outside Python when there is nothing to save: Python's own handlers would run only
    after the wait.
    """
    if threading.current_thread() is not threading.main_thread():
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
    """Ignore signals in a helper process: its parent ends it, also if the whole group gets one."""
    for signum in _ENDING:
        signal.signal(signum, signal.SIG_IGN)


def end_with_parent() -> None:
    """Let the kernel kill this helper process when its parent dies, for any reason; on Linux.

    A worker of torch's DataLoader does notice that its parent is dead, but then waits forever, with
    all its memory, for a reader of its last items. The parent is the thread that made the process.
    """
    _signal_at_death_of_parent(signal.SIGKILL)


@contextmanager
def outliving_parent(parent: int) -> Iterator[None]:
    """Complete the block even if the parent dies; after the block, end when the parent does.

    For a worker that gets its jobs from its parent: without a parent, it would wait for the next
    job until the machine is turned off.

    Args:
        parent: process of the parent.
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
