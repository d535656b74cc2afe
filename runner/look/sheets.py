"""The pictures of a configuration: its first training batch, and its views at evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runner.config.idea import idea_of
from runner.config.schema import RunConfig
from runner.data.dataset import Dataset, load_dataset
from runner.data.views import View, plain_view
from runner.look.batch import Stages, as_pixels, first_batch, originals
from runner.pictures.sheet import Cell, Column, Row
from runner.records.identity import evaluation_identity, folder_name, identified
from runner.terminal.console import printable
from runner.terminal.display import Display
from runner.training.learners import build_learner, fitted_to_weights
from runner.training.predicting import images_of_looks
from runner.training.step import Learner
from runner.tricks.idea import NO_IDEA, load_idea
from runner.tricks.tta import Look, looks, looks_used

_LONGEST_NAME = 11  # characters of a class under a quarter of the sheet


@dataclass(frozen=True)
class Prepared:
    """A configuration, ready to be looked at.

    Attributes:
        name: name of the folder that a run of it would have, with the identity of its TTA.
        config: the configuration, adapted to its weights and data.
        dataset: its data set.
        learner: its network before training, with everything that prepares images.
    """

    name: str
    config: RunConfig
    dataset: Dataset
    learner: Learner


def prepare(config: RunConfig, display: Display) -> Prepared:
    """Read the data and build the network of a configuration, as its training would.

    Raises:
        RunnerError: see :func:`runner.train.run`.
    """
    code = idea_of(config)
    config, weights = fitted_to_weights(config, display, code)
    cache = Path(config.outputs).expanduser() / "cache"
    dataset = load_dataset(config.data, config.largest_size, cache, display.work)
    idea = load_idea(code) if code is not None else NO_IDEA
    learner, _ = build_learner(config, dataset, weights=weights, idea=idea)
    config, what = identified(config, dataset, weights.identity if weights else None, code)
    name = folder_name(config, what["identity"])
    # Trainings that differ only in their TTA have one folder, but not the same pictures.
    if (evaluation := evaluation_identity(config)) is not None:
        name += f"-tta-{evaluation[:8]}"
    return Prepared(name, config, dataset, learner)


def batch_column(prepared: Prepared, title: str, num_images: int) -> Column:
    """The first images of the first training batch, from the stored image to the input."""
    config, dataset = prepared.config, prepared.dataset
    stages = first_batch(prepared.learner, dataset, config, num_images)
    whole = originals(dataset, config, num_images)
    names = [dataset.classes[label] for label in stages[0].labels]
    cells = [Cell(image, (_short(name),)) for image, name in zip(whole, names, strict=True)]
    rows = [Row("as stored", cells)]
    has_sizes = len(stages) > 1
    for stage in stages:
        when = f", from {stage.from_progress:.0%} on" if stage.from_progress else ""
        place = f"{stage.size} px{when or (', at the start' if has_sizes else '')}"
        targets = [_target(stage, number) for number in range(len(stage.targets))]
        own = targets if stage.partners is None else [()] * len(targets)
        rows.append(
            Row(
                f"augmented, {place}",
                [Cell(image, text) for image, text in zip(stage.augmented, own, strict=True)],
            )
        )
        if stage.partners is not None:
            rows.append(
                Row(
                    f"mixed, {place}",
                    [
                        Cell(image, (*_mix(stage, number, dataset.classes), *target))
                        for number, (image, target) in enumerate(
                            zip(stage.mixed, targets, strict=True)
                        )
                    ],
                )
            )
    return Column(title, rows)


def views_column(prepared: Prepared, title: str, num_images: int) -> Column:
    """The views of validation images that evaluation averages, a row per image."""
    dataset, config, learner = prepared.dataset, prepared.config, prepared.learner
    # Spread over the split, which is sorted by class.
    rows = np.linspace(0, len(dataset.val) - 1, num_images).astype(np.int64)
    crop = learner.preprocess.crop
    plain = plain_view(crop)
    used = looks_used([config.tta], crop)
    # The plain view is combined with random passes, too.
    wanted = [*dict.fromkeys([*([plain] if plain in used else []), *looks(config.tta, crop)])]
    seen = {
        look: as_pixels(images)
        for look, images in images_of_looks(learner, dataset, config, rows, wanted).items()
    }
    return Column(
        title,
        [
            Row(
                f"validation image, {_short(dataset.classes[dataset.val.labels[row]], 30)}",
                [Cell(seen[look][place], _look_caption(look, crop)) for look in wanted],
            )
            for place, row in enumerate(rows)
        ],
    )


def normalization_line(config: RunConfig, learner: Learner) -> str:
    """What happens to the shown pixels before the network, in a line."""
    mean, std = learner.preprocess.mean, learner.preprocess.std
    if not any(mean) and set(std) == {1.0}:
        return "The network gets these pixels as numbers in 0..1, without normalization."
    source = config.normalize.source
    return (
        f"The network gets (pixel - mean) / std: {source} statistics,\n"
        f"mean {_numbers(mean)}, std {_numbers(std)}"
    )


def _numbers(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in values) + "]"


def _mix(stage: Stages, number: int, classes: Sequence[str]) -> tuple[str, ...]:
    assert stage.partners is not None
    assert stage.shares is not None
    share = float(stage.shares[number])
    own, partner = classes[stage.labels[number]], classes[stage.partners[number]]
    return (
        f"λ = {share:.2f}",
        f"{share:.2f} {_short(own)}",
        f"{1 - share:.2f} {_short(partner)}",
    )


def _target(stage: Stages, number: int) -> tuple[str, ...]:
    """The largest target, if something such as label smoothing changes it after mixing."""
    largest = float(stage.targets[number].max())
    share = 1.0
    if stage.partners is not None and stage.shares is not None:
        is_same = stage.partners[number] == stage.labels[number]
        share = 1.0 if is_same else float(stage.shares[number])
    return () if abs(largest - max(share, 1 - share)) < 1e-4 else (f"target {largest:.2f}",)


def _look_caption(look: Look, crop: float) -> tuple[str, ...]:
    if not isinstance(look, View):
        return (f"random {look + 1}",)
    if look.side < crop:  # a corner
        place = f"{'bottom' if look.y else 'top'} {'right' if look.x else 'left'}"
    else:  # along the long side
        place = {0.0: "left or top", 0.5: "center", 1.0: "right or low"}.get(
            look.x, f"{look.x:.0%}"
        )
    lines = (place, "mirrored" if look.flip else "")
    return (*lines, f"{look.scale:g} × size") if look.scale != 1 else lines


def _short(name: str, longest: int = _LONGEST_NAME) -> str:
    name = printable(name)
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
