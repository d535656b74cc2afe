"""A data set that is kept for children of a process: read once, and only if that takes no work."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest

from runner.config.schema import Data
from runner.data import shared
from runner.data.dataset import load_dataset
from runner.data.images import FileImages
from runner.machine.locks import locked
from runner.training.finished import refuse_work

DATA = Data()


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    shared._kept.clear()
    shared._left.clear()
    yield
    shared._kept.clear()
    shared._left.clear()


def load(cache: Path) -> None:
    load_dataset(DATA, 28, cache, lambda *_: None)


def test_what_is_kept_is_what_was_read(tmp_path: Path) -> None:
    load(tmp_path)  # decodes
    assert shared.kept_dataset(DATA, 28, tmp_path) is None
    shared.keep_dataset(DATA, 28, tmp_path, refuse_work)
    found = shared.kept_dataset(DATA, 28, tmp_path)
    assert found is not None
    assert found.manifest_csv == load_dataset(DATA, 28, tmp_path, refuse_work).manifest_csv
    shared.keep_dataset(DATA, 28, tmp_path, refuse_work)
    assert shared.kept_dataset(DATA, 28, tmp_path) is found
    assert shared.kept_dataset(DATA, 64, tmp_path) is None
    assert shared.kept_dataset(DATA, 28, tmp_path / "other") is None


def test_data_that_takes_work_is_left_to_the_job(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r".") as caught:
        shared.keep_dataset(DATA, 28, tmp_path, refuse_work)
    assert type(caught.value).__name__ == "_UnreadError"
    assert shared.kept_dataset(DATA, 28, tmp_path) is None


@pytest.mark.parametrize("is_locked", [False, True])
def test_a_small_set_that_is_not_decoded_is_left_to_the_job_at_once(
    tmp_path: Path,
    tiny_folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    is_locked: bool,
) -> None:
    data, cache = Data(name="folder", root=str(tiny_folder), batch_size=8), tmp_path / "cache"
    with ExitStack() as stack:
        if is_locked:  # by another process, which decodes
            load_dataset(data, 16, cache, lambda *_: None)
            (decoded,) = (cache / "decoded").glob("*px-*[0-9a-f]")
            decoded.rename(tmp_path / "elsewhere")
            stack.enter_context(locked(decoded.with_name(f"{decoded.name}.lock")))
        monkeypatch.setattr(FileImages, "open", mock.Mock(side_effect=AssertionError))
        monkeypatch.setattr(FileImages, "content", mock.Mock(side_effect=AssertionError))
        with pytest.raises(Exception, match=r"images") as caught:
            shared.keep_dataset(data, 16, cache, refuse_work)
    assert type(caught.value).__name__ == "_UnreadError"
    assert capfd.readouterr() == ("", "")


def test_a_download_of_another_process_is_not_waited_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        locked(tmp_path / "downloads" / "imagenette2-160.tgz.lock"),
        pytest.raises(Exception, match=r"downloading") as caught,
    ):
        shared.keep_dataset(Data(name="imagenette"), 16, tmp_path, refuse_work)
    assert type(caught.value).__name__ == "_UnreadError"
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """Count how often data sets are read."""
    counted = mock.Mock(side_effect=load_dataset)
    monkeypatch.setattr(shared, "load_dataset", counted)
    return counted


def test_images_that_are_decoded_again_each_time_are_read_once_and_not_kept(
    tmp_path: Path, reads: mock.Mock
) -> None:
    data = Data(cache_gb=0)
    for _ in range(3):  # jobs
        shared.keep_dataset(data, 28, tmp_path, lambda *_: None)
        assert shared.kept_dataset(data, 28, tmp_path) is None
    assert reads.call_count == 1


@pytest.mark.parametrize(("most", "expected"), [(2**18, 3), (2 * 7500, 2), (1, 1)])
def test_data_sets_in_turns_are_read_once_each_and_the_first_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: mock.Mock, most: int, expected: int
) -> None:
    """As the folds of a comparison, of which each round takes all."""
    monkeypatch.setattr(shared, "_MOST_IMAGES", most)
    sizes = (24, 26, 28)
    for _ in range(2):  # rounds
        for size in sizes:
            shared.keep_dataset(DATA, size, tmp_path, lambda *_: None)
    assert reads.call_count == len(sizes)
    kept = [shared.kept_dataset(DATA, size, tmp_path) is not None for size in sizes]
    assert kept == [number < expected for number in range(len(sizes))]
