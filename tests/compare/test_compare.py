"""The command: what it refuses, its plan, and a whole comparison from nothing to an answer."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small import Command

from runner.compare import __main__ as compare
from runner.report.comparison_json import from_json

MODULE = "runner.compare"


@pytest.fixture
def called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["runner/compare/__main__.py", *words])
        code = 0
        try:
            compare.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


Called = Callable[..., tuple[int, str, str]]
MISTAKES = {
    "--try mixup.alpah=1": ["did you mean mixup.alpha?", "--try mixup.alpah=1"],
    "--try mixup=beta --max-seed 4": ["did you mean --max-seeds?", "fix: --max-seeds"],
    "--try mixup=beta --max-seeds": ["expected one argument"],
    "--try": ["one or more words", "--try ''"],
    "--mixup.alpha 0.3": ["no such option", "fix: mixup.alpha=0.3"],
    "-m seed=0,1": ["it is no sweep"],
    "--cfg job": ["--plan"],
    "--try mixup=beta seed=0,1": ["--max-seeds"],
    "mixup=beta --margin 0": ["--margin 0.5"],
    "--try mixup=beta --html - --json -": ["--html - --json -"],
    "--try mixup=beta --html a --json a": ["two names of files"],
    "--try mixup=beta --html nowhere/a.html": ["mkdir -p nowhere"],
    "--try mixup=beta --json .": ["a folder is in the place"],
    "--experimental-rerun x": ["pickle"],
    "--config-dir nowhere --try mixup=beta": ["nowhere"],
    "--try code=nowhere.py": ["No such file"],
    "--seed 4 --try mixup=beta": ["fix: seed=4"],
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_explained_and_leaves_nothing(
    called: Called, tmp_path: Path, words: str
) -> None:
    code, out, err = called(*words.split(" "))
    assert code == 2, err
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for part in MISTAKES[words]:
        assert part in err
    assert list(tmp_path.rglob("*")) == []


def test_data_that_is_not_there_is_no_comparison(called: Called, tmp_path: Path) -> None:
    code, out, err = called("data=folder", "data.root=nowhere", "--try", "mixup=beta")
    assert (code, out) == (3, "")
    assert "nowhere" in err
    assert not (tmp_path / "outputs" / "comparisons").exists()


def test_torchrun_is_refused(
    called: Called, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    code, out, err = called("--try", "mixup=beta")
    assert (code, out) == (2, "")
    assert "tasks_per_node=2" in err
    assert list(tmp_path.iterdir()) == []


def test_help_has_examples_and_fits_80_columns(
    called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = called("--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    for part in ("--try ''", "--tune optim.lr=", "A/A", "11 cannot tell", "Exit codes:"):
        assert part in out


def test_the_plan_alone_trains_nothing(
    called: Called, tmp_path: Path, tiny_words: tuple[str, ...]
) -> None:
    code, out, err = called(*tiny_words, "--try", "mixup=beta", "--try", "", "--plan")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "30 at most, 9 in the first round" in out
    assert {path.name for path in tmp_path.glob("outputs/*")} == {"cache"}
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_code_is_run_before_anything_is_trained(
    called: Called, tmp_path: Path, tiny_words: tuple[str, ...]
) -> None:
    (tmp_path / "idea.py").write_text("import nowhere\ndef loss(logits, targets):\n    return 0\n")
    code, _, err = called(*tiny_words, "--try", "code=idea.py")
    assert code == 2
    assert "No module named 'nowhere'" in err
    assert not list(tmp_path.glob("outputs/comparisons"))


ARCHITECTURES = {
    "of an arm": (
        ["--try", "model.name=test_resnett", "--try", "mixup=beta"],
        "timm has no model called 'test_resnett'  [--try model.name=test_resnett]\n",
    ),
    "of the baseline": (
        ["model.name=test_resnett", "--try", "mixup=beta"],
        "timm has no model called 'test_resnett'\n",
    ),
    "of the search": (
        ["--try", "mixup=beta", "--tune", "model.name=test_resnet,test_resnett"],
        "timm has no model called 'test_resnett'  [--tune model.name=test_resnett]\n",
    ),
}


@pytest.mark.parametrize("plan", [["--plan"], []], ids=["plan", "run"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_that_no_library_has_is_refused_before_anything_is_trained(
    called: Called, tmp_path: Path, tiny_words: tuple[str, ...], name: str, plan: list[str]
) -> None:
    words, said = ARCHITECTURES[name]
    own = [word for word in tiny_words if not word.startswith("model.name=")]
    own += [] if name == "of the baseline" else ["model.name=test_resnet"]
    code, out, err = called(*own, *words, *plan)
    assert code == 2
    assert "in the first round" not in out
    assert f"error: {said}where: model.name=test_resnett\nfix: did you mean " in err
    assert {path.name for path in tmp_path.glob("outputs/*")} == {"cache"}


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (("helps", "hurts"), 0),
        (("helps", "cannot tell"), 0),
        (("hurts", "no difference"), 10),
        (("hurts", "cannot tell"), 11),
        (("cannot tell",), 11),
    ],
)
def test_the_exit_code_says_whether_an_arm_helps(verdicts: tuple[Any, ...], code: int) -> None:
    from test_live import HELPS

    class Answered:
        standings = tuple(replace(HELPS, verdict=verdict) for verdict in verdicts)

    assert compare.exit_code(Answered) == code  # type: ignore[arg-type]
    control = replace(HELPS, words=(), verdict="cannot tell" if code != 11 else "helps")
    Answered.standings += (control,)
    assert compare.exit_code(Answered) == code, "a control is no arm"  # type: ignore[arg-type]
    Answered.standings = (control,)
    assert compare.exit_code(Answered) == (11 if code != 11 else 0)  # type: ignore[arg-type]


@pytest.mark.whole
def test_from_nothing_to_an_answer_and_again(
    command: Command, tmp_path: Path, tiny_words: tuple[str, ...]
) -> None:
    words = [*tiny_words, "--try", "mixup=beta", "--try", "tta=flip", "--max-seeds", "3"]
    first = command(*words, module=MODULE)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert "6 at most" in first.stdout
    assert re.search(r"^mixup=beta, seed 2: \d+\.\d\d% \(", first.stdout, re.M)
    assert "epoch" not in first.stdout.partition("3 seeds:")[2]  # what runs say is in their logs
    assert len(list(tmp_path.glob("outputs/*/result.json"))) == 6
    verdicts = first.stdout.partition("comparison ")[2]
    assert "- mixup=beta" in verdicts

    again = command(*words, module=MODULE)
    assert again.stdout.partition("comparison ")[2] == verdicts
    asked = command(*words, "--json", "-", "--html", "page.html", "--exit-code", module=MODULE)
    answer = from_json(json.loads(asked.stdout))
    assert asked.returncode == compare.exit_code(answer)
    assert "<html" in (tmp_path / "page.html").read_text()
    assert "page: page.html\n" in asked.stderr

    more = command(*words[:-1], "4", module=MODULE)
    assert more.returncode == 2
    assert "max_seeds: 3 → 4" in more.stderr
    assert "--name" in more.stderr
    other = command(*words[:-1], "4", "--name", "second", "--plan", module=MODULE)
    assert other.returncode == 0
    assert "6 of them exist already" in " ".join(other.stdout.split())
