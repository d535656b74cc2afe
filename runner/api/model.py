"""A trained network with its preprocessing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from runner.data.images import FileImages, rectangle, to_rgb
from runner.data.store import StreamedStore
from runner.errors import ConfigError, DataError
from runner.records.bundle import Bundle
from runner.training.predicting import probabilities
from runner.training.step import Learner

AnyImage = str | Path | Image.Image | NDArray[np.uint8]


class Model(nn.Module):
    """A trained network: from images in 0..1 to logits, and from anything readable to predictions.

    Attributes:
        network: the network alone, from normalized images to logits; it is in evaluation mode.
        classes: names of the classes, in the order of the outputs.
        preprocess: how an image becomes an input; see :mod:`runner.data.preprocess`.
    """

    def __init__(self, bundle: Bundle, learner: Learner) -> None:
        super().__init__()
        self.network = learner.model.eval()
        self.classes = bundle.classes
        self.preprocess = bundle.preprocess
        self._bundle = bundle
        self._learner = learner

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, S, S), float in 0..1 and not normalized, to logits (N, K) float32."""
        return self._learner.logits(images.to(self._learner.device))

    def predict(self, images: Sequence[AnyImage]) -> NDArray[np.float32]:
        """Return the probabilities (N, K) of images, equal to those of ``runner.predict``.

        Args:
            images: paths, images of Pillow, or arrays (H, W, 3) uint8 of any size.

        Raises:
            DataError: an image cannot be read.
            ConfigError: a value is no image.
        """
        if _is_image(images) or isinstance(images, str | Path | Image.Image):
            return self.predict([cast("AnyImage", images)])
        evaluated = self._bundle.evaluated
        found = probabilities(
            self._learner,
            _Given([_checked(image) for image in images], self._bundle),
            np.arange(len(images)),
            [],
            augment=evaluated.augment,
            seed=evaluated.seed,
            batch_size=evaluated.batch_size,
            num_workers=0,
        )
        for row, reason in found.broken.items():
            raise DataError(reason, where=str(images[row])[:400], fix="leave it out")
        return found.plain

    def top(self, images: Sequence[AnyImage], count: int = 1) -> list[list[tuple[str, float]]]:
        """Return the most probable classes of each image with their probabilities, best first."""
        order = np.argsort(-(found := self.predict(images)), axis=1, kind="stable")[:, :count]
        return [
            [
                (self.classes[place], float(row[place]))
                for place in places
                if place < len(self.classes)
            ]
            for row, places in zip(found, order, strict=True)
        ]


class _Given:
    """Images of several kinds as a store."""

    def __init__(self, images: Sequence[AnyImage], bundle: Bundle) -> None:
        self._images, self._how = images, bundle.preprocess

    def rectangle(self, index: int) -> NDArray[np.uint8]:
        """See :class:`runner.data.store.Store`."""
        image, how = self._images[index], self._how
        if isinstance(image, str | Path):
            files = FileImages(Path(), (str(image),))
            shape = (how.presize, how.max_aspect, how.interpolation)
            return StreamedStore(files, *shape, depth=how.depth).decode(0)[0]
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        upright = to_rgb(picture, how.depth)[0]
        return rectangle(upright, how.presize, how.max_aspect, how.interpolation)


def _is_image(value: Any) -> bool:
    """Return whether a value is one image as an array; a row of it is none."""
    is_array = isinstance(value, np.ndarray) and value.dtype == np.uint8
    return is_array and value.ndim == 3 and value.shape[2] == 3


def _checked(image: Any) -> AnyImage:
    if isinstance(image, torch.Tensor):
        raise ConfigError(
            "predict takes paths, images of Pillow and uint8 arrays (H, W, 3)",
            where="a tensor",
            fix="model(images) for tensors (N, 3, S, S) in 0..1",
        )
    if not _is_image(image) and not isinstance(image, str | Path | Image.Image):
        raise ConfigError(
            "an image is a path, an image of Pillow, or a uint8 array (H, W, 3)",
            where=f"{type(image).__name__} {getattr(image, 'shape', '')}".strip(),
            fix="model.predict([PATH])",
        )
    return image  # type: ignore[no-any-return]
