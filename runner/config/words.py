"""The words of a command line."""

from collections.abc import Sequence


def own_words(job: Sequence[str], jobs: Sequence[Sequence[str]]) -> str:
    """The words of a job that not all the others share; all of them for a single job."""
    shared = set.intersection(*(set(words) for words in jobs))
    return " ".join([word for word in job if word not in shared] or job)
