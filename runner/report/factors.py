"""Factors: the values in which compared runs may differ, tricks or those that ``--by`` names."""

import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import PurePath
from typing import Any

from runner.config import checks, overlays, schema
from runner.config.options import CONF_DIR, OVERLAYS
from runner.config.schema import leaves
from runner.errors import ConfigError
from runner.records.identity import NEUTRAL, decisive_values
from runner.report.runs import FailedRun, FinishedRun

ALL = "all"
"""The word for everything that differs between the runs."""

CODE = "code"
"""The key of the user's own code; its value is the SHA-256 of the file."""

_PAIRED = ("seed", "fingerprint")  # values that must be equal in a comparison: draws and images
# The meaning of null in these keys depends on these groups: if one is a factor, null equals null.
_FOLLOWS = {
    "data.presize": ("data", "resize", "eval"),
    "data.interpolation": ("normalize", "model"),
    "eval.size": ("resize", "data"),
    "eval.crop": ("normalize", "model"),
    "model.num_outputs": ("data",),
    "precision": ("resize", "device"),
}
_NEAR = 3  # most keys in which values may differ from the option after which they are named
_KINDS = {"data": "data.name", "model": "model.source"}  # a key that must equal the option's


@dataclass(frozen=True)
class Factor:
    """A group of the configuration, or one key, whose values are compared.

    Attributes:
        name: name of the group, or the key, which is dotted if it is in a group.
        left_out: dotted keys of the group that do not belong to the factor.
    """

    name: str
    left_out: tuple[str, ...] = ()

    def holds(self, key: str) -> bool:
        """Return whether a dotted key belongs to this factor."""
        is_inside = key == self.name or key.startswith(f"{self.name}.")
        return is_inside and key not in self.left_out

    def values(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values, by dotted key, that belong to this factor."""
        return {key: value for key, value in found.items() if self.holds(key)}

    @property
    def group(self) -> str:
        """The group of the configuration; for a key without a group, the key."""
        return self.name.partition(".")[0]

    @property
    def is_group(self) -> bool:
        """Whether this is a whole group."""
        return isinstance(NEUTRAL.get(self.name), dict)

    @property
    def tricks(self) -> tuple[str, ...]:
        """The tricks that this factor can turn on."""
        return schema.trick_groups().get(self.name, ())


@dataclass(frozen=True)
class Factors:
    """The factors of a comparison.

    Attributes:
        all: the factors in the order of labels.
        are_tricks: whether arms are named after the tricks that are on, as without ``--by``.
        apart: a factor in which the groups may differ, for a figure over all groups.
    """

    all: tuple[Factor, ...]
    are_tricks: bool = False
    apart: Factor | None = None

    @property
    def groups(self) -> set[str]:
        """The groups of the configuration that the factors belong to."""
        return {factor.group for factor in (*self.all, self.apart) if factor}

    def of(self, key: str) -> Factor | None:
        """Return the factor that a dotted key belongs to; None if there is none."""
        if key not in self._known:
            self._known[key] = next((factor for factor in self.all if factor.holds(key)), None)
        return self._known[key]

    @cached_property
    def _known(self) -> dict[str, Factor | None]:
        return {}

    def values(self, found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the values that belong to a factor, by factor and dotted key."""
        values: dict[str, dict[str, Any]] = {factor.name: {} for factor in self.all}
        for key, value in found.items():
            if factor := self.of(key):
                values[factor.name][key] = value
        return values


@dataclass(frozen=True)
class Look:
    """A finished run and one view of its images.

    Attributes:
        run: the run that was trained.
        view: ``plain`` or ``tta``.
        values: all values except the seed that decide these predictions, by dotted key, with the
            ``fingerprint`` of the data; the values of TTA are neutral if the view is plain.
    """

    run: FinishedRun
    view: str
    values: Mapping[str, Any]


@cache
def view_groups() -> frozenset[str]:
    """Groups whose tricks do not change training, but only the views of an image afterwards."""
    return schema.evaluation_groups() & set(schema.trick_groups())


def without_views(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values, by name or dotted key, that are not those of views of the images."""
    return {
        key: value for key, value in values.items() if key.partition(".")[0] not in view_groups()
    }


def looks_of(run: FinishedRun) -> list[Look]:
    """Return the looks of a run: its plain view, and its TTA if it has one."""
    values = {"fingerprint": run.fingerprint, **leaves(run.values)}
    del values["seed"]
    neutral = {
        key: value for key, value in _neutral().items() if key.partition(".")[0] in view_groups()
    }
    found = [Look(run, "plain", {**without_views(values), **neutral})]
    if has_view(run.tricks):
        found.append(Look(run, "tta", values))
    return found


def has_view(tricks: Iterable[str]) -> bool:
    """Return whether one of the tricks is a view of the images."""
    named = {name for group in view_groups() for name in schema.trick_groups()[group]}
    return bool(named & set(tricks))


def trick_factors() -> Factors:
    """Return every group of tricks without its plain keys, and the user's own code."""
    groups = [
        Factor(group, tuple(f"{group}.{key}" for key in schema.plain_keys(group)))
        for group in schema.trick_groups()
    ]
    return Factors((*groups, Factor(CODE)), are_tricks=True)


def chosen_factors(by: Sequence[str], found: Sequence[Look]) -> Factors:
    """Return the factors that ``--by`` names.

    Args:
        by: groups and dotted keys, or ``all``; empty for the tricks.
        found: the looks of the runs that are compared.

    Raises:
        ConfigError: a key is unknown, or cannot be compared.
    """
    if not by:
        return trick_factors()
    known = {key for look in found for key in look.values} | set(leaves(NEUTRAL))
    for key in by:
        if key != ALL:
            _check(key, known)
    if ALL in by:
        return Factors(tuple(map(Factor, differing_factors(found))))
    names = dict.fromkeys(by)
    return Factors(tuple(Factor(key) for key in names if key.rpartition(".")[0] not in names))


def _check(key: str, known: set[str]) -> None:
    where = f"--by {key}"
    name, equals, _ = key.partition("=")
    if equals:
        _check(name, known)
        raise ConfigError(
            "--by takes a key without a value",
            where=where,
            fix=shlex.join(["--by", name, "--baseline", key]),
        )
    if key in _PAIRED or key == "data.root":
        raise ConfigError(
            "only runs with equal seeds and equal images can be compared",
            where=where,
            fix="leave it out: other seeds are paired with each other, other data is apart",
        )
    if key in known or any(other.startswith(f"{key}.") for other in known):
        return
    for group, tricks in schema.trick_groups().items():
        if key in tricks:
            raise ConfigError(
                f"{key} is a trick, not a key", where=where, fix=f"--by {group}, its group"
            )
    if key in OVERLAYS:
        raise ConfigError(
            f"{key} is short for values of other groups",
            where=where,
            fix="without --by the tricks are compared; --by all compares everything that differs",
        )
    if key in checks.known_keys():
        raise ConfigError(
            f"{key} does not decide a result: runs that differ in it are the same run",
            where=where,
            fix="--by all compares everything that differs between the runs",
        )
    guess = checks.nearest_key(key)
    message, fix = checks.unknown_key(key)
    raise ConfigError(message, where=where, fix=f"--by {guess}" if guess else f"{fix}; or --by all")


def shared_values(look: Look, factors: Factors) -> dict[str, Any]:
    """Return the values that must be equal for a comparison by ``factors``, by dotted key."""
    return _shared(look.values, look.run, factors)


def training_of_failed(
    run: FailedRun, factors: Factors
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the :func:`shared_values` of a run that failed, and its values of the factors.

    Both are without the values of views, which its training does not depend on.
    """
    values = {"fingerprint": run.fingerprint, **leaves(run.values)}
    del values["seed"]
    values = without_views(values)
    return _shared(values, run, factors), without_views(factors.values(values))


def _shared(
    values: Mapping[str, Any], run: FinishedRun | FailedRun, factors: Factors
) -> dict[str, Any]:
    meant = values if factors.are_tricks else _asked(values, run, factors.groups)
    return {key: value for key, value in meant.items() if factors.of(key) is None}


def _asked(
    values: Mapping[str, Any], run: FinishedRun | FailedRun, groups: set[str] | None = None
) -> dict[str, Any]:
    """Return the values of a run; those that follow from ``groups`` (None: any) are null."""
    values = dict(values)
    for key, sources in _FOLLOWS.items():
        is_left = _config_value(run, key) in (None, "auto")
        if is_left and (groups is None or groups & {*sources}):
            values[key] = None
    return values


def _config_value(run: FinishedRun | FailedRun, key: str) -> Any:
    """Return the value in the run's configuration, before null was replaced by its meaning."""
    group, _, name = key.rpartition(".")
    values = run.config.get(group) if group else run.config
    return values.get(name) if isinstance(values, Mapping) else None


def differing_factors(found: Iterable[Look]) -> list[str]:
    """Return the names of the factors in which looks at the same data differ.

    If a group differs in one key, the factor is that key, else the group.
    """
    of_data: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for look in found:
        of_data[look.values["fingerprint"]].append(_asked(look.values, look.run))
    keys = [key for alike in of_data.values() for key in differing_keys(alike)]
    by_group: dict[str, set[str]] = {name: set() for name in NEUTRAL}
    for key in keys:
        by_group.setdefault(key.partition(".")[0], set()).add(key)
    return [
        next(iter(members)) if len(members) == 1 else group
        for group, members in by_group.items()
        if members
    ]


def differing_keys(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values are not the same in all of ``values``."""
    keys = dict.fromkeys(key for one in values for key in one)
    return [key for key in keys if len({canonical_text(one.get(key)) for one in values}) > 1]


def is_default(factor: Factor, look: Look) -> bool:
    """Return whether the values of a factor are the defaults of the schema."""
    defaults = leaves(schema.default_dict())
    return all(
        value == _neutral().get(key) or (key in defaults and _leaf_is(look, key, defaults[key]))
        for key, value in factor.values(look.values).items()
    )


def _leaf_is(look: Look, key: str, default: Any) -> bool:
    is_as_trained = look.values[key] == leaves(look.run.values).get(key)
    return is_as_trained and bool(_config_value(look.run, key) == default)


def level_names(factor: Factor, found: Sequence[Look]) -> dict[str, str]:
    """Name the values of a factor, by :func:`level_of`; all names are different.

    A key gives ``optim.lr=0.01``. A group gives the option with these values,
    ``augment=inception``, or the nearest option with the differences,
    ``augment=standard (flip=0.0)``, or else the values that differ among ``found``.
    """
    examples = {level_of(factor, look): look for look in reversed(found)}
    keys = differing_keys([factor.values(look.values) for look in examples.values()])
    names: dict[str, str] = {}
    for spelled in (short_text, canonical_text):  # in full if short texts are equal
        names = {at: _name(factor, look, keys, spelled) for at, look in examples.items()}
        if len(set(names.values())) == len(names):
            return names
    return {
        at: f"{names[at]} ({_details(keys, look.values, canonical_text)})"
        for at, look in examples.items()
    }


def level_of(factor: Factor, look: Look) -> str:
    """Return the values of a factor as a text that is equal for equal values."""
    return canonical_text(factor.values(look.values))


def _name(factor: Factor, look: Look, keys: Sequence[str], spelled: Any) -> str:
    if factor.name == CODE:
        digest = look.values.get(CODE)
        is_enough = spelled is short_text or digest is None
        return f"{CODE}={code_name(look)}" + ("" if is_enough else f" ({str(digest)[:8]})")
    if not factor.is_group:
        return f"{factor.name}={spelled(look.values.get(factor.name))}"
    option, others = nearest_option(factor.name, look)
    if option is None:
        return f"{factor.name} ({_details(keys, look.values, spelled)})"
    name = f"{factor.name}={option}"
    return f"{name} ({_details(others, look.values, spelled)})" if others else name


def code_name(look: Look) -> str:
    """Name of the file with the user's own code; the text ``null`` without such a file."""
    if look.values.get(CODE) is None:
        return "null"
    path = _config_value(look.run, CODE)
    return PurePath(path).name if isinstance(path, str) else str(look.values[CODE])[:8]


def _details(keys: Iterable[str], values: Mapping[str, Any], spelled: Any) -> str:
    return ", ".join(f"{key.rpartition('.')[2]}={spelled(values.get(key))}" for key in keys)


def nearest_option(group: str, look: Look) -> tuple[str | None, tuple[str, ...]]:
    """Return the option of ``conf/`` that equals or nearly equals a look's values of a group.

    Returns:
        The name of the option, and the dotted keys in which the values differ from it, three at
        most. The name is None if no option is near. An option for other data, or for a model from
        another source, is never near.
    """
    values = Factor(group).values(look.values)
    found: tuple[str | None, tuple[str, ...]] = (None, ())
    least, kind = _NEAR + 1, _KINDS.get(group)
    for path in sorted((CONF_DIR / group).glob("*.yaml")):
        option = _option_values(group, path.stem, look)
        keys = tuple(key for key in values if key in option and values[key] != option[key])
        if option and kind not in keys and len(keys) < least:
            found, least = (path.stem, keys), len(keys)
    return found


def _option_values(group: str, name: str, look: Look) -> dict[str, Any]:
    """Return the values of an option in a look's configuration; empty if it does not fit."""
    chosen = {**look.run.config, group: overlays.option_values(group, name)}
    values = look.values
    try:
        meant = schema.resolved(
            checks.from_dict(chosen),
            num_classes=len(look.run.classes),
            presize=values["data.presize"],
            device=values["device"],
            precision=values["precision"],
        )
    except (ConfigError, KeyError):  # a record may have anything in the place of a value
        return {}
    found = Factor(group).values(leaves(decisive_values(meant)))
    if "model.weights" in found and found["model.weights"] == _config_value(
        look.run, "model.weights"
    ):
        found["model.weights"] = values.get("model.weights")  # the content of these weights
    return found


def has_value(factor: Factor, look: Look, name: str, word: str) -> bool:
    """Return whether a look has the value that ``KEY=VALUE`` requests.

    Args:
        factor: the factor that KEY belongs to.
        look: the look to test.
        name: name of the look's values of the factor.
        word: ``KEY=VALUE``; VALUE may be an option, or the file name or path of code.
    """
    key, _, value = word.partition("=")
    if key == factor.name and name == word:
        return True
    if key not in look.values:
        return False
    if key == CODE and value in (code_name(look), _config_value(look.run, CODE)):
        return True
    held = look.values[key]
    if isinstance(held, int | float) and not isinstance(held, bool):
        return _number(value) == held
    return value in (held, canonical_text(held), canonical_text(held).replace(" ", ""))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@cache
def _neutral() -> dict[str, Any]:
    return leaves(NEUTRAL)


def short_text(value: Any) -> str:
    """Return a value in few characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def canonical_text(value: Any) -> str:
    """Return a value as a text that is equal for equal values."""
    return json.dumps(value, sort_keys=True)
