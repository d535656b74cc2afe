"""The pages of the tricks get what a comparison measured, and nothing else of them changes."""

from pathlib import Path

import pytest

from scripts.measured_tricks import (
    FOLDER,
    filled,
    indexed,
    price_sentence,
    priced,
    section,
    tricks_of,
)

ARM = {
    "words": ["+trick=sam"],
    "line": "sam: cannot tell after 5 seeds [-1.0, 1.6]",
    "pairs": [{"difference": 0.001}, {"difference": 0.005}],
    "difference": 0.003,
    "verdict": "cannot tell",
    "seeds": [0, 1, 2, 3, 4],
}
ANSWER = {
    "arms": [ARM, {**ARM, "words": ["+trick=sam", "optim.lr=1"]}],
    "plan": {"metric": "macro_f1", "base": {"words": ["budget.epochs=2", "data.root=a b"]}},
}


def test_an_arm_of_one_trick_is_measured_and_no_other() -> None:
    assert tricks_of(ANSWER) == {"sam": ARM}


def test_the_section_has_the_verdict_the_difference_and_the_words() -> None:
    text = section(ANSWER, ARM, "machine, date")
    assert text.startswith("**sam: cannot tell after 5 seeds [-1.0, 1.6].**")
    for part in (
        "difference in macro f1: +0.30 points over 2 seeds",
        "`budget.epochs=2 'data.root=a b'`",
        "machine, date",
    ):
        assert part in text


def test_only_the_section_of_a_page_changes() -> None:
    page = "# SAM\n\n## Measured here\n\n<!-- measured -->\nold\n\n## Source\n\npaper\n"
    assert filled(page, "new") == "# SAM\n\n## Measured here\n\nnew\n\n## Source\n\npaper\n"
    assert filled(filled(page, "x"), "new") == filled(page, "new")
    with pytest.raises(ValueError, match="heading"):
        filled("# SAM\n", "new")


def test_only_the_last_cells_of_a_row_change() -> None:
    index = "| [A](a.md) | `a` | does a | | |\n| [B](b.md) | `b` | does b | 1 × | old |\n"
    assert indexed(index, "b", "2 ×", "helps") == (
        "| [A](a.md) | `a` | does a | | |\n| [B](b.md) | `b` | does b | 2 × | helps |\n"
    )
    assert indexed(index, "b", None, None) == index
    with pytest.raises(ValueError, match="no row of c"):
        indexed(index, "c", "", "")


def test_a_price_that_was_not_measured_is_filled_in_and_no_other() -> None:
    page = "# SAM\n\n## Price\n\nnot measured\n\nMore memory.\n\n## Source\n"
    assert priced(page, "new") == "# SAM\n\n## Price\n\nnew\n\nMore memory.\n\n## Source\n"
    assert priced(priced(page, "new"), "newer") == priced(page, "new")
    price = {
        "name": "sam",
        "times_the_baseline": {"median": 1.9312, "min": 1.9, "max": 2.0},
        "peak_bytes": 812e6,
    }
    text = price_sentence(price, {"peak_bytes": 800e6}, "command sam", "machine, date")
    assert "1.93 times as long [1.90, 2.00]" in text
    assert "+12 MB, where the baseline has 800 MB" in text


@pytest.mark.parametrize("page", sorted(FOLDER.glob("[a-z]*.md")), ids=lambda path: path.stem)
def test_every_page_can_be_filled(page: Path) -> None:
    assert filled(page.read_text(), "new") != page.read_text()
    assert "\n## Price\n\n" in page.read_text()
    index = (FOLDER / "README.md").read_text()
    assert indexed(index, page.stem, "?", "?") != index
