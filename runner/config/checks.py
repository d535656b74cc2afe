"""Checks of the configuration: unknown keys, types, ranges, contradictions, keys without effect.

Every message names the key with its value, and the fix is something to paste.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from runner.config.group import Problem
from runner.config.options import OVERLAYS
from runner.config.schema import RunConfig, to_dict
from runner.config.words import nearest, spelled
from runner.errors import ConfigError


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Check ``values`` and return them typed.

    Raises:
        ConfigError: naming every unknown key (with the nearest known one), value of a wrong type
            and value out of range, then every contradiction between keys.
    """
    problems: list[Problem] = []
    config: RunConfig = _build(RunConfig, values, "", problems)
    if not problems:
        problems = list(config.contradictions())
    if problems:
        raise error_of(problems)
    return config


def error_of(problems: Sequence[Problem]) -> ConfigError:
    """One error for all that is wrong."""
    return ConfigError(
        "\n".join(problem for problem, _ in problems),
        fix="; ".join(dict.fromkeys(fix for _, fix in problems if fix)),
    )


def changed(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Set ``values``, nested as by :func:`runner.config.schema.to_dict`, in ``config``; check them.

    Raises:
        ConfigError: as of :func:`from_dict`.
    """
    merged = to_dict(config)
    for key, value in values.items():
        merged[key] = {**merged[key], **value} if isinstance(merged.get(key), dict) else value
    return from_dict(merged)


def known_keys(kind: type = RunConfig, prefix: str = "") -> list[str]:
    """Return every dotted key of the configuration."""
    hints = _hints(kind)
    keys = []
    for item in fields(kind):
        if is_dataclass(hints[item.name]):
            keys += known_keys(hints[item.name], f"{prefix}{item.name}.")
        else:
            keys.append(prefix + item.name)
    return keys


def unknown_key(key: str, value: str = "VALUE") -> Problem:
    """Return the problem of an unknown key, set to ``value`` as it was typed."""
    guess = nearest_key(key)
    if guess is not None:
        typed = f"{'+' if guess in OVERLAYS else ''}{guess}={value}"
        return Problem(f"unknown key {key} (did you mean {guess}?)", shlex.quote(typed))
    group = key.rpartition(".")[0]
    siblings = _siblings(group) or [*(item.name for item in fields(RunConfig)), *OVERLAYS]
    owner = group if _siblings(group) else "the configuration"
    return Problem(f"unknown key {key}", f"{owner} has {', '.join(siblings)}")


def nearest_key(key: str) -> str | None:
    """Return the key or group that ``key`` was probably meant to be, if any is close."""
    group, _, name = key.rpartition(".")
    known = known_keys()
    if siblings := _siblings(group):
        if found := nearest(name, siblings):
            return f"{group}.{found}"
    elif guess := nearest(key, [*(item.name for item in fields(RunConfig)), *OVERLAYS, *known]):
        return guess
    # Perhaps the right name in the wrong group, or without a group.
    by_name = {other.rpartition(".")[2]: other for other in known}
    found = nearest(name, list(by_name))
    return by_name[found] if found else None


def _siblings(group: str) -> list[str]:
    """Return the names of the keys of ``group``; none if there is no such group."""
    return [key.rpartition(".")[2] for key in known_keys() if group == key.rpartition(".")[0] != ""]


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the type of each field; Python evaluates them anew at each call, which takes long."""
    return get_type_hints(kind)


def _build(kind: Any, values: Any, prefix: str, problems: list[Problem]) -> Any:
    """Return an instance of the dataclass ``kind``; problems are appended to ``problems``."""
    if not isinstance(values, Mapping):
        problems.append(
            Problem(f"{prefix.rstrip('.')}={values!r} must hold keys, not one value", "")
        )
        return kind()
    hints = _hints(kind)
    known = {item.name: item for item in fields(kind)}
    problems.extend(
        unknown_key(f"{prefix}{key}", spelled(value))
        for key, value in values.items()
        if key not in known
    )
    checked = {}
    for name, item in known.items():
        if name not in values:
            continue
        key = prefix + name
        if is_dataclass(hints[name]):
            checked[name] = _build(hints[name], values[name], f"{key}.", problems)
            continue
        try:
            checked[name] = _convert(hints[name], values[name])
            _check_limits(item, checked[name])
        except ValueError as error:
            problem = f"{key}={spelled(values[name])}: {error} ({item.metadata['help']})"
            meant = getattr(error, "meant", item.default)
            problems.append(Problem(problem, f"{key}={spelled(meant)}"))
            checked[name] = item.default
    return kind(**checked)


def _convert(hint: Any, value: Any) -> Any:
    """Convert ``value`` to the type ``hint``; ValueError states what was expected."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        if value is None:
            return None
        (inner,) = (arm for arm in get_args(hint) if arm is not NoneType)
        return _convert(inner, value)
    if origin is Literal:
        choices = get_args(hint)
        for choice in choices:
            if str(value) == str(choice) and not isinstance(value, bool):
                return choice
        guess = nearest(str(value), [str(choice) for choice in choices])
        error = ValueError(f"not one of {', '.join(map(str, choices))}")
        if guess:
            error = ValueError(f"{error} (did you mean {guess}?)")
            error.meant = guess  # type: ignore[attr-defined]  # goes into the fix
        raise error
    if origin is tuple:
        if not isinstance(value, list | tuple) or not value:
            raise ValueError("expected a list such as [0.5, 0.5, 0.5]")
        return tuple(_convert(get_args(hint)[0], item) for item in value)
    if isinstance(value, int) and abs(value) > 2**64:  # neither a float nor an index
        raise ValueError("too large a number")
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:  # a whole number may be larger than any float
            raise ValueError("expected a finite number")
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is int and (not isinstance(value, int) or isinstance(value, bool)):
        raise ValueError("expected a whole number")
    if hint is str and isinstance(value, int | float):
        # The words of a command line come as text. A file's number may have been 1.10 or 1_000.
        error = ValueError("expected text: in a file, write it in quotes")
        error.meant = f'"{spelled(value)}"'  # type: ignore[attr-defined]  # goes into the fix
        raise error
    if hint is str and value == "":
        raise ValueError("expected text, not nothing")
    if not isinstance(value, hint):
        names = {float: "a number", bool: "true or false", str: "text"}
        raise ValueError(f"expected {names.get(hint, hint)}")
    return value


def _check_limits(item: Field[Any], value: Any) -> None:
    limits: dict[str, float] = item.metadata["limits"]
    holds = {"≥": float.__ge__, ">": float.__gt__, "≤": float.__le__, "<": float.__lt__}
    for number in value if isinstance(value, tuple) else (value,):
        if number is not None and not all(
            holds[sign](float(number), float(limit)) for sign, limit in limits.items()
        ):
            allowed = " and ".join(f"{sign} {limit:g}" for sign, limit in limits.items())
            raise ValueError(f"out of range, must be {allowed}")


def ignored(config: RunConfig) -> list[tuple[str, str]]:
    """(group, key) of the keys that the rest of the configuration switches off."""
    groups = config.groups.items()
    return [(name, key) for name, group in groups for key in group.ignores(config)]


def without_effect(config: RunConfig) -> list[str]:
    """Keys with another value than their default that nothing reads here, as KEY=VALUE.

    Without ``data.default_size``: every data set has one, for ``resize.size`` to replace.
    """
    default = RunConfig()
    return [
        f"{group}.{name}={spelled(value)}"
        for group, name in ignored(config)
        if name != "default_size"
        and (value := getattr(getattr(config, group), name))
        != getattr(getattr(default, group), name)
    ]


def effective(config: RunConfig) -> RunConfig:
    """Set every key of ``config`` that nothing reads to its default.

    Configurations that do the same have equal effective configurations.
    """
    default = RunConfig()
    for group, name in ignored(config):
        neutral = getattr(getattr(default, group), name)
        changed = replace(getattr(config, group), **{name: neutral})
        config = replace(config, **{group: changed})
    return config
