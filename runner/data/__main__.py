"""Measure a data set: ``python -m runner.data stats data=folder data.root=PATH``.

Prints mean and std of the training split, and of nothing else, as an option file for ``normalize``.
"""

from collections.abc import Sequence
from pathlib import Path

from runner.config import compose
from runner.config.complaints import translated
from runner.terminal.arguments import Parser
from runner.terminal.command import command, program
from runner.terminal.display import Display


def main() -> None:
    """Run the command; see ``--help``."""
    parser = Parser(prog=program("data"))
    facts = parser.add_subparsers(metavar="FACT", required=True)
    stats = facts.add_parser(
        "stats",
        help="mean and std of the training split",
        description="Measure mean and std of the training split, on the images as they are stored "
        "for training, and print them as an option of normalize.",
    )
    stats.add_argument(
        "words",
        nargs="*",
        metavar="KEY=VALUE",
        help="as of runner.train: data=imagenette data.root=PATH resize.size=128 …",
    )
    words = parser.parse_args().words
    command(lambda: _stats(words), translated)


def _stats(words: Sequence[str]) -> None:
    compose.register()
    config = compose.config_of(words)
    from runner.data.dataset import load_dataset
    from runner.data.statistics import training_statistics

    cache = Path(config.outputs).expanduser() / "cache"
    with Display(stderr=True) as display:
        dataset = load_dataset(config.data, config.largest_size, cache, display.work)
    mean, std = (  # as many digits as a float32 pixel can tell apart
        "[" + ", ".join(f"{value:.6f}" for value in values) + "]"
        for values in training_statistics(dataset, cache)
    )
    flat = [text.replace(" ", "") for text in (mean, std)]
    print(
        f"# {len(dataset.train):,} training images of {dataset.name}, short side "
        f"{dataset.presize} px; fingerprint {dataset.fingerprint[:16]}\n"
        "# in DIR/normalize/NAME.yaml it is --config-dir DIR normalize=NAME; without a file:\n"
        f"# 'normalize.mean={flat[0]}' 'normalize.std={flat[1]}'\n"
        f"source: fixed\nmean: {mean}\nstd: {std}"
    )


if __name__ == "__main__":
    main()
