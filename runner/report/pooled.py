"""The runs of all folds of a data set as one run, which predicts every image once.

Runs that differ in nothing but ``data.fold`` are pooled: then a report compares them as it compares
others, by seed, on all images. Seeds that lack a fold are left out, and named. Runs of one and the
same fold alone are a plain split, and stay as they are.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from runner.report.factors import canonical_text
from runner.report.runs import ALWAYS_THERE, FailedRun, FinishedRun, Fold, Found, Unranked

_SHOWN = 10
_OF_TRAINING_IMAGES = ("window", "depth")  # of deep images, found anew from each training part


def pool_folds(found: Found) -> None:
    """Replace the runs of folds in ``found`` by what they are together."""
    whole, rest = pooled(found.runs)
    kept = []
    used = {_fingerprint(run) for run in whole}
    of_pool: dict[str, set[int]] = defaultdict(set)
    of_kind: dict[str, set[int]] = defaultdict(set)
    for run in rest:
        if run.fold is not None:
            of_pool[_fingerprint(run)].add(run.fold.fold)
            of_kind[_kind(run)].add(run.fold.fold)
    for run in rest:
        is_plain = _fingerprint(run) not in used and len(of_pool[_fingerprint(run)]) == 1
        if run.fold is None or is_plain:
            kept.append(run)
            continue
        missing = sorted({*range(run.fold.num_folds)} - of_kind[_kind(run)])
        named = ", ".join(map(str, missing[:_SHOWN])) + " …" * (len(missing) > _SHOWN)
        found.unranked.append(
            Unranked(
                run.name,
                "incomplete",
                f"seed {run.seed} has no run of fold {named} of {run.fold.num_folds}; only seeds "
                "with all folds are compared",
            )
        )
    found.runs = sorted([*kept, *whole], key=lambda run: run.name)
    pool_of = {part.fingerprint: run.fingerprint for run in whole for part in run.parts}
    found.failed = [_as_of_pool(run, pool_of) for run in found.failed]


def pooled(runs: Iterable[FinishedRun]) -> tuple[list[FinishedRun], list[FinishedRun]]:
    """Return the runs of all folds together, and the runs that have no such others."""
    alike: dict[str, dict[int, FinishedRun]] = defaultdict(dict)
    rest = []
    for run in runs:
        if run.fold is None or run.fold.fold in alike[_kind(run)]:
            rest.append(run)
        else:
            alike[_kind(run)][run.fold.fold] = run
    whole = []
    for parts in alike.values():
        fold = next(iter(parts.values())).fold
        if fold is not None and len(parts) == fold.num_folds:
            whole.append(together([parts[number] for number in range(fold.num_folds)]))
        else:
            rest += parts.values()
    return whole, rest


def together(parts: Sequence[FinishedRun]) -> FinishedRun:
    """Return the runs of all folds, in order, as one run.

    Its budget is the mean of theirs, so the price of one training. Accuracy, log loss and Brier
    score are those of all images; the other metrics, ECE among them, follow from the predictions.
    It has the path of the first.
    """
    first = parts[0]
    num_val = [run.num_val for run in parts]
    metrics = {
        view: {
            name: float(np.average([run.metrics[view][name] for run in parts], weights=num_val))
            for name in ALWAYS_THERE
            if name != "ece"
        }
        for view in first.metrics
    }
    return replace(
        first,
        identity=hashlib.sha256(" ".join(run.identity for run in parts).encode()).hexdigest()[:16],
        values=_without_fold(first.values),
        fingerprint=_fingerprint(first),
        num_val=sum(num_val),
        num_train=round(float(np.mean([run.num_train for run in parts]))),
        metrics=metrics,
        budget={key: float(np.mean([run.budget[key] for run in parts])) for key in first.budget},
        finished=max(run.finished for run in parts),
        per_class={},
        parts=tuple(parts),
    )


def _kind(run: FinishedRun) -> str:
    """Equal for runs that differ in their fold alone."""
    return canonical_text(
        [_fingerprint(run), run.seed, run.evaluation and run.tricks, _without_fold(run.values)]
    )


def _fingerprint(run: FinishedRun) -> str:
    return run.fold.fingerprint if isinstance(run.fold, Fold) else run.fingerprint


def _without_fold(values: Mapping[str, object]) -> dict[str, object]:
    data = values["data"]
    if not isinstance(data, Mapping):
        return dict(values)
    found = {**data, "fold": 0}
    if data.get("num_folds") is not None:
        found |= {key: None for key in _OF_TRAINING_IMAGES if key in found}
    return {**values, "data": found}


def _as_of_pool(run: FailedRun, pool_of: Mapping[str, str]) -> FailedRun:
    """Return a failed run of a fold as one of all folds: without this fold, its seed has no pool.

    Args:
        run: the failed run.
        pool_of: the fingerprint of all images, by that of the data of a fold.
    """
    data = run.values.get("data")
    is_of_fold = isinstance(data, Mapping) and data.get("num_folds") is not None
    if not is_of_fold or run.fingerprint not in pool_of:
        return run
    return replace(run, values=_without_fold(run.values), fingerprint=pool_of[run.fingerprint])
