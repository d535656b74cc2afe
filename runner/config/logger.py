"""The logger: which other tool gets a copy of a run's numbers and figures."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from runner.config.group import Group, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Logger(Group):
    """A copy of the records for another tool; a result does not depend on it."""

    name: Literal["none", "tensorboard", "mlflow", "wandb", "trackio"] = option(
        "none", "tool that gets a copy of each run's numbers and figures"
    )
    folder: str | None = option(
        None, "folder in which the tool keeps its files; null: below outputs"
    )
    project: str = option("trick-runner", "project or experiment that the tool files runs under")
    online: bool = option(
        False, "send to the server that the tool is set up for (wandb, mlflow); false: files only"
    )

    @property
    def is_on(self) -> bool:
        """Whether a tool gets a copy."""
        return self.name != "none"

    def ignores(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if not self.is_on:
            yield from ("folder", "project", "online")
        if self.name == "tensorboard":
            yield from ("project", "online")
        if self.name == "trackio":
            yield "online"
        if self.name == "mlflow" and self.online:
            yield "folder"
