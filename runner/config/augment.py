"""Augmentation: random geometry and light of the training images."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from runner.config.group import Group, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Augment(Group):
    """Random geometry and light of the training images, drawn per image."""

    crop_from: Literal["square", "rectangle"] = option(
        "square",
        "where crops lie: in a random presized square, or anywhere in the stored rectangle",
    )
    min_scale: float = option(1.0, "smallest crop, as a part of the area", above=0, at_most=1)
    max_ratio: float = option(
        1.0, "largest width / height of a crop; the smallest is 1/max_ratio", at_least=1
    )
    crop_per: Literal["image", "batch"] = option(
        "image", "one crop per image, or one per batch as in fastai"
    )
    flip: float = option(0.0, "probability of a horizontal flip", at_least=0, at_most=1)
    max_rotate: float = option(
        0.0, "largest rotation to either side, degrees", at_least=0, at_most=180
    )
    max_zoom: float = option(1.0, "largest magnification; 1: none", at_least=1)
    max_warp: float = option(
        0.0, "largest perspective warp, by the shift of the corners; 0: none", at_least=0, below=1
    )
    affine_probability: float = option(
        0.75, "probability of each of rotation, zoom and warp", at_least=0, at_most=1
    )
    max_lighting: float = option(
        0.0, "largest change of brightness and of contrast; 0: none", at_least=0, below=1
    )
    lighting_probability: float = option(
        0.75, "probability of each of brightness and contrast", at_least=0, at_most=1
    )

    @property
    def warps(self) -> bool:
        """Whether some images are rotated, magnified or seen in perspective."""
        return self.max_rotate > 0 or self.max_zoom > 1 or self.max_warp > 0

    @property
    def crops(self) -> bool:
        """Whether less than the presized square can be seen of an image, or other parts of it."""
        return self.min_scale < 1 or self.crop_from == "rectangle"

    @property
    def changes_geometry(self) -> bool:
        """Whether images are resampled; otherwise they are only resized."""
        return self.crops or self.flip > 0 or self.warps

    def ignores(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if not self.warps:
            yield "affine_probability"
        if self.max_lighting == 0:
            yield "lighting_probability"
        if not self.crops:
            yield from ("max_ratio", "crop_per")
