"""``.ci/run`` succeeds only if each of its steps does, also those that run at the same time."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"
INSTALL = "mkdir -p .venv/bin outputs/a && touch .venv/bin/activate outputs/a/result.json"
PROGRAMS = (
    "chromium", "munged", "slurmctld", "slurmd", "sbatch", "python", "mkdocs", "ruff", "mypy",
)  # fmt: skip


def ci(
    folder: Path, run: str = INSTALL, test: str = INSTALL, broken: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run the script in a repository of two commands and a test, with programs that do nothing."""
    repository, programs = folder / "repository", folder / "bin"
    (repository / ".ci").mkdir(parents=True)
    shutil.copy(SCRIPT, repository / ".ci" / "run")
    (repository / "tests").mkdir()
    (repository / "tests" / "test_it.py").write_text("# mark.whole\n")
    blocks = [
        f"<!-- ci: {name} -->\n```bash\n{command}\n```\n"
        for name, command in {"run": run, "test": test}.items()
    ]
    (repository / "README.md").write_text("\n".join(blocks))
    programs.mkdir()
    for program in PROGRAMS:
        (programs / program).write_text(f"#!/bin/sh\nexit {3 * (program == broken)}\n")
        (programs / program).chmod(0o755)
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=repository, check=True)
    return subprocess.run(
        [repository / ".ci" / "run"],
        env={"PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_all_steps_succeed_and_nothing_stays(tmp_path: Path) -> None:
    done = ci(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for step in ("README, run", "README, test", "the tests marked whole", "documentation, lint"):
        assert f"== {step}" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "repository"]


@pytest.mark.parametrize(
    "steps",
    [
        {"run": "false && " + INSTALL},
        {"run": INSTALL + " && false"},
        {"run": INSTALL.replace("result.json", "other.json")},
        {"run": ""},
        {"test": "exit 4; " + INSTALL},
        {"test": INSTALL + "; false; true"},
        {"test": ""},
        *({"broken": program} for program in ("python", "mkdocs", "ruff", "mypy")),
    ],
    ids=str,
)
def test_a_step_that_fails_fails_it(tmp_path: Path, steps: dict[str, str]) -> None:
    assert ci(tmp_path, **steps).returncode not in (0, -9)
