"""Which runs may be compared: those that are equal in everything but trick and seed."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.report.runs import FinishedRun

TRICK_GROUPS = {
    "normalize": ("normalize",),
    "resize": ("progressive_resizing",),
    "mixup": ("mixup", "cutmix"),
    "smoothing": ("label_smoothing",),
    "tta": ("tta",),
}
"""Groups of values that are tricks, and the names of the tricks that each can turn on."""

ALL = frozenset(("normalize", "progressive_resizing", "mixup", "label_smoothing", "tta"))
"""The tricks of ``+trick=all``."""

_NO_TRICK = {"resize": ("size",)}  # keys of those groups that are no trick
_NO_DIFFERENCE = ("seed",)


@dataclass
class Arm:
    """One combination of tricks: trained networks, looked at plainly or with TTA.

    Attributes:
        tricks: that are on; ``tta`` among them where the view is that of TTA.
        view: ``plain`` or ``tta``.
        values: of the tricks, by group; ``tta`` only where the view is that of TTA.
        runs: by seed.
        label: what tables call it; unique within a group.
    """

    tricks: tuple[str, ...]
    view: str
    values: Mapping[str, Any]
    runs: dict[int, FinishedRun] = field(default_factory=dict)
    label: str = ""

    @property
    def training(self) -> dict[str, Any]:
        """The values that training depends on."""
        return {group: values for group, values in self.values.items() if group != "tta"}

    @property
    def num_images(self) -> int:
        """Validation images."""
        return next(iter(self.runs.values())).num_val

    def tricks_of(self, group: str) -> tuple[str, ...]:
        """The tricks that are on of one group of values."""
        return tuple(name for name in self.tricks if name in TRICK_GROUPS[group])

    def metric(self, name: str) -> dict[int, float]:
        """A metric by seed."""
        return {seed: run.metrics[self.view][name] for seed, run in self.runs.items()}


@dataclass
class Group:
    """Runs that are equal but for trick and seed.

    Attributes:
        values: that they share, by dotted key, with the data's ``fingerprint``.
        arms: of tricks.
        differs: shared values that are others in another group of the same data set, by dotted key.
    """

    values: Mapping[str, Any]
    arms: list[Arm]
    differs: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Data, model, size and budget, then what else tells this group from others."""
        values = self.values
        epochs = values.get("budget.epochs")
        parts = [
            str(values.get("data.name")),
            str(values.get("model.name")),
            f"{values.get('resize.size')} px",
            f"{epochs} epoch{'' if epochs == 1 else 's'}",
        ]
        told = {"data.name", "model.name", "resize.size", "budget.epochs"}
        if set(self.differs) - told > {"fingerprint"}:
            told.add("fingerprint")  # other values that differ are why the data do
        parts += [
            f"{key}={_short(value)}" for key, value in self.differs.items() if key not in told
        ]
        return " · ".join(parts)

    @property
    def any_run(self) -> FinishedRun:
        """One of the runs, for what all share."""
        return next(iter(self.arms[0].runs.values()))

    def find(self, name: str) -> Arm | None:
        """The arm of that label, or of those tricks joined by ``+``."""
        for arm in self.arms:
            if name == arm.label or set(name.split("+")) == set(arm.tricks):
                return arm
        return None


def group_runs(runs: Iterable[FinishedRun]) -> list[Group]:
    """Sort runs into groups, largest first; of equal trainings with one seed the first counts."""
    members: dict[str, list[FinishedRun]] = defaultdict(list)
    shared: dict[str, dict[str, Any]] = {}
    for run in runs:
        values = _untricked(run)
        key = _canonical(values)
        members[key].append(run)
        shared[key] = values
    groups = [Group(shared[key], _arms(found)) for key, found in members.items()]
    for name in {group.values.get("data.name") for group in groups}:
        _tell_apart([group for group in groups if group.values.get("data.name") == name])
    return sorted(groups, key=lambda group: (-len(members[_canonical(group.values)]), group.title))


def _tell_apart(groups: Sequence[Group]) -> None:
    """Note what differs between groups of one data set."""
    for key in sorted({key for group in groups for key in group.values}):
        if len({_canonical(group.values.get(key)) for group in groups}) > 1:
            for group in groups:
                group.differs[key] = group.values.get(key)


def _untricked(run: FinishedRun) -> dict[str, Any]:
    """Everything that must be equal for a comparison, by dotted key."""
    values: dict[str, Any] = {"fingerprint": run.fingerprint}
    for name, value in run.values.items():
        if name in _NO_DIFFERENCE:
            continue
        if not isinstance(value, Mapping):
            values[name] = value
        elif name in TRICK_GROUPS:
            values |= {f"{name}.{key}": value.get(key) for key in _NO_TRICK.get(name, ())}
        else:
            values |= {f"{name}.{key}": item for key, item in value.items()}
    return values


def _arms(runs: Sequence[FinishedRun]) -> list[Arm]:
    found: dict[str, Arm] = {}
    # A run with TTA is also a run without: TTA changes nothing in training. Runs without come
    # first, so that they are the ones that count.
    for run in sorted(runs, key=lambda run: ("tta" in run.tricks, run.name)):
        trained = tuple(name for name in run.tricks if name != "tta")
        values = {
            name: {
                key: value
                for key, value in run.values[name].items()
                if key not in _NO_TRICK.get(name, ())
            }
            for name in TRICK_GROUPS
        }
        tta = values.pop("tta")
        views = [Arm(trained, "plain", values)]
        if "tta" in run.tricks:
            views.append(Arm((*trained, "tta"), "tta", {**values, "tta": tta}))
        for arm in views:
            key = _canonical([arm.view, arm.values])
            found.setdefault(key, arm).runs.setdefault(run.seed, run)
    arms = sorted(found.values(), key=lambda arm: (len(arm.tricks), arm.tricks))
    _label(arms)
    return arms


def _label(arms: Sequence[Arm]) -> None:
    """Name arms by their tricks, and where that is not enough by the values that differ."""
    by_name: dict[str, list[Arm]] = defaultdict(list)
    for arm in arms:
        by_name[trick_label(arm.tricks)].append(arm)
    for name, alike in by_name.items():
        leaves = [
            {
                f"{group}.{key}": value
                for group, values in arm.values.items()
                for key, value in values.items()
            }
            for arm in alike
        ]
        differing = [
            key
            for key in dict.fromkeys(key for leaf in leaves for key in leaf)
            if len({_canonical(leaf.get(key)) for leaf in leaves}) > 1
        ]
        for spelled in (_short, _canonical):  # in full where they begin alike
            for arm, leaf in zip(alike, leaves, strict=True):
                told = ", ".join(f"{key}={spelled(leaf.get(key))}" for key in differing)
                arm.label = f"{name} ({told})" if told else name
            if len({arm.label for arm in alike}) == len(alike):
                break


def trick_label(tricks: Iterable[str]) -> str:
    """What a combination of tricks is called."""
    names = tuple(tricks)
    left_out = ALL - set(names)
    if set(names) <= ALL and len(left_out) <= 1:
        return f"all but {next(iter(left_out))}" if left_out else "all"
    return " + ".join(names) or "baseline"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
