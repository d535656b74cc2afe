"""A planned comparison on tiny data."""

from collections.abc import Callable
from pathlib import Path

import pytest

from runner.compare.asked import Asked
from runner.compare.plan import Planned, planned
from runner.compare.question import question
from runner.terminal.display import Display


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Planned]:
    """Plans a comparison in an empty folder: words of the baseline, then those of each --try."""
    monkeypatch.chdir(tmp_path)

    def plan_words(
        words: tuple[str, ...], *tries: str, **options: str | tuple[str, ...]
    ) -> Planned:
        split = tuple((one,) for one in tries)
        asked = Asked(words=words, tries=split, **options)  # type: ignore[arg-type]
        with Display(quiet=True) as display:
            return planned(question(asked), display)

    return plan_words
