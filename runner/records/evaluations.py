"""Evaluations of a finished run with TTA: two files each, in ``evaluations/`` of the run's folder.

    NAME.npz    tta (n, K): combined probabilities per validation image, in the rows of
                predictions.npz
    NAME.json   the TTA, its metrics, and SHA-256 of NAME.npz; written last, as proof

NAME is the identity of the evaluation. Training does not depend on TTA, so ``train`` and
``evaluate`` add evaluations to a run that is finished.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.errors import ArtefactError
from runner.machine import fields
from runner.machine.files import read_whole
from runner.records.run_folder import (
    LARGEST_JSON,
    VERSION,
    RunFolder,
    packed,
    redacted_words,
    rename_metrics,
    require_metrics,
    unpacked,
)

_FOLDER = "evaluations"


def names(folder: RunFolder) -> list[str]:
    """Return the names of the evaluations of a run, sorted."""
    with suppress(OSError):
        return sorted(path.stem for path in (folder.path / _FOLDER).glob("*.json"))
    return []


def read(folder: RunFolder, name: str) -> dict[str, Any] | None:
    """Read ``NAME.json``; None if there is no such evaluation, or no ``NAME.npz``.

    Raises:
        ArtefactError: the file exists but is not an evaluation with that name.
    """
    path = folder.path / _FOLDER / f"{name}.json"
    try:
        found = fields.parsed(read_whole(path, at_most=LARGEST_JSON))
        if fields.value(found, "record_version") != VERSION:
            raise ValueError(f"its record version is {found['record_version']}, not {VERSION}")
        if fields.text(found, "evaluation") != name:
            raise ValueError(f"it belongs to evaluation {found['evaluation']}")
        metrics = fields.section(found, "metrics")
        rename_metrics(metrics)
        require_metrics(metrics)
        fields.section(found, "tta")
        fields.texts(found, "tricks")
        fields.text(found, "predictions")
        fields.number(found, "seconds", at_least=0)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"cannot read an evaluation: {error}",
            where=str(path.absolute()),
            fix="remove the file, and run the command with that tta again",
        ) from error
    return found if path.with_suffix(".npz").is_file() else None


def joined(result: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the result of a run with the tricks and metrics of one of its evaluations, if given.

    Its name and its seconds are under ``evaluation``.
    """
    if evaluation is None:
        return dict(result)
    metrics = {**result["metrics"], "tta": evaluation["metrics"]}
    facts = {"name": evaluation.get("evaluation"), "seconds": evaluation["seconds"]}
    return {**result, "tricks": evaluation["tricks"], "metrics": metrics, "evaluation": facts}


def write(
    folder: RunFolder, name: str, content: Mapping[str, Any], tta: NDArray[np.float32]
) -> dict[str, Any]:
    """Write an evaluation; return the content of ``NAME.json``.

    Args:
        folder: the folder of the run, whose lock this process holds.
        name: the identity of the evaluation.
        content: ``identity`` of the run, ``command``, ``tricks``, ``tta``, ``metrics``, ``seconds``
            and ``environment``.
        tta: (n, K) combined probabilities.

    Raises:
        StorageError: a file cannot be written.
    """
    return write_pair(folder, f"{_FOLDER}/{name}", {"evaluation": name, **content}, tta=tta)


def write_pair(
    folder: RunFolder, place: str, content: Mapping[str, Any], **arrays: NDArray[Any]
) -> dict[str, Any]:
    """Write ``place`` + ``.npz``, then ``.json`` as proof; return the content of ``.json``.

    Args:
        folder: the folder of the run, whose lock this process holds.
        place: the path of both files below the folder, without suffix.
        content: values for JSON, with the ``command``; the version and the SHA-256 are added.
        arrays: the arrays by name.

    Raises:
        StorageError: a file cannot be written.
    """
    file = packed(**arrays)
    folder.write_bytes(f"{place}.npz", file)
    whole = {
        "record_version": VERSION,
        **content,
        "command": redacted_words(content["command"]),
        "predictions": hashlib.sha256(file).hexdigest(),
    }
    folder.write_text(f"{place}.json", json.dumps(whole, indent=2, allow_nan=False) + "\n")
    return whole


def prediction_files(folder: RunFolder, name: str | None) -> list[Path]:
    """Return the files with a run's predictions: plain, and of the evaluation ``name`` if given."""
    own = [] if name is None else [folder.path / _FOLDER / f"{name}.npz"]
    return [folder.path / "predictions.npz", *own]


def probabilities(folder: RunFolder, name: str) -> NDArray[Any]:
    """Read the (n, K) combined probabilities of an evaluation.

    Raises:
        ArtefactError: a file is missing or was changed.
    """
    path, content = folder.path / _FOLDER / f"{name}.npz", read(folder, name)
    try:
        is_whole = (
            content is not None
            and hashlib.sha256(read_whole(path)).hexdigest() == content["predictions"]
        )
    except OSError:
        is_whole = False
    if not is_whole:
        raise ArtefactError(
            "not the probabilities of this evaluation",
            where=str(path.absolute()),
            fix="remove the file, and run the command with that tta again",
        )
    return unpacked(path, ("tta",))["tta"]
