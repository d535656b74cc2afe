"""The words of a command line, checked before Hydra composes anything from them.

Hydra's own keys can load modules, call any function and write files, so only the choice of a
launcher and its settings are open. Hydra reads `data.root=1.10` as a number and
`${oc.env:TOKEN}` as a secret's value; here text stays the text that was typed, and values come from
the command line alone.
"""

import locale
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString, RangeSweep
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from runner.config import checks
from runner.config.complaints import bad_override
from runner.config.group import Problem
from runner.config.options import GROUPS, OVERLAYS, option_names
from runner.config.overlays import chosen_options, option_values
from runner.config.schema import RunConfig, to_dict
from runner.config.words import spelled
from runner.errors import ConfigError, first_line

_INSTANTIATE = {"_target_", "_args_", "_partial_", "_recursive_", "_convert_"}
_CLOSED = {
    "hydra.searchpath": "--config-dir DIR",
    "hydra.mode": "-m for a sweep",
    "hydra.output_subdir": "leave it out: each run folder has its config.yaml and overrides.txt",
    "hydra.run": "outputs=FOLDER, or run_dir=FOLDER",
    "hydra.sweep": "outputs=FOLDER",
    "hydra.job": "leave it out; variables are set before the command: NAME=VALUE python -m …",
    "hydra.verbose": "RUNNER_DEBUG=1 python -m …",
}
"""What to do instead of setting one of Hydra's own keys."""
_COMES_FROM_ELSEWHERE = re.compile(r"\$\{[^}]*:|\$\{\s*hydra")
"""A reference through a resolver, such as ``${oc.env:TOKEN}``, or into Hydra's own values."""
_FIXED: dict[str, Any] = {
    "run": {"dir": "."},
    "sweep": {"dir": "${outputs}/sweeps", "subdir": "."},
    "sweeper": {"_target_": "hydra_plugins.trick_runner.CheckedSweeper"},
    "hydra_logging": {"version": 1, "root": None, "disable_existing_loggers": False},
    "job_logging": {"version": 1, "root": None, "disable_existing_loggers": False},
    "env": {},
    "mode": None,
    "callbacks": {},
    "output_subdir": None,
    "verbose": False,
    "job.name": "train",
    "job.chdir": False,
    "job.env_set": {},
    "job.env_copy": [],
}
"""Hydra's own values, which no word and no option file may change."""


def checked_words(words: Sequence[str], *, folder: Path | None = None) -> list[str]:
    """Prepare ``words`` for Hydra: quote text that looks like a number.

    Args:
        words: ``KEY=VALUE``, ``GROUP=OPTION`` and ``+GROUP=OPTION``.
        folder: with option files of the user's own; None if there is none.

    Raises:
        ConfigError: for unknown keys, keys of Hydra's own, values that come from elsewhere than the
            word, and options that are paths.
    """
    groups = {*GROUPS}
    if folder:
        groups |= {path.name for path in folder.iterdir() if path.is_dir()} - {"hydra"}
    checked, problems, is_refused = list[str](), list[Problem](), False
    for word in words:
        if _COMES_FROM_ELSEWHERE.search(word):
            raise _interpolated(word)
        override = _parsed(word)
        _refuse_hydra(override, word)
        key = override.key_or_group
        if override.package is not None:
            fix = word.replace(f"@{override.package}", "", 1)
            raise ConfigError("an option has one place, which is its group", where=word, fix=fix)
        if key in groups or key == "hydra/launcher":
            _check_choice(key, override, word)
        elif key in _types():
            word = _as_typed(word, override)
        elif not key.startswith("hydra."):
            problems.append(checks.unknown_key(key, word.partition("=")[2]))
            is_refused |= not override.is_add() or len(key) > _LONGEST_NAME  # Hydra looks for files
        checked.append(word)
    if is_refused:  # others are composed, and refused together with wrong values
        raise checks.error_of(problems)
    return checked


def is_sweep(word: str) -> bool:
    """Return whether a word has several values, which a sweep would run one after the other.

    Raises:
        ConfigError: it is no word that Hydra can read.
    """
    return bool(_parsed(word).is_sweep_override())


def is_known_key(key: str) -> bool:
    """Return whether ``key`` is a key of the configuration, and no group of keys."""
    return key in _types()


def check_composed(hydra: DictConfig) -> None:
    """Refuse a composed ``hydra`` node in which anything but the launcher was changed.

    Option files can change the node too, and Hydra calls what it names.

    Raises:
        ConfigError: naming the first key that was changed.
    """
    values = OmegaConf.to_container(hydra, resolve=False)
    assert isinstance(values, dict)
    for key, fixed in _FIXED.items():
        group, _, name = key.rpartition(".")
        if (values[group] if group else values).get(name) != fixed:
            raise _closed(f"hydra.{key}", f"hydra.{key}")
    launcher = values["launcher"]
    known = {
        f"{kind.__module__}.{kind.__qualname__}" for kind in Plugins.instance().discover(Launcher)
    }
    if not isinstance(launcher, dict) or launcher.get("_target_") not in known:
        raise ConfigError("no such launcher", where="hydra.launcher", fix="hydra/launcher=joblib")
    for name, value in launcher.items():
        if name != "_target_" and (found := _calls(value, f"hydra.launcher.{name}")):
            raise _closed(found, found)


def check_references(values: Any, key: str = "") -> None:
    """Refuse values of option files that would be taken from elsewhere, such as the environment.

    Args:
        values: the composed values before references are resolved.
        key: the dotted key of ``values``.

    Raises:
        ConfigError: naming the first such value.
    """
    if isinstance(values, str) and _COMES_FROM_ELSEWHERE.search(values):
        raise _interpolated(f"{key}={values}")
    items = values.items() if isinstance(values, dict) else ()
    for name, value in items if not isinstance(values, list) else enumerate(values):
        check_references(value, f"{key}.{name}" if key else str(name))


def _calls(value: Any, key: str) -> str | None:
    """Return the dotted key of what Hydra would call in ``value``."""
    if key.rpartition(".")[2] in _INSTANTIATE:
        return key
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return next((found for name, item in inner if (found := _calls(item, f"{key}.{name}"))), None)


def _parsed(word: str) -> Override:
    try:
        word.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            "the word is not UTF-8 text, so no file could record it",
            where=word,
            fix="PYTHONUTF8=1 python -m …"
            if not sys.flags.utf8_mode and locale.getencoding().lower() != "utf-8"
            else "a link with a plain name: ln -s FOLDER data",
        ) from None
    try:
        return OverridesParser.create().parse_overrides([word])[0]
    except OverrideParseException:
        raise bad_override(word) from None
    except RecursionError:
        raise ConfigError("too many brackets inside one another", where=word[:100]) from None
    except HydraException:
        raise bad_override(word) from None
    except Exception as error:  # only Hydra's own code runs here; odd words let it fail in any way
        raise ConfigError(
            f"Hydra cannot read this: {first_line(error)}", where=word[:200]
        ) from error


def _refuse_hydra(override: Override, word: str) -> None:
    """Raise if the key is Hydra's own and neither a launcher nor a setting of one."""
    key = override.key_or_group
    if re.split(r"[./]", key)[0] != "hydra":
        return
    parts = key.split(".")
    is_launcher = key == "hydra/launcher" or key.startswith("hydra.launcher.")
    if override.is_delete() or not is_launcher or _INSTANTIATE & {*parts}:
        raise _closed(key, word)


def _closed(key: str, where: str) -> ConfigError:
    dotted = key.replace("/", ".")
    fix = next(
        (fix for prefix, fix in _CLOSED.items() if f"{dotted}.".startswith(f"{prefix}.")), ""
    )
    return ConfigError(
        f"{key} is Hydra's own: of its keys only hydra/launcher and hydra.launcher.KEY can be set",
        where=where,
        fix=fix or "leave it out",
    )


def _interpolated(word: str) -> ConfigError:
    variable = re.search(r"\$\{\s*oc\.env\s*:\s*(\w+)", word)
    return ConfigError(
        "a value that is taken from elsewhere would be recorded in the run's files, secrets too",
        where=word,
        fix=f"""let the shell put it in: {word.partition("=")[0]}="${variable[1]}\""""
        if variable
        else "the value itself",
    )


def _check_choice(key: str, override: Override, word: str) -> None:
    """Raise if the value is a path, a number or a word such as ``true``, and no option."""
    text = word.partition("=")[2]
    if override.is_delete():
        return
    if re.search(r"(^|[\[,'\"/])\s*(\.\.|/)", text) or "\\" in text:
        raise ConfigError(
            "an option is a name, not a path",
            where=word,
            fix=f"data=folder data.root={text}"
            if key == "data"
            else f"--config-dir DIR, where DIR/{key}/NAME.yaml is {key}=NAME",
        )
    value = override.value()
    for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
        is_list = isinstance(choice, list) and key in OVERLAYS
        for item in choice if is_list else [choice]:
            if not _is_name(item, key):
                raise ConfigError(
                    f"{key} is a group: choose one of its options by name",
                    where=word,
                    fix=_choice_for(key, item, text),
                )
        if is_list and key == "trick":
            _check_together(choice, word)


def _check_together(names: Sequence[Any], word: str) -> None:
    """Raise if two overlays of tricks choose different options of a group: one would be lost."""
    first = dict[str, tuple[str, str]]()
    for name in map(spelled, names):
        options = chosen_options("trick", name) if name in option_names("trick") else {}
        for group, option in options.items():
            other, chosen = first.setdefault(group, (name, option))
            if chosen != option:
                raise ConfigError(
                    f"{other} and {name} do not go together: {group}={chosen} and {group}={option}",
                    where=word,
                    fix=f"+trick={other}, or +trick={name}",
                )


def _is_name(value: Any, group: str) -> bool:
    """Return whether ``value`` can be the name of an option: not a number, a list, or a switch."""
    if isinstance(value, QuotedString):
        value = value.text
    if isinstance(value, Glob):
        return True
    is_short = isinstance(value, str) and len(value.encode()) <= _LONGEST_NAME
    return is_short and (value.lower() not in {"", *_ON, *_OFF} or value in option_names(group))


_LONGEST_NAME = 200  # bytes; file systems take 255, the suffix included
_ON, _OFF = ("true", "on", "yes"), ("false", "off", "no", "null", "none")


def _choice_for(key: str, value: Any, text: str) -> str:
    """Words that do what was meant by a value that is no name."""
    group = RunConfig().groups.get(key)
    names = option_names(key)
    said = spelled(value).lower()
    can_be_off = group is not None and (group.TRICKS or key in ("augment", "logger"))
    neutral = _neutral_options(key) if can_be_off else []
    if isinstance(value, int | float) and not isinstance(value, bool) and group and group.MAIN_KEY:
        return f"{group.MAIN_KEY}={text}"
    if key in OVERLAYS:
        return f"{key}=[]" if said in _OFF else f"+{key}=NAME, one of {', '.join(names)}"
    if said in _ON and group is not None and group.TRICKS:
        choices = [_overlay_choice(key), *(name for name in names if name not in neutral)]
        first, *others = dict.fromkeys(choice for choice in choices if choice)
        more = f", or {', '.join(f'{key}={name}' for name in others)}" if others else ""
        return f"{key}={first}{more}"
    if said in _OFF and neutral:
        return f"{key}={neutral[0]}"
    return f"{key}=NAME, one of {', '.join(names)}"


def _neutral_options(key: str) -> list[str]:
    """Return the options that turn on nothing in a group that has options which do."""
    default = to_dict(RunConfig())[key]
    return [
        name for name in option_names(key) if {**default, **option_values(key, name)} == default
    ]


def _overlay_choice(group: str) -> str | None:
    """Return the option with which an overlay of one trick turns ``group`` on."""
    for name in option_names("trick"):
        chosen = chosen_options("trick", name)
        if [*chosen] == [group]:
            return chosen[group]
    return None


def _elements(override: Override) -> Iterator[Any]:
    """Yield every value that a word sets, those inside lists too."""
    stack = [override.value()]
    while stack:
        value = stack.pop(0)
        if isinstance(value, ChoiceSweep):
            stack = [*value.list, *stack]
        elif isinstance(value, QuotedString):
            yield value.text
        elif isinstance(value, list):
            stack = [*value, *stack]
        elif isinstance(value, RangeSweep):
            yield 0
        else:
            yield value


@cache
def _types() -> dict[str, Any]:
    """Return the type of every key."""
    found = {}
    for key in checks.known_keys():
        kind: Any = RunConfig
        for part in key.split("."):
            kind = get_type_hints(kind)[part]
        found[key] = kind
    return found


def _as_typed(word: str, override: Override) -> str:
    """Quote text in ``word`` that Hydra would read as a number, true, false or null.

    Raises:
        ConfigError: a list or a function of Hydra's where text is expected.
    """
    hint = _types()[override.key_or_group]
    is_optional = NoneType in get_args(hint)
    if hint is not str and not (is_optional and str in get_args(hint)):
        return word
    head, _, text = word.partition("=")
    value = override.value()
    for item in value.list if isinstance(value, ChoiceSweep) else [value]:
        if isinstance(item, list | dict):
            raise bad_override(word)
    if override.is_delete() or all(
        isinstance(value, str) or (value is None and is_optional) for value in _elements(override)
    ):
        return word
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[^\s'\"\[\]{}()$\\]+", part) for part in parts):
        raise bad_override(word)
    quoted = [
        part if part.lower() == "null" and is_optional else _quoted(part, head) for part in parts
    ]
    return f"{head}={','.join(quoted)}"


def _quoted(part: str, head: str) -> str:
    value = OverridesParser.create().parse_override(f"{head}={part}").value()
    return part if isinstance(value, str) else f'"{part}"'
