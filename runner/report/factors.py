"""What compared runs may differ in: the factors, which are the tricks or what ``--by`` names."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import PurePath
from typing import Any

from runner.config import checks, overlays, schema
from runner.config.options import CONF_DIR, OVERLAYS
from runner.errors import ConfigError
from runner.records.identity import NEUTRAL, decisive_values
from runner.records.run_folder import leaves
from runner.report.runs import FinishedRun

ALL = "all"
"""The word for everything that differs between the runs."""

_CODE = "code"
_PAIRED = ("seed", "fingerprint")  # what a comparison needs equal: its draws and its images
# What null means depends on these groups: where one of them is a factor, null is equal to null.
_FOLLOWS = {
    "data.presize": ("data", "resize", "eval"),
    "data.interpolation": ("normalize", "model"),
    "eval.size": ("resize", "data"),
    "eval.crop": ("normalize", "model"),
    "model.num_outputs": ("data",),
    "precision": ("resize", "device"),
}
_NEAR = 3  # keys in which values may differ from an option to be called by it


@dataclass(frozen=True)
class Factor:
    """A group of the configuration, or one key, whose values are compared.

    Attributes:
        name: of the group; or the key, dotted where it is in a group.
        left_out: dotted keys of the group that are not of the factor.
    """

    name: str
    left_out: tuple[str, ...] = ()

    def holds(self, key: str) -> bool:
        """Whether a dotted key is of this factor."""
        is_inside = key == self.name or key.startswith(f"{self.name}.")
        return is_inside and key not in self.left_out

    def values(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the values, by dotted key, that are of this factor."""
        return {key: value for key, value in found.items() if self.holds(key)}

    @property
    def group(self) -> str:
        """The group of the configuration; a key without one is its own."""
        return self.name.partition(".")[0]

    @property
    def is_group(self) -> bool:
        """Whether this is a whole group."""
        return isinstance(NEUTRAL.get(self.name), dict)

    @property
    def tricks(self) -> tuple[str, ...]:
        """The tricks that it can turn on."""
        return schema.trick_groups().get(self.name, ())


@dataclass(frozen=True)
class Factors:
    """The factors of a comparison.

    Attributes:
        all: in the order of labels.
        are_tricks: whether arms are called by the tricks that are on, as without ``--by``.
        apart: a factor in which the groups may differ, for a figure over all of them.
    """

    all: tuple[Factor, ...]
    are_tricks: bool = False
    apart: Factor | None = None

    @property
    def groups(self) -> set[str]:
        """The groups of the configuration that they are of."""
        return {factor.group for factor in (*self.all, self.apart) if factor}

    def of(self, key: str) -> Factor | None:
        """The factor of a dotted key, if it is of one."""
        if key not in self._known:
            self._known[key] = next((factor for factor in self.all if factor.holds(key)), None)
        return self._known[key]

    @cached_property
    def _known(self) -> dict[str, Factor | None]:
        return {}

    def values(self, found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Those of the values, by dotted key, that are of a factor; by factor."""
        values: dict[str, dict[str, Any]] = {factor.name: {} for factor in self.all}
        for key, value in found.items():
            if factor := self.of(key):
                values[factor.name][key] = value
        return values


@dataclass(frozen=True)
class Look:
    """A finished run and one view of its images.

    Attributes:
        run: that was trained.
        view: ``plain`` or ``tta``.
        values: all that decides these predictions but the seed, by dotted key, with the
            ``fingerprint`` of the data; those of TTA are neutral where the view is plain.
    """

    run: FinishedRun
    view: str
    values: Mapping[str, Any]


@cache
def view_groups() -> frozenset[str]:
    """Groups with tricks that change no training, only what is seen of an image afterwards."""
    groups = schema.RunConfig().groups
    return frozenset(name for name in schema.trick_groups() if not groups[name].TRAINS)


def looks_of(run: FinishedRun) -> list[Look]:
    """A run as it was trained, and where it looked at its images in other ways, that too."""
    values = {"fingerprint": run.fingerprint, **leaves(run.values)}
    del values["seed"]
    plain = {
        key: value for key, value in values.items() if key.partition(".")[0] not in view_groups()
    }
    neutral = {
        key: value for key, value in _neutral().items() if key.partition(".")[0] in view_groups()
    }
    found = [Look(run, "plain", {**plain, **neutral})]
    if has_view(run.tricks):
        found.append(Look(run, "tta", values))
    return found


def has_view(tricks: Iterable[str]) -> bool:
    """Whether one of the tricks is a view of the images."""
    named = {name for group in view_groups() for name in schema.trick_groups()[group]}
    return bool(named & set(tricks))


def trick_factors() -> Factors:
    """Every group of tricks without its plain keys, and the user's own code."""
    groups = [
        Factor(group, tuple(f"{group}.{key}" for key in schema.plain_keys(group)))
        for group in schema.trick_groups()
    ]
    return Factors((*groups, Factor(_CODE)), are_tricks=True)


def chosen_factors(by: Sequence[str], found: Sequence[Look]) -> Factors:
    """The factors that ``--by`` names.

    Args:
        by: groups and dotted keys, or ``all``; nothing for the tricks.
        found: the runs that are compared.

    Raises:
        ConfigError: a key is unknown, or cannot be compared.
    """
    if not by:
        return trick_factors()
    if ALL in by:
        return Factors(tuple(map(Factor, differing_factors(found))))
    known = {key for look in found for key in look.values} | set(leaves(NEUTRAL))
    for key in by:
        _check(key, known)
    names = dict.fromkeys(by)
    return Factors(tuple(Factor(key) for key in names if key.rpartition(".")[0] not in names))


def _check(key: str, known: set[str]) -> None:
    where = f"--by {key}"
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
    message, fix = checks.unknown_key(key)
    raise ConfigError(message, where=where, fix=f"{fix}; or --by all")


def shared_values(look: Look, factors: Factors) -> dict[str, Any]:
    """The values that must be equal for a comparison by ``factors``, by dotted key."""
    values = look.values if factors.are_tricks else _asked(look, factors.groups)
    return {key: value for key, value in values.items() if factors.of(key) is None}


def _asked(look: Look, groups: set[str] | None = None) -> dict[str, Any]:
    """Values of a look; those that were left to others of ``groups`` (None: of any) are null."""
    values = dict(look.values)
    for key, sources in _FOLLOWS.items():
        is_left = _config_value(look.run, key) in (None, "auto")
        if is_left and (groups is None or groups & {*sources}):
            values[key] = None
    return values


def _config_value(run: FinishedRun, key: str) -> Any:
    """What the run's configuration says, before null was replaced by what it means."""
    group, _, name = key.rpartition(".")
    values = run.config.get(group) if group else run.config
    return values.get(name) if isinstance(values, Mapping) else None


def differing_factors(found: Iterable[Look]) -> list[str]:
    """The names of the factors by which looks at the same data differ.

    Of a group that differs in one key it is that key, else the group.
    """
    of_data: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for look in found:
        of_data[look.values["fingerprint"]].append(_asked(look))
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
    """The keys whose values are not the same in all."""
    keys = dict.fromkeys(key for one in values for key in one)
    return [key for key in keys if len({canonical_text(one.get(key)) for one in values}) > 1]


def is_default(factor: Factor, look: Look) -> bool:
    """Whether the values of a factor are those of the schema, or were left to it."""
    defaults = leaves(schema.default_dict())
    return all(
        value == _neutral().get(key) or (key in defaults and _leaf_is(look, key, defaults[key]))
        for key, value in factor.values(look.values).items()
    )


def _leaf_is(look: Look, key: str, default: Any) -> bool:
    is_as_trained = look.values[key] == leaves(look.run.values).get(key)
    return is_as_trained and bool(_config_value(look.run, key) == default)


def level_names(factor: Factor, found: Sequence[Look]) -> dict[str, str]:
    """What the values of a factor are called, by :func:`level_of`; each has another name.

    ``optim.lr=0.01``; of a group the option with these values, ``augment=inception``, or the
    nearest with what differs, ``augment=standard (flip=0.0)``; else what differs among ``found``.
    """
    examples = {level_of(factor, look): look for look in reversed(found)}
    keys = differing_keys([factor.values(look.values) for look in examples.values()])
    names: dict[str, str] = {}
    for spelled in (short_text, canonical_text):  # in full where they begin alike
        names = {at: _name(factor, look, keys, spelled) for at, look in examples.items()}
        if len(set(names.values())) == len(names):
            return names
    return {
        at: f"{names[at]} ({_details(keys, look.values, canonical_text)})"
        for at, look in examples.items()
    }


def level_of(factor: Factor, look: Look) -> str:
    """The values of a factor, as text that is equal for equal ones."""
    return canonical_text(factor.values(look.values))


def _name(factor: Factor, look: Look, keys: Sequence[str], spelled: Any) -> str:
    if factor.name == _CODE:
        digest = look.values.get(_CODE)
        is_enough = spelled is short_text or digest is None
        return f"{_CODE}={code_name(look)}" + ("" if is_enough else f" ({str(digest)[:8]})")
    if not factor.is_group:
        return f"{factor.name}={spelled(look.values.get(factor.name))}"
    option, others = nearest_option(factor.name, look)
    if option is None:
        return f"{factor.name} ({_details(keys, look.values, spelled)})"
    name = f"{factor.name}={option}"
    return f"{name} ({_details(others, look.values, spelled)})" if others else name


def code_name(look: Look) -> str:
    """Name of the file with the user's own code; none where there is none."""
    if look.values.get(_CODE) is None:
        return "none"
    path = _config_value(look.run, _CODE)
    return PurePath(path).name if isinstance(path, str) else str(look.values[_CODE])[:8]


def _details(keys: Iterable[str], values: Mapping[str, Any], spelled: Any) -> str:
    return ", ".join(f"{key.rpartition('.')[2]}={spelled(values.get(key))}" for key in keys)


def nearest_option(group: str, look: Look) -> tuple[str | None, tuple[str, ...]]:
    """The option of ``conf/`` that a look's values of a group are, or nearly are.

    Returns:
        Its name, and the dotted keys in which the values differ from it, three at the most; None
        where they are like no option.
    """
    values = Factor(group).values(look.values)
    found: tuple[str | None, tuple[str, ...]] = (None, ())
    least = _NEAR + 1
    for path in sorted((CONF_DIR / group).glob("*.yaml")):
        option = _option_values(group, path.stem, look)
        keys = tuple(key for key in values if key in option and values[key] != option[key])
        if option and len(keys) < least:
            found, least = (path.stem, keys), len(keys)
    return found


def _option_values(group: str, name: str, look: Look) -> dict[str, Any]:
    """What an option would mean in a look's configuration; empty where it does not fit in."""
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
    except ConfigError:
        return {}
    found = Factor(group).values(leaves(decisive_values(meant)))
    if "model.weights" in found and found["model.weights"] == _config_value(
        look.run, "model.weights"
    ):
        found["model.weights"] = values["model.weights"]  # the content, where that is the name
    return found


def has_value(factor: Factor, look: Look, name: str, word: str) -> bool:
    """Whether a look has what ``KEY=VALUE`` asks for.

    Args:
        factor: that KEY is of.
        look: to test.
        name: of its values of the factor.
        word: ``KEY=VALUE``; VALUE may be an option.
    """
    key, _, value = word.partition("=")
    if key == factor.name and name == word:
        return True
    if key not in look.values:
        return False
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
    """A value in few characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def canonical_text(value: Any) -> str:
    """A value as text that is equal for equal ones."""
    return json.dumps(value, sort_keys=True)
