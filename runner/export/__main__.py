"""Write a network as one file that runs elsewhere: ``python -m runner.export RUN_OR_BUNDLE``.

The program is first compared with the network itself on real images, and written only if it agrees.
"""

import argparse
import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runner.config.complaints import translated
from runner.config.idea import IdeaFile, read_idea
from runner.errors import ArtefactError, ConfigError, DataError, RunnerError
from runner.machine.files import write_output
from runner.terminal.arguments import Parser
from runner.terminal.command import command, program
from runner.terminal.display import Display

if TYPE_CHECKING:
    from torch import Tensor

    from runner.data.images import Images
    from runner.export.programs import Program
    from runner.records.bundle import Bundle
    from runner.training.step import Learner

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4
"""Largest allowed difference of a probability; smaller for small probabilities of many classes.

Other kernels round differently: trained networks differ by about 1e-6, wrong statistics by 1e-2.
"""

_BATCHES = 1, 7, 32  # numbers of images; the last number repeats
_EMBEDDED_STEP = 24  # every 24th of the 1,500 embedded validation images has all classes


@dataclass(frozen=True)
class Exported:
    """A program that agrees with its network.

    Attributes:
        content: content of the file.
        num_images: number of images on which the program was checked.
        difference: largest difference to the network's own probabilities for the same squares.
        rounding: largest change of the network's own probabilities if the squares are rounded to
            uint8.
    """

    content: bytes = field(repr=False)
    num_images: int
    difference: float
    rounding: float


def export(
    bundle: "Bundle", kind: str, images: "Images", *, threads: int = 0, code: IdeaFile | None = None
) -> Exported:
    """Export the network of a bundle as a program of ONNX or ``torch.export``, and check it.

    Args:
        bundle: the bundle of the network.
        kind: one of ``SUFFIXES``.
        images: real images, 1 or more, to check the program on.
        threads: threads of the CPU; 0 means all cores.
        code: the code that changed the network; it runs only if the bundle names its SHA-256.

    Raises:
        ArtefactError: the weights do not fit the architecture, a prediction is not finite, or the
            program and the network disagree; or the network was changed by code that is not
            ``code``.
        ConfigError: a package is missing, or the architecture cannot be exported.
        DataError: an image cannot be read.
    """
    from torch import contiguous_format

    from runner.export import programs
    from runner.training.learners import trained_learner

    write, read = {
        "onnx": (programs.to_onnx, programs.from_onnx),
        "torch": (programs.to_torch, programs.from_torch),
    }[kind]
    learner = trained_learner(bundle, device="cpu", precision="fp32", threads=threads, code=code)
    learner.model.eval()
    # A copy, so that the export cannot change the network that the program is compared with; in
    # the plain order of memory, as the formats store it.
    model = copy.deepcopy(learner.model).to(memory_format=contiguous_format)
    about = programs.description(bundle)
    try:
        with warnings.catch_warnings():
            # The exporters warn about their own internals. The result is checked below.
            warnings.simplefilter("ignore")
            content = write(replace(learner, model=model), about)
            run, written = read(content)
        if written != about:
            raise ValueError("its metadata is not the metadata to be written")
        difference, rounding = _compared(learner, images, run, bundle.folder)
    except RunnerError:
        raise
    except Exception as error:  # compilers raise errors of any kind
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(
            f"{bundle.architecture.name} cannot be exported: {reason}",
            where=f"--format {kind}",
            fix=f"--format {'torch' if kind == 'onnx' else 'onnx'}, or the bundle as it is",
        ) from error
    return Exported(content, len(images), difference, rounding)


def _compared(
    learner: "Learner", images: "Images", run: "Program", folder: Path
) -> tuple[float, float]:
    """Measure the two differences of :class:`Exported`, batch by batch.

    Raises:
        ArtefactError: the program and the network disagree, or a prediction is not finite.
    """
    import torch

    def probabilities(squares: "Tensor") -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = learner.probabilities(learner.logits(squares)).numpy()
        return found

    largest = rounding = 0.0
    for rows in _batches(len(images)):
        squares = _squares(images, rows, learner)
        levels = squares.mul(255).round().to(torch.uint8).contiguous()
        own, found = probabilities(levels.float().div(255)), run(levels.numpy())
        if not np.isfinite(own).all():
            raise ArtefactError(
                "the network gives predictions that are not finite",
                where=str(folder.absolute()),
                fix="another run; its training went wrong",
            )
        if own.shape != found.shape:
            raise ValueError(f"it gives {found.shape} for {own.shape}")
        difference = np.abs(found - own)
        allowed = TOLERANCE * np.clip(10 * own, min(1, 10 / learner.num_outputs), 1)
        if not (difference <= allowed).all():  # NaN is not agreement
            raise ArtefactError(
                "the exported program does not agree with the network: a probability differs "
                f"by {difference.max():.2g}",
                where=str(folder.absolute()),
                fix="nothing was written; another version of torch or onnxruntime, or the bundle "
                "as it is",
            )
        largest = max(largest, float(difference.max()))
        rounding = max(rounding, float(np.abs(probabilities(squares) - own).max()))
    return largest, rounding


def _batches(count: int) -> list[NDArray[np.int64]]:
    """Positions in batches of several lengths, because a program must take any number."""
    first, second, rest = _BATCHES
    parts = np.split(np.arange(count), [first, *range(first + second, count, rest)])
    return [part for part in parts if len(part)]


def _squares(images: "Images", rows: NDArray[np.int64], learner: "Learner") -> "Tensor":
    """Return the inputs of the network before normalization, computed by the code of prediction."""
    from runner.data.batches import view_squares
    from runner.data.store import StreamedStore
    from runner.data.views import plain_view
    from runner.training.predicting import displayed_view

    how = learner.preprocess
    store = StreamedStore(images, how.presize, how.max_aspect, how.interpolation, depth=how.depth)
    plain = plain_view(how.crop)
    (pixels,) = view_squares(store, rows, [plain])
    return displayed_view(pixels, plain, learner)


def main() -> None:
    """Run the command; see ``--help``."""
    arguments = parser().parse_args()
    command(lambda: _run(arguments), translated)


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command's words."""
    words = Parser(
        prog=program("export"),
        description="Write a trained network as one file, normalization inside, that runs without "
        "trick-runner. It is checked against the network on real images first.",
        epilog="Exit codes: 0 done, 2 usage, 3 an image could not be read, 4 the file could not be "
        "written, 7 the bundle was refused, or the program, which is then not written.",
    )
    words.add_argument("bundle", metavar="RUN_OR_BUNDLE", type=Path, help="its folder")
    words.add_argument(
        "--format", choices=tuple(SUFFIXES), default="onnx",
        help="onnx: for ONNX Runtime and similar; torch: for torch.export.load (default: onnx)",
    )  # fmt: skip
    words.add_argument(
        "--output", type=Path, metavar="FILE", help="default: model.onnx or model.pt2, here"
    )
    words.add_argument(
        "--code", metavar="FILE", help="the file that changed the network, by code=FILE in training"
    )
    words.add_argument("--force", action="store_true", help="replace FILE if it exists")
    words.add_argument(
        "--images", nargs="+", default=[], type=Path, metavar="PATH",
        help="files and folders of images to check on (default: some embedded images)",
    )  # fmt: skip
    return words


def _run(arguments: argparse.Namespace) -> None:
    kind = arguments.format
    target = arguments.output or Path(f"model{SUFFIXES[kind]}")
    if target.is_dir():
        fix = f"--output {target / f'model{SUFFIXES[kind]}'}"
        raise ConfigError("FILE is a folder", where=str(target.absolute()), fix=fix)
    if target.is_file() and not arguments.force:
        fix = "--force to replace it, or --output FILE"
        raise ConfigError("the file already exists", where=str(target.absolute()), fix=fix)
    if kind == "onnx":
        from runner.export.programs import onnx_packages

        onnx_packages()  # first, because everything else takes seconds
    from runner.records.bundle import open_bundle

    code = read_idea(arguments.code, "--code ") if arguments.code is not None else None
    bundle = open_bundle(arguments.bundle)
    done = export(bundle, kind, _images(arguments.images), code=code)
    write_output(target, done.content)
    size = bundle.preprocess.size
    with Display() as display:
        display.line(
            f"{target}: {len(done.content) / 1e6:.1f} MB, {bundle.architecture.name}, uint8 images "
            f"(N, 3, {size}, {size}) to probabilities of {len(bundle.classes)} classes"
        )
        display.line(
            f"checked on {done.num_images:,} images: differs from the network by at most "
            f"{done.difference:.1g} in a probability"
        )
        if done.rounding > 1e-5:  # more than another order of memory causes
            display.line(
                "note: predict resizes without rounding to whole levels; for these images this "
                f"changes a probability by up to {done.rounding:.1g}"
            )


def _images(words: Sequence[Path]) -> "Images":
    """Return the images to check on."""
    from runner.data.embedded import load_fashion
    from runner.data.images import ArrayImages, FileImages
    from runner.data.scanning import scan_files

    if not words:
        return ArrayImages("fashion", load_fashion().val_images[::_EMBEDDED_STEP])
    paths = [
        path
        for word in words
        for path in (scan_files(word).images if word.is_dir() else [str(word)])
    ]
    if not paths:
        where = " ".join(map(str, words))
        raise DataError("no images found", where=f"--images {where}", fix="files, or leave it out")
    return FileImages(Path(), tuple(paths))


if __name__ == "__main__":
    main()
