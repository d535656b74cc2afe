"""The words of a command line."""

import difflib
from collections.abc import Container, Sequence
from typing import Any


def own_words(job: Sequence[str], jobs: Sequence[Sequence[str]]) -> str:
    """Return the words of a job that not all the others share; all of them for a single job."""
    return without_shared(job, shared_words(jobs))


def shared_words(jobs: Sequence[Sequence[str]]) -> set[str]:
    """Return the words that all of the jobs, at least one, have."""
    return set.intersection(*(set(words) for words in jobs))


def without_shared(job: Sequence[str], shared: Container[str]) -> str:
    """Return the words of a job that are not ``shared``; all of them if there are no others."""
    return " ".join([word for word in job if word not in shared] or job)


def nearest(word: str, choices: Sequence[str]) -> str | None:
    """Return the choice that ``word`` was probably meant to be, if any is close."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return close[0] if close else None


def spelled(value: Any) -> str:
    """Spell ``value`` as on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(spelled(item) for item in value) + "]"
    return str(value)
