"""Mixup and CutMix: which pairs of training images are mixed, and how."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from runner.config.group import Group, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Mixup(Group):
    """Mixing pairs of training images and their labels."""

    TRICKS: ClassVar = ("mixup", "cutmix")
    MAIN_KEY: ClassVar = "mixup=beta mixup.alpha"

    probability: float = option(
        0.0,
        "part of the images that is mixed; with mixup.per=batch, part of the batches",
        at_least=0,
        at_most=1,
    )
    distribution: Literal["beta", "uniform"] = option(
        "beta",
        "distribution of λ, the weight of the image itself: Beta(alpha, alpha), or uniform "
        "in 0.5..1",
    )
    alpha: float = option(
        0.4, "both parameters of the Beta distribution; 0: nothing is mixed", at_least=0
    )
    fold: bool = option(True, "replace λ by max(λ, 1-λ): the image itself has the larger weight")
    per: Literal["image", "batch"] = option("image", "draw one λ per image, or one per batch")
    cutmix: float = option(
        0.0, "part of the mixing that pastes a box instead of blending", at_least=0, at_most=1
    )
    cutmix_alpha: float = option(
        1.0,
        "both parameters of the Beta distribution that the box's area is drawn from; never folded",
        at_least=0,
    )
    until: float = option(
        1.0, "part of training after which mixing stops; 1: never", at_least=0, at_most=1
    )

    @property
    def blends(self) -> bool:
        """Whether some images are blended."""
        draws = self.distribution == "uniform" or self.alpha > 0
        return self.probability > 0 and self.until > 0 and self.cutmix < 1 and draws

    @property
    def pastes(self) -> bool:
        """Whether a box of another image is pasted into some images."""
        is_drawn = self.cutmix > 0 and self.cutmix_alpha > 0
        return self.probability > 0 and self.until > 0 and is_drawn

    def acts_at(self, progress: float) -> bool:
        """Return whether images are mixed at this part of training, in 0..1."""
        return (self.blends or self.pastes) and progress < self.until

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.blends:
            yield "mixup"
        if self.pastes:
            yield "cutmix"

    def ignores(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if not self.blends and not self.pastes:
            yield from ("probability", "cutmix", "until", "per")
        if not self.blends:
            yield "distribution"
        if not self.blends or self.distribution != "beta":
            yield from ("alpha", "fold")
        if not self.pastes:
            yield "cutmix_alpha"
