"""What every group of the configuration is: fields with their ranges, and what they mean together.

A group is a frozen dataclass in a file of its own, named as its folder of ``conf/``. It holds its
keys and says for itself which tricks it turns on, which of its keys this configuration ignores and
what contradicts. Everything that lists tricks, from the notes of ``train`` to the report, is
derived from these classes, and the training asks the same properties.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


def option(
    default: Any,
    help: str,  # noqa: A002  the word the command line uses
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """Return a field with its one-line meaning and its allowed range (of each item, for a tuple).

    The default is neutral: it leaves the training as it is without the field.
    """
    limits = {"≥": at_least, ">": above, "≤": at_most, "<": below}
    given = {sign: limit for sign, limit in limits.items() if limit is not None}
    return field(default=default, metadata={"help": help, "limits": given})


class Problem(NamedTuple):
    """What is wrong with a configuration.

    Attributes:
        what: the keys with their values, and why those cannot be.
        fix: words to paste.
    """

    what: str
    fix: str


@dataclass(frozen=True)
class Group:
    """A group that turns on no trick, reads all of its keys and contradicts nothing."""

    TRICKS: ClassVar[tuple[str, ...]] = ()
    """Names of the tricks that the group can turn on."""
    NO_TRICK: ClassVar[tuple[str, ...]] = ()
    """Keys of such a group that belong to no trick: compared runs have equal ones."""
    TRAINS: ClassVar[bool] = True
    """Whether the weights depend on the group; False where only the evaluation does."""
    MAIN_KEY: ClassVar[str | None] = None
    """The key that a number given for the whole group is meant for, as words before ``=``."""

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """Yield the names in ``TRICKS`` that are on in ``run``."""
        yield from ()

    def ignores(self, run: "RunConfig") -> Iterator[str]:
        """Yield the keys of this group that nothing reads in ``run``."""
        yield from ()

    def contradictions(self, run: "RunConfig") -> Iterator[Problem]:
        """Values that are allowed alone and make no sense together, also with other groups."""
        yield from ()
