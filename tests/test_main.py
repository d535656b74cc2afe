"""The list of commands, and one program for all of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from runner import __main__ as program
from runner import __version__

RUNNER = Path(program.__file__).parent
# Found without the reader of docstrings: what can be run as `python -m runner.NAME`.
RUNNABLE = sorted(
    path.parent.name if path.stem == "__main__" else path.stem
    for path in [*RUNNER.glob("*.py"), *RUNNER.glob("*/__main__.py")]
    if 'if __name__ == "__main__":' in path.read_text() and path != RUNNER / "__main__.py"
)


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The program in this process; its exit code."""
    monkeypatch.setattr("sys.argv", ["bin/trick-runner", *words])
    try:
        program.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_every_module_that_runs_is_a_command() -> None:
    assert {"train", "report"} < {*RUNNABLE}
    assert list(program.commands()) == RUNNABLE


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_commands_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert called(monkeypatch, *words) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for name, command in program.commands().items():
        (line,) = re.findall(rf"^  {name} +(.+)$", text, re.M)
        assert line == command.summary
        assert f"  trick-runner {name} " in text


def test_the_list_needs_no_large_package() -> None:
    code = (
        "import runpy, sys\n"
        "runpy.run_module('runner', run_name='__main__', alter_sys=True)\n"
        "assert not {'torch', 'hydra', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "python -m runner train +trick=mixup" in done.stdout


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"trick-runner {__version__}\n"


MISTAKES = {
    "trian seed=3": ["did you mean train?", "where: trian", "fix: trick-runner train"],
    "lr-find": ["did you mean lr_find?"],
    "frobnicate": ["no such command", *RUNNABLE],
    "errors": ["no such command"],
    "../train": ["no such command"],
    "+trick=mixup seed=3": ["must be a command", "fix: trick-runner train +trick=mixup seed=3"],
    "-m seed=0,1": ["fix: trick-runner train -m seed=0,1"],
}


@pytest.mark.parametrize("words", MISTAKES)
def test_what_is_no_command_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert called(monkeypatch, *words.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    for part in MISTAKES[words]:
        assert part in shown.err


# Hydra's commands have a help of their own, which names them as modules; their usage is below.
@pytest.mark.parametrize("name", sorted({*RUNNABLE} - {"train", "lr_find"}))
def test_usage_names_the_command_as_it_was_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert called(monkeypatch, name, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: trick-runner {name} ")
    assert [line for line in text.splitlines() if len(line) > 80] == []
    monkeypatch.setattr("sys.argv", [f"runner/{name}.py", "--help"])
    module = sys.modules[program.commands()[name].module]
    with pytest.raises(SystemExit):
        module.main()
    assert capsys.readouterr().out.startswith(f"usage: python -m runner.{name} ")


@pytest.mark.parametrize("name", ["train", "lr_find"])
def test_so_does_the_usage_of_commands_that_take_words_through_hydra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert called(monkeypatch, name, "--unknown") == 2
    assert f"fix: trick-runner {name} --help" in capsys.readouterr().err


def test_the_exit_code_is_that_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert called(monkeypatch, "show", str(tmp_path / "nowhere")) == 3
    assert "nowhere" in capsys.readouterr().err
