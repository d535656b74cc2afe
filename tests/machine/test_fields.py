"""Values of JSON by anybody: what is right comes back, what is wrong is named with its key."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from runner.machine import fields

VALUES = json.loads(
    '{"name": "red", "names": ["red", "blue"], "none": null, "yes": true, "three": 3, "half": 0.5,'
    ' "minus": -1, "nan": NaN, "endless": Infinity, "huge": 1' + "0" * 400 + ","
    ' "mean": [0, 0.5, 1], "mixed": ["red", 1], "inner": {"a": 1}}'
)
RIGHT: dict[str, tuple[Callable[..., Any], str, dict[str, Any], Any]] = {
    "a text": (fields.text, "name", {}, "red"),
    "texts": (fields.texts, "names", {}, ("red", "blue")),
    "a whole number": (fields.whole, "three", {}, 3),
    "a whole number below zero": (fields.whole, "minus", {"at_least": -1}, -1),
    "a whole number at its bounds": (fields.whole, "three", {"at_least": 3, "at_most": 3}, 3),
    "a number": (fields.number, "half", {}, 0.5),
    "a whole number as a number": (fields.number, "three", {}, 3),
    "numbers": (fields.numbers, "mean", {"count": 3}, (0.0, 0.5, 1.0)),
    "a section": (fields.section, "inner", {}, {"a": 1}),
    "anything": (fields.value, "none", {}, None),
}
WRONG: dict[str, tuple[Callable[..., Any], str, dict[str, Any], str]] = {
    "missing": (fields.text, "other", {}, "it has no 'other'"),
    "a number for a text": (fields.text, "three", {}, "three must be text, not 3"),
    "a text for texts": (fields.texts, "name", {}, "name must be a list of texts, not 'red'"),
    "a number among texts": (fields.texts, "mixed", {}, "mixed must be a list of texts"),
    "a truth for a number": (fields.whole, "yes", {}, "yes must be a whole number of at least 0"),
    "a truth for a float": (fields.number, "yes", {}, "yes must be a finite number, not True"),
    "half for a whole number": (fields.whole, "half", {}, "half must be a whole number"),
    "too small": (fields.whole, "minus", {}, "minus must be a whole number of at least 0, not -1"),
    "too large": (
        fields.whole, "three", {"at_least": 1, "at_most": 2},
        "three must be a whole number from 1 to 2, not 3",
    ),
    "a whole number that has no float": (fields.whole, "huge", {}, "huge must be a whole number"),
    "a number that has no float": (fields.number, "huge", {}, "huge must be a finite number"),
    "not a number": (fields.number, "nan", {}, "nan must be a finite number, not nan"),
    "infinity": (fields.number, "endless", {}, "endless must be a finite number, not inf"),
    "null": (fields.number, "none", {}, "none must be a finite number, not None"),
    "too few numbers": (fields.numbers, "mean", {"count": 2}, "mean must be a list of 2 finite"),
    "texts for numbers": (fields.numbers, "names", {"count": 2}, "names must be a finite number"),
    "a list for a section": (fields.section, "names", {}, "names must be an object"),
}  # fmt: skip


@pytest.mark.parametrize(("read", "key", "bounds", "expected"), RIGHT.values(), ids=RIGHT)
def test_a_right_value_comes_back(
    read: Callable[..., Any], key: str, bounds: dict[str, Any], expected: object
) -> None:
    found = read(VALUES, key, **bounds)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(("read", "key", "bounds", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_named(
    read: Callable[..., Any], key: str, bounds: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read(VALUES, key, **bounds)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 160


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"7", b"null", b"[" * 100_000, b'{"a": 1']
)
def test_what_is_no_object_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        fields.parsed(content)


def test_an_object_is_parsed() -> None:
    found = fields.parsed(b'{"a": [1, NaN]}')
    assert found["a"][0] == 1
    assert math.isnan(found["a"][1])
