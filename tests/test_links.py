"""Links planted at every name that a run writes: their targets are neither written nor removed."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import kill
import pytest
from kill import STEP, Place, Trap

from runner import train
from runner.config.schema import RunConfig
from runner.errors import RunnerError
from runner.machine.files import is_leftover, replace_whole, temporary_sibling, write_output
from runner.records.run_folder import RunFolder
from runner.records.sweep_folder import SweepFolder

CONTENT = b"of somebody else\n"
TIME = 1_000_000_000
Train = Callable[[Path], str]


@pytest.fixture(scope="module")
def words(tiny_folder: Path) -> tuple[str, ...]:
    return kill.two_epochs(tiny_folder)


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, words: tuple[str, ...]
) -> Iterator[tuple[Path, Path]]:
    """The same run, interrupted after a checkpoint, and finished."""
    place = Place(tmp_path_factory.mktemp("place") / "root", [*words, "run_dir=outputs/run"])
    stopped = place.run(traps=[Trap(STEP, 4, kill.terminate)])
    assert stopped.code == 143, stopped.err
    unfinished = Path(shutil.copytree(place.root / "outputs/run", place.root / "unfinished"))
    assert any((unfinished / "checkpoints").iterdir())
    assert place.run().code == 0
    yield unfinished, place.root / "outputs/run"
    kill.end_all()


@pytest.fixture
def go_on(
    composed: Callable[..., RunConfig], words: tuple[str, ...], runs: tuple[Path, Path]
) -> Train:
    """Train in a folder; how the run came to its result, or the error."""

    def train_in(folder: Path) -> str:
        outputs = runs[1].parent
        try:
            return str(
                train.run(composed(*words, f"run_dir={folder}", f"outputs={outputs}"), [])["status"]
            )
        except RunnerError as error:
            return type(error).__name__

    return train_in


class Canary:
    """A file and a folder of somebody else."""

    def __init__(self, root: Path) -> None:
        self.file, self.folder = root / "file", root / "folder"
        for path in (
            self.file,
            self.folder / "step-000000001" / "file",
            self.folder / "model.json",
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(CONTENT)
        for path in (self.file, *self.folder.rglob("*"), self.folder):
            os.utime(path, (TIME, TIME))

    def plant(self, path: Path, *, is_folder: bool = False, is_hard: bool = False) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_hard:
            path.hardlink_to(self.file)
        else:
            path.symlink_to(self.folder if is_folder else self.file)

    @property
    def is_untouched(self) -> bool:
        paths = sorted(self.folder.rglob("*"))
        files = [self.file, *(path for path in paths if path.is_file())]
        return (
            [path.name for path in paths] == ["model.json", "step-000000001", "file"]
            and all(path.read_bytes() == CONTENT for path in files)
            and all(path.stat().st_mtime == TIME for path in (*files, self.folder, *paths))
        )


def names(*folders: Path) -> list[tuple[str, bool]]:
    """Every name in the folders, and whether it is of a folder."""
    found = {
        str(path.relative_to(folder)): path.is_dir()
        for folder in folders
        for path in folder.rglob("*")
    }
    return sorted(found.items())


def test_a_canary_notices(tmp_path: Path) -> None:
    """The control of all others."""
    for number, harm in enumerate((
        lambda canary: canary.file.write_bytes(CONTENT),
        lambda canary: (canary.folder / "new").touch(),
        lambda canary: (canary.folder / "model.json").unlink(),
        lambda canary: shutil.rmtree(canary.folder / "step-000000001"),
    )):  # fmt: skip
        canary = Canary(tmp_path / str(number))
        assert canary.is_untouched
        harm(canary)
        assert not canary.is_untouched


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_names_that_temporary_files_could_have(
    runs: tuple[Path, Path], go_on: Train, tmp_path: Path, kind: str
) -> None:
    folder, canary = Path(shutil.copytree(runs[0], tmp_path / "run")), Canary(tmp_path / "canary")
    for name, is_folder in names(*runs):
        if not is_folder:
            canary.plant(folder / f"{name}.tmp", is_hard=kind == "hard")
            canary.plant(folder / f"{name}.tmp-{os.getpid()}", is_hard=kind == "hard")
    canary.plant(folder / "checkpoints" / f"step-000000006.tmp-{os.getpid()}", is_folder=True)
    assert go_on(folder) == "resumed"
    assert canary.is_untouched


@pytest.mark.slow
def test_each_name_of_a_run(runs: tuple[Path, Path], go_on: Train, tmp_path: Path) -> None:
    seen = set()
    for number, (name, is_folder) in enumerate(names(*runs)):
        for source in runs:
            for is_hard in (False, True)[: 1 if is_folder or source == runs[1] else 2]:
                folder = Path(
                    shutil.copytree(source, tmp_path / f"{number}-{source.name}-{is_hard}")
                )
                canary = Canary(folder.with_name(f"{folder.name}-canary"))
                canary.plant(folder / name, is_folder=is_folder, is_hard=is_hard)
                ended = go_on(folder)
                assert canary.is_untouched, (name, source.name, is_hard, ended)
                seen.add(ended)
    assert seen <= {
        "resumed",
        "finished",
        "skipped",
        "ArtefactError",
        "ConfigError",
        "StorageError",
    }
    assert len(seen) > 3


@pytest.mark.parametrize(
    ("name", "ended"),
    [("run.lock", "StorageError"), ("checkpoints", "StorageError"), ("bundle", "StorageError"),
     ("result.json", "ArtefactError"), ("metrics.jsonl", "ArtefactError"),
     ("config.yaml", "resumed")],
)  # fmt: skip
def test_names_that_stop_a_run_or_are_replaced(
    runs: tuple[Path, Path], go_on: Train, tmp_path: Path, name: str, ended: str
) -> None:
    folder, canary = Path(shutil.copytree(runs[0], tmp_path / "run")), Canary(tmp_path / "canary")
    canary.plant(folder / name, is_folder=name in ("checkpoints", "bundle"))
    assert go_on(folder) == ended
    assert canary.is_untouched
    assert not (folder / "result.json").exists() or ended != "StorageError"


def test_clearing_and_finishing_remove_links_and_not_their_targets(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, canary = RunFolder(tmp_path / "run"), Canary(tmp_path / "canary")
    for name, is_folder in names(*runs):
        if "/" not in name and name not in ("run.json", "run.lock"):
            canary.plant(folder.path / name, is_folder=is_folder)
    folder.clear()
    assert list(folder.path.iterdir()) == []
    canary.plant(folder.checkpoints, is_folder=True)
    folder.drop_checkpoints()
    assert not folder.checkpoints.is_symlink()
    assert canary.is_untouched


def test_files_of_a_sweep(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "canary")
    folder = SweepFolder.create(tmp_path / "outputs", [["seed=0"]])
    for name in ("0.json", "0.json.tmp", "stop", "stop.tmp", "0.log", "slot-0.lock"):
        canary.plant(folder.path / name)
    folder.write(0, "running")
    folder.stop(15)
    assert (folder.read(0)["status"], folder.stopped_by) == ("running", 15)
    with pytest.raises(RunnerError), folder.slot(1):
        pass
    assert canary.is_untouched


def test_files_that_the_user_names(tmp_path: Path) -> None:
    """A file next to the named one is not touched; a link that the user names is followed."""
    canary = Canary(tmp_path / "canary")
    target = tmp_path / "rows.csv"
    for name in ("rows.csv.tmp", f"rows.csv.tmp-{os.getpid()}", ".rows.csv.tmp"):
        canary.plant(tmp_path / name)
    own = tmp_path / "rows.csv.tmp-mine"
    own.write_bytes(CONTENT)
    write_output(target, b"rows")
    assert (target.read_bytes(), own.read_bytes()) == (b"rows", CONTENT)
    assert canary.is_untouched
    (tmp_path / "link").symlink_to(target)
    write_output(tmp_path / "link", b"more")
    assert target.read_bytes() == b"more"
    assert (tmp_path / "link").is_symlink()


def test_a_folder_with_a_file_of_a_temporary_name_loses_only_that(tmp_path: Path) -> None:
    temporary = temporary_sibling(tmp_path / ("a" * 255))
    assert is_leftover(temporary.name)
    assert len(os.fsencode(temporary.name)) < 255
    replace_whole(tmp_path / ("ä" * 127), b"")  # the longest name that a file can have
    with suppress(RunnerError):
        replace_whole(tmp_path / ("ä" * 128), b"")
    assert [len(entry.name) for entry in tmp_path.iterdir()] == [127]
