"""Work in a child of this process: whatever ends the child, this process continues."""

import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType

from runner.machine.signals import end_with_parent, raise_on_signals

# Signals of a closed terminal, of Ctrl-C and of schedulers.
_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


_MOST_OF_ERROR = 1000  # characters

# A signal that comes between Python's last look and the system's wait, or to another thread of this
# process, does not end the wait, and its handler runs only after it.
_LONGEST_WAIT = 0.5  # seconds


def can_fork() -> bool:
    """Return whether this process may work in children: on Linux, from its main thread."""
    return sys.platform == "linux" and threading.current_thread() is threading.main_thread()


def in_child(work: Callable[[], None], on_signal: Callable[[int], bool]) -> int:
    """Do ``work`` in a child that this process forks, and wait for its end.

    This process must not have computed with torch: a child does not have the threads of its parent.
    The child need not import anything again. Another thread may be running, such as one that
    refreshes a table, if the child uses none of the thread's locks or output streams.

    The child is a process group of its own, so a signal to all processes of a terminal or a job
    reaches this process alone. The signal is passed on once, as SIGTERM; then the child saves and
    ends. Ctrl-Z stops both. If this process dies, the child is killed.

    Args:
        work: the function to call in the child, which has the output streams of this process.
        on_signal: called in this process with the first signal. If it returns false, as for a
            second signal, both processes end at once.

    Returns:
        The exit code of the child, 0 if ``work`` returned; or the negative number of the signal
        that ended the child.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()  # what is buffered would be printed by both
    parent, child = os.getpid(), _Child()
    end = Barrier()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    # Before the child exists: other threads of this process do not block signals.
    handlers = _pass_on(child, on_signal)
    try:
        try:
            pid = os.fork()
            if pid == 0:
                _live(work, parent, mask)
            child.exists_as(pid)
        finally:
            end.arrive()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            end.wait(_LONGEST_WAIT)
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        end.close()
    return os.waitstatus_to_exitcode(ended[1])


def answer_of_child(ask: Callable[[], str]) -> str:
    """Call ``ask`` in a child that this process forks, and return the answer, at most 64 kB.

    For questions that would change this process.

    Raises:
        RuntimeError: the child ended without an answer, with what it raised.
    """
    (answer,) = answers_of_children([ask])
    return answer


class Barrier:
    """A point at which processes wait until all of them have arrived; those that ended have.

    The processes are this one and those that it forks afterwards.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()  # hangs up once no process can write to it

    def arrive(self) -> None:
        """Let the others go on as far as this process is concerned; call it once."""
        os.close(self._writer)

    @property
    def have_all_arrived(self) -> bool:
        """Whether each process has arrived or ended."""
        return self.wait(0)

    def wait(self, seconds: float) -> bool:
        """Wait for that, at most some seconds; return :attr:`have_all_arrived`."""
        hung_up = select.poll()
        hung_up.register(self._reader, 0)
        return bool(hung_up.poll(1000 * seconds))

    def close(self) -> None:
        """Free what an arrived process keeps for waiting."""
        os.close(self._reader)


def answers_of_children(
    asks: Sequence[Callable[[], str]], barriers: Sequence[Barrier] = ()
) -> list[str]:
    """Call each function in a child of its own, all at the same time; return their answers.

    Args:
        asks: the functions.
        barriers: where the children wait for one another, and not for this process.

    Raises:
        RuntimeError: a child ended without an answer, with what it raised.
    """
    begun = [_asked(ask) for ask in asks]
    for barrier in barriers:
        barrier.arrive()
    answers, statuses = list[str](), list[int]()
    for pid, reader in begun:
        answers.append(b"".join(iter(partial(os.read, reader, 2**16), b"")).decode())
        os.close(reader)
        statuses.append(os.waitpid(pid, 0)[1])
    for status, answer in zip(statuses, answers, strict=True):
        if status:
            code = os.waitstatus_to_exitcode(status)
            raise RuntimeError(f"a child ended with {ending(code)}: {answer}")
    return answers


def _asked(ask: Callable[[], str]) -> tuple[int, int]:
    """Fork a child that answers; return its number, and where its answer can be read."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            end_with_parent()
            os.write(writer, ask().encode())
            code = 0
        except BaseException as error:  # no exception may reach the code of the parent
            os.write(writer, repr(error)[:_MOST_OF_ERROR].encode())
        finally:
            os._exit(code)
    os.close(writer)
    return pid, reader


class _Child:
    """A child that may not exist yet; signals wait until it does."""

    def __init__(self) -> None:
        self._pid = 0
        self._waiting = list[signal.Signals]()

    def exists_as(self, pid: int) -> None:
        with suppress(OSError):  # the child does this too; either may be first
            os.setpgid(pid, pid)
        self._pid = pid
        for signum in self._waiting:
            self.send(signum)

    def send(self, signum: signal.Signals) -> None:
        if not self._pid:
            self._waiting.append(signum)
            return
        with suppress(ProcessLookupError):
            os.kill(self._pid, signum)


def ending(code: int) -> str:
    """Describe how a child ended, from the code that :func:`in_child` returned."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _live(work: Callable[[], None], parent: int, mask: "set[int | signal.Signals]") -> None:
    """Do ``work`` as the child, and end; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        end_with_parent()
        if os.getppid() == parent:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            # Else a terminal with `stty tostop` would stop it at its first line.
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            raise_on_signals()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            work()
            code = 0
    except BaseException:  # no exception may reach the code of the parent
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _pass_on(
    child: _Child, on_signal: Callable[[int], bool]
) -> dict[signal.Signals, "signal._HANDLER"]:
    """Pass signals on to ``child`` from now on; return the previous handlers."""

    def end(signum: int, frame: FrameType | None) -> None:
        is_first = True
        try:
            is_first = on_signal(signum)
        finally:  # also if the signal cannot be recorded, as on a full disk
            child.send(signal.SIGTERM if is_first else signal.SIGKILL)
        if not is_first:
            os._exit(128 + signum)

    def suspend(signum: int, frame: FrameType | None) -> None:
        child.send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        child.send(signal.SIGCONT)

    wanted = {**dict.fromkeys(_PASSED_ON, end), signal.SIGTSTP: suspend}
    return {
        signum: signal.signal(signum, handler)
        for signum, handler in wanted.items()
        if signal.getsignal(signum) != signal.SIG_IGN  # as nohup ignores SIGHUP
    }
