"""Windows is refused with a sentence that names WSL; nothing of the program is imported there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.__main__ import commands
from runner.machine import system

ROOT = Path(__file__).parents[2]
# Imported before anything else. Windows lacks these modules.
WINDOWS = """
import sys
sys.platform = "win32"
sys.modules.update(dict.fromkeys(["fcntl", "resource", "pwd", "grp", "termios"]))
"""


@pytest.fixture
def windows(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that takes itself for one of Windows."""
    (tmp_path / "sitecustomize.py").write_text(WINDOWS)
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


def started(windows: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *words], env=windows, capture_output=True, text=True)


@pytest.mark.parametrize(
    "words",
    [("runner",), ("runner.train", "+trick=mixup"), ("runner.show", "--help"), ("runner.report",)],
    ids="-".join,
)
def test_a_command_ends_with_the_sentence(windows: dict[str, str], words: tuple[str, ...]) -> None:
    done = started(windows, "-m", *words)
    assert (done.returncode, done.stdout) == (2, "")
    what, where, fix = done.stderr.splitlines()
    assert what.startswith("error: trick-runner runs on Linux and macOS, and Windows lacks")
    assert where == "where: Windows, sys.platform=win32"
    assert fix.startswith("fix: wsl --install, and then the commands of the README")


def test_the_console_script_ends_with_the_sentence(windows: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "trick-runner"
    script.write_text("from runner.__main__ import main\nmain()\n")
    done = started(windows, str(script), "show")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: trick-runner runs on Linux and macOS")


def test_an_import_is_an_import_error_with_the_sentence(windows: dict[str, str]) -> None:
    code = """
try:
    import runner
except ImportError as error:
    print(error)
"""
    done = started(windows, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "fix: wsl --install" in done.stdout


def test_without_the_refusal_the_error_would_name_fcntl(windows: dict[str, str]) -> None:
    code = "import sys; sys.platform = 'linux'; import runner.machine.locks"
    assert "import of fcntl halted" in started(windows, "-c", code).stderr


@pytest.mark.parametrize("name", commands())
def test_every_command_is_below_the_package_that_refuses(name: str) -> None:
    assert commands()[name].module.startswith("runner.")
    assert "require_system()" in (ROOT / "runner" / "__init__.py").read_text()


@pytest.mark.parametrize("platform", ["linux", "darwin", "cygwin"])
def test_other_systems_are_accepted(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    system.require_system()


def test_torch_computes_on_the_cpu_what_an_apple_gpu_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "PYTORCH_ENABLE_MPS_FALLBACK"
    monkeypatch.setattr(os, "environ", {})
    system.prepare_apple_gpu()
    assert name not in os.environ
    monkeypatch.setattr(sys, "platform", "darwin")
    system.prepare_apple_gpu()
    assert os.environ[name] == "1"
    os.environ[name] = "0"  # the user's choice stays
    system.prepare_apple_gpu()
    assert os.environ[name] == "0"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, system.SPINS),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_threads_that_wait_sleep_sooner_unless_the_user_decided(
    variables: dict[str, str], expected: str | None
) -> None:
    """Seen in the environment in which torch is imported, whichever way the program starts."""
    program = "import os, runner; print(os.environ.get('GOMP_SPINCOUNT'))"
    unset = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**unset, **variables}, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(expected)
