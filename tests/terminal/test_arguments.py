"""The options of every command: no abbreviation, and none that loads or runs anything."""

import argparse
import ast
import importlib
import itertools
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from runner import __main__ as program
from runner.config import compose
from runner.config.complaints import translated
from runner.config.overrides import checked_words
from runner.errors import ConfigError
from runner.terminal.arguments import Parser
from runner.terminal.usage import WordsParser

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("runner", "hydra_plugins", "scripts", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
)


def test_every_parser_of_the_source_takes_full_names_only() -> None:
    found = 0
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("hydra.main", "get_args_parser", "_run_hydra"), path
            if called.endswith("ArgumentParser"):
                keywords = {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert keywords.get("allow_abbrev") == "False", path
                assert not path.is_relative_to(ROOT / "runner"), f"{path}: use Parser"
            found += called.endswith(("ArgumentParser", "Parser"))
    assert found > 10


def parsers(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Parser]]:
    """The parsers that each command makes when it starts, sub-commands included."""
    made: dict[str, list[Parser]] = {}
    create = Parser.__init__
    for name, command in program.commands().items():
        found = made.setdefault(name, [])

        def remember(self: Parser, found: list[Parser] = found, **settings: object) -> None:
            create(self, **settings)
            found.append(self)

        monkeypatch.setattr(Parser, "__init__", remember)
        monkeypatch.setattr(sys, "argv", [name, "--no-such-option"])
        with pytest.raises(SystemExit) as caught:
            importlib.import_module(command.module).main()
        assert caught.value.code == 2
    return made


def test_no_command_takes_an_abbreviation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = parsers(monkeypatch)
    assert all(made.values())
    count = 0
    for parser in itertools.chain(*made.values()):
        assert not parser.allow_abbrev
        full = parser.options()
        for option in full:
            for end in range(3, len(option)):
                if option.startswith("--") and option[:end] not in full:
                    assert parser._parse_optional(option[:end]) in (
                        None, (None, option[:end], None), (None, option[:end], None, None),
                    )  # fmt: skip
                    count += 1
    assert count > 100
    control = argparse.ArgumentParser()
    control.add_argument("--experimental-rerun")
    assert control.parse_args(["--e", "x"]).experimental_rerun == "x", "the test cannot fail"


def spellings(option: str) -> Iterator[list[str]]:
    """Every prefix of an option with a value: apart, attached, and without one."""
    start = 3 if option.startswith("--") else 2
    for end in range(start, len(option) + 1):
        yield from (
            [option[:end], "canary.pickle"],
            [f"{option[:end]}=canary.pickle"],
            [option[:end]],
        )


class Canary:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("unpickled"),)


@pytest.mark.parametrize("name", ["train", "lr_find"])
def test_no_spelling_of_an_option_loads_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("canary.pickle").write_bytes(pickle.dumps(Canary()))
    main = importlib.import_module(program.commands()[name].module).main
    allowed = {*WordsParser("x").options()}
    hydras = {name for action in get_args_parser()._actions for name in action.option_strings}
    assert "--experimental-rerun" in hydras - allowed
    count = 0
    for words in itertools.chain(*map(spellings, sorted(hydras))):
        if words[0].partition("=")[0] in allowed:
            continue  # `--help`, `--cfg`, `-m` and what else is ours
        if not words[0].startswith("--") and words[0][:2] in ("-m", "-h", "-c"):
            continue  # `-cp` is `-c` with the value `p`, which --cfg refuses
        for line in (words, ["-m", *words], [*words, "seed=1"], ["seed=1,2", "-m", *words]):
            monkeypatch.setattr(sys, "argv", [name, *line])
            with pytest.raises(SystemExit) as caught:
                main()
            assert caught.value.code == 2, line
            count += 1
    assert [path.name for path in tmp_path.iterdir()] == ["canary.pickle"]
    assert "Traceback" not in capsys.readouterr().err
    assert count > 500
    pickle.loads(Path("canary.pickle").read_bytes())  # noqa: S301  the canary itself
    assert Path("unpickled").exists(), "the test cannot fail"


HYDRAS_OWN = [
    "hydra.searchpath=[file:///tmp]",
    "+hydra.searchpath=[pkg://antigravity]",
    "hydra.mode=MULTIRUN",
    "hydra.output_subdir=.hydra",
    "hydra.job.env_copy=[HOME]",
    "+hydra.job.env_set.LD_PRELOAD=x",
    "hydra.job.chdir=true",
    "hydra.run.dir=x",
    "hydra.sweep.dir=x",
    "hydra.verbose=true",
    "++hydra.callbacks.x._target_=os.getcwd",
    "hydra.sweeper._target_=os.getcwd",
    "hydra.launcher._target_=os.getcwd",
    "+hydra.launcher.x._target_=os.getcwd",
    "+hydra.launcher.x={_target_:os.getcwd}",
    "+hydra.launcher.x=[{a:{_target_:os.getcwd}}]",
    "hydra/job_logging=default",
    "hydra/sweeper=basic",
    "hydra/output=default",
    "~hydra.launcher",
    "~hydra/launcher",
    "+hydra.job_logging.formatters={a:{'()':os.getcwd}}",
    "hydra={callbacks:{x:{_target_:os.getcwd}}}",
    "+mixup@hydra=beta",
    "hydra/launcher=../../x",
]


def refusal(words: list[str], *, folder: Path | None = None, is_sweep: bool = False) -> ConfigError:
    """The error of words, in our form."""
    try:
        checked = compose.words_to_compose(words, folder)
        with compose.opened():
            compose.composed(checked, is_sweep=is_sweep)
    except Exception as error:
        found = error if isinstance(error, ConfigError) else translated(error)
        assert isinstance(found, ConfigError)
        return found
    raise AssertionError("accepted")


@pytest.mark.parametrize("word", HYDRAS_OWN)
@pytest.mark.parametrize("is_sweep", [False, True])
def test_hydras_own_keys_are_closed(word: str, is_sweep: bool) -> None:
    compose.register()
    error = refusal([word], is_sweep=is_sweep)
    assert word in str(error) or "hydra" in error.where
    assert error.fix


@pytest.mark.parametrize(
    "content",
    [
        "hydra: {callbacks: {x: {_target_: os.getcwd}}}",
        "hydra: {output_subdir: .hydra}",
        "hydra: {job: {env_copy: [HOME]}}",
        "hydra: {launcher: {_target_: os.getcwd}}",
        "hydra: {launcher: {more: {_target_: os.getcwd}}}",
        "hydra: {job_logging: {version: 1, formatters: {a: {(): os.getcwd}}}}",
        "hydra: {sweeper: {more: 1}}",
    ],
)
def test_no_option_file_changes_hydra(tmp_path: Path, content: str) -> None:
    compose.register()
    (tmp_path / "trick").mkdir()
    (tmp_path / "trick" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    assert "hydra." in str(refusal(["+trick=mine"], folder=tmp_path)).replace("'", ".")


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "x-${oc.env:HOME}", "${hydra:runtime.cwd}"])
def test_no_option_file_reads_the_environment(tmp_path: Path, value: str) -> None:
    compose.register()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text(f"label_column: {value}\n")
    words = compose.words_to_compose(["data=mine"], tmp_path)
    with compose.opened(), pytest.raises(ConfigError, match="taken from elsewhere"):
        compose.run_config(compose.composed(words))


@pytest.mark.parametrize("word", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])
def test_a_launcher_can_be_chosen_and_set(word: str) -> None:
    compose.register()
    words = checked_words(["hydra/launcher=joblib", word])
    with compose.opened():
        composed = compose.composed(list(dict.fromkeys(words)), is_sweep=True)
    assert composed.hydra.launcher._target_.endswith("JoblibLauncher")


@pytest.mark.parametrize(
    ("name", "words", "what"),
    [
        ("train", ["--detach"], "this is no sweep"),
        ("train", ["-m", "--detach", "--cfg", "job"], "--cfg prints one configuration"),
        ("train", ["-m", "--detach", "seed=0,1"], "without a launcher"),
        ("train", ["-m", "--detach", "hydra/launcher=joblib"], "those of JoblibLauncher end"),
        ("train", ["-m", "--detach", "hydra/launcher=submitit_local"], "those of LocalLauncher"),
        ("lr_find", ["--detach"], "belongs to sweeps on Slurm"),
    ],
)
def test_only_a_sweep_on_slurm_can_be_detached(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    words: list[str],
    what: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(program.commands()[name].module).main()
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert what in said
    assert "fix: " in said
    assert not [*tmp_path.iterdir()], "nothing was begun"
