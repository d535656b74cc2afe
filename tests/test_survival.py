"""Whatever ends a run, the same command goes on, and the result is to the bit the undisturbed one.

Every attempt is a process of its own; ``kill.py`` has the means to end it at a chosen instant.
"""

import hashlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import kill
import numpy as np
import pytest
from kill import CACHE, DISK, FORK, PREDICT, STEP, SYNC, Attempt, Place, Setup, Trap
from small import COLOURS, EVERY_TRICK, write_images

from runner.machine.files import remove
from runner.records.run_folder import VERSION

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(600),
]

ALL = (EVERY_TRICK, "model.dropout=0.5")  # with draws of every kind: order, mixing, views, layers
WALKS = {
    "all": ALL,
    "mixup": ("+trick=mixup", "optim=sgd", "augment=inception"),
    "baseline": ("+trick=baseline",),
    "book": (
        "resize=book", "resize.first_epochs=1", "resize.first_size=8",
        "resize.first_batch_size=16", "budget.epochs=1",
    ),
}  # fmt: skip

Make = Callable[..., Place]
"""A new place for the command with these words."""


class Reference:
    """An undisturbed run: its place, and its only attempt."""

    def __init__(self, place: Place, attempt: Attempt) -> None:
        assert attempt.code == 0, attempt.err
        kill.check_sound(place)
        self.place = place
        self.attempt = attempt
        self.num_steps = attempt.count(STEP)


References = Callable[..., Reference]
"""The undisturbed run of the command with these words."""
Stopped = Callable[[], Place]
"""A new copy of a run that was killed when it had two checkpoints, of steps 2 and 3."""


@pytest.fixture(scope="module")
def base_words(tiny_folder: Path) -> tuple[str, ...]:
    """Two epochs of two steps, with a checkpoint after each."""
    return (
        "data=folder", f"data.root={tiny_folder}", "data.batch_size=24", "resize.size=16",
        "model=timm", "model.name=test_resnet", "budget.epochs=2", "threads=1",
        "checkpoint.minutes=0",
    )  # fmt: skip


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, base_words: tuple[str, ...]) -> Iterator[Make]:
    root = tmp_path_factory.mktemp("places")
    decoded = Place(root / "decoded", (*base_words, "budget.epochs=1"))
    assert decoded.run().code == 0
    numbers = iter(range(10**6))

    def make_one(*words: str, cold: bool = False) -> Place:
        shared = None if cold else decoded.root / "outputs" / "cache"
        return Place(root / str(next(numbers)), (*base_words, *words), shared)

    yield make_one
    kill.end_all()


@pytest.fixture(scope="module")
def reference(make: Make) -> References:
    """The undisturbed run of the command with these words."""

    @cache
    def run(*words: str, cold: bool = False) -> Reference:
        place = make(*words, cold=cold)
        return Reference(place, place.run())

    return run


@pytest.fixture(scope="module")
def stopped(make: Make) -> Stopped:
    """A new copy of a run that was killed when it had two checkpoints, of steps 2 and 3."""
    place = make(*ALL)
    assert place.run(traps=[Trap(STEP, 4, kill.die)]).code == -signal.SIGKILL
    assert [path.name for path in place.checkpoints] == ["step-000000003", "step-000000002"]

    def copy() -> Place:
        copied = make(*ALL)
        shutil.copytree(place.folder, copied.root / place.folder.relative_to(place.root))
        return copied

    return copy


def ended(attempt: Attempt, code: int) -> bool:
    """Whether an attempt ended as it should, without a traceback and without orphans."""
    assert attempt.code == code, attempt.out + attempt.err
    assert "Traceback" not in attempt.out + attempt.err
    assert attempt.group() == []
    return True


# ── Killed ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Account:
    """Of kills: how many, what went wrong, and how much results differ from undisturbed ones.

    Attributes:
        kills: number, per run.
        lost: of these, those after which something was wrong.
        failures: what was wrong.
        bits: that differ, per run that was finished.
    """

    kills: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    bits: list[int] = field(default_factory=list)

    @contextmanager
    def entry(self, what: str, num_kills: int = 1) -> Iterator[None]:
        """Note what goes wrong in the block, and go on."""
        self.kills.append(num_kills)
        try:
            yield
        except (AssertionError, ValueError, OSError) as error:
            self.lost.append(num_kills)
            self.failures.append(f"{what}: {error!r}")

    def check(self, place: Place, undisturbed: Reference) -> None:
        """The run at ``place`` is finished and as it should be; it is removed."""
        self.bits.append(kill.bits_that_differ(place, undisturbed.place))
        kill.check_survived(place, undisturbed.place)
        shutil.rmtree(place.root)

    def __str__(self) -> str:
        tried = sum(self.kills)
        return f"{tried - sum(self.lost)} of {tried} kills survived, {sum(self.bits)} bits differ"


def numbers_of(events: Sequence[str], pattern: str) -> dict[str, list[int]]:
    """The events that match a pattern, as numbers among them, by their kind.

    Events are of one kind that do the same in the run's folder, to checkpoints or in the bundle.
    """
    found: dict[str, list[int]] = {}
    matching = [text for text in events if re.search(pattern, text)]
    for number, text in enumerate(matching, 1):
        operation, _, path = text.partition(" ")
        below = Path(path).parts[2:]  # outputs/RUN/…
        where = below[0] if len(below) > 1 else "run"
        found.setdefault(f"{operation} {where}", []).append(number)
    return found


def one_of_each(events: Sequence[str], pattern: str) -> list[int]:
    """The last event of each kind, when most is on the disk."""
    return sorted(numbers[-1] for numbers in numbers_of(events, pattern).values())


def walk(
    make: Make,
    undisturbed: Reference,
    words: Sequence[str],
    pattern: str,
    act: Callable[[int], None] = kill.die,
    *,
    numbers: Iterable[int] = (),
    cold: bool = False,
) -> Account:
    """Kill a run at those of its events that match, by default at all, and run it again."""
    account = Account()

    def kill_at(number: int) -> None:
        place = make(*words, cold=cold)
        killed = place.run(traps=[Trap(pattern, number, act)])
        again = place.run()
        with account.entry(f"killed at {killed.events[-1]}"):
            assert killed.code == -signal.SIGKILL
            assert ended(again, 0)
            # No more is lost than the step that was not saved yet.
            assert killed.count(STEP) + again.count(STEP) <= undisturbed.num_steps + 1
            account.check(place, undisturbed)

    kill.in_pairs(kill_at, numbers or range(1, undisturbed.attempt.count(pattern) + 1))
    return account


def every(stride: int, undisturbed: Reference, pattern: str) -> range:
    return range(1, undisturbed.attempt.count(pattern) + 1, stride)


def test_killed_at_each_kind_of_change_of_the_disk(make: Make, reference: References) -> None:
    """``test_every_kill`` leaves out none."""
    numbers = one_of_each(reference(*ALL).attempt.events, DISK)
    account = walk(make, reference(*ALL), ALL, DISK, numbers=numbers)
    assert account.failures == []
    assert len(account.kills) > 10


@pytest.mark.slow
def test_killed_at_any_change_of_the_disk(make: Make, reference: References) -> None:
    """At every fifth one."""
    numbers = every(5, reference(*ALL), DISK)
    assert len(numbers) > 12
    assert walk(make, reference(*ALL), ALL, DISK, numbers=numbers).failures == []


def test_killed_while_each_kind_of_file_is_half_written(make: Make, reference: References) -> None:
    numbers = one_of_each(reference(*ALL).attempt.events, SYNC)
    account = walk(make, reference(*ALL), ALL, SYNC, kill.tear, numbers=numbers)
    assert account.failures == []
    assert len(account.kills) == 4  # the run's own, a checkpoint's, the bundle's, an evaluation's


@pytest.mark.slow
def test_killed_while_a_file_is_half_written(make: Make, reference: References) -> None:
    numbers = every(4, reference(*ALL), SYNC)
    assert len(numbers) > 5
    assert walk(make, reference(*ALL), ALL, SYNC, kill.tear, numbers=numbers).failures == []


@pytest.mark.slow
@pytest.mark.parametrize("stride", [0, 4])
def test_killed_while_a_checkpoint_replaces_one_of_the_same_step(make: Make, stride: int) -> None:
    """That of an interrupted evaluation is written anew when the evaluation is done.

    Args:
        stride: of the changes, or 0 for one of each kind.
    """
    words = (*ALL, "checkpoint.minutes=60")

    def interrupted() -> Place:
        place = make(*words)
        assert ended(place.run(traps=[Trap(PREDICT, 1, kill.terminate)]), 143)
        assert [path.name for path in place.checkpoints] == ["step-000000002"]
        return place

    events = interrupted().run().events
    changes = [text for text in events[: events.index("step")] if re.search(DISK, text)]
    first = next(number for number, text in enumerate(changes, 1) if "checkpoints/" in text)

    def kill_at(number: int) -> int:
        place = interrupted()
        assert place.run(traps=[Trap(DISK, number, kill.die)]).code == -signal.SIGKILL
        again = place.run()
        assert ended(again, 0)
        return again.count(STEP)

    if stride:
        numbers = list(range(first, len(changes) + 1, stride))
    else:
        numbers = [number for number in one_of_each(changes, DISK) if number >= first]
    assert len(numbers) > 2
    assert kill.in_pairs(kill_at, numbers) == [2] * len(numbers)


CONTROLS: dict[str, tuple[Setup, Trap]] = {
    "the state of the optimizer is forgotten": (
        kill.forget_optimizer_state,
        Trap(STEP, 4, kill.die),
    ),
    "draws depend on earlier draws": (kill.draw_from_one_generator, Trap(STEP, 4, kill.die)),
    "lost rows are kept": (kill.keep_lost_rows, Trap(r"^append .*timings", 1, kill.die)),
}


@pytest.mark.parametrize(
    "control",
    [next(iter(CONTROLS)), *(pytest.param(one, marks=pytest.mark.slow) for one in [*CONTROLS][1:])],
)
def test_the_comparison_would_notice(make: Make, reference: References, control: str) -> None:
    """Negative controls: the same, with the code behind it made to fail."""
    setup, trap = CONTROLS[control]
    place = make(*ALL)
    assert place.run(traps=[trap]).code == -signal.SIGKILL
    assert ended(place.run(), 0)
    kill.check_survived(place, reference(*ALL).place)
    undisturbed = make(*ALL)
    assert ended(undisturbed.run(setup=[setup]), 0)
    place = make(*ALL)
    assert place.run(traps=[trap], setup=[setup]).code == -signal.SIGKILL
    assert ended(place.run(setup=[setup]), 0)
    with pytest.raises(AssertionError):
        kill.check_survived(place, undisturbed)


# ── Asked to end ───────────────────────────────────────────────────────────────────────────────

SIGNALS = {
    signal.SIGTERM: kill.terminate,
    signal.SIGINT: kill.interrupt,
    signal.SIGHUP: kill.hang_up,
}


def ask(
    make: Make, undisturbed: Reference, signum: signal.Signals, numbers: Iterable[int]
) -> list[str]:
    """What goes wrong when a run gets a signal at its event of each number, and is run again."""
    account = Account()

    def ask_at(number: int) -> None:
        place = make(*ALL)
        started = time.monotonic()
        asked = place.run(traps=[Trap("", number, SIGNALS[signum])])
        assert time.monotonic() - started < 10
        with account.entry(f"{signum.name} at {asked.events[-1]}"):
            assert ended(asked, 128 + signum)
            is_finished = bool(list(place.root.glob("outputs/*/result.json")))
            for path in place.root.glob("outputs/*/status.json"):
                status = json.loads(path.read_text())["status"]
                assert is_finished or status == "interrupted"
            again = place.run()
            assert ended(again, 0)
            assert asked.count(STEP) + again.count(STEP) == undisturbed.num_steps
            account.check(place, undisturbed)

    kill.in_pairs(ask_at, numbers)
    return account.failures


INSTANTS = (STEP, PREDICT, "optimizer.safetensors$", "manifest.json$", "result.json$")
"""In a step, in an evaluation, in a checkpoint, at the end."""


def instants(events: Sequence[str], pattern: str) -> list[int]:
    """Numbers of the events that match, among all."""
    return [number for number, text in enumerate(events, 1) if re.search(pattern, text)]


@pytest.mark.parametrize(
    "signum",
    [pytest.param(one, marks=[pytest.mark.whole] * (one != signal.SIGTERM)) for one in SIGNALS],
)
def test_a_signal_at_each_kind_of_instant_loses_nothing(
    make: Make, reference: References, signum: signal.Signals
) -> None:
    """Of SIGTERM; the others, which have the same handler, in a step and in an evaluation."""
    kinds = INSTANTS if signum == signal.SIGTERM else INSTANTS[:2]
    matching = [instants(reference(*ALL).attempt.events, pattern) for pattern in kinds]
    numbers = {numbers[len(numbers) // 2] for numbers in matching}
    assert ask(make, reference(*ALL), signum, sorted(numbers)) == []


@pytest.mark.parametrize(
    "signum",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.whole),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_at_any_instant_loses_nothing(
    make: Make, reference: References, signum: signal.Signals
) -> None:
    events = reference(*ALL).attempt.events
    numbers = list(np.random.default_rng(signum).integers(1, len(events) + 1, 2))
    for pattern in INSTANTS:
        matching = instants(events, pattern)
        numbers += [matching[len(matching) // 2], matching[-1]]
    assert ask(make, reference(*ALL), signum, sorted(set(numbers))) == []


def test_a_second_interrupt_ends_the_run_at_once(make: Make, reference: References) -> None:
    place = make(*ALL)
    traps = [Trap(STEP, 2, kill.interrupt), Trap(r"^open .*model.safetensors", 2, kill.interrupt)]
    assert place.run(traps=traps).code in (-signal.SIGINT, 130)
    assert [path.name for path in place.checkpoints] == ["step-000000001"]
    assert ended(place.run(), 0)
    kill.check_survived(place, reference(*ALL).place)


WITH_WORKERS = ("+trick=mixup", "data.batch_size=16", "budget.epochs=4", "data.num_workers=2")


def ask_all(make: Make, undisturbed: Reference, pattern: str, seeds: Iterable[int]) -> list[str]:
    """What goes wrong when SIGTERM comes to a run and to its two workers.

    It comes a moment after one of the events that match.
    """
    account = Account()

    def ask_once(seed: int) -> None:
        rng = np.random.default_rng(seed)
        number = int(rng.integers(1, undisturbed.attempt.count(pattern) + 1))
        act = partial(kill.terminate_all_soon, rng.uniform(0, 0.02))
        place = make(*WITH_WORKERS)
        with account.entry(f"seed {seed}"):
            asked = place.start(traps=[Trap(pattern, number, act)])
            is_finished = asked.wait(15).code == 0  # where the signal came a moment too late
            assert ended(asked, 0 if is_finished else 143)
            assert place.status() == ("finished" if is_finished else "interrupted")
            again = place.run()
            assert ended(again, 0)
            assert asked.count(STEP) + again.count(STEP) == undisturbed.num_steps
            account.check(place, undisturbed)

    kill.in_pairs(ask_once, seeds)
    return account.failures


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param(STEP, id="step"),
        pytest.param(PREDICT, id="predict", marks=pytest.mark.whole),
        pytest.param(FORK, id="new worker", marks=pytest.mark.whole),
    ],
)
@pytest.mark.parametrize("is_whole", [False, pytest.param(True, marks=pytest.mark.whole)])
def test_a_signal_to_the_whole_group_loses_nothing(
    make: Make, reference: References, pattern: str, is_whole: bool
) -> None:
    seeds = range(1, 4 if pattern == FORK else 2) if is_whole else range(1)
    assert ask_all(make, reference(*WITH_WORKERS), pattern, seeds) == []


# ── Damaged checkpoints ────────────────────────────────────────────────────────────────────────


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


def flip(content: bytes) -> bytes:
    """One bit of it, in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = (cut, empty, flip)
FILES = ("model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json",
         "manifest.json")  # fmt: skip


def damage(path: Path, how: Callable[[bytes], bytes]) -> None:
    path.write_bytes(how(path.read_bytes()))


@pytest.mark.parametrize("is_whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    stopped: Stopped, reference: References, is_whole: bool
) -> None:
    """Each file and each damage; in the whole each of each."""
    account = Account()

    def go_on(case: tuple[str, Callable[[bytes], bytes]]) -> None:
        name, how = case
        place = stopped()
        damage(place.checkpoints[0] / name, how)
        with account.entry(f"{how.__name__} {name}"):
            again = place.run()
            assert ended(again, 0)
            assert again.count(STEP) == 2
            (warning,) = re.findall("warning: cannot use a checkpoint.*", again.out + again.err)
            assert "step-000000003" in warning
            # A digest that was changed in the manifest speaks of the file that it is of.
            assert name in warning or ("manifest.json" in name and "not what was writte" in warning)
            account.check(place, reference(*ALL))

    cases = [(name, how) for name in FILES for how in DAMAGES]
    kill.in_pairs(
        go_on, cases if is_whole else [*zip(FILES, itertools.cycle(DAMAGES), strict=False)]
    )
    assert account.failures == []


def test_with_all_checkpoints_damaged_nothing_starts_anew_unasked(
    stopped: Stopped, reference: References
) -> None:
    place = stopped()
    for checkpoint, how in zip(place.checkpoints, DAMAGES, strict=False):
        damage(checkpoint / "model.safetensors", how)
    before = place.content()
    again = place.run()
    assert ended(again, 7)
    assert again.count(STEP) == 0
    for word in ("step-000000002", "step-000000003", "model.safetensors", "force=true"):
        assert word in again.err
    assert place.status() == "failed"
    after = place.content()
    assert {name for name in before if before[name] != after[name]} <= {"run.lock", "status.json"}
    assert ended(place.run("force=true"), 0)
    kill.check_survived(place, reference(*ALL).place)


@pytest.mark.parametrize("old", ["checkpoints", "run"])
def test_files_of_another_version_are_refused(stopped: Stopped, old: str) -> None:
    place = stopped()
    if old == "run":
        change_version(place.folder / "run.json")
    for checkpoint in place.checkpoints if old == "checkpoints" else []:
        change_version(checkpoint / "state.json")
        content = (checkpoint / "state.json").read_bytes()
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        digest = hashlib.sha256(content).hexdigest()
        manifest["files"]["state.json"] = {"bytes": len(content), "sha256": digest}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    again = place.run()
    assert ended(again, 7)
    assert re.search("version (is )?99", again.err)
    assert re.search(f"(reads|writes) {VERSION}", again.err)
    assert again.count(STEP) == 0


def change_version(path: Path) -> None:
    content = json.loads(path.read_text())
    assert content["record_version"] == VERSION
    path.write_text(json.dumps({**content, "record_version": 99}))


# ── Another configuration, other data ──────────────────────────────────────────────────────────


def test_a_folder_takes_no_other_configuration(make: Make) -> None:
    place = make(*ALL, "run_dir=outputs/mine")
    assert place.run(traps=[Trap(STEP, 3, kill.die)]).code == -signal.SIGKILL
    before = place.content()
    other = place.run("optim.lr=0.001")
    assert ended(other, 2)
    assert "optim.lr: 0.003 → 0.001" in other.err
    assert "run_dir=" in other.err
    assert place.content() == before
    assert ended(place.run(), 0)


def test_a_folder_takes_no_other_data(make: Make, tiny_folder: Path) -> None:
    place = make(*ALL, "run_dir=outputs/mine", "data.root=images")
    shutil.copytree(tiny_folder, place.root / "images")
    assert place.run(traps=[Trap(STEP, 3, kill.die)]).code == -signal.SIGKILL
    before = place.content()
    write_images(place.root / "others", 1, COLOURS["red"], seed=999)
    shutil.copy(place.root / "others" / "000.png", place.root / "images" / "train" / "red")
    other = place.run()
    assert ended(other, 2)
    assert re.search(r"^ *data: \"\w+…? → \"\w+", other.err, re.MULTILINE)
    assert place.content() == before


# ── Two at once ────────────────────────────────────────────────────────────────────────────────


def test_the_second_of_two_is_told_of_the_first(make: Make, reference: References) -> None:
    place = make(*ALL)
    first = place.start(traps=[Trap(STEP, 3, kill.pause)])
    first.wait_for(lambda: first.is_paused)
    second = place.run()
    assert ended(second, 75)
    assert second.count(STEP) == 0
    for word in (f"process {first.pid}", socket.gethostname()):
        assert word in second.err
    assert re.search(r"since 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", second.err)
    os.kill(first.pid, signal.SIGCONT)
    assert ended(first.wait(), 0)
    kill.check_survived(place, reference(*ALL).place)


def test_a_run_whose_lock_was_removed_stops_for_the_one_that_took_it(
    make: Make, reference: References
) -> None:
    place = make(*ALL)
    first = place.start(traps=[Trap(STEP, 3, kill.pause)])
    first.wait_for(lambda: first.is_paused)
    (place.folder / "run.lock").unlink()
    assert ended(place.run(), 0)
    before = {path: path.read_bytes() for path in place.folder.rglob("*") if path.is_file()}
    os.kill(first.pid, signal.SIGCONT)
    assert ended(first.wait(), 4)
    assert "the lock file was removed or replaced" in first.err
    assert before == {path: path.read_bytes() for path in place.folder.rglob("*") if path.is_file()}
    kill.check_survived(place, reference(*ALL).place)


@pytest.mark.parametrize("removed", ["", "run.json"])
def test_a_run_whose_folder_is_removed_is_never_finished(make: Make, removed: str) -> None:
    place = make(*ALL)
    going = place.start(traps=[Trap(STEP, 3, kill.pause)])
    going.wait_for(lambda: going.is_paused)
    folder = place.folder
    remove(folder / removed)
    os.kill(going.pid, signal.SIGCONT)
    assert ended(going.wait(), 4)
    assert "removed" in going.err
    assert not (folder / "result.json").exists()
    assert removed or not folder.exists()
    assert ended(place.run(*(["force=true"] if removed else [])), 2 if removed else 0)


def test_two_that_start_together_do_the_work_once(make: Make, reference: References) -> None:
    place = make(*ALL)
    both = [place.start(), place.start()]
    codes = sorted(attempt.wait().code or 0 for attempt in both)
    assert codes in ([0, 75], [0, 0])
    assert sorted(attempt.count(STEP) for attempt in both) == [0, reference(*ALL).num_steps]
    kill.check_survived(place, reference(*ALL).place)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_who_comes_after_a_killed_one_goes_on_at_once(
    make: Make, reference: References, num_workers: int
) -> None:
    place = make(*WITH_WORKERS, f"data.num_workers={num_workers}")
    holder = place.start(traps=[Trap(STEP, 5, kill.pause)])
    holder.wait_for(lambda: holder.is_paused)
    holder.kill()
    again = place.run()
    assert ended(again, 0)
    kill.check_survived(place, reference(*WITH_WORKERS).place)
    holder.wait_for(lambda: holder.group() == [], 15)  # the workers of the killed one end, too


# ── Memory, workers, disk ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "words",
    [("resize.size=1024",), ("eval.size=1024", "eval.batch_size=24")],
    ids=["training", "evaluation"],
)
def test_memory_that_does_not_suffice(make: Make, words: tuple[str, ...]) -> None:
    place = make("data.batch_size=48", *words)
    done = place.run(setup=[partial(kill.limit_memory, 700)])
    assert ended(done, 5)
    assert "out of memory" in done.err
    for word in ("data.batch_size=48", "fix: accumulate.steps=2", "or data.batch_size=24"):
        assert word in done.err
    assert place.status() == "failed"


def test_a_worker_that_is_killed(make: Make, reference: References) -> None:
    words = ("+trick=mixup", "data.batch_size=4", "data.num_workers=2")
    place = make(*words)
    done = place.start(traps=[Trap(STEP, 3, kill.kill_a_worker)]).wait(30)
    assert ended(done, 5)
    assert "data.num_workers=2" in done.err
    assert "data.num_workers=0" in done.err
    assert "memory or /dev/shm" in done.err
    assert place.status() == "failed"
    assert ended(place.run(), 0)
    kill.check_survived(place, reference(*words).place)


def test_an_image_that_breaks_under_a_worker(make: Make, tiny_folder: Path) -> None:
    words = ("data.root=images", "data.cache_gb=0", "data.batch_size=4", "data.num_workers=2")
    place = make(*words)
    shutil.copytree(tiny_folder, place.root / "images")
    going = place.start(traps=[Trap(STEP, 1, kill.pause)])
    going.wait_for(lambda: going.is_paused)
    for path in (place.root / "images" / "train").rglob("*.png"):
        path.write_bytes(b"")
    os.kill(going.pid, signal.SIGCONT)
    assert ended(going.wait(30), 3)
    assert re.search(r"^where: train/\w+/\d+.png$", going.err, re.MULTILINE)


def test_a_file_that_may_not_grow(make: Make, reference: References) -> None:
    place = make(*ALL)
    done = place.run(traps=[Trap(STEP, 3, kill.fill_the_disk)])
    assert ended(done, 4)
    assert re.search(r"File too large .needs \d+\.\d MB, free \d", done.err)
    assert str(place.folder / "checkpoints") in done.err
    assert [path.name for path in place.checkpoints] == ["step-000000002", "step-000000001"]
    assert list(place.folder.rglob("*.tmp*")) == []
    again = place.run()
    assert ended(again, 0)
    assert again.count(STEP) == 2
    kill.check_survived(place, reference(*ALL).place)


@pytest.mark.whole
def test_a_full_disk(make: Make, reference: References) -> None:
    """On a file system of its own, which has room for two checkpoints but not for three."""
    place = make(*ALL)
    train = " ".join(f"'{word}'" for word in (sys.executable, "-m", "runner.train", *place.words))
    script = f"""
        mkdir outputs/runs && mount -t tmpfs -o size=12m tmpfs outputs/runs || exit 99
        {train} run_dir=outputs/runs/mine >&2
        echo "code $?" $(ls outputs/runs/mine/checkpoints)
        mount -o remount,size=64m outputs/runs
        {train} run_dir=outputs/runs/mine >&2
        echo "code $?"
        cp -r outputs/runs/mine outputs/kept
    """
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script],
        cwd=place.root,
        capture_output=True,
        text=True,
        timeout=240,
    )
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip("no file system may be mounted here")
    full, freed = done.stdout.splitlines()
    assert full == "code 4 step-000000001 step-000000002"
    assert re.search(r"No space left on device .needs \d\.\d MB, free \d", done.stderr)
    assert "Traceback" not in done.stderr
    assert freed == "code 0"
    kill.check_survived(place, reference(*ALL).place)


@pytest.mark.parametrize(
    "obstacle",
    ["a file", "a folder of another user", pytest.param("read-only", marks=pytest.mark.whole)],
)
def test_outputs_that_cannot_be_written(make: Make, obstacle: str) -> None:
    place = make(*ALL, cold=True)
    command = [sys.executable, "-m", "runner.train", *place.words]
    if obstacle == "a file":
        (place.root / "outputs").write_text("in the way")
    elif obstacle == "read-only":
        (place.root / "outputs").mkdir()
        script = 'mount -t tmpfs -o ro tmpfs outputs || exit 99; exec "$@"'
        command = ["unshare", "-rm", "bash", "-c", script, "bash", *command]
    else:
        (place.root / "outputs").mkdir(mode=0o555)
        if os.geteuid() == 0:
            # Root may write to every folder, unless it is left without that capability.
            os.chown(place.root / "outputs", 65534, 65534)
            command = ["setpriv", "--bounding-set=-dac_override", *command]
            if not shutil.which("setpriv"):
                pytest.skip("nothing here that takes a capability away")
    started = time.monotonic()
    done = subprocess.run(command, cwd=place.root, capture_output=True, text=True, timeout=60)
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip("no file system may be mounted here")
    assert time.monotonic() - started < 10  # of these, less than three after the imports
    assert done.returncode == 4, done.stderr
    assert "images" not in done.stdout + done.stderr, "before any data is read"
    assert str(place.root / "outputs") in done.stderr
    assert "Traceback" not in done.stderr


# ── Time ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_clock_is_set_back_and_the_zone_changes(make: Make, reference: References) -> None:
    place = make(*ALL)
    assert place.run(traps=[Trap(STEP, 4, kill.die)]).code == -signal.SIGKILL
    assert ended(place.run(setup=[partial(kill.live_yesterday, "Asia/Kathmandu")]), 0)
    kill.check_survived(place, reference(*ALL).place)
    timings = (place.folder / "timings.jsonl").read_text().splitlines()
    budget = json.loads((place.folder / "result.json").read_text())["budget"]
    for durations in (*map(json.loads, timings), budget):
        assert all(value >= 0 for name, value in durations.items() if "seconds" in name)
    assert json.loads((place.folder / "status.json").read_text())["time"].endswith("+00:00")


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_and_later_answers_at_once(
    make: Make, reference: References
) -> None:
    place = make(*ALL)
    code = (
        "import sys; sys.argv = ['runner.train', *sys.argv[1:]]\n"
        "from runner.train import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, *place.words]
    first = subprocess.run(command, cwd=place.root, capture_output=True, text=True, timeout=240)
    assert first.returncode == 0, first.stderr
    kill.check_survived(place, reference(*ALL).place)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    again = subprocess.run(command, cwd=place.root, capture_output=True, text=True, timeout=240)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert again.returncode == 0, again.stderr
    assert "finished before" in again.stdout
    assert again.stdout.splitlines()[-1] == "False", "torch was imported"
    # Of the processor's time, which other programs do not stretch.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


# ── Thorough, and slow ─────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_kill(make: Make, reference: References, capsys: pytest.CaptureFixture[str]) -> None:
    accounts = {}
    for name, words in WALKS.items():
        accounts[f"{name}, at every change"] = walk(make, reference(*words), words, DISK)
        accounts[f"{name}, half-written"] = walk(make, reference(*words), words, SYNC, kill.tear)
    words = WALKS["baseline"]
    cold = reference(*words, cold=True)
    accounts["cache, at every change"] = walk(make, cold, words, CACHE, cold=True)
    for num_workers in (0, 2):
        words = (*ALL, "data.batch_size=16", "budget.epochs=4", f"data.num_workers={num_workers}")
        accounts[f"at random, {num_workers} workers"] = at_random(make, reference(*words), words)
    with capsys.disabled():
        for name, account in accounts.items():
            print(f"\n{name}: {account}", end="")
            print(*("", *account.failures), sep="\n  ", end="")
    assert [failure for account in accounts.values() for failure in account.failures] == []


def at_random(make: Make, undisturbed: Reference, words: Sequence[str]) -> Account:
    """Kill twenty runs at random times, each up to three times in a row."""
    account = Account()
    started = time.monotonic()
    make(*words).run()
    seconds = time.monotonic() - started

    def kill_and_finish(seed: int) -> None:
        rng = np.random.default_rng(seed)
        place, num_kills = make(*words), 0
        for _ in range(rng.integers(1, 4)):
            attempt = place.start()
            time.sleep(rng.uniform(0, seconds))
            if attempt.code is None:
                attempt.kill()
                num_kills += 1
            attempt.wait()
        with account.entry(f"seed {seed}", num_kills):
            assert ended(place.run(), 0)
            account.check(place, undisturbed)

    kill.in_pairs(kill_and_finish, range(20))
    return account


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_at_every_event(make: Make, reference: References, signum: signal.Signals) -> None:
    numbers = range(1, len(reference(*ALL).attempt.events) + 1)
    assert ask(make, reference(*ALL), signum, numbers) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("pattern", [STEP, PREDICT, FORK])
def test_many_signals_to_the_whole_group(make: Make, reference: References, pattern: str) -> None:
    assert ask_all(make, reference(*WITH_WORKERS), pattern, range(20)) == []
