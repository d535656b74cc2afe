"""Draw what a training sees, or what became of a run: ``python -m runner.look +trick=mixup``.

``python -m runner.look RUN`` draws the figures of a finished run into its folder. The path of each
picture is printed. Torch is imported only for pictures that need it.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from runner.compare.asked import separate_words
from runner.compare.question import joined_words
from runner.config import compose
from runner.config.complaints import translated
from runner.config.idea import read_idea
from runner.config.schema import RunConfig
from runner.errors import ConfigError
from runner.machine.hardware import require_device
from runner.terminal.command import command, program
from runner.terminal.usage import EXIT_CODES, KeysParser

if TYPE_CHECKING:
    from runner.pictures.sheet import Column

_SUFFIXES = {"png": ".png", "svg": ".svg"}
_MOST_IMAGES = 64
_EPILOG = (
    """\
examples:
  {called}
        the first training batch of the baseline, on embedded data
  {called} +trick=mixup tta=crops data=folder data.root=PATH
        mixed pairs with both labels, and the views at evaluation, of your own
        images
  {called} --compare +trick=mixup
        the baseline and mixup side by side
  {called} outputs/NAME
        figures of a finished run, into outputs/NAME/figures: loss and
        accuracy, learning rate and size, confusion matrix, reliability
        diagram, wrong predictions (likely label errors first), Grad-CAM
  {called} outputs/NAME data.root=PATH
        the same if the data was moved

Nothing is trained. Words are those of runner.train.

"""
    + EXIT_CODES
)


def main() -> None:
    """Run the command; see ``--help``."""
    arguments = parser().parse_intermixed_args()
    command(lambda: _look(arguments), translated)


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command's words."""
    called = program("look")
    found = KeysParser(
        prog=called,
        usage="%(prog)s [WORD …] [--compare WORDS] …\n       %(prog)s RUN [data.root=PATH] …",
        description="Draw the first training batch and the views at evaluation, exactly as a\n"
        "training with these words sees them; or the figures of a finished run.",
        epilog=_EPILOG.format(called=called),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("words", nargs="*", metavar="WORD", help="words of a training; or the folder of a run")
    add(
        "--compare", nargs="*", action="append", default=[], metavar="WORDS",
        help="draw a second configuration alongside: the words that it changes or adds",
    )  # fmt: skip
    add(
        "--images", type=_whole, metavar="N",
        help="number of training images (default: 4; with --compare 2)",
    )  # fmt: skip
    add("--output", type=Path, metavar="FOLDER", help="default: outputs/look/NAME, RUN/figures")
    add(
        "--format", choices=_SUFFIXES,
        help="format of all pictures (default: charts as svg, images as png)",
    )  # fmt: skip
    add("--config-dir", type=Path, metavar="DIR", help="add your own options, as in runner.train")
    of_run = found.add_argument_group("options of the figures of a run")
    of_run.add_argument("--device", help="of Grad-CAM: auto (default), cpu, cuda, cuda:1 …, mps")
    of_run.add_argument("--threads", type=_whole, help="CPU threads; 0 (default): all cores")
    of_run.add_argument(
        "--code", metavar="FILE", help="the file that changed the network, by code=FILE in training"
    )
    return found


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 0 or more")
    return int(text)


def _look(arguments: argparse.Namespace) -> None:
    first = arguments.words[0] if arguments.words else ""
    # A word of a training has a "="; the name of a folder may have one, too.
    if first and ("=" not in first or Path(first).is_dir()):
        _look_at_run(Path(first), arguments)
    else:
        _look_at_words(arguments)


def _look_at_run(run: Path, arguments: argparse.Namespace) -> None:
    from runner.look.finished import Places, draw  # imports matplotlib, which takes a second

    for option in ("compare", "images", "output", "config_dir"):
        if getattr(arguments, option):
            name = option.replace("_", "-")
            raise ConfigError(
                "this option belongs to the words of a training, and a run was given",
                where=f"--{name}",
                fix=f"{program('look')} {run}",
            )
    draw(
        run,
        Places(
            suffix=_SUFFIXES.get(arguments.format),
            root=_root(arguments.words[1:]),
            device=arguments.device or "auto",
            threads=arguments.threads or 0,
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


def _look_at_words(arguments: argparse.Namespace) -> None:
    for key in ("device", "threads", "code"):
        if (value := getattr(arguments, key)) is not None:
            raise ConfigError(
                "this option belongs to the folder of a run, and the words of a training have a "
                "key for it",
                where=f"--{key} {value}",
                fix=f"{key}={value}",
            )
    configs = _configs(arguments)
    from runner.look.sheets import batch_column, normalization_line, prepare, views_column
    from runner.pictures.paper import write_picture
    from runner.pictures.sheet import sheet
    from runner.terminal.display import Display

    suffix = _SUFFIXES[arguments.format or "png"]
    largest = min(_MOST_IMAGES, *(config.data.batch_size for _, config in configs))
    num_images = min(4 // len(configs), largest) if arguments.images is None else arguments.images
    if not 1 <= num_images <= largest:
        raise ConfigError(
            f"a sheet has 1 to {_MOST_IMAGES} images, and at most as many as a batch",
            where=f"--images {num_images}",
            fix=f"--images {largest}",
        )
    batches: list[Column] = []
    views: list[Column] = []
    lines: list[str] = []
    with Display() as display:
        prepared = [prepare(config, display) for _, config in configs]
        for (title, _), one in zip(configs, prepared, strict=True):
            batches.append(batch_column(one, title, num_images))
            views.append(views_column(one, title, 2))
            lines.append(normalization_line(one.config, one.learner))
    # Two whole names could be longer than a name may be.
    name = "-vs-".join([prepared[0].name, *(one.name[-60:].lstrip("-+_.") for one in prepared[1:])])
    folder = arguments.output or Path(configs[0][1].outputs).expanduser() / "look" / name
    footer = "\n".join(dict.fromkeys(lines))
    called = [title or one.name for (title, _), one in zip(configs, prepared, strict=True)]
    seen = {
        "batch": "Images of the first training batch, as stored and on their way to the network",
        "views": "The views of validation images that the network sees at evaluation",
    }
    for name, columns, last in (("batch", batches, footer), ("views", views, "")):
        path = folder / f"{name}{suffix}"
        alt = f"{seen[name]}: {' and '.join(called)}"
        write_picture(sheet(columns, num_across=4, footer=last), path, alt)
        print(path)


def _configs(arguments: argparse.Namespace) -> list[tuple[str, RunConfig]]:
    """The title and the configuration of each column."""
    if len(arguments.compare) > 1:
        raise ConfigError(
            "two configurations are compared", where="--compare", fix="--compare WORDS"
        )
    compose.register()
    words = [str(word) for word in arguments.words]
    found = [("", compose.config_of(words, arguments.config_dir))]
    if arguments.compare:
        changed = [word for text in arguments.compare[0] for word in separate_words(text)]
        title = " ".join(changed) or "again"
        found = [
            (" ".join(words) or "baseline", found[0][1]),
            (title, compose.config_of(joined_words(words, changed), arguments.config_dir)),
        ]
    for _, config in found:
        require_device(config.device)
    return found


if __name__ == "__main__":
    main()
