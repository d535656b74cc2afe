"""Work in a child: how it ends is told, its signals come once, and nothing of it is left."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from runner.machine.children import (
    Barrier,
    answer_of_child,
    answers_of_children,
    can_fork,
    in_child,
)
from runner.machine.signals import Interrupted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has all of it")


def die(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


def leave() -> None:
    os._exit(3)


def fail() -> None:
    raise KeyError("child")


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (lambda: None, 0),
        (leave, 3),
        (fail, 1),
        (die(signal.SIGKILL), -signal.SIGKILL),
        (die(signal.SIGUSR1), -signal.SIGUSR1),
    ],
)
def test_the_end_of_a_child_is_told(work: Callable[[], None], code: int) -> None:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    assert in_child(work, lambda signum: True) == code
    assert before == {signum: signal.getsignal(signum) for signum in before}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_once_and_as_sigterm(signum: int, tmp_path: Path) -> None:
    heard = list[int]()

    def work() -> None:
        try:
            (tmp_path / "begun").touch()
            time.sleep(30)
        except Interrupted as interrupt:
            (tmp_path / "signal").write_text(str(interrupt.signum))

    def on_signal(signum: int) -> bool:
        heard.append(signum)
        return True

    def send() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signum)

    thread = threading.Thread(target=send)
    thread.start()
    assert in_child(work, on_signal) == 0
    thread.join()
    assert heard == [signum]
    assert (tmp_path / "signal").read_text() == str(signal.SIGTERM.value)


def test_a_signal_that_another_thread_gets_is_passed_on(tmp_path: Path) -> None:
    """The system does not end the main thread's wait for such a signal."""

    def work() -> None:
        try:
            (tmp_path / "begun").touch()
            time.sleep(30)
        except Interrupted:
            (tmp_path / "interrupted").touch()

    def send() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        time.sleep(0.2)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    assert in_child(work, lambda signum: True) == 0
    thread.join()
    assert (tmp_path / "interrupted").exists()


def test_waiting_for_a_child_opens_nothing_that_stays_open() -> None:
    def opened() -> set[str]:
        return {link.name for link in Path("/proc/self/fd").iterdir()}

    before = opened()
    assert in_child(lambda: None, lambda signum: True) == 0
    assert opened() == before


def test_a_child_is_a_group_of_its_own(tmp_path: Path) -> None:
    place = tmp_path / "group"
    assert in_child(lambda: place.write_text(str(os.getpgid(0) == os.getpid())) and None, bool) == 0
    assert place.read_text() == "True"  # so Ctrl-C of a terminal does not reach it twice


def test_other_threads_do_not_fork() -> None:
    found = list[bool]()
    thread = threading.Thread(target=lambda: found.append(can_fork()))
    thread.start()
    thread.join()
    assert (can_fork(), found) == (True, [False])


def test_the_answer_of_a_child(capfd: pytest.CaptureFixture[str]) -> None:
    mine = os.getpid()
    assert answer_of_child(lambda: str(os.getpid())) != str(mine)
    assert answer_of_child(lambda: "") == ""
    with pytest.raises(RuntimeError, match="exit code 1: ZeroDivisionError"):
        answer_of_child(lambda: str(1 / 0))
    with pytest.raises(RuntimeError, match="signal 9"):
        answer_of_child(lambda: str(os.kill(os.getpid(), signal.SIGKILL)))
    assert capfd.readouterr() == ("", "")


def test_the_answers_of_several_children_are_in_the_order_of_the_questions() -> None:
    def ask(number: int) -> str:
        time.sleep(0.3 - number / 10)
        return str(number)

    assert answers_of_children([partial(ask, number) for number in range(3)]) == ["0", "1", "2"]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        answers_of_children([lambda: "fine", lambda: str(1 / 0)])


def test_processes_wait_at_a_barrier_for_those_that_are_alive() -> None:
    barrier = Barrier()

    def ask(delay: float) -> str:
        assert not barrier.have_all_arrived
        time.sleep(delay)
        barrier.arrive()
        while not barrier.have_all_arrived:
            time.sleep(0.01)
        return str(time.monotonic())

    start = time.monotonic()
    passed = answers_of_children([partial(ask, delay) for delay in (0.0, 0.4)], [barrier])
    assert min(map(float, passed)) >= start + 0.4
    assert barrier.have_all_arrived
    barrier = Barrier()
    with pytest.raises(RuntimeError, match="signal 9"):
        answers_of_children(
            [lambda: str(os.kill(os.getpid(), signal.SIGKILL)), partial(ask, 0.1)], [barrier]
        )
