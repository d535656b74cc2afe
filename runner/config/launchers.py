"""The keys of launchers, ``hydra.launcher.KEY``: unknown keys, wrong types, values out of range."""

import math
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from runner.config.words import spelled
from runner.errors import ConfigError

PREFIX = "hydra.launcher."
_NEAREST = 5  # keys that an error names
_FREE = "additional_parameters"
"""The key whose own keys are options of ``sbatch``; a key that it lacks takes a +."""
_LEAST = {
    "timeout_min": 1, "cpus_per_task": 1, "gpus_per_node": 0, "tasks_per_node": 1, "mem_gb": 1,
    "nodes": 1, "array_parallelism": 1, "max_num_timeout": 0, "signal_delay_s": 0,
    "cpus_per_gpu": 1, "gpus_per_task": 0,
}  # fmt: skip


def check_launcher(values: Mapping[str, Any]) -> None:
    """Refuse values out of range.

    Args:
        values: of ``hydra.launcher``.

    Raises:
        ConfigError: naming the first such value.
    """
    for key, least in _LEAST.items():
        value = values.get(key)
        if isinstance(value, int | float) and value < least:
            raise ConfigError(
                f"out of range, must be ≥ {least}",
                where=f"{PREFIX}{key}={value}",
                fix=f"{PREFIX}{key}={least}",
            )
    if values.get("n_jobs") == 0:
        raise ConfigError(
            "out of range, must be ≥ 1, or -1 for a job per core",
            where=f"{PREFIX}n_jobs=0",
            fix=f"{PREFIX}n_jobs=-1",
        )
    minutes, delay = values.get("timeout_min"), values.get("signal_delay_s")
    if isinstance(minutes, int) and isinstance(delay, int) and delay >= 60 * minutes:
        raise ConfigError(
            "jobs would be told to save as soon as they begin: the signal comes signal_delay_s "
            f"seconds before the end of {minutes} minutes",
            where=f"{PREFIX}signal_delay_s={delay} {PREFIX}timeout_min={minutes}",
            fix=f"{PREFIX}signal_delay_s={min(120, 30 * minutes)}",
        )


def check_added(words: Sequence[str], values: Mapping[str, Any]) -> None:
    """Refuse keys that a launcher does not have and that words add with a +.

    Args:
        words: of the command.
        values: of ``hydra.launcher`` without such words.

    Raises:
        ConfigError: naming the first such key.
    """
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        name = key.removeprefix(PREFIX)
        if word.startswith("+") and key != name and "." not in name and name not in values:
            raise _unknown(key, values)


def bad_launcher_word(message: str, values: Mapping[str, Any]) -> ConfigError | None:
    """Return the error for a word ``hydra.launcher.KEY=VALUE`` that Hydra refuses.

    Args:
        message: of Hydra.
        values: of ``hydra.launcher`` without such words.

    Returns:
        The error; None if the message is about something else.
    """
    if match := re.search(r"Could not override '(hydra\.launcher\.[^']+)'", message):
        return _unknown(match[1], values)
    if match := re.search(r"Sweeping over Hydra's configuration .*'([^']*)'", message, re.S):
        key, _, text = match[1].partition("=")
        return ConfigError(
            "a launcher has one value for each key; text with a comma needs quotes of its own",
            where=match[1],
            fix=f"""'{key}="{text}"'""",
        )
    if match := re.search(r"Error merging override \+*(hydra\.launcher\.[^=\s]+)=(.*)", message):
        key, text = match[1], match[2]
        usual = _at(values, key)
        if isinstance(usual, list) or key == f"{PREFIX}setup":
            what, fix = "expected a list", f"""'{key}=["{text}"]'"""
        elif key.removeprefix(PREFIX) in _LEAST or isinstance(usual, int):
            number = usual if isinstance(usual, int) else _LEAST.get(key.removeprefix(PREFIX), 1)
            if re.fullmatch(r"\d{1,9}\.\d+", text):
                number = math.ceil(float(text))
            what, fix = "expected a whole number", f"{key}={spelled(number)}"
        else:
            what, fix = "expected text", f"""'{key}="{text.strip("[]")}"'"""
        return ConfigError(what, where=f"{key}={text}", fix=fix)
    return None


def _unknown(key: str, values: Mapping[str, Any]) -> ConfigError:
    group, _, name = key.rpartition(".")
    if group == f"{PREFIX}{_FREE}":
        return ConfigError(
            f"{key} is not set by our options, so it needs a + in front",
            where=key,
            fix=f"+{key}=VALUE; man sbatch lists the names",
        )
    own = _at(values, group) if group != PREFIX.rstrip(".") else values
    names = _keys(own)
    if key == f"{PREFIX}{_FREE}":
        return ConfigError(
            f"the keys of {key} are set one by one", where=key, fix=f"+{key}.NAME=VALUE"
        )
    if not names:
        names = _keys(values)
        group = PREFIX.rstrip(".")
    if not names:
        return ConfigError(
            f"unknown key {key}: no launcher is chosen, and none has no keys",
            where=key,
            fix="hydra/launcher=joblib, submitit_local, submitit_slurm or ray",
        )
    names.sort(key=lambda one: -_likeness(name, one))
    fix = f"{group}.{names[0]}=VALUE"
    if len(names) > _NEAREST:
        fix += "; without this key, the same command with --cfg hydra lists all keys"
        names[_NEAREST:] = [f"… ({len(names)} keys)"]
    return ConfigError(
        f"unknown key {key}: the launcher has {', '.join(names)}", where=key, fix=fix
    )


def _keys(values: Any) -> list[str]:
    """Return the keys that can be set in ``values``; none if ``values`` is no group of keys."""
    found = values if isinstance(values, Mapping) else ()
    return [str(key) for key in found if key != "_target_"]


def _likeness(typed: str, name: str) -> float:
    """Return how alike two names are; a name that begins with what was typed is the most alike."""
    starts = name.startswith(typed) or typed.startswith(name)
    return 1.0 if starts else SequenceMatcher(None, typed, name).ratio()


def _at(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.removeprefix(PREFIX).split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
