"""The page on troubleshooting: each message on it is one of the program's own."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


def texts(source: str) -> list[str]:
    """The strings of ``source`` that the program can print, in which … is a value."""
    return [text for node in ast.walk(ast.parse(source)) if (text := written(node)) != "…"]


def written(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(written(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return written(node.left) + written(node.right)
    return "…"


@cache
def program() -> tuple[str, ...]:
    return tuple(
        text for path in sorted((ROOT / "runner").rglob("*.py")) for text in texts(path.read_text())
    )


def is_said_by(message: str, sources: tuple[str, ...]) -> bool:
    """Whether one of ``sources`` has all parts of ``message`` between its values, in this order."""
    parts = [part.strip() for part in message.split("…") if re.search(r"\w", part)]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    return bool(parts) and any(pattern.search(source) for source in sources)


def test_there_are_messages_and_none_is_there_twice() -> None:
    assert len(MESSAGES) > 50
    assert len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_of_the_programs(message: str) -> None:
    assert is_said_by(message, program())


def test_the_check_can_fail() -> None:
    found = tuple(texts('raise E(f"{a} images do not fill {b}" + (f" of {c}" if c else "."))'))
    assert is_said_by("… images do not fill … of …", ("… images do not fill … of …",))
    assert is_said_by("… images do not fill …", found)
    assert not is_said_by("… fill … images do not", found)
    assert not is_said_by("… images do not match", program())
    assert not is_said_by("…", found)
