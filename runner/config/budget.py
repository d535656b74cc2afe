"""How long training lasts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from runner.config.group import Group, option

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Budget(Group):
    """How long training lasts."""

    MAIN_KEY: ClassVar = "budget.epochs"

    epochs: int = option(5, "passes over the training split", at_least=1, at_most=100_000)
