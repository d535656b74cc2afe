"""The figures of a finished run, drawn from its folder into RUN/figures.

    curves       loss and accuracy after each epoch
    schedule     learning rate and image size at the end of each epoch
    confusion    what is taken for what; of many classes, the most frequent mistakes
    reliability  whether the confidence can be trusted
    mistakes     images with a wrong prediction: likely label errors, then the highest losses
    gradcam      which part of these images speaks for the prediction, and which for the label

``mistakes.csv`` lists every validation image with a wrong prediction. Only ``gradcam`` runs the
network; ``mistakes`` and ``gradcam`` need the images. What cannot be drawn is reported with a way
to get it, and everything else is drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from runner.config.idea import IdeaFile
from runner.errors import ArtefactError, DataError, RunnerError
from runner.look.mistakes import Mistake, find_mistakes, worth_showing
from runner.machine import fields
from runner.pictures import charts, galleries
from runner.pictures.paper import picture_bytes
from runner.records.run_folder import FIGURES, RunFolder
from runner.records.validation_images import ValidationImages
from runner.terminal.tables import to_csv

if TYPE_CHECKING:
    from runner.records.bundle import Bundle

FOLDER = "figures"
CHARTS = FIGURES[:4]
_NUM_MISTAKES = 12
_NUM_HEATED = 6
_HEADINGS = ("Sure of another class: is the label wrong?", "The highest losses of the others")
_COLUMNS = (
    "image", "label", "predicted", "confidence", "loss", "normalized_margin", "likely_label_error",
)  # fmt: skip

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Run:
    """A finished run, as its figures need it.

    Attributes:
        folder: its folder.
        result: content of ``result.json``.
        outputs: names of the outputs of the network.
        classes: names of the classes, which are the first outputs.
        labels: (N,) label of each validation image.
        probabilities: (N, K) plain predictions.
    """

    folder: RunFolder
    result: dict[str, Any]
    outputs: tuple[str, ...]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Places:
    """Where and how the figures of a run are made.

    Attributes:
        suffix: ``.png`` or ``.svg`` for all figures; None: charts as SVG, images as PNG.
        root: where the data is now; None: where the run found it.
        device: device of Grad-CAM, spelled as in the configuration.
        threads: threads of the CPU; 0: all cores.
        code: the code that changed the network, if the user lets it run.
    """

    suffix: str | None = None
    root: str | None = None
    device: str = "auto"
    threads: int = 0
    code: IdeaFile | None = None


def draw(run: Path, places: Places | None = None, say: Say = print) -> list[Path]:
    """Draw the figures of a finished run.

    Args:
        run: the folder of the run.
        places: where the data is and how figures are written.
        say: called with the path of each file that was written, and with notes.

    Returns:
        The files that were written.

    Raises:
        DataError: there is no finished run in the folder.
        ArtefactError: the result or the predictions are damaged.
        StorageError: a figure cannot be written.
    """
    places = places or Places()
    folder, result = _finished(run)
    written: list[Path] = []

    def write(name: str, content: bytes) -> None:
        folder.write_bytes(f"{FOLDER}/{name}", content)
        written.append(run / FOLDER / name)
        say(str(written[-1]))

    def write_figure(name: str, figure: Figure, alt: str) -> None:
        suffix = places.suffix or (".svg" if name in CHARTS else ".png")
        write(f"{name}{suffix}", picture_bytes(figure, suffix, alt))

    rows = _whole_rows(folder.rows())
    write_figure("curves", charts.curves(rows), charts.curves_alt(rows))
    write_figure("schedule", charts.schedule(rows), charts.schedule_alt(rows))
    found = _read(folder, result)
    matrix = charts.counts(found.probabilities, found.labels, len(found.classes))
    write_figure(
        "confusion",
        charts.confusion(matrix, found.classes),
        charts.confusion_alt(matrix, found.classes),
    )
    write_figure(
        "reliability",
        charts.reliability(found.probabilities, found.labels),
        charts.reliability_alt(found.probabilities, found.labels),
    )
    _draw_images(found, places, write, write_figure, say)
    return written


def _draw_images(
    run: _Run,
    places: Places,
    write: Callable[[str, bytes], None],
    write_figure: Callable[[str, Figure, str], None],
    say: Say,
) -> None:
    """Draw the figures that need the images, and list the mistakes."""
    section = fields.section(fields.section(run.result, "config"), "data")
    images = ValidationImages(run.folder.path, section, len(run.labels), places.root)
    found = find_mistakes(run.probabilities, run.labels, run.outputs, images.name)
    write("mistakes.csv", _listed(found).encode(errors="backslashreplace"))
    if not found:
        say("note: no validation image has a wrong prediction, so there is none to show")
        return
    name = run.folder.path
    if images.missing:
        say(
            f"note: mistakes and gradcam are not drawn: {images.missing}; where the images are: "
            f"python -m runner.look {name} data.root=PATH"
        )
        return
    from runner.records.bundle import read_bundle  # imports torch, which takes seconds

    try:
        bundle = read_bundle(run.folder.path / "bundle", run.result.get("bundle"))
    except ArtefactError as error:
        say(f"note: mistakes and gradcam are not drawn: {error}")
        return
    kinds = worth_showing(found, _NUM_MISTAKES)
    shown = [*kinds[0], *kinds[1]]
    squares = {one.row: images.square(one.row, bundle.preprocess) for one in shown}
    write_figure("mistakes", _gallery(kinds, squares), _gallery_alt(shown, len(found)))
    if all(square is None for square in squares.values()):
        say(
            "note: the images of mistakes are not what the run evaluated: they were changed or "
            f"removed; where the unchanged images are: python -m runner.look {name} data.root=PATH"
        )
        return
    from runner.look import gradcam

    if remedy := gradcam.missing():
        say(f"note: gradcam is not drawn: {remedy}")
        return
    try:
        figure, alt = _heated(shown, squares, run, bundle, places)
    except RunnerError as error:
        say(f"note: gradcam is not drawn: {error}")
        return
    write_figure("gradcam", figure, alt)


def _finished(run: Path) -> tuple[RunFolder, dict[str, Any]]:
    """The folder and the result of a finished run."""
    folder, where = RunFolder(run), str(run.absolute())
    if not run.is_dir():
        raise DataError("no such folder", where=where, fix="the folder of a finished run")
    result = folder.whole_result()
    if result is None:
        raise DataError(
            f"no finished run is here (status: {folder.status()['status']})",
            where=where,
            fix="one of those that python -m runner.show lists as finished",
        )
    return folder, result


def _whole_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that have the numbers that are drawn; damaged ones are left out."""
    needed = ("epoch", "train_loss", "val_loss", "val_accuracy", "lr", "size")
    return [row for row in rows if all(isinstance(row.get(key), int | float) for key in needed)]


def _read(folder: RunFolder, result: dict[str, Any]) -> _Run:
    where, fix = str(folder.path.absolute()), "a whole copy of the folder"
    arrays = folder.predictions()
    labels, plain = arrays["labels"], arrays["plain"]
    try:
        classes = fields.texts(fields.section(result, "data"), "classes")
        fields.section(fields.section(result, "config"), "data")
    except ValueError as error:
        raise ArtefactError(
            f"the result does not say what was trained: {error}", where=where, fix=fix
        ) from error
    if not (
        plain.ndim == 2
        and plain.dtype.kind == "f"
        and labels.dtype.kind in "iu"
        and labels.shape == (len(plain),)
        and len(labels) > 0
        and plain.shape[1] >= len(classes)
        and labels.min() >= 0
        and labels.max() < len(classes)
        and np.isfinite(plain).all()
    ):
        raise ArtefactError(
            "predictions.npz does not hold predictions of these classes", where=where, fix=fix
        )
    extra = (f"output {number}" for number in range(len(classes), plain.shape[1]))
    return _Run(folder, result, (*classes, *extra), classes, labels.astype(np.int64), plain)


def _listed(mistakes: Sequence[Mistake]) -> str:
    """All mistakes as CSV; probabilities are parts of 1."""
    return to_csv(
        _COLUMNS,
        [
            [
                one.name, one.true, one.predicted, round(one.confidence, 6), round(one.loss, 6),
                round(one.margin, 6), int(one.is_likely_label_error),
            ]
            for one in mistakes
        ],
    )  # fmt: skip


def _card(one: Mistake, image: NDArray[np.uint8] | None) -> galleries.Card:
    return galleries.Card(image, one.true, one.predicted, one.confidence, one.loss, one.name)


def _gallery(
    shown: tuple[Sequence[Mistake], Sequence[Mistake]],
    squares: dict[int, NDArray[np.uint8] | None],
) -> Figure:
    """Draw likely label errors, then the highest losses."""
    sections = [
        (heading, [_card(one, squares[one.row]) for one in kind])
        for heading, kind in zip(_HEADINGS, shown, strict=True)
    ]
    return galleries.mistakes([(heading, cards) for heading, cards in sections if cards])


def _gallery_alt(shown: Sequence[Mistake], total: int) -> str:
    first = shown[0]
    return (
        f"{len(shown)} of {total} validation images with a wrong prediction, each with label, "
        f"prediction, confidence and loss; the first is {first.name}, labelled {first.true}, "
        f"predicted {first.predicted} with a confidence of {first.confidence:.0%}"
    )


def _heated(
    shown: Sequence[Mistake],
    squares: dict[int, NDArray[np.uint8] | None],
    run: _Run,
    bundle: "Bundle",
    places: Places,
) -> tuple[Figure, str]:
    """Draw where the first mistakes speak for the prediction and for the label."""
    from runner.look.gradcam import heat_maps, network_input
    from runner.training.learners import trained_learner

    chosen = [one for one in shown if squares[one.row] is not None][:_NUM_HEATED]
    learner = trained_learner(
        bundle, device=places.device, precision="fp32", threads=places.threads, code=places.code
    )
    inputs = network_input(
        [square for one in chosen if (square := squares[one.row]) is not None], learner
    )
    predicted = run.probabilities.argmax(axis=1)
    rows = [one.row for one in chosen]
    wrong, layer = heat_maps(learner, inputs, [int(predicted[row]) for row in rows])
    right, _ = heat_maps(learner, inputs, [int(run.labels[row]) for row in rows])
    figure = galleries.heat_rows(
        [
            (_card(one, squares[one.row]), *heats)
            for one, *heats in zip(chosen, wrong, right, strict=True)
        ]
    )
    alt = (
        f"Grad-CAM of {len(chosen)} validation images with a wrong prediction: bright places speak "
        f"for the prediction, in the second column, and for the label, in the third; from a map of "
        f"{layer.side} by {layer.side} places of the layer {layer.name}"
    )
    return figure, alt
