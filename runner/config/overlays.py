"""The overlays of ``conf/trick``: what ``+trick=all`` turns on, read from the option files."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import yaml

from runner.config.checks import changed, from_dict, ignored, without_effect
from runner.config.options import CONF_DIR, OVERLAYS, option_names
from runner.config.schema import RunConfig, to_dict
from runner.errors import ConfigError


def chosen_options(overlay: str, name: str) -> dict[str, str]:
    """The options that an overlay chooses, by group, as ``override /mixup: beta`` says."""
    content = yaml.safe_load((CONF_DIR / overlay / f"{name}.yaml").read_text()) or {}
    chosen: dict[str, str] = {}
    for entry in content.get("defaults", []):
        for key, option in entry.items():
            chosen[key.removeprefix("override").strip().removeprefix("/")] = option
    return chosen


def option_values(group: str, option: str) -> dict[str, Any]:
    """The keys that an option file sets."""
    content = (CONF_DIR / group / f"{option}.yaml").read_text()
    return _Loader(content).get_single_data() or {}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Reads numbers as Hydra does: 3e-3 is one."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def words_without_effect(config: RunConfig, words: Sequence[str]) -> list[str]:
    """Keys that ``words`` set and nothing reads in ``config``, each with what would make it act.

    A value that equals the default is included: a user who types ``mixup.alpha=0.4`` expects mixup.

    Args:
        config: what the words were made to.
        words: of the run, as typed.

    Returns:
        Such as ``mixup.alpha=0.4 has no effect in this configuration: mixup=beta mixup.alpha=0.4``.
    """
    typed = {word.lstrip("+").partition("=")[0]: word.lstrip("+") for word in words}
    found = dict[str, str]()
    for group, key in ignored(config):
        if (word := typed.get(f"{group}.{key}")) is not None:
            option = _option_that_reads(config, group, key)
            found[word] = f": {group}={option} {word}" if option else ""
    for word in without_effect(config):
        if word.partition("=")[0] not in {known.partition("=")[0] for known in found}:
            found[word] = ""
    return [f"{word} has no effect in this configuration{more}" for word, more in found.items()]


def _option_that_reads(config: RunConfig, group: str, key: str) -> str | None:
    """The option of ``group`` with which a configuration reads ``key``; that of a trick first."""
    names = option_names(group)
    preferred = [chosen_options("trick", name).get(group, "") for name in option_names("trick")]
    value = to_dict(config)[group][key]
    for name in sorted(names, key=lambda name: (name not in preferred, name)):
        values = {**to_dict(RunConfig())[group], **option_values(group, name), key: value}
        try:
            other = changed(config, {group: values})
        except ConfigError:
            continue
        if (group, key) not in ignored(other):
            return name
    return None


@cache
def tricks_with_overlay() -> frozenset[str]:
    """The names of the overlays that turn on a trick: leaving one out turns the trick off."""
    return frozenset(path.stem for path in (CONF_DIR / "trick").glob("*.yaml"))


@cache
def all_tricks() -> frozenset[str]:
    """The names of the tricks that ``+trick=all`` turns on."""
    chosen = chosen_options("trick", "all").items()
    return frozenset(
        from_dict({group: option_values(group, name) for group, name in chosen}).tricks
    )


def own_overlays(words: Iterable[str]) -> list[str]:
    """The words ``+trick=NAME`` and ``+recipe=NAME`` that name an overlay of the user's own."""
    found = []
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        names = [name.strip() for name in value.strip("[]").split(",")]
        if key in OVERLAYS and set(names) - set(option_names(key)):
            found.append(word)
    return found
