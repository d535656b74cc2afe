"""Files of the cache that were cut, changed or replaced: made again, with a line, never trusted."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded, random_pixels

from runner.config.schema import Data
from runner.data import sealed
from runner.data.dataset import load_dataset
from runner.data.statistics import training_statistics
from runner.errors import DataError
from runner.machine.locks import locked


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    """One bit, and the date as before."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.unlink()
        make(path)

    return put


def linked_to_another(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    path.unlink()
    path.symlink_to(other)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: os.truncate(path, 0),
    "half": half,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "huge": lambda path: os.truncate(path, 2**40),
    "foreign": lambda path: path.write_bytes(b"\x93NUMPY" + os.urandom(path.stat().st_size)),
    "nested": lambda path: path.write_bytes(b"[" * 200_000),
    "other json": lambda path: path.write_bytes(b'{"key": [], "files": 3, "broken": null}'),
    "not utf-8": lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
    "flipped": flipped,
    "missing": Path.unlink,
    "pipe": instead(os.mkfifo),
    "folder": instead(lambda path: (path.mkdir(), (path / "deep").mkdir())),
    "link to nothing": instead(lambda path: path.symlink_to("nowhere")),
    "link to itself": instead(lambda path: path.symlink_to(path)),
    "link to a device": instead(lambda path: path.symlink_to("/dev/zero")),
    "link to another file": linked_to_another,
}
FILES = {
    "decoded/*/pixels.u8": True,
    "decoded/*/offsets.npy": True,
    "decoded/*/shapes.npy": True,
    "decoded/*/survey.json": True,
    f"decoded/*/{sealed.SEAL}": True,
    f"surveyed/*/{sealed.SEAL}": False,
    "surveyed/*/survey.json": False,
    "digests/*.json": True,
    "statistics/*.json": True,
}


@pytest.fixture
def root(make_images, tmp_path):
    return make_images(tmp_path / "pets", {f"{s}/{c}": 2 for s in ("train", "val") for c in "ab"})


@pytest.fixture
def loaded(root, tmp_path):
    """Everything that the cache decides about a run."""

    def load(is_cached=True):
        data = Data(name="folder", root=str(root), cache_gb=16.0 if is_cached else 0.0)
        dataset = load_dataset(data, 8, tmp_path / "cache", lambda *_: None)
        pixels = [dataset.store.rectangle(index).tobytes() for index in range(8)]
        statistics = training_statistics(dataset, tmp_path / "cache")
        return pixels, dataset.manifest, dataset.converted, dataset.skipped, statistics

    return load


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_made_again_with_a_line(damage, loaded, tmp_path, capsys):
    signal.alarm(60)  # a pipe that is opened would wait for ever
    whole = {is_cached: loaded(is_cached) for is_cached in (True, False)}
    assert capsys.readouterr().err == ""
    for pattern, is_cached in FILES.items():
        (path,) = (tmp_path / "cache").glob(pattern)
        damage(path)

        assert loaded(is_cached) == whole[is_cached], pattern

        said = capsys.readouterr().err
        is_alone = pattern.endswith("s/*.json")
        if is_alone and damage in (DAMAGES["missing"], DAMAGES["link to nothing"]):
            assert said == "", "no file is not a damaged file"
        else:
            assert said.count("note:") == 1, (pattern, said)
            assert str(path if is_alone else path.parent) in said
            assert "again" in said
        assert loaded(is_cached) == whole[is_cached]
        assert capsys.readouterr().err == "", f"{pattern}: it stays broken"
    signal.alarm(0)


def test_a_whole_folder_of_other_images_is_not_taken(loaded, tmp_path, make_images, capsys):
    """All its checksums are right."""
    whole = loaded()
    (mine,) = (tmp_path / "cache" / "decoded").glob("*px-*[!k]")
    shutil.copytree(mine, tmp_path / "mine")
    make_images(tmp_path / "pets", {"train/a": 1})  # writes over 0.png
    other = loaded()
    assert other != whole
    (theirs,) = {*(tmp_path / "cache" / "decoded").glob("*px-*[!k]")} - {mine}
    shutil.rmtree(theirs)
    shutil.copytree(tmp_path / "mine", theirs)

    assert loaded() == other
    assert "it is a cache of something else" in capsys.readouterr().err


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_something_else_instead_of_the_folder(make, loaded, tmp_path):
    whole = loaded()
    (folder,) = (tmp_path / "cache" / "decoded").glob("*px-*[!k]")
    shutil.rmtree(folder)
    make(folder)

    assert loaded() == whole
    assert (folder / "pixels.u8").is_file()


def test_a_large_file_is_read_once_while_it_does_not_change(loaded, monkeypatch, tmp_path):
    loaded()

    def read(file):
        raise AssertionError("read again")

    monkeypatch.setattr(sealed, "_crc", read)
    whole = loaded()  # what this process wrote or checked
    monkeypatch.setattr(sealed, "_checked", set())
    with pytest.raises(AssertionError, match="read again"):  # the next process checks it
        loaded()
    monkeypatch.undo()
    assert loaded() == whole


def test_files_are_on_the_disk_before_the_folder_has_its_name(loaded, monkeypatch):
    done = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor):
        link = Path(f"/proc/self/fd/{descriptor}").readlink()
        done.append(link.name.partition(".tmp")[0])
        fsync(descriptor)

    def renamed(self, target):
        done.append("renamed")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    loaded()

    before = done[: done.index("renamed")]
    assert {"pixels.u8", "offsets.npy", "shapes.npy", "survey.json", sealed.SEAL} <= {*before}
    assert done[done.index("renamed") + 1] == "decoded"


def test_a_process_that_waits_for_another_says_so(loaded, tmp_path, capsys):
    whole = loaded()
    (folder,) = (tmp_path / "cache" / "decoded").glob("*px-*[!k]")
    shutil.rmtree(folder)
    lock = folder.with_name(folder.name + ".lock")
    child = os.fork()
    if child == 0:
        try:
            with locked(lock):
                (tmp_path / "held").touch()
                signal.sigtimedwait([signal.SIGUSR1], 1.0)
        finally:
            os._exit(0)
    while not (tmp_path / "held").exists():
        os.sched_yield()

    assert loaded() == whole

    os.waitpid(child, 0)
    said = capsys.readouterr().err
    assert f"note: waiting for another process (process {child} on " in said
    assert "decoding the images" in said


def test_an_image_that_changes_while_a_run_streams_is_refused(root, tmp_path):
    data = Data(name="folder", root=str(root), cache_gb=0.0)
    dataset = load_dataset(data, 8, tmp_path / "cache", lambda *_: None)
    path = root / "train" / "a" / "1.png"
    content = path.read_bytes()
    before = dataset.store.rectangle(1)

    path.write_bytes(content)  # another date, the same image
    np.testing.assert_array_equal(dataset.store.rectangle(1), before)
    path.write_bytes(encoded(random_pixels(99)))
    with pytest.raises(DataError, match="has changed") as caught:
        dataset.store.rectangle(1)

    assert caught.value.where == "train/a/1.png"
    assert caught.value.exit_code == 3
    assert dataset.store.rectangle(0).any()


def test_an_image_that_changes_before_it_is_decoded_is_not_stored(root, tmp_path):
    """The store of the old content would have the pixels of the new one."""
    path = root / "train" / "a" / "1.png"
    data = Data(name="folder", root=str(root))

    def replaced(what: str, done: int, total: int) -> None:
        if (what, done) == ("reading images", total):
            path.write_bytes(encoded(random_pixels(99)))

    with pytest.raises(DataError, match="has changed"):
        load_dataset(data, 8, tmp_path / "cache", replaced)

    assert not [*(tmp_path / "cache").glob("decoded/*/pixels.u8")]
    load_dataset(data, 8, tmp_path / "cache", lambda *_: None)
