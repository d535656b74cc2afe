"""The commands of README and docs are accepted as they are printed, and CI finds its two."""

import importlib.util
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from runner import predict
from runner.compare import __main__ as compare
from runner.compare.question import question
from runner.config import compose
from runner.config.describe import describe
from runner.config.options import GROUPS
from runner.config.schema import RunConfig
from runner.evaluate import variants
from runner.export import __main__
from runner.look import __main__ as look
from runner.report.__main__ import parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = README + "".join(
    page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").rglob("*.md"))
)
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGES, flags=re.DOTALL)
COMMANDS = list(
    dict.fromkeys(  # pages repeat some
        re.split(r"#| \| ", line[line.index("-m runner.") :])[0].strip()
        for block in BLOCKS
        for line in block.splitlines()
        if "-m runner." in line
    )
)


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted(command: str, composed: Callable[..., RunConfig]) -> None:
    _, module, *words = shlex.split(command)
    assert importlib.util.find_spec(module)
    if module == "runner.export":
        __main__.parser().parse_args(words)
        return
    overrides = [word for word in words if "=" in word]
    if module == "runner.report":
        parser().parse_args(words)
        return
    if module == "runner.compare":
        options = compare.parser().parse_intermixed_args(words)
        assert question(compare.asked_of(options)).arms
        return
    if module == "runner.predict":
        predict.parser().parse_intermixed_args(words)
        return
    if module == "runner.data":
        assert words.pop(0) in ("stats", "duplicates")
        assert words == overrides
        composed(*words)
        return
    if module == "runner.evaluate":
        runs = {word for word in words if word.startswith("outputs/")}
        assert runs
        assert set(words) - runs - set(overrides) <= {"-m"}
        assert variants(overrides, is_sweep="-m" in words)
        return
    if module == "runner.look":
        options = look.parser().parse_intermixed_args(words)
        run, *others = options.words or ["seed=0"]
        if "=" not in run:
            assert {word.partition("=")[0] for word in others} <= {"data.root"}
        else:
            composed(*options.words)
            changed = (words for side in options.compare for words in map(shlex.split, side))
            composed(*options.words, *(word for words in changed for word in words))
        return
    if module == "runner.show":
        assert not overrides
        assert {word for word in words if word.startswith("-")} <= {"--once", "--watch"}
        return
    if "--help" in words:
        assert all(describe(word) for word in words if word not in ("--help", "GROUP"))
        return
    assert set(words) - set(overrides) <= {"-m", "--cfg", "job", "--detach"}
    (jobs,) = BasicSweeper.split_arguments(
        OverridesParser.create().parse_overrides(overrides), None
    )
    assert len(jobs) == 1 or "-m" in words
    if "hydra/launcher=ray" in words:
        pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    if len(jobs) == 1:
        composed(*jobs[0])
        return
    with compose.opened():
        configs = compose.job_configs(compose.composed([], is_sweep=True))
        assert all(configs.of(job) for job in jobs)


def test_ci_runs_the_two_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    reader = script[script.index("readme_command()") : script.index("readme() {")]
    for name, expected in {"run": "python -m runner.train", "test": "python -m pytest"}.items():
        found = subprocess.run(
            ["bash", "-c", f"{reader}\nreadme_command {name}"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert found.count("\n") == 1
        assert found.startswith("python3 -m venv .venv && ")
        assert found.strip().endswith((expected, f"{expected} +trick=mixup"))


def test_the_tricks_and_options_that_it_names_exist() -> None:
    for overlay in re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE):
        assert (ROOT / "conf" / "trick" / f"{overlay}.yaml").is_file()
    for group, name in re.findall(r"`(\w+)=(\w+)`", README):
        if group in GROUPS:
            assert (ROOT / "conf" / group / f"{name}.yaml").is_file(), f"{group}={name}"
    launchers = re.findall(r"hydra/launcher=(\w+)", (ROOT / "docs" / "sweeps.md").read_text())
    assert set(launchers) == {path.stem for path in (ROOT / "conf/hydra/launcher").iterdir()}
