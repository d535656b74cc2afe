"""The help of groups and keys, and the page of the configuration, say what the schema says."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small import Command

from runner.config.checks import known_keys
from runner.config.describe import describe, group_keys, group_options, top_keys
from runner.config.options import CONF_DIR, GROUPS, OVERLAYS
from runner.config.schema import RunConfig
from runner.errors import ConfigError
from scripts.configuration_page import PAGE, page


def test_the_page_is_what_the_script_writes() -> None:
    assert PAGE.read_text() == page(), "python -m scripts.configuration_page"


def test_the_page_has_every_key_and_every_option() -> None:
    text = PAGE.read_text()
    assert len(known_keys()) > 90
    for key in known_keys():
        assert text.count(f"| `{key}` |") == 1, key
    for path in CONF_DIR.glob("*/*.yaml"):
        plus = "+" if path.parent.name in OVERLAYS else ""
        assert f"| `{plus}{path.parent.name}={path.stem}` |" in text


def test_defaults_are_words_that_give_the_default(composed: Callable[..., RunConfig]) -> None:
    keys = [*top_keys(), *(key for group in RunConfig().groups for key in group_keys(group))]
    assert [key.name for key in keys if key.name not in known_keys()] == []
    words = [f"{key.name}={key.default}" for key in keys if key.name != "seed"]
    assert composed(*words) == RunConfig()


def test_what_an_option_sets_is_the_option(composed: Callable[..., RunConfig]) -> None:
    for option in [*group_options("mixup"), *group_options("optim")[:2], group_options("trick")[1]]:
        assert composed(option.words, *option.sets) == composed(option.words)
        assert composed(*option.sets) == composed(option.words)


@pytest.mark.parametrize(
    "subject", [*GROUPS, "eval", "checkpoint", "+trick", "seed", "optim.lr", "mixup=beta"]
)
def test_help_is_short_lines_with_meanings(subject: str) -> None:
    text = describe(subject)
    assert max(map(len, text.splitlines())) <= 80
    name = subject.lstrip("+").partition("=")[0]
    for key in group_keys(name):
        assert f"  {key.name}={key.default}\n" in text
        assert key.meaning.split()[0] in text


def test_own_options_are_shown(tmp_path: Path) -> None:
    (tmp_path / "mixup").mkdir()
    (tmp_path / "mixup" / "gentle.yaml").write_text("# Little mixing.\nalpha: 0.1\n")
    text = describe("mixup", tmp_path)
    assert "  mixup=gentle\n      Little mixing. (yours: " in text


@pytest.mark.parametrize(
    ("subject", "guess"), [("mixupp", "mixup"), ("optim.lrr", "optim.lr"), ("sed", "seed")]
)
def test_a_wrong_name_gets_a_suggestion(subject: str, guess: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {guess}\\?") as caught:
        describe(subject)
    assert caught.value.fix == f"--help {guess}"


def test_the_command_prints_it(command: Command) -> None:
    ended = command("--help", "optim.lr", "mixup")
    assert ended.returncode == 0, ended.stderr
    assert "peak learning rate" in ended.stdout
    assert "  mixup=cutmix\n" in ended.stdout
    whole = command("--help").stdout
    assert "--help GROUP" in whole
    assert max(map(len, whole.splitlines())) <= 80
    assert command("--help", "mixupp").returncode == 2
