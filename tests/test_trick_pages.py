"""The pages of docs/tricks: one per trick, whose commands and defaults are true."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from runner.config.options import CONF_DIR
from runner.config.overlays import chosen_options
from runner.config.schema import RunConfig, to_dict

FOLDER = Path(__file__).parent.parent / "docs" / "tricks"
NAMES = sorted(path.stem for path in (CONF_DIR / "trick").glob("*.yaml"))
TRICKS = [name for name in NAMES if name not in ("all", "baseline")]
HEADINGS = ["Knobs", "Price", "Source", "Published gain", "Measured here"]
ROW = re.compile(r"^\| `([a-z_.]+)` \| (.+?) \| (.+) \|$", re.MULTILINE)


def page(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text()


def knobs(name: str) -> dict[str, str]:
    """The default of each key in the table of a page, as written there."""
    section = page(name).partition("## Knobs")[2].partition("\n## ")[0]
    return {key: default for key, default, _ in ROW.findall(section)}


def command(name: str) -> list[str]:
    """The words of the first command of a page."""
    (line,) = re.findall(r"```bash\n(.*?)\n```", page(name), re.DOTALL)[:1]
    start, *words = line.split(" +trick=")
    assert start == "python -m runner.train"
    assert len(words) == 1
    return f"+trick={words[0]}".split()


def test_each_trick_has_a_page_and_a_line_of_the_index() -> None:
    pages = {path.stem for path in FOLDER.glob("*.md")} - {"README"}
    assert pages == set(TRICKS)
    lines = re.findall(r"^\| \[.+\]\((\w+)\.md\) \| `(\w+)` \|", page("README"), re.MULTILINE)
    assert sorted(lines) == sorted((name, name) for name in TRICKS)


@pytest.mark.parametrize("name", TRICKS)
def test_a_page_has_its_parts_in_order(name: str) -> None:
    text = page(name)
    assert text.startswith("# ")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert text.index("```bash") < text.index("## Knobs")
    for part in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        assert part.strip(), "an empty part"
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (FOLDER / target).exists(), target


@pytest.mark.parametrize("name", TRICKS)
def test_the_command_turns_the_trick_on_and_defaults_are_its_values(
    name: str, composed: Callable[..., RunConfig]
) -> None:
    config = composed(*command(name))
    assert config.tricks == [name]
    values = to_dict(config)
    assert knobs(name), "no table"
    for key, written in knobs(name).items():
        group, _, item = key.partition(".")
        assert yaml.safe_load(written.strip("`")) == values[group][item], key


def test_the_tables_list_all_keys_of_their_groups() -> None:
    """A group of one trick on its page; a group of several tricks on their pages together."""
    listed, groups = defaultdict(set), set()
    for name in TRICKS:
        groups |= chosen_options("trick", name).keys()
        for key in knobs(name):
            listed[key.partition(".")[0]].add(key.partition(".")[2])
    assert set(listed) == groups
    for group in groups:
        kind = RunConfig().groups[group]
        assert listed[group] == {item.name for item in fields(kind)} - set(kind.NO_TRICK), group
