"""Run folders as training writes them, without training: predictions are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runner.config.schema import Data, Mixup, Normalize, Resize, RunConfig, Smoothing, Tta, to_dict
from runner.records import evaluations
from runner.records.comparison_folder import (
    BASE,
    ArmPlan,
    ComparisonFolder,
    ComparisonPlan,
    PairedRun,
)
from runner.records.identity import evaluation_identity, folder_name, identity
from runner.records.run_folder import RunFolder, packed
from runner.report.sequential import looks
from runner.training.metrics import classification_metrics

CLASSES = ("bag", "coat", "dress")
FINGERPRINT = "f" * 64
TRICKS: dict[str, dict[str, Any]] = {
    "normalize": {"normalize": Normalize(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))},
    "progressive_resizing": {"resize": Resize(schedule="progressive")},
    "mixup": {"mixup": Mixup(probability=1.0)},
    "label_smoothing": {"smoothing": Smoothing(epsilon=0.1)},
    "tta": {"tta": Tta(flip=True)},
}


def config(*tricks: str, seed: int = 0, **changes: Any) -> RunConfig:
    """A configuration with some tricks on; ``changes`` replace whole groups or top-level keys."""
    groups = {key: group for trick in tricks for key, group in TRICKS[trick].items()}
    plain = RunConfig(data=Data(name="folder", root="images"), device="cpu", precision="fp32")
    return replace(plain, **{"seed": seed, **groups, **changes})


def predictions(
    accuracy: float, num_images: int, *, seed: int, classes: int = len(CLASSES)
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and probabilities (N, K); exactly round(accuracy · N) of them right."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_images) % classes
    right = rng.permutation(num_images) < round(accuracy * num_images)
    winner = np.where(right, labels, (labels + 1) % classes)
    probabilities = rng.uniform(0.05, 0.2, (num_images, classes))
    probabilities[np.arange(num_images), winner] += 1.0
    return labels, (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)


def saved(folder: RunFolder, view: str) -> dict[str, Any]:
    """The ``labels`` of a run, and its ``probabilities`` by ``view``, which is plain or tta."""
    found = folder.predictions()
    names = evaluations.names(folder)
    if view == "tta" and names:
        return {**found, "probabilities": evaluations.probabilities(folder, *names)}
    return {**found, "probabilities": found.get(view, found["plain"])}


def write_run(
    outputs: Path,
    *tricks: str,
    seed: int = 0,
    accuracy: float = 0.8,
    tta_accuracy: float | None = None,
    num_images: int = 60,
    classes: tuple[str, ...] = CLASSES,
    fingerprint: str = FINGERPRINT,
    pixels: int = 1_000_000,
    seconds: float = 10.0,
    epochs: int = 3,
    name: str | None = None,
    words: tuple[str, ...] | None = None,
    finish: bool = True,
    is_old: bool = False,
    fold: tuple[int, int] | None = None,
    **changes: Any,
) -> RunFolder:
    """Write a run with ``tricks`` and return its folder.

    ``changes`` go to :func:`config`. A ``fold`` (2, 5) has every fifth image of a data set that is
    five times as large, from the third on. Without ``finish`` the run is one that was killed. A
    run that ``is_old`` has its TTA in its own identity and files, as before evaluations were apart.
    """
    folds, named = None, {}
    if fold is not None:
        number, num_folds = fold
        changes["data"] = Data(name="folder", root="images", num_folds=num_folds, fold=number)
        folds = {"num_folds": num_folds, "fold": number, "fingerprint": fingerprint}
        named["places"] = np.arange(num_images) * num_folds + number
        fingerprint = f"{number}{fingerprint[1:]}"
    chosen = config(*tricks, seed=seed, **changes)
    what = identity(chosen, len(classes), 32, fingerprint)
    evaluation = evaluation_identity(chosen)
    if is_old:
        assert evaluation is not None
        what["identity"] = f"{evaluation[:8]}{what['identity'][:8]}"
        what["values"]["tta"] = to_dict(chosen)["tta"]
    folder = RunFolder(outputs / (name or folder_name(chosen, what["identity"])))
    if words is None:
        words = (f"+trick=[{','.join(tricks)}]", f"seed={seed}")
    folder.begin(what, to_dict(chosen), list(words))
    for epoch in range(1, epochs + 1):
        part = epoch / epochs
        folder.append_row(
            {
                "epoch": epoch,
                "pixels": int(pixels * part),
                "images": int(1000 * part),
                "val_accuracy": accuracy * part,
                "val_loss": 2.0 - part,
            }
        )
        folder.append_row({"epoch": epoch, "total_seconds": seconds * part}, "timings.jsonl")
    if not finish:
        return folder
    labels, plain = predictions(
        accuracy,
        num_images,
        seed=7 * seed + len(tricks) + (1000 * (fold[0] + 1) if fold else 0),
        classes=len(classes),
    )
    _, tta = predictions(
        accuracy if tta_accuracy is None else tta_accuracy,
        num_images, seed=7 * seed + len(tricks), classes=len(classes),
    )  # fmt: skip
    if is_old:
        named["tta"] = tta
    folder.write_bytes("predictions.npz", packed(labels=labels, plain=plain, **named))
    metrics = {
        view: {**classification_metrics(found, labels, classes), "forward_passes": passes}
        for view, found, passes in (("plain", plain, 1), ("tta", tta, 2))
    }
    origin = {
        "identity": what["identity"], "command": ["python", "-m", "runner.train", *words],
    }  # fmt: skip
    machine = {"runner": "0", "torch": "2", "device": "cpu", "threads": 2}
    folder.finish(
        {
            **origin,
            "tricks": chosen.tricks if is_old else chosen.training.tricks,
            "seed": seed,
            "data": {
                "name": "folder", "fingerprint": fingerprint, "num_train": 100,
                "num_val": num_images, "classes": list(classes), "folds": folds,
            },
            "metrics": metrics if is_old else {"plain": metrics["plain"]},
            "budget": {
                "epochs": float(epochs), "images": 1000, "pixels": pixels, "seconds": seconds,
            },
            "config": to_dict(chosen),
            "environment": machine,
        }
    )  # fmt: skip
    if evaluation is not None and not is_old:
        evaluations.write(
            folder,
            evaluation,
            {
                **origin,
                "tricks": chosen.tricks,
                "tta": to_dict(chosen)["tta"],
                "metrics": metrics["tta"],
                "seconds": 0.0,
                "environment": machine,
            },
            tta,
        )
    return folder


Accuracies = Sequence[float | str | None]
"""Of a run per seed: its accuracy; a text is the reason why it failed, None is no run yet."""


def write_comparison(
    outputs: Path,
    arms: Mapping[str, Accuracies],
    *,
    base: Accuracies,
    name: str = "question",
    max_seeds: int = 10,
    is_fixed: bool = False,
    margin: float = 0.01,
    num_images: int = 400,
    offsets: Mapping[str, int] | None = None,
    metric: str = "accuracy",
    **more: Any,
) -> ComparisonFolder:
    """Write a comparison of arms, each a combination of tricks such as ``mixup``, with its runs.

    ``offsets`` has the offset of the seeds of each arm that is the baseline again. ``more`` go to
    the question. An arm with ``tta`` shares the trainings of the arm without.
    """
    offsets = offsets or {}
    plan = ComparisonPlan(
        name=name,
        base_words=("data=folder",),
        values={},
        fingerprint=FINGERPRINT,
        num_val=num_images,
        arms=tuple(
            ArmPlan(
                label, () if label in offsets else (f"+trick=[{label}]",), offsets.get(label, 0)
            )
            for label in arms
        ),
        margin=margin,
        metric=metric,
        is_fixed=is_fixed,
        max_seeds=max_seeds,
        looks=(max_seeds,) if is_fixed else looks(max_seeds),
        **more,
    )
    runs: dict[str, dict[int, PairedRun]] = {}
    for label, accuracies in {BASE: base, **arms}.items():
        tricks = () if label == BASE or label in offsets else label.split("+")
        runs[label] = {}
        for seed, accuracy in enumerate(accuracies):
            if isinstance(accuracy, str):
                runs[label][seed] = PairedRun(None, None, accuracy, is_diverged=True)
            elif accuracy is not None:
                own = seed + offsets.get(label, 0)
                plain = base[seed] if tricks == ["tta"] else accuracy
                assert isinstance(plain, float)
                folder = write_run(
                    outputs, *tricks, seed=own, accuracy=plain, tta_accuracy=accuracy,
                    num_images=num_images,
                )  # fmt: skip
                views = evaluations.names(folder)
                runs[label][seed] = PairedRun(folder.path.name, views[0] if views else None)
    found = ComparisonFolder(outputs / "comparisons" / name)
    with found.locked():
        found.begin(plan)
        found.write_runs(runs)
    return found
