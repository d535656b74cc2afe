"""A file with the user's own idea: read once, and checked without running it.

``code=my_idea.py`` names a Python file that has one or more of the functions in ``SEAMS``, each
with a fixed name and fixed parameters. The file is read into memory once, so that the bytes that
are hashed are the bytes that run. :mod:`runner.tricks.idea` runs them; nothing here does.
"""

import ast
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import all_suffixes
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.config.group import Problem
from runner.config.words import nearest
from runner.errors import CodeError, ConfigError
from runner.machine.files import read_whole

if TYPE_CHECKING:
    from runner.config.schema import RunConfig

MODULE = "runner_code_"
"""Start of the module name of every idea file that runs; the SHA-256 follows."""

_LARGEST = 2**20  # bytes


@dataclass(frozen=True)
class Seam:
    """A place of the training where a function of an idea file acts.

    Attributes:
        parameters: names, in order.
        returns: what the function returns.
        acts: where it acts.
    """

    parameters: tuple[str, ...]
    returns: str
    acts: str

    def definition(self, name: str) -> str:
        """Return the first line of the function."""
        return f"def {name}({', '.join(self.parameters)}):"


SEAMS: Mapping[str, Seam] = {
    "images": Seam(
        ("images", "generator", "progress"),
        "images (M, 3, S, S)",
        "on the images of a step, after augmentation and before mixing; float in 0..1",
    ),
    "targets": Seam(
        ("targets", "generator", "progress"),
        "targets (N, K)",
        "on the targets of a step, after mixing and label smoothing",
    ),
    "loss": Seam(
        ("logits", "targets"),
        "a tensor: a scalar, or (N,) numbers that are averaged",
        "instead of cross entropy in training; logits (N, K), targets (N, K)",
    ),
    "model": Seam(
        ("model",),
        "the network",
        "on the network after it is built and before weights are loaded into it",
    ),
    "optimizer": Seam(
        ("groups", "lr"),
        "a torch.optim.Optimizer of these groups",
        "instead of optim.name; groups are dictionaries with params, weight_decay and lr_factor",
    ),
    "after_step": Seam(
        ("model", "progress"),
        "nothing",
        "on the network after each update, without gradients; changes it in place",
    ),
    "predictions": Seam(
        ("logits",),
        "probabilities (N, K), in rows that sum to 1",
        "instead of softmax when images are predicted",
    ),
}
"""The functions that an idea file may have, by name, in the order in which they act."""


@dataclass(frozen=True)
class IdeaFile:
    """An idea file as it was read.

    Attributes:
        path: as it was named.
        content: bytes of the file.
        lines: line of each function of ``SEAMS`` that the file has, by name, in their order.
    """

    path: Path
    content: bytes = field(repr=False)
    lines: Mapping[str, int]

    @property
    def name(self) -> str:
        """The name of the file without its folder."""
        return self.path.name

    @property
    def sha256(self) -> str:
        """SHA-256 of the content, in hex digits."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        """The facts about the file in the records of a run."""
        return {"file": self.name, "sha256": self.sha256, "functions": list(self.lines)}

    def place(self, function: str) -> str:
        """Return where a function is, for messages."""
        return f"{self.name}:{self.lines[function]}, in {function}"


def read_idea(path: str, word: str = "code=") -> IdeaFile:
    """Read and check the file with the user's code. The code of the file does not run.

    Args:
        path: path of the file.
        word: what names the file on the command line, for messages.

    Raises:
        ConfigError: the file cannot be read, is no Python, has none of the functions of ``SEAMS``,
            has a public function of another name, or one with other parameters.
    """
    file = Path(path).expanduser()
    try:
        content = read_whole(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot read the file: {reason}",
            where=f"{word}{path}",
            fix=f"{word}FILE, a Python file; a relative path starts at the current folder",
        ) from error
    if len(content) > _LARGEST:
        raise ConfigError(
            f"the file has {len(content):,} bytes, more than {_LARGEST:,}",
            where=f"{word}{path}",
            fix="a file with the functions alone",
        )
    tree = _parsed(file, content)
    problems = [
        Problem(f"{file.name}:{line}: {problem.what}", problem.fix)
        for line, problem in sorted(_problems(tree, file))
    ]
    if problems:
        raise ConfigError(
            "\n".join(problem.what for problem in problems),
            where=f"{word}{path}",
            fix="; ".join(dict.fromkeys(problem.fix for problem in problems)),
        )
    found = {node.name: node.lineno for node in tree.body if isinstance(node, ast.FunctionDef)}
    lines = {name: found[name] for name in SEAMS if name in found}
    if not lines:
        raise ConfigError(
            f"{file.name} has none of the functions that act: {', '.join(SEAMS)}",
            where=f"{word}{path}",
            fix=f"for example {SEAMS['loss'].definition('loss')}",
        )
    return IdeaFile(file, content, lines)


def idea_of(config: "RunConfig") -> IdeaFile | None:
    """Read and check the file that ``code`` names; None without one.

    Raises:
        ConfigError: as of :func:`read_idea`; or the file has a loss of its own, and the
            configuration chooses another loss or weighs its classes.
    """
    if config.code is None:
        return None
    file = read_idea(config.code)
    chosen = [f"loss.kind={config.loss.kind}"] if config.loss.kind != "cross_entropy" else []
    if config.loss.is_weighted:
        chosen.append(f"loss.class_weights={config.loss.class_weights}")
    if "loss" in file.lines and chosen:
        raise ConfigError(
            f"{' and '.join(chosen)} would have no effect: the function loss of {file.name} "
            "replaces the loss",
            where=f"code={config.code} {' '.join(chosen)}",
            fix="loss.kind=cross_entropy loss.class_weights=none, or a file without loss",
        )
    return file


def _parsed(file: Path, content: bytes) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes; they show when the file runs
            tree = ast.parse(content, file.name)
            compile(tree, file.name, "exec")  # finds what the grammar alone allows
            return tree
    except SyntaxError as error:
        place = f"{file.name}:{error.lineno}: " if error.lineno else f"{file.name}: "
        what = f"{place}{error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; nested too deeply
        what = f"{file.name}: {error}"
    raise ConfigError(what, where=f"code={file}", fix="a file that Python accepts")


class _Finding(NamedTuple):
    line: int
    problem: Problem


def _problems(tree: ast.Module, file: Path) -> Iterator[_Finding]:
    """Yield what is wrong with the names and parameters of a file."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_"):
                yield from _problems_of_function(node)
        else:
            for name in _bound_names(node):
                if name in SEAMS:
                    what = f"{name} is not a function of this file"
                    yield _Finding(node.lineno, Problem(what, SEAMS[name].definition(name)))
    for inner in ast.walk(tree):
        if isinstance(inner, ast.Import | ast.ImportFrom):
            yield from _problems_of_import(inner, file)


def _problems_of_function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[_Finding]:
    seam = SEAMS.get(node.name)
    if seam is None:
        guess = nearest(node.name, list(SEAMS))
        meant = f" (did you mean {guess}?)" if guess else ""
        yield _Finding(
            node.lineno,
            Problem(
                f"unknown function {node.name}{meant}",
                f"the functions are {', '.join(SEAMS)}; the name of a helper starts with _",
            ),
        )
    elif isinstance(node, ast.AsyncFunctionDef):
        what = f"{node.name} must be a plain function"
        yield _Finding(node.lineno, Problem(what, seam.definition(node.name)))
    else:
        has_others = node.args.vararg or node.args.kwonlyargs or node.args.kwarg
        names = tuple(argument.arg for argument in (*node.args.posonlyargs, *node.args.args))
        if has_others or names != seam.parameters:
            given = ast.unparse(node.args)
            what = f"{node.name} takes ({', '.join(seam.parameters)}), not ({given})"
            yield _Finding(node.lineno, Problem(what, seam.definition(node.name)))


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement at the top of a file gives a meaning to, functions aside."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        for alias in statement.names:
            yield alias.asname or alias.name.partition(".")[0]
    elif isinstance(statement, ast.ClassDef):
        yield statement.name
    else:
        yield from _stored_names(statement)


def _stored_names(node: ast.AST) -> Iterator[str]:
    """Yield the names that ``node`` stores, except in inner scopes such as comprehensions."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif not isinstance(node, ast.comprehension | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _stored_names(child)


def _problems_of_import(node: ast.Import | ast.ImportFrom, file: Path) -> Iterator[_Finding]:
    """Yield imports of files next to this one: their content would decide results unrecorded."""
    if isinstance(node, ast.ImportFrom) and node.level:
        names = ["."]
    elif isinstance(node, ast.ImportFrom):
        names = [str(node.module)]
    else:
        names = [alias.name for alias in node.names]
    for name in names:
        first = name.partition(".")[0]
        if first == "runner":
            continue
        if not first or any(_has_module(folder, first) for folder in (file.parent, Path())):
            yield _Finding(
                node.lineno,
                Problem(
                    f"imports {name}, a file whose content would not be part of the run's identity",
                    f"put what {file.name} needs into it, or install it as a package",
                ),
            )


def _has_module(folder: Path, name: str) -> bool:
    """Return whether ``folder`` has a file or folder that ``import name`` would find."""
    return (folder / name).is_dir() or any(
        (folder / f"{name}{suffix}").is_file() for suffix in all_suffixes()
    )


def blamed(error: BaseException) -> CodeError | None:
    """Return the user's error if ``error`` was raised in an idea file or in code that it called."""
    frames = [
        (frame, line)
        for frame, line in walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).startswith(MODULE)
    ]
    if not frames:
        return None
    frame, line = frames[-1]
    code = frame.f_code
    return failed(error, f"{Path(code.co_filename).name}:{line}, in {code.co_name}")


def failed(error: BaseException, where: str) -> CodeError:
    """Return the error for the user about an exception that their code caused.

    Args:
        error: as it was caught; the last of its notes is the place of the training.
        where: place in the file.
    """
    said = " ".join(str(error).split())[:300]
    return CodeError(
        f"the code of the run failed: {type(error).__name__}{f': {said}' if said else ''}",
        where=", ".join([where, *getattr(error, "__notes__", [])[-1:]]),
        fix="correct the file; RUNNER_DEBUG=1 shows the whole traceback",
    )
