"""The lock between processes: who holds it, who is told so, and when it is free again."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from runner.errors import BusyError, StorageError
from runner.machine.locks import is_held, locked

HOLD = """
import sys, time
from pathlib import Path
from runner.machine.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    if sys.argv[2:] == ["start"]:  # a child that outlives its parent
        import subprocess
        print(subprocess.Popen(["sleep", "60"], close_fds=False).pid, flush=True)
    if sys.argv[2:] == ["fork"]:
        import os
        if pid := os.fork():
            print(pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "run.lock"


@pytest.fixture
def other(path):
    """Another process that holds the lock; killed at the end, if not before."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def take(path):
    with locked(path, wait=False):
        pass


def test_the_file_says_who_holds_the_lock(path):
    with locked(path):
        said = json.loads(path.read_text())
    assert (said["pid"], said["host"]) == (os.getpid(), socket.gethostname())
    age = datetime.now(UTC) - datetime.fromisoformat(said["since"])
    assert timedelta() <= age < timedelta(minutes=1)
    assert path.exists()  # the file stays, with the last holder


def test_who_comes_second_is_told_of_the_first(path, other):
    with pytest.raises(BusyError) as caught:
        take(path)
    assert caught.value.exit_code == 75
    told = re.fullmatch(
        r"another process is using this: process (\d+) on (\S+), since (\S+)", caught.value.what
    )
    assert told.group(1, 2) == (str(other.pid), socket.gethostname())
    assert datetime.fromisoformat(told.group(3)).tzinfo == UTC
    assert caught.value.where == str(path)
    assert json.loads(path.read_text())["pid"] == other.pid  # asking overwrites nothing


def test_a_lock_within_this_process_excludes_too(path):
    with locked(path), pytest.raises(BusyError, match=f"process {os.getpid()} on"):
        take(path)
    take(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": 1}', "\x00\x01"])
def test_a_holder_that_is_not_legible_is_left_out(path, content):
    with locked(path):
        path.write_text(content)
        with pytest.raises(BusyError) as caught:
            take(path)
    assert caught.value.what == "another process is using this"


def test_whether_it_is_held(path, other):
    assert is_held(path)
    other.kill()
    other.wait()
    assert not is_held(path)
    with locked(path):
        assert is_held(path)
    assert not is_held(path)


def test_a_lock_that_was_never_made_is_not_held(path, tmp_path):
    assert not is_held(path)
    assert not path.exists()  # asking makes nothing
    assert not path.parent.exists()
    assert not is_held(tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_frees_it(path, other, signum):
    with pytest.raises(BusyError):
        take(path)
    other.send_signal(signum)
    assert other.wait(30) == -signum
    assert json.loads(path.read_text())["pid"] == other.pid
    take(path)
    assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("how", ["start", "fork"])
def test_children_of_the_holder_do_not_keep_it(path, how):
    with subprocess.Popen([sys.executable, "-c", HOLD, path, how], stdout=subprocess.PIPE) as p:
        assert p.stdout.readline() == b"held\n"
        child = int(p.stdout.readline())
        try:
            with pytest.raises(BusyError):
                take(path)
            p.kill()
            p.wait(30)
            os.kill(child, 0)  # it lives
            take(path)
        finally:
            os.kill(child, signal.SIGKILL)


def test_who_only_asks_makes_nobody_busy(path):
    """Asking takes the lock for a moment; who wants it tries more than once."""
    take(path)
    asking = (
        "import sys, time\nfrom pathlib import Path\nfrom runner.machine.locks import is_held\n"
        "print('asks', flush=True)\nend = time.monotonic() + 1\n"
        "while time.monotonic() < end: is_held(Path(sys.argv[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", asking, path], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"asks\n"
        taken = 0
        while process.poll() is None:
            take(path)
            taken += 1
    assert taken > 10


def test_a_lock_file_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for wait in (False, True):
        with (
            pytest.raises(StorageError, match="cannot lock") as caught,
            locked(tmp_path / "file" / "run.lock", wait=wait),
        ):
            pass
        assert caught.value.where == str(tmp_path / "file" / "run.lock")
        assert caught.value.exit_code == 4


def test_an_exception_of_the_block_passes_and_frees_it(path):
    with pytest.raises(OSError, match="mine"), locked(path):
        raise OSError("mine")
    take(path)


def test_the_end_of_a_child_does_not_free_it(path):
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from runner.machine.locks import is_held, locked\n"
        "path = Path(sys.argv[1])\n"
        "with locked(path):\n"
        "    pid = os.fork()\n"
        "    if pid: os.waitpid(pid, 0); print(is_held(path), flush=True)\n"
        "if pid: print(is_held(path))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr


# ── What somebody has put in its place ─────────────────────────────────────────────────────────


def test_a_lock_that_was_removed_or_replaced_is_noticed(path):
    with locked(path) as held:
        held.require()
        assert held.is_in_place
        path.unlink()
        assert not held.is_in_place
        with locked(path, wait=False) as second:  # nothing keeps another process out
            assert second.is_in_place
            with pytest.raises(StorageError, match="removed or replaced"):
                held.require()


def test_a_lock_that_is_removed_while_another_waits_is_not_the_one_it_takes(path):
    found = []

    def wait():
        with locked(path) as held:
            found.append(held.is_in_place)

    with locked(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.2)
        assert found == []
        path.unlink()
    waiting.join()
    assert found == [True]


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder", "device"])
def test_what_is_no_lock_is_neither_taken_nor_changed(path, tmp_path, kind):
    own = tmp_path / "own"
    own.write_text("of somebody else")
    path.parent.mkdir()
    {
        "link": lambda: path.symlink_to(own),
        "hard link": lambda: path.hardlink_to(own),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
    }[kind]()
    for wait in (False, True):
        with pytest.raises(StorageError, match="cannot lock"), locked(path, wait=wait):
            pass
    assert not is_held(path)
    assert own.read_text() == "of somebody else"


@pytest.mark.parametrize("content", [b"", bytes(80)])
def test_a_file_that_lost_its_content_with_the_power_is_a_lock(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    take(path)
    assert json.loads(path.read_text())["pid"] == os.getpid()
