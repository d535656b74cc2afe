"""Write what a comparison measured into the pages of docs/tricks/ and their index.

    python -m runner.compare … --try +trick=mixup --try +trick=sam … --json answer.json
    python -m benchmarks.price mixup sam … --json price.json
    python -m scripts.measured_tricks answer.json --prices price.json --on "2 cores of …, DATE"

Each arm that is one word ``+trick=NAME`` fills the section "Measured here" of
``docs/tricks/NAME.md``, and the last column of its row in the index. Each price fills the column
before, and the section "Price" if that says "not measured".
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
_UNPRICED = re.compile(r"(## Price\n\n)not measured\n")


def filled(page: str, section: str) -> str:
    """``page`` with ``section`` below the heading "Measured here".

    Raises:
        ValueError: the page has no such heading.
    """
    if not _SECTION.search(page):
        raise ValueError("the page has no heading '## Measured here'")
    return _SECTION.sub(lambda found: f"{found[1]}\n{section}\n", page)


def priced(page: str, sentence: str) -> str:
    """``page`` with ``sentence`` below the heading "Price", in the place of "not measured"."""
    return _UNPRICED.sub(lambda found: f"{found[1]}{sentence}\n", page)


def indexed(index: str, name: str, price: str | None, measured: str | None) -> str:
    """``index`` with new last cells in the row of a trick; None leaves a cell as it is.

    Raises:
        ValueError: the index has no row of the trick.
    """
    row = re.compile(rf"^(\| [^|]*\| `{name}` \|[^|]*)\|([^|]*)\|([^|]*)\|$", re.MULTILINE)
    if not row.search(index):
        raise ValueError(f"the index has no row of {name}")
    return row.sub(
        lambda found: (
            f"{found[1]}|{found[2] if price is None else f' {price} '}"
            f"|{found[3] if measured is None else f' {measured} '}|"
        ),
        index,
    )


def tricks_of(answer: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the arms of ``answer`` that are one trick in its usual form, by its name."""
    return {
        arm["words"][0].partition("=")[2]: arm
        for arm in answer["arms"]
        if len(arm["words"]) == 1 and arm["words"][0].startswith("+trick=")
    }


def section(answer: Mapping[str, Any], arm: Mapping[str, Any], conditions: str) -> str:
    """Return what the page of a trick says of its arm."""
    metric = answer["plan"]["metric"].replace("_", " ")
    parts = [f"**{arm['line']}.**"]
    if arm["pairs"]:
        own = sum(pair["difference"] for pair in arm["pairs"]) / len(arm["pairs"])
        parts.append(
            f"Mean difference in {metric}: {100 * own:+.2f} points over {len(arm['pairs'])} seeds."
        )
    words = shlex.join(answer["plan"]["base"]["words"])
    parts.append(
        f"Arm of one `compare` of {len(answer['arms'])} tricks, corrected for their number, with "
        f"the words `{words}`; {conditions}."
    )
    return "\n".join(parts)


def _verdict(arm: Mapping[str, Any]) -> str:
    """Return the cell of the index: the verdict with difference and seeds."""
    if arm["difference"] is None:
        return str(arm["verdict"])
    return f"{arm['verdict']} ({100 * arm['difference']:+.1f}, n = {len(arm['seeds'])})"


def price_sentence(
    price: Mapping[str, Any], baseline: Mapping[str, Any], command: str, conditions: str
) -> str:
    """Return what the page of a trick says of its price, which ``command`` measured."""
    times = price["times_the_baseline"]
    more = (price["peak_bytes"] - baseline["peak_bytes"]) / 1e6
    return (
        f"A training step takes {times['median']:.2f} times as long [{times['min']:.2f}, "
        f"{times['max']:.2f}]. Peak memory: {more:+.0f} MB, where the baseline has "
        f"{baseline['peak_bytes'] / 1e6:.0f} MB\n(`{command}`; {conditions})."
    )


def main() -> None:
    """Fill the pages from the files that are named."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("answers", nargs="*", type=Path, metavar="ANSWER.json")
    parser.add_argument("--prices", type=Path, metavar="PRICE.json", help="of benchmarks.price")
    parser.add_argument("--on", required=True, help="machine and date, as a part of a sentence")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    index = arguments.folder / "README.md"
    for file in arguments.answers:
        answer = json.loads(file.read_text())
        for name, arm in tricks_of(answer).items():
            page = arguments.folder / f"{name}.md"
            page.write_text(filled(page.read_text(), section(answer, arm, arguments.on)))
            index.write_text(indexed(index.read_text(), name, None, _verdict(arm)))
    if arguments.prices is not None:
        content = json.loads(arguments.prices.read_text())
        baseline, *prices = content["results"]
        for price in prices:
            page = arguments.folder / f"{price['name']}.md"
            said = price_sentence(price, baseline, content["command"], arguments.on)
            page.write_text(priced(page.read_text(), said))
            short = f"{price['times_the_baseline']['median']:.2f} ×"
            index.write_text(indexed(index.read_text(), price["name"], short, None))


if __name__ == "__main__":
    main()
