"""How the validation split is evaluated."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.config.group import Group, option

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Eval(Group):
    """How the validation split is evaluated."""

    size: int | None = option(
        None, "evaluation size, px; null: the final training size", at_least=8, at_most=4096
    )
    crop: float | None = option(
        None,
        "side of the center square, as a part of the short side; null: that of the weights "
        "with normalize=pretrained, else 1",
        above=0,
        at_most=1,
    )
    batch_size: int | None = option(
        None, "images per forward pass; null: 256, on a CPU fewer above 64 px", at_least=1
    )
    every: int = option(
        1, "epochs from one evaluation to the next; the last epoch is always evaluated", at_least=1
    )
