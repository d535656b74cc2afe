"""Values of untrusted JSON: each value is checked as it is read.

Every error is a ValueError that names the key. The caller adds the name of the file.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

_LARGEST = sys.float_info.max
_LARGEST_WHOLE = 2**63 - 1  # the largest integer of numpy and torch
_DEEPEST = 100  # levels of objects and lists; our own files have ten
_LONGEST = 80  # characters of a value in a message


def parsed(content: bytes | str) -> dict[str, Any]:
    """Return the object that ``content`` holds as JSON."""
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"it is not a JSON object but {type(found).__name__}")
    if _is_deeper(found, _DEEPEST):
        raise ValueError("it is nested too deeply")
    return found


def _is_deeper(found: object, depth: int) -> bool:
    """Return whether values are nested in more than ``depth`` levels."""
    level: list[Any] = [found]
    for _ in range(depth):
        level = [
            item
            for value in level
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def value(values: Mapping[str, Any], key: str) -> Any:
    """Return the value of ``key``, of any type."""
    if key not in values:
        raise ValueError(f"it has no {key!r}")
    return values[key]


def section(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the object at ``key``."""
    found = value(values, key)
    if not isinstance(found, dict):
        raise _unlike(key, "an object", found)
    return found


def sections(values: Mapping[str, Any], key: str) -> tuple[dict[str, Any], ...]:
    """Return the list of objects at ``key``."""
    found = value(values, key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise _unlike(key, "a list of objects", found)
    return tuple(found)


def text(values: Mapping[str, Any], key: str) -> str:
    """Return the text at ``key``."""
    found = value(values, key)
    if not isinstance(found, str):
        raise _unlike(key, "text", found)
    return found


def texts(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the list of texts at ``key``."""
    found = value(values, key)
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise _unlike(key, "a list of texts", found)
    return tuple(found)


def whole(
    values: Mapping[str, Any], key: str, *, at_least: int = 0, at_most: int = _LARGEST_WHOLE
) -> int:
    """Return the whole number at ``key``, between inclusive bounds."""
    found = value(values, key)
    is_whole = isinstance(found, int) and not isinstance(found, bool)
    if not is_whole or not at_least <= found <= at_most:
        raise _unlike(key, f"a whole number{_bounds(at_least, at_most)}", found)
    return int(found)


def number(
    values: Mapping[str, Any], key: str, *, at_least: float = -_LARGEST, at_most: float = _LARGEST
) -> float:
    """Return the finite number at ``key``, between inclusive bounds."""
    found = value(values, key)
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if not is_number or not at_least <= found <= at_most:
        raise _unlike(key, f"a finite number{_bounds(at_least, at_most)}", found)
    return found  # type: ignore[no-any-return]


def numbers(values: Mapping[str, Any], key: str, *, count: int) -> tuple[float, ...]:
    """Return the list of ``count`` finite numbers at ``key``."""
    found = value(values, key)
    if not isinstance(found, list | tuple) or len(found) != count:
        raise _unlike(key, f"a list of {count} finite numbers", found)
    return tuple(float(number({key: item}, key)) for item in found)


def _bounds(at_least: float, at_most: float) -> str:
    if at_most < _LARGEST_WHOLE:
        return f" from {at_least:g} to {at_most:g}"
    return f" of at least {at_least:g}" if at_least > -_LARGEST else ""


def _unlike(key: str, kind: str, found: object) -> ValueError:
    shown = repr(found)
    if len(shown) > _LONGEST:
        shown = f"{shown[: _LONGEST - 1]}…"
    return ValueError(f"{key} must be {kind}, not {shown}")
