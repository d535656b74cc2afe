"""TAB in a real bash completes commands, options, groups, options of groups, keys and values."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.terminal.completion import candidates

pytest.importorskip("argcomplete")

LINES = {
    "trick-runner tr": {"train "},
    "trick-runner train mix": {"mixup="},
    "trick-runner train mixup=": {"beta", "cutmix", "none", "switch", "uniform"},
    "trick-runner train mixup.alp": {"mixup.alpha="},
    "trick-runner compare precision=b": {"bf16 "},
    "trick-runner train +trick=mi": {"mixup "},
    "trick-runner train --conf": {"--config-dir "},
    "trick-runner train data.root=pho": {"photos/"},
    "trick-runner predict pho": {"photos/"},
    "trick-runner show --wat": {"--watch "},
    "trick-runner train nothing.like": set(),
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_real_bash_completes(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "trick-runner"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom runner.__main__ import main\nmain()\n")
    program.chmod(0o755)
    (tmp_path / "photos").mkdir()
    tab = """
        eval "$(register-python-argcomplete trick-runner)"
        while IFS= read -r line; do
            COMP_LINE=$line COMP_POINT=${#line} COMP_TYPE=9 COMPREPLY=()
            _python_argcomplete trick-runner "${line##* }" ""
            (IFS='|'; echo "${COMPREPLY[*]}")
        done
    """
    folders = [str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    ended = subprocess.run(
        ["bash", "-c", tab], input="\n".join(LINES) + "\n", capture_output=True, text=True,
        cwd=tmp_path, timeout=120,
        env={**os.environ, "PATH": ":".join(folders), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    found = [{*line.split("|")} - {""} for line in ended.stdout.splitlines()]
    assert dict(zip(LINES, found, strict=True)) == LINES, ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "photos"], "nothing ran"


def test_groups_first_then_keys() -> None:
    assert "mixup=" in candidates("")
    assert not [word for word in candidates("") if "." in word]
    assert {"optim.lr=", "optim.momentum="} <= {*candidates("optim.")}
    assert candidates("mixup.fold=") == ["mixup.fold=true", "mixup.fold=false"]
    assert "+recipe=book" in candidates("+recipe=")


def test_torch_and_hydra_are_not_imported() -> None:
    code = (
        "import sys, runner.terminal.completion\n"
        "assert not {'torch', 'hydra', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
