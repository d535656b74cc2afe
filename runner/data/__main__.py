"""Measure a data set: ``python -m runner.data stats data=folder data.root=PATH``.

``stats`` prints mean and std of the training split, and of nothing else, as an option file for
``normalize``, after the sizes of the parts and the number of groups. ``duplicates`` prints pairs of
images that look alike, within a part and across parts.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config import compose
from runner.config.complaints import translated
from runner.errors import ConfigError
from runner.terminal.arguments import Parser
from runner.terminal.command import command, program, write_outputs
from runner.terminal.console import legible, table_console
from runner.terminal.display import Display
from runner.terminal.tables import Table, to_csv

if TYPE_CHECKING:
    from runner.data.dataset import Dataset

_NUM_BITS = 64  # of a hash


def parser() -> Parser:
    """Make the parser of the command's words."""
    found = Parser(prog=program("data"))
    facts = found.add_subparsers(metavar="FACT", required=True)
    stats = facts.add_parser(
        "stats",
        help="mean and std of the training split",
        description="Measure mean and std of the training split, on the images as they are stored "
        "for training, and print them as an option of normalize.",
    )
    duplicates = facts.add_parser(
        "duplicates",
        help="pairs of images that look alike",
        description="Find pairs of images whose perceptual hashes (64 bits) differ in few bits, "
        "such as an image and its resized copy, within training, validation and test and across "
        "them. Needs pip install 'trick-runner[duplicates]'.",
    )
    for fact in (stats, duplicates):
        fact.add_argument(
            "words",
            nargs="*",
            metavar="KEY=VALUE",
            help="as of runner.train: data=imagenette data.root=PATH resize.size=128 …",
        )
    duplicates.add_argument(
        "--distance", type=int, default=4, metavar="BITS", help="at most so many bits (default: 4)"
    )
    duplicates.add_argument(
        "--show", type=int, default=20, metavar="N", help="pairs to print (default: 20)"
    )
    duplicates.add_argument("--csv", type=Path, metavar="FILE", help="all pairs; - prints them")
    stats.set_defaults(run=lambda arguments: _stats(arguments.words))
    duplicates.set_defaults(run=_duplicates)
    return found


def main() -> None:
    """Run the command; see ``--help``."""
    arguments = parser().parse_args()
    command(lambda: arguments.run(arguments), translated)


def _stats(words: Sequence[str]) -> None:
    dataset, cache = _loaded(words, with_test=False)
    from runner.data.statistics import training_statistics

    mean, std = (  # as many digits as a float32 pixel can tell apart
        "[" + ", ".join(f"{value:.6f}" for value in values) + "]"
        for values in training_statistics(dataset, cache)
    )
    flat = [text.replace(" ", "") for text in (mean, std)]
    print(
        f"# {len(dataset.train):,} training images of {dataset.name}, short side "
        f"{dataset.presize} px; fingerprint {dataset.fingerprint[:16]}\n"
        + "".join(f"# {line}\n" for line in _parts(dataset))
        + "# in DIR/normalize/NAME.yaml it is --config-dir DIR normalize=NAME; without a file:\n"
        f"# 'normalize.mean={flat[0]}' 'normalize.std={flat[1]}'\n"
        f"source: fixed\nmean: {mean}\nstd: {std}"
    )


def _loaded(words: Sequence[str], *, with_test: bool) -> tuple["Dataset", Path]:
    """Return the data that ``words`` name, and the folder of the cache."""
    compose.register()
    config = compose.config_of(words)
    from runner.data.dataset import load_dataset

    cache = Path(config.outputs).expanduser() / "cache"
    with Display(stderr=True) as display:
        dataset = load_dataset(
            config.data, config.largest_size, cache, display.work, with_test=with_test
        )
    return dataset, cache


def _parts(dataset: "Dataset") -> Iterator[str]:
    """Yield a line on the images and the groups of each part."""
    for name, part in (("training", dataset.train), ("validation", dataset.val)):
        groups = "" if part.groups is None else f" of {len({*part.groups.tolist()}):,} groups"
        yield f"{name}: {len(part):,} images{groups}, {len({*part.labels.tolist()}):,} classes"
    yield from (f"note: {legible(note)}" for note in dataset.notes)


def _duplicates(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.distance < _NUM_BITS:
        raise ConfigError(
            f"{arguments.distance} bits: a hash has {_NUM_BITS}",
            where=f"--distance {arguments.distance}",
            fix="--distance 4; 0 for equal hashes",
        )
    from runner.data.duplicates import hash_function, near_duplicates, summary

    hash_function()  # a missing package is reported before images are decoded
    dataset, _ = _loaded(arguments.words, with_test=True)
    with Display(stderr=True) as display:
        found = near_duplicates(dataset, arguments.distance, display.work)
    columns = ("part", "image", "class", "other part", "other image", "other class", "bits")
    rows = [
        (
            pair.first.part, pair.first.name, pair.first.label,
            pair.second.part, pair.second.name, pair.second.label,
            "identical" if pair.is_identical else str(pair.distance),
        )
        for pair in found.pairs
    ]  # fmt: skip
    if write_outputs({"csv": arguments.csv}, {"csv": lambda: to_csv(columns, rows)}):
        return
    print(
        f"{dataset.name}: {len(found.pairs):,} pairs of {found.num_images:,} images differ in at "
        f"most {arguments.distance} of {_NUM_BITS} bits"
    )
    for where, count, identical, of_two_classes in summary(found):
        print(
            f"  {where}: {count:,}, of which {identical:,} are identical, and "
            f"{of_two_classes:,} have two classes"
        )
    if found.num_flat:
        print(f"  left out: {found.num_flat:,} images of nearly one color, whose hashes are noise")
    if shown := rows[: max(0, arguments.show)]:
        title = f"the first {len(shown)}, those of different parts first"
        Table(title, columns, tuple(shown), columns[:-1]).print(table_console())
    if found.pairs:
        print(
            "look at the pairs before you remove any: a hash sees coarse shapes only, so images of "
            "one kind may be a pair; pairs of two classes are false alarms or wrong labels"
        )


if __name__ == "__main__":
    main()
