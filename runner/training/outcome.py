"""The files of a finished run: its predictions, its bundle and its result."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from runner.config.schema import RunConfig, to_dict
from runner.data.dataset import Dataset
from runner.models import Loaded, changes_of
from runner.records.bundle import Architecture, EvaluationSettings, bundle_files, digests_of
from runner.records.run_folder import RunFolder
from runner.training.experiment import Experiment
from runner.training.meter import Meter
from runner.training.metrics import classification_metrics
from runner.training.predicting import Predictions, images_per_pass
from runner.training.step import Learner


@dataclass(frozen=True)
class Outcome:
    """The results of an attempt at a run, as of one evaluation.

    Attributes:
        predictions: plain predictions of the validation split.
        plain: metrics of the plain predictions.
        learner: the learner whose network was evaluated and is shipped.
        used: the steps, images and seconds of every attempt at the run.
        environment: software and hardware of the attempt; ``resumed`` lists the steps after which
            an earlier attempt had another environment, and the differences.
    """

    predictions: Predictions
    plain: Mapping[str, Any]
    learner: Learner
    used: Meter
    environment: Mapping[str, Any]


def write_files(folder: RunFolder, experiment: Experiment, outcome: Outcome) -> dict[str, str]:
    """Write the predictions, then the bundle; return the SHA-256 of each file of the bundle.

    Raises:
        StorageError: a file cannot be written.
    """
    config, learner, found = experiment.config, outcome.learner, outcome.predictions
    dataset = experiment.dataset
    places = None if dataset.folds is None else dataset.val_places
    folder.write_predictions(found.labels, found.plain, found.groups, places)
    bundle = bundle_files(
        learner.model,
        architecture=Architecture(
            config.model.source,
            config.model.name,
            learner.num_outputs,
            changes_of(config, learner.idea),
        ),
        classes=dataset.classes,
        preprocess=learner.preprocess,
        evaluated=EvaluationSettings(
            precision=learner.precision,
            batch_size=images_per_pass(config, learner),
            seed=config.seed,
            augment=config.augment,
        ),
    )
    for name, content in bundle.items():
        folder.write_bytes(f"bundle/{name}", content)
    return digests_of(bundle)


def result(
    experiment: Experiment,
    loaded: Loaded | None,
    outcome: Outcome,
    digests: Mapping[str, str],
) -> dict[str, Any]:
    """Return the result of a run, as values for JSON.

    Args:
        experiment: the experiment that was trained.
        loaded: report on loading the pretrained weights; None without pretrained weights.
        outcome: the results of the last attempt at the run.
        digests: SHA-256 of each file of the bundle.
    """
    config, learner = experiment.config, outcome.learner
    return {
        "tricks": config.training.tricks,
        "code": experiment.idea.file.facts if experiment.idea.file else None,
        "seed": config.seed,
        "data": _data_facts(experiment.dataset),
        "metrics": {"plain": {**outcome.plain, "forward_passes": outcome.predictions.passes_plain}},
        "budget": _budget(outcome),
        **({} if outcome.used.clipped is None else {"clipped": outcome.used.clipped}),
        "model": {
            "source": config.model.source,
            "name": config.model.name,
            "num_outputs": learner.num_outputs,
            "num_parameters": sum(p.numel() for p in learner.model.parameters()),
            "mean": list(learner.preprocess.mean),
            "std": list(learner.preprocess.std),
            "weights": _pretrained_facts(experiment, loaded),
        },
        "bundle": dict(digests),
        "config": to_dict(config),
        "environment": dict(outcome.environment),
    }


def evaluation(
    config: RunConfig,
    found: Predictions,
    classes: tuple[str, ...],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the facts of an evaluation with the TTA of ``config``, as values for JSON."""
    metrics = classification_metrics(found.tta, found.labels, classes)
    return {
        "tricks": config.tricks,
        "tta": to_dict(config)["tta"],
        "metrics": {**metrics, "forward_passes": found.passes_tta},
        "seconds": found.seconds,
        "environment": dict(environment),
    }


def _budget(outcome: Outcome) -> dict[str, Any]:
    used, predictions = outcome.used, outcome.predictions
    num_val = len(predictions.labels)
    return {
        "epochs": used.epochs,
        "steps": used.steps,
        "images": used.images,
        "pixels": used.pixels,
        "forward_passes_plain": predictions.passes_plain * num_val,
        "seconds": used.seconds + used.eval_seconds,
        "train_seconds": used.seconds,
        "images_per_second": used.images / used.seconds,
    }


def _pretrained_facts(experiment: Experiment, loaded: Loaded | None) -> dict[str, Any] | None:
    weights = experiment.weights
    if weights is None or loaded is None:
        return None
    return {
        "name": weights.name,
        "identity": weights.identity,
        "loaded": loaded.num_loaded,
        "fresh": list(loaded.fresh),
        "unused": list(loaded.unused),
    }


def _data_facts(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "num_train": len(dataset.train),
        "num_val": len(dataset.val),
        "classes": list(dataset.classes),
        "presize": dataset.presize,
        "skipped": len(dataset.skipped),
        "skipped_images": [{"image": name, "reason": why} for name, why in dataset.skipped],
        "converted": dataset.converted,
        "depth": dataset.depth.to_dict() if dataset.is_deep else None,
        "leaked": len(dataset.leaked),
        "ignored": dataset.num_ignored,
        "folds": None if dataset.folds is None else asdict(dataset.folds),
    }
