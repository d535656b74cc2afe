"""The bundle, which a user distributes: the weights, and everything that is needed to use them.

``model.safetensors`` holds the tensors. ``model.json`` holds the architecture, the classes in order
and how an image becomes an input, above all the statistics of normalization. The metadata of
``model.safetensors`` holds the same description, so that an edited file is noticed and a weights
file on its own is still described. Both files are read as data: nothing in them can run code.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runner import __version__
from runner.config.checks import from_dict
from runner.config.schema import Augment
from runner.data import preprocess
from runner.data.preprocess import Preprocess
from runner.errors import ArtefactError, ConfigError, DataError
from runner.machine import fields
from runner.machine.files import read_whole
from runner.records import tensor_files
from runner.records.run_folder import RunFolder

FORMAT, FORMAT_WITH_CHANGES = 2, 3
CODE = "code"
"""Name of the change that a file of the user made."""
BCE = "bce"
"""Name of the change that computes probabilities from sigmoids of the outputs, not by softmax."""
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


@dataclass(frozen=True)
class Change:
    """A change of a network by name; :mod:`runner.models.changes` applies it.

    Attributes:
        name: ``code`` for a change by the user's file, which a bundle does not contain.
        values: further values that are needed to build the network again. For ``code``: the name of
            the ``file``, its ``sha256``, and the needed ``functions`` among ``model``, which
            changes the network, and ``predictions``, which turns logits into probabilities. For a
            trick, whose name is that of its group of the configuration: the values of the group.
    """

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """The values from which :func:`runner.models.build_model` builds a network again.

    Attributes:
        source: the library that defines the architecture.
        name: name of the architecture in that library.
        num_outputs: number of outputs, at least the number of classes.
        changes: the changes that were applied to the network, in order.
    """

    source: str
    name: str
    num_outputs: int
    changes: tuple[Change, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON; without ``changes`` if there are none."""
        values = {"source": self.source, "name": self.name, "num_outputs": self.num_outputs}
        changes = [{"name": change.name, **change.values} for change in self.changes]
        return {**values, "changes": changes} if changes else values

    @property
    def code(self) -> Mapping[str, Any] | None:
        """The values of the change by the user's file, if there is one."""
        return code_of(self.changes)


@dataclass(frozen=True)
class EvaluationSettings:
    """How the run evaluated the network, to reproduce its exact numbers.

    Attributes:
        precision: ``fp32`` or ``bf16``.
        batch_size: images per forward pass.
        seed: seed of the random passes of TTA.
        augment: augmentation of the random passes of TTA.
    """

    precision: str
    batch_size: int
    seed: int
    augment: Augment


@dataclass(frozen=True)
class Bundle:
    """A trained network that was read and checked, but not yet built.

    Attributes:
        folder: the folder that the bundle was read from.
        architecture: architecture of the network.
        classes: names of the classes in the order of the outputs.
        preprocess: how an image becomes an input.
        evaluated: how the run evaluated the network.
        tensors: the state of the network by name.
    """

    folder: Path
    architecture: Architecture
    classes: tuple[str, ...]
    preprocess: Preprocess
    evaluated: EvaluationSettings
    tensors: dict[str, Tensor]

    def load_into(self, model: nn.Module) -> None:
        """Load the trained weights into ``model``.

        Raises:
            ArtefactError: the weights belong to another network; ``model`` may be partly loaded.
        """
        try:
            model.load_state_dict(self.tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise _refused(
                self.folder / WEIGHTS, f"not the weights of {self.architecture.name}: {reason}"
            ) from error


def bundle_files(
    model: nn.Module,
    *,
    architecture: Architecture,
    classes: Sequence[str],
    preprocess: Preprocess,
    evaluated: EvaluationSettings,
) -> dict[str, bytes | bytearray]:
    """Make the files of the bundle of a trained network, for :func:`read_bundle`.

    Returns:
        The content of each file by its name.
    """
    description = {
        "format": FORMAT_WITH_CHANGES if architecture.changes else FORMAT,
        "model": architecture.to_dict(),
        "classes": list(classes),
        "preprocess": preprocess.to_dict(),
        "evaluated": asdict(evaluated),
        "made_with": {"trick-runner": __version__, "torch": torch.__version__},
    }
    metadata = {"format": "pt", tensor_files.DESCRIPTION: json.dumps(description)}
    weights = tensor_files.to_bytes(model.state_dict(), metadata)
    whole = {**description, "files": {WEIGHTS: hashlib.sha256(weights).hexdigest()}}
    return {WEIGHTS: weights, DESCRIPTION: f"{json.dumps(whole, indent=2)}\n".encode()}


def digests_of(files: Mapping[str, bytes | bytearray]) -> dict[str, str]:
    """Return the SHA-256 of each of the :func:`bundle_files`, without hashing the weights again."""
    recorded: dict[str, str] = json.loads(files[DESCRIPTION])["files"]
    return {**recorded, DESCRIPTION: hashlib.sha256(files[DESCRIPTION]).hexdigest()}


def open_bundle(path: Path) -> Bundle:
    """Open the bundle of the finished run in ``path``, or the bundle ``path`` itself.

    Raises:
        DataError: ``path`` is neither a finished run nor a bundle.
        ArtefactError: see :func:`read_bundle`.
    """
    where = str(path.absolute())
    if not path.is_dir():
        raise DataError("no such folder", where=where, fix="a finished run, or a bundle")
    if (path / DESCRIPTION).exists():
        return read_bundle(path)
    run = RunFolder(path)
    result = run.result()
    if result is not None:
        return read_bundle(path / "bundle", result.get("bundle"))
    what = f"no finished run (status: {run.status()['status']})" if run.is_begun else "no run"
    raise DataError(
        f"this is {what} and no bundle",
        where=where,
        fix="one of those that python -m runner.show lists as finished, or a folder with "
        f"{WEIGHTS} and {DESCRIPTION}",
    )


def read_bundle(folder: Path, expected: Mapping[str, str] | None = None) -> Bundle:
    """Read a bundle; compare every file with its SHA-256 before anything is built.

    Args:
        folder: folder of the bundle.
        expected: SHA-256 of the files by name, if the caller knows them.

    Raises:
        ArtefactError: a file is missing, cut, changed, in another format, or not as described.
    """
    path = folder / DESCRIPTION
    content = _content(path, (expected or {}).get(DESCRIPTION))
    try:
        found = tensor_files.parsed(content)
        digest = fields.text(fields.section(found, "files"), WEIGHTS)
        del found["files"]
        described = _described(found)
    except ValueError as error:
        raise _refused(path, str(error)) from error
    weights = _content(folder / WEIGHTS, (expected or {}).get(WEIGHTS, digest))
    try:
        tensors, written = tensor_files.from_bytes(weights), tensor_files.described(weights)
    except ValueError as error:
        raise _refused(folder / WEIGHTS, str(error)) from error
    if change := _first_difference(found, written):
        raise _refused(path, f"it was changed after it was written: {change}")
    architecture = described[0]
    # num_outputs decides how much memory the network takes, so the weights must confirm it.
    sizes = chain(*(tensor.shape for tensor in tensors.values()))
    if architecture.num_outputs > max(sizes, default=0):
        what = f"num_outputs is {architecture.num_outputs:,}, more than any tensor of {WEIGHTS} has"
        raise _refused(path, what)
    return Bundle(folder, *described, tensors=tensors)


def _described(
    found: Mapping[str, Any],
) -> tuple[Architecture, tuple[str, ...], Preprocess, EvaluationSettings]:
    """Check the values of a description and convert them to our types."""
    if (version := fields.value(found, "format")) not in (FORMAT, FORMAT_WITH_CHANGES):
        raise ValueError(
            f"the format is {version!r}; this program reads {FORMAT} and {FORMAT_WITH_CHANGES}"
        )
    model, evaluated = fields.section(found, "model"), fields.section(found, "evaluated")
    num_outputs = fields.whole(model, "num_outputs")
    try:
        augment = from_dict({"augment": fields.section(evaluated, "augment")}).augment
    except ConfigError as error:
        raise ValueError(error.what) from error
    precision = fields.text(evaluated, "precision")
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision is {precision!r}")
    return (
        Architecture(
            fields.text(model, "source"),
            fields.text(model, "name"),
            num_outputs,
            changes_in(model) if version == FORMAT_WITH_CHANGES else (),
        ),
        _classes(fields.texts(found, "classes"), num_outputs),
        preprocess.from_dict(fields.section(found, "preprocess")),
        EvaluationSettings(
            precision=precision,
            batch_size=max(1, fields.whole(evaluated, "batch_size")),
            seed=fields.whole(evaluated, "seed"),
            augment=augment,
        ),
    )


def changes_in(model: Mapping[str, Any]) -> tuple[Change, ...]:
    """Read the changes that the description of a network names.

    Raises:
        ValueError: the changes do not have the format in which they are written.
    """
    if "changes" not in model:
        return ()
    changes = []
    for entry in fields.sections(model, "changes"):
        values = {key: value for key, value in entry.items() if key != "name"}
        changes.append(Change(fields.text(entry, "name"), values))
        if changes[-1].name == CODE:
            fields.text(values, "file")
            if not re.fullmatch("[0-9a-f]{64}", fields.text(values, "sha256")):
                raise ValueError(f"sha256 is {values['sha256']!r}")
            if not set(fields.texts(values, "functions")) <= {"model", "predictions"}:
                raise ValueError(f"functions are {values['functions']!r}")
    return tuple(changes)


def code_of(changes: Sequence[Change]) -> Mapping[str, Any] | None:
    """The values of the change by the user's file, if there is one."""
    return next((change.values for change in changes if change.name == CODE), None)


def _content(path: Path, digest: str | None) -> bytes:
    """Read a file and check that its SHA-256 is ``digest``, unless ``digest`` is None."""
    try:
        content = read_whole(path)
    except OSError as error:
        raise _refused(path, str(error)) from error
    found = hashlib.sha256(content).hexdigest()
    if digest not in (None, found):
        raise _refused(path, f"it was changed: its SHA-256 is {found}, not {digest}")
    return content


def _first_difference(description: Any, written: Any, name: str = "") -> str | None:
    """Return the first value in which a description differs from that in the weights file."""
    if isinstance(description, dict) and isinstance(written, dict):
        for key in dict.fromkeys([*written, *description]):
            dotted = f"{name}.{key}" if name else key
            if change := _first_difference(description.get(key), written.get(key), dotted):
                return change
        return None
    if description == written:
        return None
    return f"{name or 'the description'} is {_short(description)}, not {_short(written)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _refused(path: Path, reason: str) -> ArtefactError:
    return ArtefactError(
        f"cannot use the bundle: {reason}",
        where=str(path.absolute()),
        fix="a whole copy of the folder, or the run's own command with force=true",
    )


def _classes(names: tuple[str, ...], num_outputs: int) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("classes must be different texts")
    if not 2 <= len(names) <= num_outputs:
        raise ValueError(f"{len(names)} classes do not fit {num_outputs} outputs")
    return names
