"""Classify images: ``python -m runner.predict RUN_OR_BUNDLE PATH…``.

The bundle provides everything: weights, names of classes, and how a file becomes an input, which
the same code computes as in the evaluation during training. Torch is imported only when prediction
starts, so that help and errors appear at once.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runner.config import checks, compose
from runner.config.complaints import translated
from runner.config.idea import IdeaFile, read_idea
from runner.config.options import GROUPS
from runner.config.schema import RunConfig, Tta
from runner.config.words import nearest
from runner.errors import ArtefactError, ConfigError, DataError
from runner.machine.hardware import num_cores
from runner.terminal.arguments import Parser
from runner.terminal.command import command, program, write_outputs
from runner.terminal.console import distinguishable, legible, table_console
from runner.terminal.display import Display
from runner.terminal.tables import Table, to_csv

if TYPE_CHECKING:
    from runner.data.store import StreamedStore
    from runner.records.bundle import Bundle

_PRINTED = 50  # rows on a terminal
_LISTED = 20  # broken files in an error
_LONGEST = 400  # characters of a name in an error
_PATTERN = frozenset("*?[")  # a path with one of these is a pattern unless it exists
_OPTIONS = {
    "tta": "--tta", "device": "--device", "precision": "--precision", "threads": "--threads",
    "eval.batch_size": "--batch-size", "data.num_workers": "--num-workers", "code": "--code",
}  # fmt: skip
"""The options of this command by the keys that other commands take for the same."""
_EXISTING = "paths of files or folders that exist"


@dataclass(frozen=True)
class Ranking:
    """The most probable classes of one image.

    Attributes:
        image: the image, as the user named it.
        top: names of classes with their probabilities in 0..1, most probable first.
        error: the reason why the image could not be read; empty if it could.
    """

    image: str
    top: tuple[tuple[str, float], ...]
    error: str = ""


@dataclass(frozen=True)
class Inputs:
    """The images to predict.

    Attributes:
        paths: paths in the order in which they were named; those of a folder sorted by name.
        ignored: files in folders whose names are not those of images, and folders left out.
        unreadable: folders that cannot be read, each with the reason.
        missing: those of ``paths`` that do not exist, each with the reason.
    """

    paths: tuple[str, ...]
    ignored: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


def find_images(words: Sequence[str], listed: Callable[[], Iterator[str]]) -> Inputs:
    """Find the images that words name: files, folders with everything below them, and patterns.

    Args:
        words: paths and patterns; ``-`` means the paths of ``listed``. A path that exists is not a
            pattern, and a pattern without a match is kept and is missing.
        listed: returns paths, as from standard input.
    """
    from runner.data.scanning import paths_matching, scan_files

    paths: list[str] = []
    ignored: list[str] = []
    unreadable: list[tuple[str, str]] = []
    missing: dict[str, str] = {}

    def note(error: OSError) -> None:
        unreadable.append((str(error.filename), error.strerror or str(error)))

    for word in words:
        named = list(listed()) if word == "-" else [word]
        if word != "-" and not os.path.lexists(word):
            with suppress(OSError, ValueError):  # no path can have such a name
                named = paths_matching(word) or [word]
        for path in named:
            if not os.path.isdir(path):  # noqa: PTH112  False, too, for what cannot be a path
                paths.append(path)
                if _is_missing(path):
                    is_pattern = word != "-" and not _PATTERN.isdisjoint(path)
                    missing[path] = "the pattern matches nothing" if is_pattern else "no such file"
                continue
            found = scan_files(path, note)
            paths += found.images
            ignored += found.ignored
    return Inputs(tuple(paths), tuple(ignored), tuple(unreadable), missing)


def _is_missing(path: str) -> bool:
    """Return whether nothing has this path; False for what cannot be a path, or cannot be read."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        pass
    return False


@dataclass(frozen=True)
class _Files:
    """Files as images; ``rectangle`` raises BrokenImageError for an unreadable file."""

    source: "StreamedStore"

    def rectangle(self, index: int) -> NDArray[np.uint8]:
        """See :class:`runner.data.store.Store`."""
        return self.source.decode(index)[0]


def rank(
    bundle: "Bundle",
    paths: Sequence[str],
    *,
    top: int,
    tta: Tta | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    code: IdeaFile | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Ranking]:
    """Predict image files.

    Args:
        bundle: the bundle of the network.
        paths: paths of the images; there is a result for each, in order.
        top: number of classes per image, 1 or more.
        tta: views to combine; None: the plain view.
        batch_size: images per forward pass; None: as in the run's evaluation.
        num_workers: processes that decode; None: as many as there are cores, if that is faster.
        device: the device, spelled as in the configuration.
        precision: ``fp32``, ``bf16`` or ``auto``: as in the run's evaluation, if that is fast here.
        threads: threads of the CPU; 0: all cores.
        code: the code that changed the network; it runs only if the bundle names its SHA-256.
        progress: called with the number of batches done and their total.

    Raises:
        ArtefactError: the weights do not fit the architecture, or a prediction is not finite; or
            the network was changed by code that is not ``code``.
        ConfigError: the device, or the package that defines the architecture, does not exist.
    """
    from runner.data.images import FileImages
    from runner.data.store import StreamedStore
    from runner.training.learners import trained_learner
    from runner.training.memory import advise_smaller_batch
    from runner.training.predicting import probabilities

    how, evaluated = bundle.preprocess, bundle.evaluated
    files = FileImages(Path(), tuple(paths))
    source = StreamedStore(files, how.presize, how.max_aspect, how.interpolation, depth=how.depth)
    batch_size = batch_size or evaluated.batch_size
    if num_workers is None:  # processes take longer to start than a batch to decode
        num_workers = num_cores() if len(paths) > batch_size else 0
    learner = trained_learner(
        bundle, device=device, precision=precision, threads=threads, code=code
    )
    with advise_smaller_batch("--batch-size ", batch_size):
        found = probabilities(
            learner,
            _Files(source),
            np.arange(len(paths)),
            [] if tta is None else [tta],
            augment=evaluated.augment,
            seed=evaluated.seed,
            batch_size=batch_size,
            num_workers=num_workers,
            progress=progress,
        )
    predicted = found.plain if tta is None else found.combined[0]
    if not np.isfinite(predicted).all():
        raise ArtefactError(
            "the network gives predictions that are not finite",
            where=str(bundle.folder.absolute()),
            fix="another run; its training went wrong",
        )
    names = [*bundle.classes]
    names += [f"output {number}" for number in range(len(names), predicted.shape[1])]
    return [
        Ranking(path, (), found.broken[row])
        if row in found.broken
        else Ranking(path, _best(predicted[row], names, top))
        for row, path in enumerate(paths)
    ]


def _best(
    row: NDArray[np.float32], names: Sequence[str], top: int
) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-row, kind="stable")[:top]
    return tuple((names[index], float(row[index])) for index in order)


def main() -> None:
    """Run the command; see ``--help``."""
    arguments = parser().parse_intermixed_args()
    command(lambda: _run(arguments), translated)


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command's words."""
    parser = Parser(
        prog=program("predict"),
        description="Classify images with the bundle of a trained network.",
        epilog="Exit codes: 0 done, 2 usage, 3 some images could not be read (the others are "
        "predicted), 7 the bundle was refused.",
    )
    parser.add_argument("bundle", metavar="RUN_OR_BUNDLE", type=Path, help="its folder")
    parser.add_argument(
        "paths", nargs="+", metavar="PATH",
        help="files, folders with all images below them, 'patterns/**/*.jpg', or - for a list on "
        "standard input, one path per line",
    )  # fmt: skip
    parser.add_argument(
        "-0", "--null", action="store_true",
        help="paths on standard input end with NUL: find FOLDER -print0 | … predict RUN -0 -",
    )  # fmt: skip
    parser.add_argument(
        "--tta", action="append", default=[], metavar="NAME",
        help="test time augmentation: flip, book, crops, scales, ten_crop; then KEY=VALUE, such as "
        "--tta crops --tta crops=5",
    )  # fmt: skip
    parser.add_argument(
        "--top", type=_positive, default=3, metavar="N", help="classes per image (default: 3)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="a row per image; - prints it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same as JSON; - prints it")
    parser.add_argument(
        "--batch-size", type=_positive, metavar="N", help="images at a time (default: the run's)"
    )
    parser.add_argument(
        "--num-workers", type=_whole, metavar="N", help="processes that decode (default: by cores)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …, mps")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "fp32", "bf16"),
        help="default: the run's, if this machine is fast in it",
    )  # fmt: skip
    parser.add_argument(
        "--code", metavar="FILE", help="the file that changed the network, by code=FILE in training"
    )
    parser.add_argument("--threads", type=_whole, default=0, help="CPU threads; 0: all cores")
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 0 or more")
    return int(text)


def _positive(text: str) -> int:
    if (number := _whole(text)) == 0:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _check_words(words: Sequence[str]) -> None:
    """Refuse words that set a key, as other commands take them, unless there is such a file.

    Raises:
        ConfigError: with the option to type.
    """
    from runner.data.images import SUFFIXES
    from runner.data.scanning import paths_matching

    for word in words:
        key, is_set, value = word.lstrip("+").partition("=")
        if not is_set or os.path.lexists(word):
            continue
        with suppress(OSError, ValueError):  # no path can have such a name
            if paths_matching(word):
                continue
        is_known = key in (*checks.known_keys(), *GROUPS)
        if not is_known and not word.lower().endswith(tuple(SUFFIXES)):
            key = nearest(key, [*_OPTIONS]) or key
        group, _, name = key.rpartition(".")
        if key in _OPTIONS:
            first = value.partition(",")[0] if key == "tta" else value  # it is no sweep
            fix = f"{_OPTIONS[key]} {shlex.quote(first)}"
        elif group == "tta":
            fix = f"--tta {shlex.quote(f'{name}={value}')}"
        elif is_known:
            fix = f"leave it out; {program('predict')} --help lists the options"
        else:
            continue
        raise ConfigError(
            f"no such file: {word}; this command has options, and no words KEY=VALUE",
            where=word,
            fix=fix,
        )


def _run(arguments: argparse.Namespace) -> None:
    _check_words([str(arguments.bundle), *arguments.paths])
    config = _config(arguments.tta, device=arguments.device, threads=arguments.threads)
    from runner.records.bundle import open_bundle

    code = read_idea(arguments.code, "--code ") if arguments.code is not None else None
    bundle = open_bundle(arguments.bundle)
    from runner.data.scanning import ignored_note

    inputs = find_images(arguments.paths, lambda: _listed(b"\0" if arguments.null else b"\n"))
    if not inputs.paths and not inputs.unreadable:
        raise DataError(
            f"no images found ({len(inputs.ignored)} other files)",
            where=" ".join(arguments.paths),
            fix="image files, or a folder with some",
        )
    _raise_if_all_missing(inputs)
    with Display(stderr=True) as display:
        for note in ignored_note(inputs.ignored, Path()):
            display.line(f"note: {note}")
        rankings = (
            []
            if not inputs.paths
            else rank(
                bundle,
                inputs.paths,
                top=arguments.top,
                tta=config.tta if arguments.tta else None,
                batch_size=arguments.batch_size,
                num_workers=arguments.num_workers,
                device=config.device,
                precision=arguments.precision,
                threads=arguments.threads,
                code=code,
                progress=display.evaluation,
            )
        )
    rankings = [
        replace(one, error=inputs.missing[one.image])
        if one.error and one.image in inputs.missing
        else one
        for one in rankings
    ]
    rankings += [Ranking(folder, (), reason) for folder, reason in inputs.unreadable]
    _report(bundle, rankings, arguments, config.tta if arguments.tta else None)
    _raise_if_broken(rankings, inputs.missing)


def _config(tta: Sequence[str], **values: str | int) -> RunConfig:
    """Return a configuration with the words of ``--tta`` and other values, checked."""
    words = [f"tta.{word}" if "=" in word else f"tta={word}" for word in tta]
    if not words:
        return checks.changed(RunConfig(), values)
    compose.register()
    return checks.changed(RunConfig(), {**compose.requested_values(words), **values})


def _listed(end: bytes) -> Iterator[str]:
    """Yield the paths on standard input, each ended by ``end``: a line feed, or NUL."""
    is_lines = end == b"\n"
    for item in sys.stdin.buffer if is_lines else sys.stdin.buffer.read().split(end):
        if path := item.rstrip(b"\r\n") if is_lines else item:
            yield os.fsdecode(path)


def _report(
    bundle: "Bundle", rankings: Sequence[Ranking], arguments: argparse.Namespace, tta: Tta | None
) -> None:
    """Print the table, unless standard output is a target, and write the requested files."""
    places = range(1, min(arguments.top, bundle.architecture.num_outputs) + 1)
    columns = [
        "image",
        "error",
        *(f"{what}_{n}" for n in places for what in ("class", "probability")),
    ]
    content = {
        "bundle": str(arguments.bundle),
        "model": bundle.architecture.to_dict(),
        "preprocess": bundle.preprocess.to_dict(),
        "tta": None if tta is None else asdict(tta),
        "images": [_entry(ranking) for ranking in rankings],
    }
    contents: dict[str, Callable[[], str]] = {
        "csv": lambda: to_csv(columns, [_cells(ranking, len(columns)) for ranking in rankings]),
        "json": lambda: json.dumps(content, indent=2) + "\n",
    }
    if write_outputs({"csv": arguments.csv, "json": arguments.json}, contents):
        return
    read = [ranking for ranking in rankings if not ranking.error]
    if not read:  # the error that follows gives the reasons
        return
    table = Table(
        f"{len(read):,} images, {bundle.architecture.name}" + (" with TTA" if tta else ""),
        ("image", "class", "%", "then"),
        tuple(_row(ranking) for ranking in read[:_PRINTED]),
        ("image", "class", "then"),
    )
    console = table_console()
    table.print(console)
    if len(read) > _PRINTED:
        console.print(f"and {len(read) - _PRINTED:,} more: --csv FILE has them all")


def _entry(ranking: Ranking) -> dict[str, Any]:
    if ranking.error:
        return {"image": ranking.image, "error": ranking.error}
    top = [{"class": name, "probability": value} for name, value in ranking.top]
    return {"image": ranking.image, "top": top}


def _cells(ranking: Ranking, width: int) -> list[Any]:
    cells: list[Any] = [ranking.image, ranking.error]
    cells += [cell for pair in ranking.top for cell in pair]
    return cells + [""] * (width - len(cells))


def _row(ranking: Ranking) -> tuple[str, ...]:
    (name, probability), *others = ranking.top
    then = ", ".join(f"{other} {100 * value:.1f}" for other, value in others)
    return legible(ranking.image), name, f"{100 * probability:.1f}", then


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[-_LONGEST // 2 :]}"


def _raise_if_all_missing(inputs: Inputs) -> None:
    """Raise if none of the images exists, before anything is loaded to predict them."""
    if inputs.unreadable or not all(path in inputs.missing for path in inputs.paths):
        return
    if len(inputs.missing) == 1:
        (path, reason), *_ = inputs.missing.items()
        raise DataError(reason, where=_shortened(legible(path)), fix=_EXISTING)
    lines = _lines(list(inputs.missing.items()))
    raise DataError("\n".join(["none of the images exists:", *lines]), fix=_EXISTING)


def _raise_if_broken(rankings: Sequence[Ranking], missing: Collection[str]) -> None:
    """Raise if images could not be read, naming them; ``missing`` are those that do not exist."""
    broken = [ranking for ranking in rankings if ranking.error]
    if not broken:
        return
    lines = _lines([(ranking.image, ranking.error) for ranking in broken])
    advice = []
    if any(ranking.image in missing for ranking in broken):
        advice.append(_EXISTING)
    if any(ranking.image not in missing for ranking in broken):
        advice.append("repair the broken images or leave them out")
    if len(broken) < len(rankings):
        advice.append("all other images were predicted")
    raise DataError(
        f"{len(broken)} of {len(rankings)} images could not be read:\n" + "\n".join(lines),
        fix="; ".join(advice),
    )


def _lines(reasons: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line for each path with its reason, not too many."""
    names = distinguishable([path for path, _ in reasons[:_LISTED]])
    lines = [
        f"  {_shortened(name)}: {reason}" for name, (_, reason) in zip(names, reasons, strict=False)
    ]
    return lines + ([f"  and {len(reasons) - _LISTED} more"] if len(reasons) > _LISTED else [])


if __name__ == "__main__":
    main()
