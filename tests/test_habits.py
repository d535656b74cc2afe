"""Files alongside the code (changelog, citation, hooks, map) stay true."""

import ast
import re
import tomllib
from pathlib import Path

import yaml

from runner import __version__

ROOT = Path(__file__).parent.parent


def test_the_changelog_has_this_version_and_what_comes_next() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
    assert headings[1].startswith(f"{__version__} – ")


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == __version__
    assert citation["license"] == project["license"]
    assert citation["authors"] == [{"name": "trick-runner developers"}]


def test_hooks_before_a_commit_run_tools_of_the_environment() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    commands = [hook["entry"].split()[:2] for hook in local["hooks"]]
    assert commands == [["ruff", "check"], ["ruff", "format"], ["mypy"]]
    assert {hook["language"] for hook in local["hooks"]} == {"system"}


def test_the_form_for_a_new_trick_has_a_head() -> None:
    text = (ROOT / ".github" / "ISSUE_TEMPLATE" / "new-trick.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert {"name", "about"} <= {*yaml.safe_load(head)}
    for heading in (
        "Definition",
        "Neutral value",
        "Seam",
        "Published gain",
        "What must stay equal",
    ):
        assert f"**{heading}.**" in body


def test_no_two_test_files_share_a_name() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({*names}) == sorted(names), "pytest would collect none of them"


def test_the_map_shows_every_room() -> None:
    rows = re.findall(r"^\| `([\w/]+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    folders = {path.parent.name for path in ROOT.glob("runner/*/__init__.py")}
    assert {f"runner/{name}" for name in folders} <= {*rows}
    assert all((ROOT / row).is_dir() for row in rows)


_NOT_PLAIN = re.compile(
    r"\b(is|are|was|were) told\b|\bheld against\b|\bstands? for\b|\bbeside\b"
    r"|\b(data|library|package|run|bundle|that) brings\b"
)


def test_docstrings_and_messages_avoid_the_words_of_the_list() -> None:
    assert _NOT_PLAIN.search("a key without effect is told"), "the control"
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {match[0]}"
        for folder in ("runner", "hydra_plugins", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if (match := _NOT_PLAIN.search(node.value))
    ]
    assert found == [], "the table in CONTRIBUTING.md, section Words, has plainer ones"
