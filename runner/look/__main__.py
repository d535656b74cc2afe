"""Draw the figures of a finished run into its folder: ``python -m runner.look RUN``.

The path of each figure is printed. Torch is imported only for the images that need it.
"""

import argparse
from pathlib import Path

from runner.config.idea import read_idea
from runner.errors import ConfigError
from runner.terminal.arguments import Parser
from runner.terminal.command import command, program

_SUFFIXES = {"png": ".png", "svg": ".svg"}


def main() -> None:
    """Run the command; see ``--help``."""
    arguments = parser().parse_intermixed_args()
    command(lambda: _run(arguments))


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command's words."""
    parser = Parser(
        prog=program("look"),
        description="Draw the figures of a finished run into RUN/figures: curves of loss and "
        "accuracy, learning rate and image size, confusion matrix, reliability diagram, images "
        "with a wrong prediction (likely label errors first), and Grad-CAM of these.",
        epilog="If the data was moved: python -m runner.look RUN data.root=PATH",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a finished run")
    parser.add_argument(
        "words", nargs="*", metavar="data.root=PATH", help="where the data of the run is now"
    )
    parser.add_argument(
        "--format", choices=_SUFFIXES,
        help="format of all figures (default: charts as svg, images as png)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="of Grad-CAM: auto, cpu, cuda, cuda:1 …")
    parser.add_argument("--threads", type=_whole, default=0, help="CPU threads; 0: all cores")
    parser.add_argument(
        "--code", metavar="FILE", help="the file that changed the network, by code=FILE in training"
    )
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 0 or more")
    return int(text)


def _run(arguments: argparse.Namespace) -> None:
    from runner.look.finished import Places, draw  # imports matplotlib, which takes a second

    draw(
        arguments.run,
        Places(
            suffix=_SUFFIXES.get(arguments.format),
            root=_root(arguments.words),
            device=arguments.device,
            threads=arguments.threads,
            code=read_idea(arguments.code, "--code ") if arguments.code is not None else None,
        ),
    )


def _root(words: list[str]) -> str | None:
    """The value of ``data.root`` among the words after RUN."""
    root = None
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        if key != "data.root" or not value:
            raise ConfigError(
                "after the folder of a run, only the place of its data is allowed",
                where=word,
                fix="data.root=PATH",
            )
        root = value
    return root


if __name__ == "__main__":
    main()
