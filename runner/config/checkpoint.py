"""When the state of a run is saved."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.config.group import Group, option

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Checkpoint(Group):
    """When the state of a run is saved, in addition to the end of each epoch."""

    minutes: float = option(5.0, "minutes from one checkpoint to the next", at_least=0)
