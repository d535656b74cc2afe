"""Runs of ``python -m runner.train`` that something happens to, and what is left of them.

An attempt is a fork of a server process that has torch and the runner imported already, so it
starts in a fraction of a second. It sets ``sys.argv`` and calls the command's own ``main``. What it
does (files opened for writing, renamed, removed …; steps; predictions; forks) is written down as
*events*, one line of text each, and *traps* do something to it at a chosen event, before the event
takes place. Nothing in the code under test knows of this.
"""

import functools
import gc
import importlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
from safetensors.numpy import load_file

from runner.records.sweep_folder import SweepFolder

DISK = r"^(open|append|rename|remove|rmdir|mkdir|truncate) outputs(?!/cache)"
"""Events that change what is on the disk, the cache of decoded images aside."""
CACHE = r"^(open|append|rename|remove|rmdir|mkdir|truncate) outputs/cache"
SYNC = r"^sync outputs(?!/cache)"
"""A file was written, but is not synced: a part of it may be missing yet."""
STEP = r"^step"
PREDICT = r"^predict"
FORK = r"^fork"

_TORN = 9  # bytes
_LOCK = threading.Lock()

PRELOADED = (
    "torch", "timm", "joblib", "submitit", "pytest",
    "runner.training.session", "runner.train", "runner.evaluate", "runner.predict", "runner.show",
    "runner.lr_find", "runner.data.__main__", "runner.report.__main__",
)  # fmt: skip

MODULES = {
    f"runner.{name}": f"runner.{name}.__main__"
    for name in ("compare", "data", "export", "look", "report")
}
"""Where the ``main`` of a package is."""

T = TypeVar("T")
R = TypeVar("R")
Setup = Callable[[], None]
"""Done in an attempt before the command starts: a function of a module, or a ``partial`` of one."""


@dataclass(frozen=True)
class Trap:
    """Springs at the ``number``-th event, from 1, whose text matches ``pattern``."""

    pattern: str
    number: int
    act: Callable[[int], None]


# ── What a trap can do; the argument is the descriptor of the file, at an event SYNC ───────────


def die(descriptor: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(descriptor: int) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(descriptor: int) -> None:
    os._exit(3)


def die_with_the_sweep(descriptor: int) -> None:
    """Kill the process of the sweep, of which this job is a child."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def tear(descriptor: int) -> None:
    """Die while the end of the file is not written yet."""
    os.ftruncate(descriptor, max(0, os.fstat(descriptor).st_size - _TORN))
    die(descriptor)


def terminate(descriptor: int) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt(descriptor: int) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def hang_up(descriptor: int) -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def terminate_all_soon(seconds: float, descriptor: int) -> None:
    """SIGTERM to the whole group; for a ``partial`` with the seconds."""
    threading.Timer(seconds, os.killpg, (0, signal.SIGTERM)).start()


def pause(descriptor: int) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def kill_a_worker(descriptor: int) -> None:
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)


def fill_the_disk(descriptor: int) -> None:
    """No file may grow beyond 100 kB from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


# ── What can be done to an attempt before it starts ────────────────────────────────────────────


def forget_optimizer_state() -> None:
    from runner.training import loop

    loop.restore_optimizer = lambda optimizer, tensors: None


def draw_from_one_generator() -> None:
    """Every draw comes from one generator, so that it depends on all draws before it."""
    from runner import randomness

    keyed, running = randomness.generator, np.random.default_rng(0)
    for name, module in list(sys.modules.items()):
        if name.startswith("runner.") and getattr(module, "generator", None) is keyed:
            module.generator = lambda seed, purpose, *position: running


def keep_lost_rows() -> None:
    from runner.records.run_folder import RunFolder

    RunFolder.rewind = lambda folder, marks: None


def limit_memory(megabytes: int) -> None:
    """Address space for so much more than is in use."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def set_variables(values: Mapping[str, str]) -> None:
    os.environ.update(values)


def live_yesterday(zone: str) -> None:
    """The clock is a day behind, in another time zone."""
    from runner.machine import locks
    from runner.records import run_folder

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) - timedelta(days=1)

    os.environ["TZ"] = zone
    time.tzset()
    now = time.time
    time.time = lambda: now() - 86_400
    locks.datetime = run_folder.datetime = Yesterday


# ── Attempts ───────────────────────────────────────────────────────────────────────────────────


class Attempt:
    """A process that runs the command; the leader of a group of its own.

    Args:
        root: working directory.
        words: of the command.
        traps: that may spring.
        setup: done before the command starts.
        module: whose ``main`` is the command.
        log: folder for what the process prints and does; by default in ``root``.
    """

    def __init__(
        self,
        root: Path,
        words: Sequence[str],
        traps: Sequence[Trap] = (),
        setup: Sequence[Setup] = (),
        *,
        module: str = "runner.train",
        log: Path | None = None,
    ) -> None:
        self._log = log or root / "log"
        self._log.mkdir(exist_ok=True)
        self._log /= str(len(list(self._log.glob("*.out"))))
        for suffix in (".out", ".err", ".events"):
            self._log.with_suffix(suffix).touch()
        self._process = _server().Process(
            target=_live, args=(str(root), str(self._log), module, tuple(words), traps, setup)
        )
        with _LOCK:
            self._process.start()
        self.pid = self._process.pid or 0
        _attempts.append(self)

    @property
    def code(self) -> int | None:
        """As of ``subprocess``: negative for a signal; None while the process runs."""
        with _LOCK:  # multiprocessing polls all its processes whenever it starts one
            return self._process.exitcode

    def wait(self, seconds: float = 120) -> "Attempt":
        """Wait for the end.

        Raises:
            TimeoutError: it did not come in time; the whole group is dead then.
        """
        try:
            self.wait_for(lambda: self.code is not None, seconds)
        except BaseException:
            os.killpg(self.pid, signal.SIGKILL)
            raise
        return self

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something about this attempt holds.

        Raises:
            TimeoutError: it did not come to hold in time.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"code {self.code}\n{self.out}\n{self.err}")
            time.sleep(0.005)

    def kill(self) -> None:
        """SIGKILL to the process alone, not to those it started."""
        os.kill(self.pid, signal.SIGKILL)

    @property
    def out(self) -> str:
        return self._log.with_suffix(".out").read_text()

    @property
    def err(self) -> str:
        return self._log.with_suffix(".err").read_text()

    @property
    def events(self) -> list[str]:
        return self._log.with_suffix(".events").read_text().splitlines()

    def count(self, pattern: str) -> int:
        """Events so far whose text matches."""
        return sum(bool(re.search(pattern, text)) for text in self.events)

    @property
    def is_paused(self) -> bool:
        return process_stat(self.pid)[0] == "T"

    def group(self) -> list[int]:
        """The processes of its group that are alive, itself included."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        return [
            pid for pid in pids if (found := process_stat(pid))[1] == self.pid and found[0] != "Z"
        ]


_attempts: list[Attempt] = []


def completed(
    root: Path,
    module: str,
    words: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    seconds: float = 120,
) -> "subprocess.CompletedProcess[str]":
    """``python -m MODULE WORDS`` in a fork that has imported the module already."""
    setup = [functools.partial(set_variables, environment)]
    main = MODULES.get(module, module)
    done = Attempt(root, words, setup=setup, module=main, log=log).wait(seconds)
    assert done.code is not None
    return subprocess.CompletedProcess([module, *words], done.code, done.out, done.err)


def end_all() -> None:
    """Kill the attempts that still run, such as paused ones of tests that failed."""
    for attempt in _attempts:
        if attempt.code is None:
            os.killpg(attempt.pid, signal.SIGKILL)
    _attempts.clear()


def process_stat(pid: int) -> tuple[str, int]:
    """State and group of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "Z", 0
    return fields[0], int(fields[2])


@functools.cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        multiprocessing.forkserver.ensure_running()
    return context


def _live(
    root: str,
    log: str,
    module: str,
    words: Sequence[str],
    traps: Sequence[Trap],
    setup: Sequence[Setup],
) -> None:
    gc.freeze()  # or a collection would copy all that is shared with the server
    os.setsid()
    os.chdir(root)
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(f"{log}{suffix}", os.O_WRONLY), descriptor)
    _Watch(root, os.open(f"{log}.events", os.O_WRONLY), traps).begin()
    for prepare in setup:
        prepare()
    sys.argv = [module, *words]
    importlib.import_module(module).main()


class _Watch:
    """Writes down the events of this process, and springs its traps."""

    def __init__(self, root: str, log: int, traps: Sequence[Trap]) -> None:
        self._root = os.path.realpath(root)
        self._log = log
        self._traps = [[trap.number, trap] for trap in traps]
        self._pid = os.getpid()
        self._is_acting = False

    def begin(self) -> None:
        from runner.machine import children
        from runner.training import loop, predicting

        live = children._live

        def watched(*arguments: Any) -> None:
            """A job of a sweep, in a child of its own, goes on with the events of the others."""
            self._pid = os.getpid()
            for waiting in self._traps:
                waiting[0] = waiting[1].number - self._count(waiting[1].pattern)
            live(*arguments)

        children._live = watched
        loop.train_step = self._telling("step", loop.train_step)
        predicting._predict = self._telling("predict", predicting._predict)
        fsync = os.fsync

        def telling_fsync(descriptor: int) -> None:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                self._tell(f"sync {self._path(descriptor)}", descriptor)
            fsync(descriptor)

        os.fsync = telling_fsync
        sys.addaudithook(self._hear)

    def _count(self, pattern: str) -> int:
        events = Path(f"/proc/self/fd/{self._log}").read_text().splitlines()
        return sum(bool(re.search(pattern, text)) for text in events)

    def _telling(self, text: str, function: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(function)
        def told(*arguments: Any, **more: Any) -> R:
            self._tell(text)
            return function(*arguments, **more)

        return told

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit event of Python's; ``shutil.rmtree`` is left out, as it consists of others."""
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int):  # a file object of a descriptor, which was opened before
                return
            is_write = set(mode) & set("wax+") if mode else flags & (os.O_ACCMODE | os.O_CREAT)
            if is_write:
                is_append = "a" in (mode or "") or flags & os.O_APPEND
                self._tell(f"{'append' if is_append else 'open'} {self._path(path)}")
        elif event == "os.rename":
            self._tell(f"rename {self._path(arguments[1], arguments[3])}")
        elif event in ("os.remove", "os.rmdir", "os.mkdir"):
            path = self._path(arguments[0], arguments[-1])
            # Making what is there already, which `exist_ok` asks for, changes nothing.
            if not (event == "os.mkdir" and os.path.isdir(os.path.join(self._root, path))):  # noqa: PTH112, PTH118
                self._tell(f"{event[3:]} {path}")
        elif event == "os.fork":
            self._tell("fork")
        elif event == "os.truncate":
            self._tell(f"truncate {self._path(arguments[0])}")

    def _path(self, path: Any, folder: int | None = None) -> str:
        """Relative to the attempt's folder; of a path, or of a descriptor."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115
        elif folder is not None and folder >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))  # noqa: PTH115, PTH118
        return os.path.relpath(os.fsdecode(path), self._root)

    def _tell(self, text: str, descriptor: int = -1) -> None:
        if self._is_acting or os.getpid() != self._pid:
            return
        os.write(self._log, f"{text}\n".encode())
        for waiting in self._traps:
            if re.search(waiting[1].pattern, text):
                waiting[0] -= 1
                if waiting[0] == 0:
                    self._is_acting = True
                    waiting[1].act(descriptor)
                    self._is_acting = False


# ── Places ─────────────────────────────────────────────────────────────────────────────────────


class Place:
    """A folder in which one command is run, again and again.

    Args:
        root: made here.
        words: of the command.
        cache: folder of decoded images that the command may share.
    """

    def __init__(self, root: Path, words: Sequence[str], cache: Path | None = None) -> None:
        root.mkdir(parents=True)
        self.root = root
        self.words = tuple(words)
        if cache:
            (root / "outputs").mkdir()
            (root / "outputs" / "cache").symlink_to(cache)

    def start(self, *more: str, traps: Sequence[Trap] = (), setup: Sequence[Setup] = ()) -> Attempt:
        return Attempt(self.root, [*self.words, *more], traps, setup)

    def run(self, *more: str, traps: Sequence[Trap] = (), setup: Sequence[Setup] = ()) -> Attempt:
        """An attempt from its start to its end."""
        return self.start(*more, traps=traps, setup=setup).wait()

    @property
    def folder(self) -> Path:
        """Of the one run."""
        (found,) = {path.parent for path in self.root.glob("outputs/*/run.json")}
        return found

    @property
    def checkpoints(self) -> list[Path]:
        """The committed ones, newest first."""
        found = self.folder.glob("checkpoints/*")
        return sorted(
            (path for path in found if re.fullmatch(r"step-\d+", path.name)), reverse=True
        )

    def status(self) -> str:
        return str(json.loads((self.folder / "status.json").read_text())["status"])

    def content(self) -> dict[str, bytes]:
        """All files of the run, by their path in its folder."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


def finished_once(make: Callable[..., Place]) -> Callable[..., Place]:
    """A function that finishes the run of words in a place of its own, once for equal words."""

    @functools.cache
    def run(*words: str) -> Place:
        place = make(*words)
        assert place.run().code == 0
        return place

    return run


def two_epochs(images: Path) -> tuple[str, ...]:
    """Words of a run of two short epochs on a folder of images."""
    return (
        "data=folder", f"data.root={images}", "data.batch_size=16", "resize.size=16",
        "model=timm", "model.name=test_resnet", "budget.epochs=2", "threads=1",
    )  # fmt: skip


def outcome(folder: Path) -> dict[str, bytes]:
    """All of a finished run that must not depend on what happened to it on the way, by name."""
    weights = load_file(folder / "bundle" / "model.safetensors")
    with np.load(folder / "predictions.npz") as predictions:
        arrays = {**weights, **predictions}
    metrics: dict[str, bytes] = {}
    for path in sorted(folder.glob("evaluations/*")):
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            metrics[path.name] = json.dumps([content["tta"], content["metrics"]]).encode()
        else:
            with np.load(path) as probabilities:
                arrays[path.name] = probabilities["tta"]
    result = json.loads((folder / "result.json").read_text())
    return {
        **{name: array.tobytes() for name, array in arrays.items()},
        **metrics,
        "metrics.jsonl": (folder / "metrics.jsonl").read_bytes(),
        "metrics of result.json": json.dumps(result["metrics"]).encode(),
    }


def bits_that_differ(place: Place, reference: Place) -> int:
    """Between the outcomes of two finished runs."""
    ours, theirs = outcome(place.folder), outcome(reference.folder)
    assert ours.keys() == theirs.keys()
    return sum(_bits_that_differ(ours[name], theirs[name]) for name in ours)


def _bits_that_differ(one: bytes, other: bytes) -> int:
    length = max(len(one), len(other))
    pair = [np.frombuffer(each.ljust(length, b"\0"), np.uint8) for each in (one, other)]
    return int(np.unpackbits(pair[0] ^ pair[1]).sum()) + 8 * abs(len(one) - len(other))


def check_survived(place: Place, reference: Place) -> None:
    """A run is finished, sound, and to the bit the one that nothing happened to."""
    check_sound(place)
    assert bits_that_differ(place, reference) == 0, "the results differ"


def check_sound(place: Place) -> None:
    """A finished run has all rows once, whole files, and nothing left over."""
    folder = place.folder
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timings = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    epochs = list(range(1, len(rows) + 1))
    assert [row["epoch"] for row in rows] == [row["epoch"] for row in timings] == epochs
    assert rows[-1]["step"] == result["budget"]["steps"]
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
    assert not (folder / "checkpoints").exists()
    assert list(folder.rglob("*.tmp*")) == []


def in_pairs(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``work`` of each item, two at a time, in the order of the items."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, items))


# ── Commands as their user starts them ─────────────────────────────────────────────────────────

HOOK = r"""
import os, re, signal, sys, time

def hold():
    open(f"held-{{os.getpid()}}", "w").close()
    while os.path.exists("hold"):
        time.sleep(0.01)

def hear(event, arguments):
    if event == "open" and arguments[2] & os.O_APPEND and not isinstance(arguments[0], int):
        path = str(arguments[0])
        is_row = re.search(r"-seed({seeds})-.*/metrics\.jsonl$", path)
        if is_row and os.path.exists(path) is {is_later}:
            {act}

sys.addaudithook(hear)
if "hydra/launcher=submitit_local" in sys.orig_argv:
    import submitit
    submitit.Job._results_timeout_s = 0  # seconds to wait for the result of a job that died
"""
"""A ``sitecustomize.py`` for processes that are no forks."""


def write_hook(place: Place, *, act: str, seeds: str, is_later: bool) -> str:
    """Runs of some seeds will ``act`` before they write their first row, or a later one.

    Returns:
        The PYTHONPATH of the processes.
    """
    hook = place.root / "hook" / "sitecustomize.py"
    hook.parent.mkdir()
    hook.write_text(HOOK.format(act=act, seeds=seeds, is_later=is_later))
    paths = (str(hook.parent), os.environ.get("PYTHONPATH", ""))
    return os.pathsep.join(filter(None, paths))


def sweep(place: Place) -> SweepFolder:
    """The newest of a place."""
    found = place.root.glob("outputs/sweeps/*/sweep.json")
    return SweepFolder(max(found, key=lambda path: path.stat().st_mtime_ns).parent)


def table(place: Place) -> list[dict[str, Any]]:
    """How the jobs of the newest sweep stand."""
    jobs = json.loads((sweep(place).path / "sweep.json").read_text())["jobs"]
    return [sweep(place).read(number) for number in range(len(jobs))]


def statuses(place: Place) -> list[str]:
    return [job["status"] for job in table(place)]


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition holds; an AssertionError where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def at_work(place: Place) -> dict[int, str]:
    """The processes whose working directory is a place, each with its state."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and (entry / "cwd").readlink() == place.root:
                found[int(entry.name)] = process_stat(int(entry.name))[0]
    return found
