"""Signals: what they raise, when they wait, and what a second one does."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from runner.machine.signals import (
    Interrupted,
    OneInterruption,
    at_once,
    deferred,
    ignore_signals,
    raise_on_signals,
)

BOTH = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
OF_SLURM = [signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT]


@pytest.fixture(autouse=True)
def _handlers():
    """As in a command of ours; afterwards as pytest had them."""
    before = {signum: signal.getsignal(signum) for signum in (*BOTH, *OF_SLURM)}
    raise_on_signals()
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def in_a_process(code):
    """Exit code (negative for a signal) and output of a Python process; ``say`` prints at once."""
    lines = [
        "import os, signal, sys, threading, time",
        "from runner.machine.signals import *",
        "def say(text): print(text, flush=True)",
        "def send(signum): os.kill(os.getpid(), signum); time.sleep(0)",
        code,
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    return done.returncode, done.stdout.split(), done.stderr


@pytest.mark.parametrize("signum", BOTH)
def test_a_signal_raises_with_the_exit_code_of_shells(signum):
    with pytest.raises(Interrupted) as caught:
        signal.raise_signal(signum)
    assert isinstance(caught.value, KeyboardInterrupt)  # so nobody takes it for an ordinary error
    assert caught.value.signum == signum
    assert caught.value.exit_code == 128 + signum
    assert str(caught.value) == signal.Signals(signum).name


@pytest.mark.parametrize("signum", BOTH)
def test_a_signal_waits_for_the_end_of_the_block(signum):
    seen = []

    def block(is_asked):
        seen.append(is_asked())
        signal.raise_signal(signum)
        seen.append(is_asked())

    with pytest.raises(Interrupted) as caught, deferred() as is_asked:
        block(is_asked)
    assert seen == [False, True]
    assert caught.value.signum == signum
    with pytest.raises(Interrupted):  # negative control: it does not wait outside
        block(lambda: "outside")
    assert seen == [False, True, "outside"]


def test_without_a_signal_nothing_happens():
    with deferred() as is_asked:
        pass
    assert not is_asked()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("sends", [False, True])
def test_handlers_are_as_before_after_any_block(fails, sends):
    before = [signal.getsignal(signum) for signum in BOTH]
    try:
        with deferred():
            assert [signal.getsignal(signum) for signum in BOTH] != before
            if sends:
                signal.raise_signal(signal.SIGTERM)
            if fails:
                raise ValueError
    except (ValueError, Interrupted):
        pass
    assert [signal.getsignal(signum) for signum in BOTH] == before


@pytest.mark.parametrize("signum", BOTH)
def test_a_signal_during_a_block_that_fails_is_still_delivered(signum):
    def block(*signals):
        for each in signals:
            signal.raise_signal(each)
        raise ValueError("of the block")

    with pytest.raises(Interrupted) as caught, deferred():
        block(signum)
    assert caught.value.signum == signum
    assert isinstance(caught.value.__context__, ValueError)
    with pytest.raises(ValueError, match="of the block"), deferred():  # negative control
        block()


@pytest.mark.parametrize(("first", "second"), [(a, b) for a in BOTH for b in BOTH])
def test_a_second_signal_ends_the_process_at_once(first, second):
    block = "\n    ".join(
        ["raise_on_signals()\nwith deferred():", "send({})", "say('first')", "{}", "say('end')"]
    )
    code, said, _ = in_a_process(block.format(int(first), f"send({int(second)})"))
    assert (code, said) == (-second, ["first"])
    code, said, _ = in_a_process(block.format(int(first), "pass"))  # negative control
    assert said == ["first", "end"]


@pytest.mark.parametrize("signum", BOTH)
def test_a_process_can_end_with_the_exit_code(signum):
    block = f"raise_on_signals()\ntry:\n    send({int(signum)})\nexcept Interrupted as error:\n"
    assert in_a_process(f"{block}    sys.exit(error.exit_code)")[0] == 128 + signum


def test_what_a_thread_does_is_not_disturbed():
    """Only the main thread may set handlers; elsewhere there is nothing to hold back."""
    seen = []

    def work():
        raise_on_signals()
        with deferred() as is_asked:
            seen.append(is_asked())
            seen.append([signal.getsignal(signum) for signum in BOTH] == before)

    before = [signal.getsignal(signum) for signum in BOTH]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert seen == [False, True]


def test_the_signal_of_submitit_is_held_back_where_somebody_handles_it():
    seen = []
    signal.signal(signal.SIGUSR2, lambda signum, frame: seen.append("queued again"))
    with deferred() as is_asked:
        os.kill(os.getpid(), signal.SIGUSR2)
        seen += [is_asked(), "end"]
    assert seen == [True, "end", "queued again"]


def test_the_signal_of_submitit_is_left_alone_where_nobody_handles_it():
    for handler in (signal.SIG_DFL, signal.SIG_IGN):
        signal.signal(signal.SIGUSR2, handler)
        with deferred():
            assert signal.getsignal(signal.SIGUSR2) == handler


@pytest.mark.skipif(sys.platform != "linux", reason="needs a mutex whose first state is zero")
@pytest.mark.parametrize("signum", BOTH)
def test_a_wait_outside_python_ends_at_once(signum):
    """A handler of Python's would run when the wait is over, which is never."""
    code = """
import contextlib, ctypes
raise_on_signals()
with {}():
    mutex = ctypes.create_string_buffer(64)
    threading.Timer(0.2, send, [{}]).start()
    threading.Timer(1, os._exit, [7]).start()
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""
    assert in_a_process(code.format("at_once", int(signum)))[0] == -signum
    control = in_a_process(code.format("contextlib.nullcontext", int(signum)))
    assert control[0] == 7


def test_handlers_are_as_before_after_a_wait():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    before = [signal.getsignal(signum) for signum in BOTH]

    def block():
        assert [signal.getsignal(signum) for signum in BOTH[:2]] == [
            signal.SIG_IGN, signal.SIG_DFL,
        ]  # fmt: skip
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), at_once():
        block()
    assert [signal.getsignal(signum) for signum in BOTH] == before


@pytest.mark.parametrize("signum", BOTH)
def test_a_helper_process_ignores_signals(signum):
    send = f"send({int(signum)})\nsay('alive')"
    assert in_a_process(f"ignore_signals()\n{send}")[:2] == (0, ["alive"])
    assert in_a_process(send)[1] == []  # negative control


def test_ignoring_is_for_helpers_alone():
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_IGN
    ignore_signals()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_a_run_under_nohup_outlives_its_terminal():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise_on_signals()
    signal.raise_signal(signal.SIGHUP)
    with deferred() as is_requested:
        signal.raise_signal(signal.SIGHUP)
        assert not is_requested()


ONCE = "OneInterruption(lambda signum: f'why-{signum}').install()\n"


@pytest.mark.parametrize("first", OF_SLURM[:2])
def test_in_a_job_of_slurm_only_the_first_signal_counts(first):
    sends = ", ".join(f"send({int(signum)})" for signum in (*OF_SLURM, *BOTH))
    block = f"""
try:
    with deferred() as should_stop:
        send({int(signal.SIGCONT)})
        say(should_stop())
        send({int(first)})
        say(should_stop())
        {sends}
        say('saved')
except Interrupted as error:
    {sends}
    say(error)
    say(error.signum)
with deferred() as should_stop:
    {sends}
    say(should_stop())
import atexit
atexit.register(lambda: [{sends}, say('gone')])
OneInterruption(str).ignore_further()
{sends}
"""
    code, said, error = in_a_process(ONCE + block)
    told = ["False", "True", "saved", f"why-{int(first)}", str(int(first)), "False", "gone"]
    assert (code, said, error) == (0, told, "")
    code, said, _ = in_a_process("raise_on_signals()" + block)  # negative control
    assert (code < 0, "saved" in said) == (True, False)


def test_a_command_of_a_job_of_slurm_gets_no_signals():
    """Slurm signals all processes of a job; scontrol, too, which the job runs to be requeued."""
    call = "subprocess.call(['sh', '-c', 'kill -TERM $$; kill -USR2 $$; exit 7'])"
    code, said, _ = in_a_process(f"import subprocess\nwith held_back():\n    say({call})")
    assert (code, said) == (0, ["7"])
    assert in_a_process(f"import subprocess\nsay({call})")[1] == ["-15"]  # negative control


def test_a_task_of_slurm_ends_with_the_others():
    """Another task got its signal first; this one ends, and its own signal changes nothing."""
    seen = []
    OneInterruption(lambda signum: seen.append(signum) or "why").install()
    with pytest.raises(Interrupted, match="SIGTERM"), deferred():
        raise Interrupted(signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert seen == []


def test_a_wait_of_a_job_of_slurm_does_not_die():
    OneInterruption(lambda signum: "why").install()
    with at_once():
        assert isinstance(signal.getsignal(signal.SIGTERM), OneInterruption)


def test_a_helper_process_ignores_the_signal_of_slurm():
    signal.signal(signal.SIGUSR2, lambda signum, frame: pytest.fail("queued again by a helper"))
    ignore_signals()
    os.kill(os.getpid(), signal.SIGUSR2)
