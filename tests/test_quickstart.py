"""The commands of the quickstart are run, and README shows the same commands and answer."""

import json
import re
import shlex
from pathlib import Path

import pytest
from small import Command

from scripts.answer_picture import pictures

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "quickstart.md").read_text()
README = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line)[2:]
    for block in re.findall(r"<!-- test: quickstart -->\n```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
TINY = ("model=timm", "model.name=test_resnet", "resize.size=16", "threads=1", "--seeds", "3")
SHOWN = re.compile(r"^- .* after 5 seeds$", re.MULTILINE)
ANSWER = json.loads((ROOT / "docs" / "pictures" / "answer.json").read_text())


def test_readme_has_the_same_commands_and_the_same_answer() -> None:
    assert len(COMMANDS) == 3
    for words in COMMANDS:
        assert f"python -m {shlex.join(words)}" in README
    assert len(SHOWN.findall(PAGE)) == 2
    assert SHOWN.findall(README) == SHOWN.findall(PAGE)
    assert len(README.splitlines()) <= 150


def test_the_pictures_show_the_answer() -> None:
    drawn = pictures(ANSWER)
    for theme, picture in drawn.items():
        kept = (ROOT / "docs" / "pictures" / f"answer-{theme}.svg").read_text()
        verdicts = re.findall(r"[\w=+]+: (?:helps|hurts)", kept)
        assert verdicts == re.findall(r"[\w=+]+: (?:helps|hurts)", picture)
        assert {*verdicts} == {"tta: helps", "resize=progressive: hurts"}
        assert "var(" not in kept
        assert kept.startswith("<svg")
    assert drawn["light"] != drawn["dark"]


@pytest.mark.whole
def test_the_commands_run_on_a_tiny_network(command: Command, tmp_path: Path) -> None:
    for module, *words in COMMANDS:
        more = TINY if module == "runner.compare" else TINY[:4] if module == "runner.look" else ()
        ended = command(*words, *more, module=module)
        assert ended.returncode == 0, ended.stderr
    assert len([*tmp_path.rglob("*.png")]) == 2
    assert "<svg" in (tmp_path / "answer.html").read_text()


@pytest.mark.slow
def test_the_commands_say_what_the_page_shows(command: Command) -> None:
    """As they are printed; the verdicts alone, since other processors give other numbers."""
    said = ""
    for module, *words in COMMANDS:
        ended = command(*words, module=module)
        assert ended.returncode == 0, ended.stderr
        said += ended.stdout
    assert "- tta helps" in said
    assert "- resize=progressive hurts" in said
