"""The overlays of ``conf/trick``: what ``+trick=all`` turns on, read from the option files."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import yaml

from runner.config.checks import changed, from_dict, ignored, without_effect
from runner.config.options import CONF_DIR, OVERLAYS, option_names
from runner.config.schema import RunConfig, to_dict
from runner.errors import ConfigError


def chosen_options(overlay: str, name: str) -> dict[str, str]:
    """Return the options that an overlay chooses, by group, as ``override /mixup: beta`` says."""
    content = yaml.safe_load((CONF_DIR / overlay / f"{name}.yaml").read_text()) or {}
    chosen: dict[str, str] = {}
    for entry in content.get("defaults", []):
        for key, option in entry.items():
            chosen[key.removeprefix("override").strip().removeprefix("/")] = option
    return chosen


def option_values(group: str, option: str) -> dict[str, Any]:
    """Return the keys that an option file sets."""
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
            option = _option_that_reads(config, group, key, typed)
            found[word] = f": {group}={option} {word}" if option else ""
    for word in without_effect(config):
        if word.partition("=")[0] not in {known.partition("=")[0] for known in found}:
            found[word] = ""
    found.update(_lost_overlays(config, words))
    return [f"{word} has no effect in this configuration{more}" for word, more in found.items()]


def _lost_overlays(config: RunConfig, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the overlays of one trick that is off in ``config``, and the words that did it."""
    tricks = {trick for group in config.groups.values() for trick in group.TRICKS}
    known = tricks & tricks_with_overlay()
    for name in _typed_tricks(words):
        if name in known and name not in config.tricks:
            groups = {*groups_of("trick", name)}
            stronger = [word for word in words if re.split("[.=]", word.lstrip("+"))[0] in groups]
            yield f"+trick={name}", f": {' '.join(stronger)} decides" if stronger else ""


def _typed_tricks(words: Sequence[str]) -> list[str]:
    """Return the names in the words ``+trick=NAME`` and ``+trick=[NAME,NAME]``."""
    values = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("trick=")]
    return [name.strip() for value in values for name in value.strip("[]").split(",")]


def groups_of(overlay: str, name: str) -> tuple[str, ...]:
    """Return the groups that an overlay chooses an option of, or sets a key of."""
    content = yaml.safe_load((CONF_DIR / overlay / f"{name}.yaml").read_text()) or {}
    return (*chosen_options(overlay, name), *(key for key in content if key != "defaults"))


def _option_that_reads(
    config: RunConfig, group: str, key: str, typed: Collection[str]
) -> str | None:
    """Return an option of ``group`` with which ``key`` has an effect, preferably a trick's.

    The ``typed`` keys keep their values, because an option does not replace what is typed.
    """
    names = option_names(group)
    preferred = [chosen_options("trick", name).get(group, "") for name in option_names("trick")]
    current = to_dict(config)[group]
    kept = {name: value for name, value in current.items() if f"{group}.{name}" in typed}
    for name in sorted(names, key=lambda name: (name not in preferred, name)):
        values = {**to_dict(RunConfig())[group], **option_values(group, name), **kept}
        try:
            other = changed(config, {group: values})
        except ConfigError:
            continue
        if (group, key) not in ignored(other):
            return name
    return None


@cache
def tricks_with_overlay() -> frozenset[str]:
    """Return the overlays that turn on a trick: leaving one out turns the trick off."""
    return frozenset(path.stem for path in (CONF_DIR / "trick").glob("*.yaml"))


@cache
def all_tricks() -> frozenset[str]:
    """Return the names of the tricks that ``+trick=all`` turns on."""
    chosen = chosen_options("trick", "all").items()
    return frozenset(
        from_dict({group: option_values(group, name) for group, name in chosen}).tricks
    )


def own_overlays(words: Iterable[str]) -> list[str]:
    """Return the words ``+trick=NAME`` and ``+recipe=NAME`` that name the user's overlays."""
    found = []
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        names = [name.strip() for name in value.strip("[]").split(",")]
        if key in OVERLAYS and set(names) - set(option_names(key)):
            found.append(word)
    return found
