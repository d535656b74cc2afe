"""Groups of comparable runs, which are equal in everything except the factors and the seed."""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runner.config import schema
from runner.config.overlays import all_tricks
from runner.errors import ConfigError
from runner.report.factors import (
    CODE,
    Factor,
    Factors,
    Look,
    canonical_text,
    code_name,
    differing_keys,
    has_value,
    has_view,
    is_default,
    level_names,
    level_of,
    looks_of,
    nearest_option,
    shared_values,
    short_text,
    training_of_failed,
    trick_factors,
    view_groups,
    without_views,
)
from runner.report.runs import FailedRun, FinishedRun


@dataclass
class Arm:
    """One combination of the factors' values: trained networks, and their view of images.

    Attributes:
        look: one of the arm's runs with the view, as an example.
        parts: differences from the baseline, by factor; equal factors are left out.
        names: all differences in order: tricks, or ``KEY=VALUE``; empty for the baseline.
        values: values of the factors, by factor and dotted key.
        runs: the runs by seed.
        failed: the seeds without a run because the training failed, with the reasons.
        label: name of the arm in tables; unique within a group.
    """

    look: Look
    values: Mapping[str, Mapping[str, Any]]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    runs: dict[int, FinishedRun] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    label: str = ""

    @property
    def view(self) -> str:
        """``plain`` or ``tta``."""
        return self.look.view

    @property
    def training(self) -> dict[str, Any]:
        """The values that training depends on."""
        return without_views(self.values)

    @property
    def all_values(self) -> dict[str, Any]:
        """The values of all factors, by dotted key."""
        return {key: value for values in self.values.values() for key, value in values.items()}

    @property
    def num_images(self) -> int:
        """Number of validation images."""
        return self.look.run.num_val

    @property
    def forward_passes(self) -> float:
        """Forward passes per validation image, mean of the runs."""
        return float(np.mean(list(self.metric("forward_passes").values())))

    def metric(self, name: str) -> dict[int, float]:
        """Return a metric by seed."""
        return {seed: run.metrics[self.view][name] for seed, run in self.runs.items()}


@dataclass
class RunGroup:
    """Runs that are equal except for the factors and the seed.

    Attributes:
        values: the values that the runs share, by dotted key, with the data's ``fingerprint``.
        arms: combinations of the factors' values.
        factors: the factors that are compared.
        reference: the arm that ``--by`` compares the others with; None without ``--by``, and if no
            run has the requested values.
        differs: shared values that differ in another group of the same data set, by dotted key.
        code: name of the user's own code in the title, if groups of one data set differ in it.
        failed: runs that failed, and belong to an arm of which no run finished.
    """

    values: Mapping[str, Any]
    arms: list[Arm]
    factors: Factors
    reference: Arm | None = None
    differs: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    failed: list[FailedRun] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Data, model, size and budget, then other values that distinguish this group."""
        values, titled = self.values, {"fingerprint"}
        parts = []
        for key, form in {
            "data.name": "{}", "model.name": "{}", "resize.size": "{} px",
            "budget.epochs": "{} epoch" if values.get("budget.epochs") == 1 else "{} epochs",
        }.items():  # fmt: skip
            if key in values:
                parts.append(form.format(values[key]))
                titled.add(key)
        if num_folds := len(self.any_run.parts):
            parts.append(f"{num_folds} folds")
            titled.add("data.num_folds")
        others = [key for key in self.differs if key not in titled]
        by_group: dict[str, list[str]] = defaultdict(list)
        for key in others:
            by_group[key.partition(".")[0]].append(key)
        parts += self._shared_tricks(by_group)
        for group, keys in by_group.items():
            parts += self._differences(group, keys)
        if "fingerprint" in self.differs and not others:  # others explain why the data differs
            parts.append(f"fingerprint={short_text(values['fingerprint'])}")
        return " · ".join(parts)

    def _shared_tricks(self, titled: Iterable[str]) -> list[str]:
        """Return the tricks that are on in all arms; empty if tricks are compared."""
        look, groups = self.arms[0].look, schema.trick_groups()
        if self.factors.are_tricks:
            return []
        compared = {factor.group for factor in self.factors.all} | set(titled)
        seen = {
            name
            for group, names in groups.items()
            if group not in compared and (group not in view_groups() or look.view == "tta")
            for name in names
        }
        return [name for name in look.run.tricks if name in seen]

    def _differences(self, group: str, keys: Sequence[str]) -> list[str]:
        """Return the values of a group of keys, as texts, that differ from other groups of runs."""
        if group == CODE:
            return [self.code]
        if len(keys) > 1 or (group in schema.trick_groups() and keys[0] != group):
            option, others = nearest_option(group, self.arms[0].look)
            if option is not None and not set(others) - set(keys):
                details = ", ".join(f"{key}={short_text(self.values.get(key))}" for key in others)
                return [f"{group}={option}" + (f" ({details})" if details else "")]
        return [f"{key}={short_text(self.differs[key])}" for key in keys]

    @property
    def any_run(self) -> FinishedRun:
        """One of the runs, for values that all runs share."""
        return next(iter(self.arms[0].runs.values()))

    def find(self, name: str) -> Arm | None:
        """Return the arm with that label, or with those tricks joined by ``+``; None without one.

        Raises:
            ConfigError: several arms have those tricks.
        """
        if exact := [arm for arm in self.arms if arm.label == name]:
            return exact[0]
        words = {word.strip() for word in name.split("+")}
        found = [arm for arm in self.arms if words in (set(arm.names), set(_file_names(arm)))]
        if len(found) > 1:
            raise _ambiguous(name, [arm.label for arm in found])
        return found[0] if found else None

    def matching(self, words: Sequence[str]) -> list[Arm]:
        """Return the arms that have the value of each ``KEY=VALUE``.

        Raises:
            ConfigError: several files have the name of ``code=NAME``.
        """
        found = list(self.arms)
        for word in words:
            key = word.partition("=")[0]
            factor = self.factors.of(key)
            if factor is None:
                return []
            names = level_names(factor, [arm.look for arm in self.arms])
            found = [
                arm
                for arm in found
                if has_value(factor, arm.look, names[level_of(factor, arm.look)], word)
            ]
            called = dict.fromkeys(names[level_of(factor, arm.look)] for arm in found)
            if key == CODE and len(called) > 1:
                raise _ambiguous(word, list(called))
        return found


def group_runs(
    runs: Iterable[FinishedRun], factors: Factors | None = None, baseline: Sequence[str] = ()
) -> list[RunGroup]:
    """Sort runs into groups, largest first; of equal trainings with one seed, the first counts.

    Args:
        runs: finished runs.
        factors: the factors that are compared; None for the tricks.
        baseline: each ``KEY=VALUE`` that the arm to compare with must have.
    """
    factors = factors or trick_factors()
    members: dict[str, list[Look]] = defaultdict(list)
    # Runs without TTA come first, so that they count if several trainings are equal.
    for run in sorted(runs, key=lambda run: (has_view(run.tricks), run.name)):
        for look in looks_of(run):
            members[canonical_text(shared_values(look, factors))].append(look)
    groups = {
        key: RunGroup(shared_values(found[0], factors), _arms(found, factors), factors)
        for key, found in members.items()
    }
    for group in groups.values():
        if factors.are_tricks:
            _name_by_tricks(group)
        else:
            _name_by_values(group, baseline)
    for name in {group.values.get("data.name") for group in groups.values()}:
        _tell_apart([one for one in groups.values() if one.values.get("data.name") == name])
    num_runs = {key: len({look.run.path for look in found}) for key, found in members.items()}
    return [
        groups[key] for key in sorted(groups, key=lambda key: (-num_runs[key], groups[key].title))
    ]


def assign_failed(groups: Sequence[RunGroup], failed: Iterable[FailedRun]) -> None:
    """Note at each arm the seeds that it lacks because their training failed.

    A training counts for all its arms: the plain view and those with TTA.
    """
    keys = [canonical_text(without_views(group.values)) for group in groups]
    for run in failed if groups else ():
        shared, training = training_of_failed(run, groups[0].factors)
        own_key = canonical_text(shared)
        for group, key in zip(groups, keys, strict=True):
            if key != own_key:
                continue
            arms = [arm for arm in group.arms if arm.training == training]
            for arm in arms:
                if run.seed not in arm.runs:
                    arm.failed[run.seed] = run.reason
            if not arms:
                group.failed.append(run)


def _tell_apart(groups: Sequence[RunGroup]) -> None:
    """Note what differs between groups of one data set."""
    code = Factor(CODE)
    names = level_names(code, [group.arms[0].look for group in groups])
    for key in sorted(differing_keys([group.values for group in groups])):
        for group in groups:
            group.differs[key] = group.values.get(key)
            group.code = names[level_of(code, group.arms[0].look)]


def _arms(found: Sequence[Look], factors: Factors) -> list[Arm]:
    arms: dict[str, Arm] = {}
    for look in found:
        values = factors.values(look.values)
        arm = arms.setdefault(canonical_text([look.view, values]), Arm(look, values))
        arm.runs.setdefault(look.run.seed, look.run)
        if code_name(arm.look) == "code.py":  # a run's copy of a file that has a name of its own
            arm.look = look
    return list(arms.values())


# ── Arms named by their tricks ─────────────────────────────────────────────────────────────────


def _name_by_tricks(group: RunGroup) -> None:
    """Name arms by the tricks that are on, and arms with equal tricks also by their differences."""
    own_code = Factor(CODE)
    code_names = level_names(own_code, [arm.look for arm in group.arms])
    for arm in group.arms:
        views = {name for view in view_groups() for name in schema.trick_groups()[view]}
        names = [n for n in arm.look.run.tricks if arm.view == "tta" or n not in views]
        has_code = arm.look.values.get(CODE) is not None
        code = [code_names[level_of(own_code, arm.look)]] if has_code else []
        arm.names = (*names, *code)
        parts = {
            factor.name: tuple(name for name in names if name in factor.tricks)
            for factor in group.factors.all
        } | {CODE: tuple(code)}
        arm.parts = {name: part for name, part in parts.items() if part}
    group.arms.sort(key=lambda arm: (len(arm.names), arm.names))
    by_name: dict[str, list[Arm]] = defaultdict(list)
    for arm in group.arms:
        by_name[trick_label(arm.names)].append(arm)
    for name, alike in by_name.items():
        leaves = [arm.all_values for arm in alike]
        differing = differing_keys(leaves)
        for spelled in (short_text, canonical_text):  # in full if short texts are equal
            for arm, leaf in zip(alike, leaves, strict=True):
                details = ", ".join(f"{key}={spelled(leaf.get(key))}" for key in differing)
                arm.label = f"{name} ({details})" if details else name
            if len({arm.label for arm in alike}) == len(alike):
                break


def _file_names(arm: Arm) -> tuple[str, ...]:
    """Return the names of an arm, with the name of the file alone for its code."""
    code = f"{CODE}={code_name(arm.look)}"
    return tuple(code if name in arm.parts.get(CODE, ()) else name for name in arm.names)


def _ambiguous(word: str, labels: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{len(labels)} kinds of runs have that name",
        where=f"--baseline {word}",
        fix="one of: " + ", ".join(shlex.join(["--baseline", label]) for label in labels),
    )


def trick_label(tricks: Iterable[str]) -> str:
    """Return the name of a combination of tricks."""
    names = tuple(tricks)
    left_out = all_tricks() - set(names)
    if set(names) <= all_tricks() and len(left_out) <= 1:
        return f"all but {next(iter(left_out))}" if left_out else "all"
    return " + ".join(names) or "baseline"


# ── Arms named by the values of --by ───────────────────────────────────────────────────────────


def _name_by_values(group: RunGroup, baseline: Sequence[str]) -> None:
    """Choose the baseline, and name the other arms by their differences from it."""
    arms = group.arms
    found = [arm.look for arm in arms]
    names = {factor.name: level_names(factor, found) for factor in group.factors.all}
    arms.sort(key=_order)
    group.reference = next(
        iter(sorted(group.matching(baseline), key=lambda a: _rank(a, group))), None
    )
    for arm in arms:
        own = {
            factor.name: (names[factor.name][level_of(factor, arm.look)],)
            for factor in group.factors.all
        }
        varying = {name: part for name, part in own.items() if len(names[name]) > 1} or own
        arm.parts = {
            name: part
            for name, part in varying.items()
            if group.reference is None or arm.values[name] != group.reference.values[name]
        }
        arm.names = tuple(name for part in arm.parts.values() for name in part)
        in_full = ", ".join(name for part in varying.values() for name in part) or "all runs"
        arm.label = in_full if arm is group.reference else " + ".join(arm.names)
    arms.sort(key=lambda arm: len(arm.parts))


def _rank(arm: Arm, group: RunGroup) -> tuple[int, int, int]:
    """Sort key of the baseline: most defaults first, then most runs, then most plain options."""
    others = [factor for factor in group.factors.all if not is_default(factor, arm.look)]
    groups = [factor.name for factor in others if factor.is_group]
    changed = [name for name in groups if nearest_option(name, arm.look)[1]]
    return len(others), -len(arm.runs), len(changed)


def _order(arm: Arm) -> list[tuple[int, float, str]]:
    """Sort key of an arm: numbers by size, other values by their text."""
    return [
        (0, float(value), "")
        if isinstance(value, int | float) and not isinstance(value, bool)
        else (1, 0.0, canonical_text(value))
        for values in arm.values.values()
        for _, value in sorted(values.items())
    ]
