"""What each group, key and option means, read off the schema and the option files.

``--help GROUP`` and the page of the configuration say it; nothing is written twice.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from runner.config.checks import known_keys, nearest_key
from runner.config.options import CONF_DIR, GROUPS, LAUNCHERS, OVERLAYS, option_names
from runner.config.overlays import chosen_options, option_values
from runner.config.schema import RunConfig
from runner.config.words import nearest, spelled
from runner.errors import ConfigError

_WIDTH = 80
_TYPES: dict[Any, str] = {bool: "true or false", int: "whole number", float: "number", str: "text"}


@dataclass(frozen=True)
class Key:
    """A key of the configuration.

    Attributes:
        name: dotted, as it is typed.
        kind: its type, in words.
        default: its default, as it is typed.
        limits: its range, such as ``≥ 0, ≤ 1``; empty if there is none.
        meaning: what it means, in a line.
        choices: the values that it can have, if they are few.
    """

    name: str
    kind: str
    default: str
    limits: str
    meaning: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """An option file of a group or an overlay.

    Attributes:
        words: how it is chosen, such as ``mixup=beta`` or ``+trick=mixup``.
        meaning: the comment at the head of its file.
        sets: what it sets, as words.
    """

    words: str
    meaning: str
    sets: tuple[str, ...]


def top_keys() -> list[Key]:
    """Return the keys that belong to no group."""
    hints = get_type_hints(RunConfig)
    return [
        _key(item, hints[item.name], item.name)
        for item in fields(RunConfig)
        if not is_dataclass(hints[item.name])
    ]


def group_keys(group: str) -> list[Key]:
    """Return the keys of a group; none for an overlay."""
    kind = get_type_hints(RunConfig).get(group)
    if kind is None or not is_dataclass(kind):
        return []
    hints = get_type_hints(kind)
    return [_key(item, hints[item.name], f"{group}.{item.name}") for item in fields(kind)]


def group_summary(group: str) -> str:
    """Return what a group is, in a sentence."""
    kind = get_type_hints(RunConfig).get(group)
    if kind is None:
        return _OVERLAYS[group]
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


_OVERLAYS = {
    "trick": "Tricks in their usual form: each chooses options of other groups.",
    "recipe": "Whole experiments: each chooses options and keys of other groups.",
}


def group_options(group: str, folder: Path | None = None) -> list[Option]:
    """Return the options of a group or an overlay.

    Args:
        group: name of the group.
        folder: with option files of the user's own; None if there is none.
    """
    plus = "+" if group in OVERLAYS else ""
    found = [
        Option(
            f"{plus}{group}={name}", comment(CONF_DIR / group / f"{name}.yaml"), _sets(group, name)
        )
        for name in option_names(group)
    ]
    own = [] if folder is None else sorted((folder / group).glob("*.yaml"))
    return found + [
        Option(f"{plus}{group}={path.stem}", f"{comment(path)} (yours: {path})".strip(), ())
        for path in own
    ]


def launchers() -> list[Option]:
    """Return the launchers of sweeps that have an option file."""
    place = CONF_DIR / "hydra" / "launcher"
    return [
        Option(f"hydra/launcher={name}", comment(place / f"{name}.yaml"), ()) for name in LAUNCHERS
    ]


def comment(path: Path) -> str:
    """Return the comment at the head of an option file, in one line."""
    lines = []
    for line in path.read_text(errors="backslashreplace").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(line for line in lines if not line.startswith("@package"))


def describe(subject: str, folder: Path | None = None) -> str:
    """Say what a group, an overlay or a key means, at most 80 columns wide.

    Args:
        subject: such as ``mixup``, ``+trick``, ``seed`` or ``optim.lr``; words such as
            ``mixup=beta`` mean the group or key before ``=``.
        folder: with option files of the user's own; None if there is none.

    Raises:
        ConfigError: there is no such group or key.
    """
    name = subject.lstrip("+~").partition("=")[0].partition("@")[0]
    groups = {*GROUPS, *RunConfig().groups}
    if name in groups:
        return "\n".join(_group_lines(name, folder)).rstrip("\n")
    group = name.rpartition(".")[0]
    for key in group_keys(group) if group else top_keys():
        if key.name == name:
            more = [f"--help {group} shows the other keys of the group."] if group else []
            return "\n".join([*_key_lines([key]), "", *more]).rstrip("\n")
    guess = nearest(name, [*groups, *known_keys()]) or nearest_key(name)
    raise ConfigError(
        "no such group or key" + (f" (did you mean {guess}?)" if guess else ""),
        where=f"--help {subject}",
        fix=f"--help {guess}" if guess else f"--help with one of {', '.join(sorted(groups))}",
    )


def _group_lines(group: str, folder: Path | None) -> list[str]:
    lines = [*textwrap.wrap(group_summary(group), _WIDTH), ""]
    if keys := group_keys(group):
        lines += ["Keys, set as KEY=VALUE", "", *_key_lines(keys), ""]
    options = group_options(group, folder)
    lines += ["Options", ""] if options else []
    for option in options:
        lines += [f"  {option.words}", *_indented(option.meaning)]
        lines += _indented("sets " + " ".join(option.sets)) if option.sets else []
    if group in OVERLAYS:
        lines += ["", f"Several at once: '+{group}=[FIRST,SECOND]'"]
    return lines


def _key_lines(keys: Sequence[Key]) -> list[str]:
    lines: list[str] = []
    for key in keys:
        facts = ", ".join(filter(None, [key.kind, key.limits]))
        lines += [f"  {key.name}={key.default}", *_indented(key.meaning), *_indented(facts)]
    return lines


def _indented(text: str) -> list[str]:
    indent = " " * 6
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _key(item: Field[Any], hint: Any, name: str) -> Key:
    limits = ", ".join(
        f"{sign} {'2^63' if limit == 2**63 else f'{limit:g}'}"
        for sign, limit in item.metadata["limits"].items()
    )
    return Key(
        name, _type(hint), spelled(item.default), limits, item.metadata["help"], _choices(hint)
    )


def _choices(hint: Any) -> tuple[str, ...]:
    if hint is bool:
        return ("true", "false")
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return tuple(map(str, parts))
    if get_origin(hint) in (Union, UnionType):
        return tuple(value for part in parts for value in _choices(part))
    return ("null",) if hint is type(None) else ()


def _type(hint: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(filter(None, [", ".join(map(str, parts[:-1])), str(parts[-1])]))
    if origin in (Union, UnionType):
        return " or ".join("null" if part is type(None) else _type(part) for part in parts)
    if origin is tuple:
        each = [part for part in parts if part is not Ellipsis]
        words = {"number": "numbers", "whole number": "whole numbers", "text": "texts"}
        count = "" if Ellipsis in parts else f"{len(each)} "
        return f"list of {count}{words.get(_type(each[0]), _type(each[0]))}"
    return _TYPES.get(hint, str(hint))


def _sets(group: str, name: str) -> tuple[str, ...]:
    """What an option file sets, as words."""
    chosen = chosen_options(group, name) if group in OVERLAYS else {}
    words = [f"{key}={spelled(value)}" for key, value in chosen.items()]
    values = option_values(group, name)
    values.pop("defaults", None)
    prefix = "" if group in OVERLAYS else f"{group}."
    return (*words, *_leaves(values, prefix))


def _leaves(values: dict[str, Any], prefix: str) -> list[str]:
    found: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={spelled(value)}")
    return found
