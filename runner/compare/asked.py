"""The command line of a comparison, before anything of it is checked."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_WORD = re.compile(r"[+~]*[\w./@]+=.*", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """The command line of a comparison.

    Attributes:
        words: words of the baseline.
        tries: the words after each ``--try``; none for the tricks, each alone.
        margin: value of ``--margin``; None if it was not given.
        metric: what is compared.
        max_seeds: value of ``--max-seeds``; None if it was not given.
        seeds: value of ``--seeds``; None if it was not given.
        folds: value of ``--folds``; None if it was not given.
        budget: value of ``--budget``; None if it was not given.
        tune: the value of each ``--tune``.
        name: name of the comparison; None if it was not given.
        config_dir: folder with the user's option files; None if there is none.
    """

    words: tuple[str, ...] = ()
    tries: tuple[tuple[str, ...], ...] = ()
    margin: str | None = None
    metric: str = "accuracy"
    max_seeds: str | None = None
    seeds: str | None = None
    folds: str | None = None
    budget: str | None = None
    tune: tuple[str, ...] = ()
    name: str | None = None
    config_dir: Path | None = None


def separate_words(argument: str) -> list[str]:
    """Split an argument of ``--try`` into words, if each piece is a word such as ``KEY=VALUE``.

    ``'code=my file.py'`` and ``'+trick=[mixup, tta]'`` are one word.
    """
    try:
        pieces = shlex.split(argument)
    except ValueError:  # a quote that is not closed
        return [argument]
    if len(pieces) > 1 and all(map(_WORD.fullmatch, pieces)):
        return pieces
    return [argument]
