"""Data: which images, how they are split, stored and batched."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from runner.config.group import Group, Problem, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Data(Group):
    """Which images, how they are split, stored and batched."""

    name: Literal["fashion", "imagenette", "fashion_mnist", "cifar10", "folder", "table"] = option(
        "fashion", "data set; folder and table: your own images"
    )
    root: str | None = option(None, "folder or archive with the data; null: embedded or downloaded")
    variant: Literal["full", "320", "160"] = option(
        "160", "Imagenette: shorter side of its images, px; full: their original size"
    )
    label_noise: Literal[0, 1, 5, 25, 50] = option(
        0, "Imagenette: percentage of wrong training labels, from its own noisy label file"
    )
    val_fraction: float = option(
        0.2,
        "part of each class that is held out for validation if the data has no split of its own",
        above=0,
        below=1,
    )
    num_folds: int | None = option(
        None,
        "folder, table: number of cross-validation folds; null: data.val_fraction is held "
        "out instead",
        at_least=2,
        at_most=1000,
    )
    fold: int = option(
        0, "folder, table: fold that is held out for validation, counted from 0", at_least=0
    )
    path_column: str = option("path", "table: column with image paths, relative to the table")
    label_column: str = option("label", "table: column with class names")
    split_column: str | None = option(
        None, "table: column that says train, val or test; null: the split is drawn at random"
    )
    group_column: str | None = option(
        None,
        "table: column that says which images belong together, such as those of one "
        "patient: a split never separates them, and they count as one draw in verdicts; "
        "null: no column does",
    )
    group_pattern: str | None = option(
        None,
        "folder, table: regular expression, searched in the path below the root, that says "
        "which images belong together; its first parenthesis names the group, without one "
        "the whole match; null: no path does",
    )
    default_size: int = option(28, "image size where resize.size is null, px", at_least=1)
    presize: int | None = option(
        None,
        "short side of the images as stored for training, px; null: twice the final size, "
        "at most the images' own",
        at_least=1,
    )
    max_aspect: float = option(
        2.0,
        "largest ratio of long side to short side of a stored image; longer images lose "
        "both ends evenly",
        at_least=1,
    )
    interpolation: Literal["bilinear", "bicubic"] | None = option(
        None,
        "interpolation of all resizing; null: that of the weights with "
        "normalize=pretrained, else bilinear",
    )
    depth: Literal["auto", "bits", "extremes", "legacy"] = option(
        "auto",
        "images with more than 8 bits per channel: which values become black and white. "
        "bits: the range in the files' headers; extremes: those of all training images; "
        "auto: bits if the training images fill them, else extremes; legacy: as in bundles "
        "of earlier versions",
    )
    window: tuple[float, ...] | None = option(
        None,
        "images with more than 8 bits per channel: the two values that become black and "
        "white; null: data.depth decides",
    )
    batch_size: int = option(64, "images per training step", at_least=1)
    cache_gb: float = option(
        16.0,
        "GB that the decoded images may take; a larger data set streams from its files instead",
        at_least=0,
    )
    num_workers: int | None = option(
        None,
        "processes that read images ahead; 0: the training process reads; null: 0, or all "
        "cores for a streamed set except on macOS",
        at_least=0,
    )
    on_corrupt: Literal["error", "skip"] = option(
        "error", "what an image that cannot be read does: stop with an error, or be left out (skip)"
    )
    on_leak: Literal["warn", "error"] = option(
        "warn",
        "what an image that is in both training and validation does: warn, or stop with an error",
    )

    def ignores(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.name != "imagenette":
            yield "label_noise"
        if self.name != "imagenette" or self.root is not None:
            yield "variant"
        if self.name not in ("folder", "table") or self.num_folds is not None:
            yield "val_fraction"
        if self.num_folds is None:
            yield "fold"
        if self.name != "table":
            yield from ("path_column", "label_column", "split_column")
        if self.name not in ("folder", "table"):
            yield from ("depth", "window")
        elif self.window is not None:
            yield "depth"
        if run.resize.size is not None:
            yield "default_size"

    def contradictions(self, run: "RunConfig") -> Iterator[Problem]:
        """See :class:`Group`."""
        if self.name == "fashion" and self.root is not None:
            yield Problem(
                f"data.root={self.root}: data=fashion is embedded and takes no root",
                f"data=fashion_mnist data.root={self.root}, or data=folder data.root={self.root}",
            )
        if self.window is not None and (len(self.window) != 2 or self.window[0] >= self.window[1]):
            yield Problem(
                f"data.window={list(self.window)}: two values, of black and then of white",
                "data.window=[0,4095], or data.window=null",
            )
        if self.num_folds is not None:
            yield from self._wrong_folds(self.num_folds)
        yield from self._contradictions_of_groups()
        if self.name in ("folder", "table") and self.root is None:
            yield Problem(
                f"data.root=null: data={self.name} needs to know where the images are",
                f"data={self.name} data.root=PATH",
            )

    def _wrong_folds(self, num_folds: int) -> Iterator[Problem]:
        if self.name not in ("folder", "table"):
            yield Problem(
                f"data.num_folds={num_folds}: data={self.name} has a split of its own, so its "
                "images are not divided into folds",
                "data.num_folds=null, or data=folder data.root=PATH of a folder without splits",
            )
        if self.fold >= num_folds:
            yield Problem(
                f"data.fold={self.fold}: {num_folds} folds are numbered from 0 to {num_folds - 1}",
                f"data.fold={num_folds - 1}, or data.num_folds={self.fold + 1}",
            )

    def _contradictions_of_groups(self) -> Iterator[Problem]:
        if self.group_column is not None and self.group_pattern is not None:
            yield Problem(
                f"data.group_column={self.group_column} data.group_pattern={self.group_pattern}: "
                "each of the two says which images are a group",
                "data.group_column=null or data.group_pattern=null",
            )
        if self.group_column is not None and self.name != "table":
            fix = "data.group_column=null"
            if self.name == "folder":
                fix += ", or data.group_pattern with a regular expression on the path of an image"
            yield Problem(
                f"data.group_column={self.group_column}: data={self.name} has no columns", fix
            )
        if self.group_pattern is None:
            return
        if self.name not in ("folder", "table"):
            yield Problem(
                f"data.group_pattern={self.group_pattern}: the images of data={self.name} have no "
                "paths of their own",
                "data.group_pattern=null",
            )
        try:
            re.compile(self.group_pattern)
        except (re.error, OverflowError, RecursionError) as error:
            place = getattr(error, "pos", None)
            yield Problem(
                f"data.group_pattern={self.group_pattern}: no regular expression: "
                f"{getattr(error, 'msg', error)}"
                + ("" if place is None else f", at position {place}"),
                "a regular expression of Python, in two pairs of quotes: "
                """'data.group_pattern="^[^/]+/([^_/]+)_"', the part of a file name before _""",
            )
