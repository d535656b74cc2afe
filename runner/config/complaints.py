"""Errors of Hydra, OmegaConf and YAML in the form of our own: what, where, how to fix it."""

import re

import yaml
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException

from runner.config import checks
from runner.config.launchers import PREFIX
from runner.config.options import GROUPS, LAUNCHERS, OVERLAYS, option_names
from runner.config.schema import default_dict
from runner.config.words import nearest
from runner.errors import ConfigError, first_line


def translated(error: Exception) -> ConfigError | None:
    """Return the error in our form; None if ``error`` is not about the configuration."""
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return bad_override(error.override)
    if isinstance(error, ConfigCompositionException):
        return _bad_composition(error)
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        where = f"{mark.name}, line {mark.line + 1}" if mark else ""
        return ConfigError(f"not valid YAML: {error.problem}", where=where)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return ConfigError(first_line(error))
    return None


def _missing_option(error: MissingConfigException) -> ConfigError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return ConfigError(first_line(error))
    options = [str(option) for option in error.options or []]
    if group == "hydra/launcher":
        options = [option for option in options if not option.endswith("_plugin")]
        name = name.removesuffix("_plugin")
        if name in LAUNCHERS:
            return ConfigError(
                f"the launcher {name} is not installed",
                where=f"hydra/launcher={name}",
                fix=f"pip install 'trick-runner[{LAUNCHERS[name]}]'",
            )
    elsewhere = [other for other in GROUPS if other != group and name in option_names(other)]
    if elsewhere:
        words = [f"{'+' if other in OVERLAYS else ''}{other}={name}" for other in elsewhere]
        return ConfigError(
            f"{group} has no option {name}, which is one of {elsewhere[0]}",
            where=f"{group}={name}",
            fix=" or ".join(words),
        )
    guess = nearest(name, options)
    others = f", or model=torchvision model.name={name}" if group == "model" else ""
    hint = f" (did you mean {guess}?)" if guess else ""
    return ConfigError(
        f"{group} has no option {name}{hint}",
        where=f"{group}={name}",
        fix=f"one of {', '.join(sorted(options))}{others}",
    )


def bad_override(override: str) -> ConfigError:
    """Return the error for a word that Hydra cannot read, or reads as something else."""
    key, separator, value = override.partition("=")
    if not separator:
        return ConfigError(
            f"not an option: {override}", where=override, fix="KEY=VALUE, or see --help"
        )
    if fix := _quoted_list(key.lstrip("+"), value):
        return ConfigError(
            "text in a list needs quotes of its own, inside those of the shell",
            where=override,
            fix=fix,
        )
    quoted = value.strip("'\"").replace("\\", "\\\\").replace('"', '\\"')
    return ConfigError(
        "the value needs quotes of its own, inside those of the shell",
        where=override,
        fix=f"""'{key}="{quoted}"'""",
    )


def _quoted_list(key: str, value: str) -> str | None:
    """Quote each text of a list; None if the value is not a plain list."""
    inside = re.fullmatch(r"\[([^\[\]'\"\\]+)\]", value.strip())
    if inside is None or not (key.startswith(PREFIX) or key in _list_keys()):
        return None
    items = [item.strip() for item in inside[1].split(",")]
    quoted = [item if re.fullmatch(r"[\w.-]+", item) else f'"{item}"' for item in items]
    return f"'{key}=[{','.join(quoted)}]'"


def _list_keys() -> set[str]:
    """Keys and overlays whose value is a list."""
    found = {
        f"{name}.{key}"
        for name, group in default_dict().items()
        if isinstance(group, dict)
        for key, value in group.items()
        if isinstance(value, list)
    }
    return found | {*OVERLAYS}


def _bad_composition(error: ConfigCompositionException) -> ConfigError:
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match.group(1)
        group, option = key.partition("@")[0], ""
        if group in GROUPS:
            option = f" ({group} is a group: choose an option with {group}=NAME)"
        message, fix = checks.unknown_key(key)
        return ConfigError(message + option, where=key, fix=fix)
    if match := re.search(r"Could not append to config. An item is already at '([^']+)'", text):
        key = match.group(1)
        return ConfigError(f"{key} exists already", where=f"+{key}", fix=f"{key}=VALUE")
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        key, _, values = match.group(1).partition("=")
        return ConfigError(
            "several values, but not a sweep",
            where=match.group(1),
            fix="-m to run one after the other"
            + (f", or '{key}=[{values}]' for a list" if key.lstrip("+") in _list_keys() else ""),
        )
    if match := re.search(r"Sweep parameters '([^']+)' requires --multirun", text):
        return ConfigError(
            "several values, but not a sweep",
            where=match.group(1),
            fix="-m to run one after the other",
        )
    if match := re.search(r"Multiple values for (\w+)", text):
        group = match.group(1)
        several = f"'+{group}=[first,second]'" if group in OVERLAYS else f"{group}=NAME"
        return ConfigError(f"{group} is chosen twice", where=f"+{group}", fix=several)
    first, *more = text.strip().splitlines()
    return ConfigError(" ".join([first, *more[:2]]) if first.endswith(":") else first)
