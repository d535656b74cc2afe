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
        "square", "crops lie in a random presized square, or anywhere in the stored rectangle"
    )
    min_scale: float = option(1.0, "smallest crop, as a part of the area", above=0, at_most=1)
    max_ratio: float = option(1.0, "crop width / height lies in 1/max_ratio..max_ratio", at_least=1)
    crop_per: Literal["image", "batch"] = option(
        "image", "one crop per image, or fastai's per batch"
    )
    flip: float = option(0.0, "probability of a horizontal flip", at_least=0, at_most=1)
    max_rotate: float = option(0.0, "degrees to either side", at_least=0, at_most=180)
    max_zoom: float = option(1.0, "largest magnification", at_least=1)
    max_warp: float = option(0.0, "perspective: shift of the corners", at_least=0, below=1)
    affine_probability: float = option(
        0.75, "for each of rotate, zoom, warp", at_least=0, at_most=1
    )
    max_lighting: float = option(0.0, "brightness and contrast change", at_least=0, below=1)
    lighting_probability: float = option(
        0.75, "for each of brightness, contrast", at_least=0, at_most=1
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
