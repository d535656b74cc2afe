"""What several jobs request of one training: a configuration of each, with its words."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runner.config.schema import RunConfig, evaluation_groups


@dataclass(frozen=True)
class Requested:
    """A configuration, and the words of the command that requests it.

    Attributes:
        config: the configuration.
        words: the words of the user.
    """

    config: RunConfig
    words: tuple[str, ...]

    def of(self, config: RunConfig) -> "Requested":
        """Return the request with ``config`` in all but what only the evaluation reads."""
        own: dict[str, Any] = {name: getattr(self.config, name) for name in evaluation_groups()}
        return replace(self, config=replace(config, **own))


def by_training(
    numbers: Sequence[int], configs: Mapping[int, RunConfig]
) -> dict[int, tuple[int, ...]]:
    """Find the jobs whose configurations differ only in their evaluation.

    Args:
        numbers: the numbers of the jobs, in the order in which they begin.
        configs: the configuration of each job that is known; a job without one shares nothing.

    Returns:
        For the first job of each training: the other jobs of this training, in order. Jobs that
        share their training with no other are left out.
    """
    found: dict[Hashable, list[int]] = {}
    for number in numbers:
        if number in configs and not configs[number].force:
            found.setdefault(repr(configs[number].training), []).append(number)
    return {first: tuple(others) for first, *others in found.values() if others}
