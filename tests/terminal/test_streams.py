"""A run does not depend on who listens; a command whose result is its text does."""

import functools
import os
from pathlib import Path

import kill
import pytest

FULL, CLOSED, BOTH, PIPE = "full", "closed", "both closed", "pipe without a reader"


def set_outputs(kind: str) -> None:
    """Make standard output what it is when nobody can read it."""
    if kind == FULL:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif kind == PIPE:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
    else:
        os.close(1)
    if kind == BOTH:
        os.close(2)


@pytest.mark.parametrize("kind", [FULL, CLOSED, BOTH, PIPE])
def test_training_does_not_depend_on_its_listener(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, tiny_words: tuple[str, ...], kind: str
) -> None:
    attempt = kill.Attempt(
        tmp_path, tiny_words, setup=[functools.partial(set_outputs, kind)],
        log=tmp_path_factory.mktemp("log"),
    ).wait()  # fmt: skip
    assert attempt.code == 0, attempt.err
    assert "Traceback" not in attempt.err
    assert len(list(tmp_path.glob("outputs/*/result.json"))) == 1
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"epoch 1/1" not in path.read_bytes(), path


@pytest.mark.parametrize(("kind", "code"), [(FULL, 4), (CLOSED, 4), (BOTH, 4), (PIPE, 0)])
@pytest.mark.parametrize("words", [("show",), ("report", "--csv", "-")])
def test_a_command_that_prints_its_result_says_that_it_could_not(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    code: int,
    words: tuple[str, ...],
) -> None:
    name, *rest = words
    (tmp_path / "outputs").mkdir()
    attempt = kill.Attempt(
        tmp_path, rest, setup=[functools.partial(set_outputs, kind)],
        module="runner.report.__main__" if name == "report" else f"runner.{name}",
        log=tmp_path_factory.mktemp("log"),
    ).wait()  # fmt: skip
    assert attempt.code == code, attempt.err
    assert "Traceback" not in attempt.err
    if kind in (FULL, CLOSED):
        assert "standard output" in attempt.err


def remove_working_directory() -> None:
    Path.cwd().rmdir()


@pytest.mark.parametrize("module", ["runner.train", "runner.show"])
def test_a_working_directory_that_was_removed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, module: str
) -> None:
    (tmp_path / "gone").mkdir()
    attempt = kill.Attempt(
        tmp_path / "gone", [], setup=[remove_working_directory], module=module,
        log=tmp_path_factory.mktemp("log"),
    ).wait()  # fmt: skip
    assert attempt.code == 4
    assert "working directory" in attempt.err
