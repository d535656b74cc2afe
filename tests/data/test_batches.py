import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kill import process_stat

from runner.data.batches import (
    evaluation_order,
    read_ahead,
    rectangles,
    squares,
    training_order,
    view_squares,
)
from runner.data.views import View
from runner.errors import DataError

SHAPES = [(6, 10), (10, 6), (6, 6), (6, 12)]  # short sides equal, as stored
EVERY = np.arange(len(SHAPES))


class Rectangles:
    """A store of random images, all different."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.images = [rng.integers(1, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]

    def rectangle(self, index):
        return self.images[index]


STORE = Rectangles()


def rows(pixels):
    """The images of a batch as (height, width, 3) arrays, without their margins."""
    found = pixels.canvas.permute(0, 2, 3, 1).numpy()
    return [image[:h, :w] for image, (h, w) in zip(found, pixels.extents, strict=True)]


@given(
    count=st.integers(0, 200),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_training_order_is_the_start_of_a_permutation_in_full_batches(
    count, batch_size, seed, epoch
):
    order = training_order(count, batch_size, seed, epoch)

    assert len(order) == count // batch_size
    assert all(len(batch) == batch_size for batch in order)
    seen = np.concatenate(order) if order else np.zeros(0, int)
    assert len(set(seen.tolist())) == len(seen)
    assert set(seen.tolist()) <= set(range(count))


def test_training_order_differs_by_epoch_and_seed_and_is_repeatable():
    first = np.concatenate(training_order(50, 8, 0, 0))

    np.testing.assert_array_equal(first, np.concatenate(training_order(50, 8, 0, 0)))
    assert not np.array_equal(first, np.concatenate(training_order(50, 8, 0, 1)))
    assert not np.array_equal(first, np.concatenate(training_order(50, 8, 1, 0)))
    left_out = [set(range(50)) - set(np.concatenate(training_order(50, 8, 0, e))) for e in range(9)]
    assert len(set(map(frozenset, left_out))) > 1  # not always the same images
    # A different batch size goes through the images in the same order.
    np.testing.assert_array_equal(first[:45], np.concatenate(training_order(50, 5, 0, 0))[:45])


@given(count=st.integers(1, 200), batch_size=st.integers(1, 210))
@settings(max_examples=100, deadline=None)
def test_evaluation_order_is_every_position_once_with_the_rest(count, batch_size):
    order = evaluation_order(count, batch_size)

    np.testing.assert_array_equal(np.concatenate(order), np.arange(count))
    assert len(order) == -(-count // batch_size)
    assert all(len(batch) == batch_size for batch in order[:-1])
    assert 1 <= len(order[-1]) <= batch_size


def test_squares_lie_at_their_places():
    places = np.array([[0.0, 1.0], [1.0, 0.0], [0.3, 0.7], [0.5, 0.2]])

    found = squares(STORE, EVERY, places)

    assert found.canvas.shape == (4, 3, 6, 6)
    assert (found.extents == 6).all()
    wide, high, square, long = STORE.images
    expected = [wide[:, :6], high[:6], square, long[:, 3:9]]
    for image, wanted in zip(rows(found), expected, strict=True):
        np.testing.assert_array_equal(image, wanted)
    moved = rows(squares(STORE, EVERY, 1 - places))
    assert not np.array_equal(moved[0], expected[0])
    assert not np.array_equal(moved[1], expected[1])
    np.testing.assert_array_equal(moved[2], square)  # a square has no room to move


def test_rectangles_are_whole_on_the_smallest_common_canvas():
    found = rectangles(STORE, EVERY)

    assert found.canvas.shape == (4, 3, 10, 12)
    assert found.extents.tolist() == [list(shape) for shape in SHAPES]
    for image, wanted in zip(rows(found), STORE.images, strict=True):
        np.testing.assert_array_equal(image, wanted)
    # Outside of the images there is nothing.
    assert int((found.canvas != 0).sum()) == 3 * sum(h * w for h, w in SHAPES)
    reordered = rectangles(STORE, np.array([2, 0]))
    assert reordered.canvas.shape == (2, 3, 6, 10)
    np.testing.assert_array_equal(rows(reordered)[1], STORE.images[0])


def test_views_show_their_squares():
    views = [View(), View(x=0.0, y=0.0), View(x=1.0, y=1.0, side=0.5, flip=True, scale=2.0)]

    plain, first, corner = view_squares(STORE, EVERY, views)

    for found, side in ((plain, 6), (first, 6), (corner, 3)):
        assert found.canvas.shape == (4, 3, side, side)
    for index, image in enumerate(STORE.images):
        height, width = image.shape[:2]
        top, left = (height - 6) // 2, (width - 6) // 2
        np.testing.assert_array_equal(rows(plain)[index], image[top : top + 6, left : left + 6])
        np.testing.assert_array_equal(rows(first)[index], image[:6, :6])
        # Neither mirrored nor scaled here: that is done on the device.
        np.testing.assert_array_equal(rows(corner)[index], image[-3:, -3:])


def test_pixels_are_bytes_in_channels_last_memory():
    for pixels in (
        rectangles(STORE, EVERY),
        squares(STORE, EVERY, np.full((4, 2), 0.5)),
        *view_squares(STORE, EVERY, [View()]),
    ):
        assert pixels.canvas.dtype == torch.uint8
        assert pixels.canvas.is_contiguous(memory_format=torch.channels_last)
        assert pixels.extents.dtype == np.int64


def read_pixels(number):
    return rectangles(STORE, np.array([number % 4, 2]))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_workers_give_the_same_batches_in_the_same_order(num_workers):
    found = list(read_ahead(read_pixels, 7, num_workers))

    assert len(found) == 7
    for number, pixels in enumerate(found):
        expected = read_pixels(number)
        assert torch.equal(pixels.canvas, expected.canvas)
        assert pixels.canvas.stride() == expected.canvas.stride()
        assert type(pixels.extents) is np.ndarray
        np.testing.assert_array_equal(pixels.extents, expected.extents)
    assert not torch.equal(found[0].canvas[0, :, :6, :6], found[1].canvas[0, :, :6, :6])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_read_comes_unchanged(num_workers):
    (item,) = read_ahead(lambda _: ([np.arange(3)], "text", 1.5), 1, num_workers)

    assert type(item[0][0]) is np.ndarray
    assert item[1:] == ("text", 1.5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_ahead_draws_nothing_from_the_generator_of_the_layers(num_workers):
    """Else the number of workers would change where dropout falls."""
    before = torch.get_rng_state()

    list(read_ahead(read_pixels, 2, num_workers))

    assert torch.equal(torch.get_rng_state(), before)


def test_workers_are_other_processes_and_no_workers_are_this_one():
    assert set(read_ahead(lambda _: os.getpid(), 3, 0)) == {os.getpid()}
    assert os.getpid() not in set(read_ahead(lambda _: os.getpid(), 3, 2))


def test_nothing_is_read_before_it_is_wanted():
    read = []
    batches = read_ahead(read.append, 3, 0)

    assert read == []
    next(batches)
    assert read == [0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_for_the_user_comes_as_it_was_raised(num_workers):
    def read(number):
        if number == 2:
            raise DataError("cut short", where="a.png", fix="data.on_corrupt=skip")
        return number

    batches = read_ahead(read, 5, num_workers)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(DataError) as caught:
        next(batches)
    assert type(caught.value) is DataError
    assert str(caught.value) == "cut short\nwhere: a.png\nfix: data.on_corrupt=skip"


def test_workers_end_when_nobody_wants_more():
    batches = read_ahead(lambda _: os.getpid(), 100, 2)
    pids = {next(batches) for _ in range(4)}
    for pid in pids:
        os.kill(pid, 0)  # they live
    batches.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
def test_without_shared_memory_the_pixels_come_by_the_pipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dumps = ForkingPickler.dumps.__func__

    def full(kind: type, item: object) -> memoryview:
        if kind is ForkingPickler and not isinstance(item, tuple):  # the loader's own are tuples
            raise RuntimeError("unable to allocate shared memory(shm): No space left on device")
        return dumps(kind, item)

    expected = list(read_ahead(read_pixels, 7, 2))
    monkeypatch.setattr(ForkingPickler, "dumps", classmethod(full))
    with pytest.raises(RuntimeError, match="No space"):
        ForkingPickler.dumps(expected[0])  # negative control: the workers inherit it
    for one, other in zip(read_ahead(read_pixels, 7, 2), expected, strict=True):
        assert torch.equal(one.canvas, other.canvas)
        assert one.canvas.stride() == other.canvas.stride()
        assert (one.extents == other.extents).all()


NARROW = """
import resource, sys
import torch
from runner.data.batches import read_ahead
from runner.errors import ProcessError

workers, files = map(int, sys.argv[1:])
if files:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
try:
    read = list(read_ahead(lambda n: torch.full((400_000,), n, dtype=torch.uint8), 9, workers))
    assert [int(each[-1]) for each in read] == list(range(9))
except ProcessError as error:
    print(error)
"""


@pytest.mark.whole
@pytest.mark.parametrize(
    ("size", "workers", "files", "says"),
    [
        ("1m", 2, 0, ""),
        ("4k", 2, 0, "cannot be started: [Errno 28] No space left"),  # not even for a semaphore
        (None, 60, 64, "cannot be started: [Errno 24] Too many open files"),
    ],
)
def test_nothing_hangs_without_shared_memory_or_descriptors(
    size: str | None, workers: int, files: int, says: str, tmp_path: Path
) -> None:
    (tmp_path / "narrow.py").write_text(NARROW)
    words = [sys.executable, "-W", "ignore", "narrow.py", str(workers), str(files)]
    done = in_small_shm(size, words, tmp_path) if size else run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert "Traceback" not in done.stderr
    assert bool(says) == ("data.num_workers=0" in done.stdout)


@pytest.mark.slow
def test_a_small_shm_changes_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    train = (
        "-m runner.train model=timm model.name=test_resnet resize.size=16 budget.epochs=1"
        f" threads=1 data=folder data.root={tiny_folder} data.cache_gb=0 data.num_workers=2"
        " data.batch_size=24 force=true run_dir=run"
    ).split()
    results = []
    for size in ("64m", "160k"):
        done = in_small_shm(size, [sys.executable, *train], tmp_path)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / "run" / "result.json").read_text())["metrics"])
    assert results[0] == results[1]
    for words in (
        ["-m", "runner.evaluate", "run", "tta=flip", "data.num_workers=2", "threads=1"],
        ["-m", "runner.predict", "run", str(tiny_folder), "--num-workers", "2"],
    ):
        done = in_small_shm("160k", [sys.executable, *words], tmp_path)
        assert done.returncode == 0, (done.stdout, done.stderr)


def in_small_shm(size: str, words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``words`` where ``/dev/shm`` has this size, or skip where that is not permitted."""
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    own = ["unshare", "-m", "sh", "-c"]
    if shutil.which("unshare") is None or run([*own, mount], folder).returncode:
        pytest.skip("no mounts of our own are permitted")
    return run([*own, f"{mount} && exec {shlex.join(words)}"], folder)


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


ORPHANS = """
import os, signal, sys
from pathlib import Path
import torch
from runner.data import batches

if sys.argv[1] == "forgotten":
    batches.end_with_parent = lambda: None
def read(number):
    return torch.zeros(300_000, dtype=torch.uint8).tolist()  # through the pipe, which it fills
ahead = batches.read_ahead(read, 100, 2)
next(ahead)
children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
print(children, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
@pytest.mark.parametrize("how", ["as it is", pytest.param("forgotten", marks=pytest.mark.slow)])
def test_no_worker_outlives_a_parent_that_is_killed(how: str, tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    with subprocess.Popen(
        [sys.executable, str(script), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        workers = [int(number) for number in parent.stdout.readline().split()]
        assert len(workers) == 2
    until = time.monotonic() + 8  # the loader itself looks every five seconds
    while (alive := [w for w in workers if process_stat(w)[0] != "Z"]) and time.monotonic() < until:
        time.sleep(0.1)
    for worker in alive:
        os.kill(worker, signal.SIGKILL)
    assert bool(alive) == (how == "forgotten")
