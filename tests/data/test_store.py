import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded, random_pixels

from runner.data import store
from runner.data.decoding import BrokenImageError
from runner.data.images import ArrayImages, Images
from runner.data.store import CachedStore, StreamedStore, content_digests, open_store
from runner.errors import StorageError

ROOT = Path(__file__).parents[2]
SHAPES = [(12, 16), (16, 12), (8, 8), (9, 40), (40, 9)]
# What a child of a test runs; `images` are all black, `ticks` counts those opened.
CHILD = """
import os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path
import numpy as np
from PIL import Image
from runner.data.store import open_store

@dataclass
class Slow:
    log: Path
    count: int = 24
    kill_at: int = -1

    def __len__(self):
        return self.count

    def open(self, index, digest=None):
        with self.log.open("a") as file:
            file.write(f"{index}\\n")
        time.sleep(0.02)
        if index == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return Image.new("RGB", (16, 16), (index, 0, 0))

def build(cache, log, **options):
    images = Slow(log, **options)
    return open_store(images, [str(index) for index in range(images.count)], cache, presize=16,
        max_aspect=2.0, cached=True, progress=lambda *_: None)
"""


@dataclass
class Counted:
    """Images that count how often they are opened."""

    images: Images
    opened: list[int] = field(default_factory=list)

    def __len__(self):
        return len(self.images)

    def name(self, index):
        return self.images.name(index)

    def stamp(self):
        return self.images.stamp()

    def content(self, index):
        return self.images.content(index)

    def open(self, index, digest=None):
        self.opened.append(index)
        return self.images.open(index, digest)


@pytest.fixture
def images(file_images):
    return file_images(
        {
            f"{number}.png": encoded(random_pixels(number, *shape))
            for number, shape in enumerate(SHAPES)
        }
    )


def child(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_cached_and_streamed_rectangles_are_equal(images, opened):
    cached, cached_survey = opened(images)
    streamed, streamed_survey = opened(images, cached=False)

    assert isinstance(cached, CachedStore)
    assert isinstance(streamed, StreamedStore)
    assert cached_survey == streamed_survey
    for index in range(len(images)):
        found = cached.rectangle(index)
        assert found.dtype == np.uint8
        assert min(found.shape[:2]) == 8
        np.testing.assert_array_equal(found, streamed.rectangle(index))
    # The comparison can fail: each other option gives other pixels, from a store of its own.
    for options in ({"presize": 9}, {"max_aspect": 1.0}, {"interpolation": "bicubic"}):
        other, _ = opened(images, **options)
        assert not np.array_equal(other.rectangle(3), cached.rectangle(3))


def test_a_set_is_stored_or_streamed_as_asked(images, opened):
    assert isinstance(opened(images, cached=True)[0], CachedStore)
    assert isinstance(opened(images, cached=False)[0], StreamedStore)


def test_the_stored_pixels_cannot_be_changed_by_accident(images, opened):
    store, _ = opened(images)

    with pytest.raises(ValueError, match="read-only"):
        store.rectangle(0)[0, 0, 0] = 1


@pytest.mark.parametrize("cached", [True, False])
def test_images_are_opened_once_and_never_again(images, opened, cached):
    counted = Counted(images)

    opened(counted, cached=cached)
    assert sorted(counted.opened) == list(range(len(images)))

    opened(counted, cached=cached)
    assert len(counted.opened) == len(images)
    opened(counted, cached=cached, presize=9)  # something else to build
    assert len(counted.opened) == 2 * len(images)


def test_changed_content_gets_a_store_of_its_own(images, opened, tmp_path):
    before, _ = opened(images)
    first = before.rectangle(0).copy()
    path = tmp_path / "images" / "0.png"
    status = path.stat()
    path.write_bytes(encoded(random_pixels(99, *SHAPES[0])).ljust(status.st_size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))

    after, _ = opened(images)

    assert not np.array_equal(after.rectangle(0), first)
    np.testing.assert_array_equal(after.rectangle(1), before.rectangle(1))
    np.testing.assert_array_equal(before.rectangle(0), first)  # a run may still be reading it


def test_equal_content_elsewhere_shares_the_store(images, opened, file_images, tmp_path):
    opened(images)
    contents = {name: (tmp_path / "images" / name).read_bytes() for name in images.paths}
    moved = Counted(file_images(contents, folder="moved"))

    opened(moved)

    assert moved.opened == []


def test_digests_are_of_the_content_and_remembered(images, tmp_path, monkeypatch):
    first = content_digests(images, tmp_path / "cache", lambda *_: None)
    assert len(set(first)) == len(images)
    assert all(len(digest) == 64 for digest in first)

    def unread(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(type(images), "content", unread)
    assert content_digests(images, tmp_path / "cache", lambda *_: None) == first
    with pytest.raises(AssertionError, match="read again"):  # not remembered elsewhere
        content_digests(images, tmp_path / "other", lambda *_: None)


def test_a_file_that_becomes_readable_is_read(images, opened, monkeypatch):
    """Permissions and mounts change without any change of size or time."""
    readable = type(images).content

    def denied(self, index):
        if index == 1:
            raise BrokenImageError("Permission denied")
        return readable(self, index)

    monkeypatch.setattr(type(images), "content", denied)
    _, survey = opened(images)
    assert survey.broken == {1: "Permission denied"}

    monkeypatch.setattr(type(images), "content", readable)
    store, survey = opened(images)

    assert survey.broken == {}
    assert store.rectangle(1).shape == (11, 8, 3)


@pytest.mark.parametrize("cached", [True, False])
def test_broken_and_converted_images_are_surveyed(file_images, opened, cached):
    gray = random_pixels(7)[..., 0]
    images = file_images(
        {
            "0.png": b"",
            "1.png": encoded(random_pixels(1)),
            "2.jpg": b"<html>",
            "3.png": encoded(gray),
            "4.png": encoded(gray.T.copy()),
        }
    )

    for _ in range(2):  # built, then read back
        store, survey = opened(images, cached=cached)

        assert survey.broken == {
            0: "is empty",
            2: "is not an image but an HTML page, as a failed download leaves",
        }
        assert survey.converted == {"L": 2}
        np.testing.assert_array_equal(store.rectangle(3)[..., 0], store.rectangle(3)[..., 2])
        assert store.rectangle(1).any()


def test_a_set_without_one_readable_image(file_images, opened):
    _, survey = opened(file_images({"0.png": b"", "1.png": b""}))

    assert set(survey.broken) == {0, 1}


def test_results_of_threads_come_in_order_and_progress_reaches_the_end(opened):
    pixels = np.zeros((200, 8, 8, 3), np.uint8)
    pixels[:, 0, 0, 0] = range(200)
    told = []

    store, _ = opened(ArrayImages("array", pixels), progress=lambda *what: told.append(what))

    assert [store.rectangle(index)[0, 0, 0] for index in range(200)] == list(range(200))
    for what in ("reading images", "decoding images"):
        done = [number for name, number, total in told if name == what and total == 200]
        assert done == sorted(done)
        assert done[-1] == 200


# Several processes, killed processes, full disks --------------------------------------------------


def test_two_processes_that_start_together_share_one_build(tmp_path):
    code = """
    store, survey = build(Path(sys.argv[1]), Path(sys.argv[2]))
    assert [int(store.rectangle(index)[0, 0, 0]) for index in range(24)] == list(range(24))
    """
    log, cache = tmp_path / "log", tmp_path / "cache"
    both = [child(code, cache, log) for _ in range(2)]

    for process in both:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert sorted(map(int, log.read_text().split())) == list(range(24))
    child(code, tmp_path / "other", log).communicate(timeout=60)  # a build of its own does count
    assert len(log.read_text().split()) == 48


def test_a_killed_builder_leaves_nothing_half_made(tmp_path):
    log, cache = tmp_path / "log", tmp_path / "cache"
    killed = child("build(Path(sys.argv[1]), Path(sys.argv[2]), kill_at=12)", cache, log)
    assert killed.wait(timeout=60) == -signal.SIGKILL
    killed.stderr.close()
    left = tree(cache)
    assert any(".tmp-" in name for name in left)
    assert not any(name.endswith("survey.json") for name in left)

    code = """
    store, survey = build(Path(sys.argv[1]), Path(sys.argv[2]))
    assert [int(store.rectangle(index)[0, 0, 0]) for index in range(24)] == list(range(24))
    """
    rerun = child(code, cache, log)
    _, errors = rerun.communicate(timeout=60)

    assert rerun.returncode == 0, errors
    assert not any(".tmp-" in name for name in tree(cache))


def test_a_full_disk_is_named_and_leaves_no_rest(images, opened, tmp_path):
    opened(images, presize=4)  # the digests, which would be refused before the pixels
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # python ignores SIGXFSZ
    try:
        with pytest.raises(StorageError, match="File too large") as caught:
            opened(images, presize=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert str(tmp_path / "cache") in caught.value.where
    assert "data.cache_gb=0" in caught.value.fix
    assert not any(".tmp-" in name for name in tree(tmp_path / "cache"))
    assert opened(images, presize=64)[1].broken == {}  # and works once there is space


def test_a_cache_that_cannot_be_written_is_a_storage_error(images, opened, tmp_path):
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(StorageError, match="cannot write") as caught:
        opened(images, cache=tmp_path / "file" / "cache")

    assert str(tmp_path / "file") in caught.value.where


def test_a_folder_without_permission_is_a_storage_error(unprivileged):
    images = ArrayImages("array", np.zeros((2, 8, 8, 3), np.uint8))
    unprivileged.chmod(0o500)

    with pytest.raises(StorageError, match="Permission denied") as caught:
        open_store(
            images,
            ["a", "b"],
            unprivileged / "cache",
            presize=8,
            max_aspect=2.0,
            cached=True,
            progress=lambda *_: None,
        )

    assert caught.value.exit_code == 4
    assert str(unprivileged) in caught.value.where


class Failing(dict):
    def update(self, *_):
        raise RuntimeError("no more")


def test_threads_end_at_once_if_decoded_images_cannot_be_kept(tmp_path, monkeypatch):
    """A pool that the garbage collector ends, in a thread that begins or ends, waits for itself."""
    images = ArrayImages("array", np.stack([random_pixels(number) for number in range(99)]))
    monkeypatch.setattr(store, "Counter", Failing)
    with pytest.raises(RuntimeError, match="no more") as caught:
        open_store(images, [str(index) for index in range(99)], tmp_path / "cache", presize=16,
                   max_aspect=2.0, cached=True, progress=lambda *_: None)  # fmt: skip
    threads = [one.name for one in threading.enumerate() if "ThreadPool" in one.name]
    assert threads == [], f"while the error is alive: {caught.value}"
