"""Write what a comparison measured into the pages of docs/tricks/ and their index.

    python -m runner.compare … --try +trick=mixup --try +trick=sam … --json answer.json
    python -m scripts.measured_tricks answer.json --on "1,500 validation images of …"

Each arm that is one word ``+trick=NAME`` fills the section "Measured here" of
``docs/tricks/NAME.md``, and the last two columns of its row in the index.
"""

import argparse
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "docs" / "tricks"
_SECTION = re.compile(r"(## Measured here\n).*?(?=\n## |\Z)", re.DOTALL)


def filled(page: str, section: str) -> str:
    """``page`` with ``section`` below the heading "Measured here".

    Raises:
        ValueError: the page has no such heading.
    """
    if not _SECTION.search(page):
        raise ValueError("the page has no heading '## Measured here'")
    return _SECTION.sub(lambda found: f"{found[1]}\n{section}\n", page)


def indexed(index: str, name: str, price: str, measured: str) -> str:
    """``index`` with the last two cells of the row of a trick.

    Raises:
        ValueError: the index has no row of the trick.
    """
    row = re.compile(rf"^(\| [^|]*\| `{name}` \|[^|]*)\|[^|]*\|[^|]*\|$", re.MULTILINE)
    if not row.search(index):
        raise ValueError(f"the index has no row of {name}")
    return row.sub(lambda found: f"{found[1]}| {price} | {measured} |", index)


def tricks_of(answer: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The arms of ``answer`` that are one trick in its usual form, by its name."""
    return {
        arm["words"][0].partition("=")[2]: arm
        for arm in answer["arms"]
        if len(arm["words"]) == 1 and arm["words"][0].startswith("+trick=")
    }


def section(answer: Mapping[str, Any], arm: Mapping[str, Any], conditions: str) -> str:
    """What the page of a trick says of its arm."""
    parts = [f"**{arm['line']}.**"]
    if (own := arm["accuracy"]) and (base := answer["base"]["accuracy"]):
        parts.append(
            f"Mean accuracy {100 * own['mean']:.2f} %; of the baseline {100 * base['mean']:.2f} % "
            f"over {len(answer['base']['seeds'])} seeds."
        )
    parts.append(f"Price: {_price(arm)}.")
    words = shlex.join(answer["plan"]["base"]["words"])
    parts.append(
        f"Arm of one `compare` of {len(answer['arms'])} tricks, corrected for their number, with "
        f"the words `{words}`; {conditions}."
    )
    return "\n".join(parts)


def _price(arm: Mapping[str, Any]) -> str:
    """The price of an arm relative to the baseline: what is not 1, or that nothing is dearer."""
    units = {
        "seconds": "of the time of a training",
        "images": "of the images",
        "pixels": "of the pixels",
        "forward_passes": "forward passes per image at evaluation",
    }
    said = [
        f"{arm['price'][key]:.2f} × {unit}"
        for key, unit in units.items()
        if key in arm["price"] and (key == "seconds" or abs(arm["price"][key] - 1) > 0.005)
    ]
    return ", ".join(said) or "as many images, pixels and forward passes"


def _short(arm: Mapping[str, Any]) -> tuple[str, str]:
    """The cells of the index: price, and verdict with difference and seeds."""
    price = f"{arm['price']['seconds']:.2f} ×" if "seconds" in arm["price"] else "–"
    if arm["difference"] is None:
        return price, arm["verdict"]
    return price, f"{arm['verdict']} ({100 * arm['difference']:+.1f}, n = {len(arm['seeds'])})"


def main() -> None:
    """Fill the pages from the files that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("answers", nargs="+", type=Path, metavar="ANSWER.json")
    parser.add_argument("--on", required=True, help="data, machine and date, as one sentence part")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    for file in arguments.answers:
        answer = json.loads(file.read_text())
        for name, arm in tricks_of(answer).items():
            page, index = arguments.folder / f"{name}.md", arguments.folder / "README.md"
            page.write_text(filled(page.read_text(), section(answer, arm, arguments.on)))
            index.write_text(indexed(index.read_text(), name, *_short(arm)))


if __name__ == "__main__":
    main()
