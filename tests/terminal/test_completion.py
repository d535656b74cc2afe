"""TAB in a real bash completes commands, options, groups, options of groups, keys and values."""

import argparse
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.__main__ import commands
from runner.terminal.completion import candidates, options

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
    "trick-runner train eval.s": {"eval.size="},
    "trick-runner train che": {"checkpoint.minutes="},
    "trick-runner train -m mixup=none,be": {"none,beta "},
    "trick-runner evaluate pho": {"photos/"},
    "trick-runner evaluate photos tta=fl": {"flip "},
    "trick-runner evaluate photos mixup=b": set(),
    "trick-runner evaluate photos --spl": {"--split "},
    "trick-runner lr_find --mul": set(),
    "trick-runner train nothing.like": set(),
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where ``trick-runner`` is a program, and the folder ``photos`` is here."""
    program = tmp_path / "bin" / "trick-runner"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom runner.__main__ import main\nmain()\n")
    program.chmod(0o755)
    (tmp_path / "photos").mkdir()
    folders = [str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    return {
        **os.environ,
        "PATH": ":".join(folders),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HOME": str(tmp_path / "bin"),  # fish and zsh keep files there
        "TERM": "dumb",
    }


def answer(shell: list[str], folder: Path, environment: dict[str, str], lines: list[str]) -> str:
    ended = subprocess.run(
        shell, input="\n".join(lines) + "\n", capture_output=True, text=True, cwd=folder,
        timeout=120, env=environment,
    )  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["bin", "photos"], "something ran"
    return ended.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_real_bash_completes(tmp_path: Path, environment: dict[str, str]) -> None:
    tab = """
        eval "$(register-python-argcomplete trick-runner)"
        while IFS= read -r line; do
            COMP_LINE=$line COMP_POINT=${#line} COMP_TYPE=9 COMPREPLY=()
            _python_argcomplete trick-runner "${line##* }" ""
            (IFS='|'; echo "${COMPREPLY[*]}")
        done
    """
    printed = answer(["bash", "-c", tab], tmp_path, environment, [*LINES])
    found = [{*line.split("|")} - {""} for line in printed.splitlines()]
    assert dict(zip(LINES, found, strict=True)) == LINES


WHOLE_WORDS = {
    "trick-runner tr": "train",
    "trick-runner train mix": "mixup=",
    "trick-runner train +trick=mi": "+trick=mixup",
    "trick-runner train data.root=pho": "data.root=photos/",
}


@pytest.mark.whole
@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_a_real_fish_completes(tmp_path: Path, environment: dict[str, str]) -> None:
    tab = """
        register-python-argcomplete --shell fish trick-runner | source
        while read line; complete -C $line; end
    """
    printed = answer(["fish", "-c", tab], tmp_path, environment, [*WHOLE_WORDS])
    assert [line.split("\t")[0] for line in printed.splitlines()] == [*WHOLE_WORDS.values()]


@pytest.mark.whole
@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_a_real_zsh_completes(tmp_path: Path, environment: dict[str, str]) -> None:
    # zsh completes in a terminal only: its module zpty makes one. "zle -I" shows the line again.
    tab = r"""
        zmodload zsh/zpty
        while IFS= read -r line; do
            zpty shell zsh -f -i
            zpty -w shell 'PROMPT=; autoload -U compinit && compinit -u -D'
            zpty -w shell 'eval "$(register-python-argcomplete trick-runner)"'
            zpty -w shell 'print-line() { print -r -- "<$BUFFER>" }; zle -N print-line'
            zpty -w shell 'bindkey "^P" print-line'
            zpty -w -n shell "$line"$'\t'$'\x10'
            zpty -r shell printed '*<trick-runner *>*'
            print -r -- ${${printed##*\<}%%\>*}
            zpty -d shell
        done
    """
    printed = answer(["zsh", "-f", "-c", tab], tmp_path, environment, [*WHOLE_WORDS])
    expected = [f"{line.rpartition(' ')[0]} {word}" for line, word in WHOLE_WORDS.items()]
    assert [line.rstrip() for line in printed.splitlines()] == expected


def test_groups_first_then_keys() -> None:
    assert "mixup=" in candidates("")
    assert not [word for word in candidates("") if "." in word]
    assert {"optim.lr=", "optim.momentum="} <= {*candidates("optim.")}
    assert candidates("mixup.fold=") == ["mixup.fold=true", "mixup.fold=false"]
    assert "+recipe=book" in candidates("+recipe=")


@pytest.mark.parametrize("name", sorted({*commands()} - {"train", "lr_find"}))
def test_the_options_read_off_the_source_are_those_of_the_parser(name: str) -> None:
    module = commands()[name].module
    parsers = [importlib.import_module(module).parser()]
    for action in parsers[0]._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    spelled = {option for parser in parsers for option in parser.options() if option[:2] == "--"}
    assert {*options(module)} == spelled


def test_torch_and_hydra_are_not_imported() -> None:
    code = (
        "import sys, runner.terminal.completion\n"
        "from runner.__main__ import commands\n"
        "for one in commands().values(): runner.terminal.completion.options(one.module)\n"
        "assert not {'torch', 'hydra', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
