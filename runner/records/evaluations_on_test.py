"""Evaluations of a finished run on the test part: two files each, in ``evaluations/test/``.

    NAME.npz    labels (n,), probabilities (n, K) per test image; groups (n,) if the data names them
    NAME.json   the TTA, the test part, the metrics, and SHA-256 of NAME.npz; written last, as proof

NAME is the view, ``plain`` or the identity of the evaluation with TTA, and the fingerprint of the
test part. The report and ``train`` do not read this folder, so that no result on test
images can influence a verdict.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.errors import ArtefactError
from runner.machine import fields
from runner.machine.files import read_whole
from runner.records.evaluations import write_pair
from runner.records.run_folder import (
    LARGEST_JSON,
    VERSION,
    RunFolder,
    require_metrics,
    unpacked,
)

FOLDER = "evaluations/test"


@dataclass(frozen=True)
class PredictionsOnTest:
    """The predictions of a run for the n images of a test part.

    Attributes:
        labels: (n,) int64.
        probabilities: (n, K) float32 of one view.
        groups: (n,) int64, the group of each image; None if every image is a group of its own.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    groups: NDArray[np.int64] | None = None


def name_of(evaluation: str | None, test_fingerprint: str) -> str:
    """Return the name of an evaluation on a test part.

    Args:
        evaluation: identity of the evaluation with TTA; None for the plain view.
        test_fingerprint: fingerprint of the test part.
    """
    return f"{evaluation or 'plain'}-{test_fingerprint[:16]}"


def read(folder: RunFolder, name: str, identity: str, test_fingerprint: str) -> dict[str, Any]:
    """Read ``NAME.json``.

    Args:
        folder: the folder of the run.
        name: name of the evaluation, from :func:`name_of`.
        identity: identity of the run.
        test_fingerprint: fingerprint of the test part.

    Raises:
        FileNotFoundError: there is no such evaluation.
        ArtefactError: a file is damaged, or belongs to another run or test part.
    """
    path = folder.path / FOLDER / f"{name}.json"
    try:
        found = fields.parsed(read_whole(path, at_most=LARGEST_JSON))
        if fields.value(found, "record_version") != VERSION:
            raise ValueError(f"its record version is {found['record_version']}, not {VERSION}")
        expected = {"evaluation": name, "identity": identity, "test_fingerprint": test_fingerprint}
        for key, value in expected.items():
            if fields.text(found, key) != value:
                raise ValueError(f"its {key} is {found[key]!r:.80}, not {value}")
        require_metrics(fields.section(found, "metrics"))
        digest = fields.text(found, "predictions")
        if hashlib.sha256(read_whole(path.with_suffix(".npz"))).hexdigest() != digest:
            raise ValueError(f"{name}.npz was changed")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"cannot read an evaluation on test images: {error}",
            where=str(path.absolute()),
            fix="remove the file, and run the command again",
        ) from error
    return found


def predictions(folder: RunFolder, name: str) -> PredictionsOnTest:
    """Read the predictions of an evaluation that :func:`read` has checked.

    Raises:
        ArtefactError: the file is damaged.
    """
    path = folder.path / FOLDER / f"{name}.npz"
    found = unpacked(path, ("labels", "probabilities"), optional=("groups",))
    labels, probabilities, groups = found["labels"], found["probabilities"], found.get("groups")
    is_sound = (
        labels.ndim == 1
        and labels.dtype.kind in "iu"
        and probabilities.dtype.kind == "f"
        and probabilities.ndim == 2
        and len(probabilities) == len(labels) > 0
        and np.isfinite(probabilities).all()
        and 0 <= labels.min() <= labels.max() < probabilities.shape[1]
        and (groups is None or (groups.shape == labels.shape and groups.dtype.kind in "iu"))
    )
    if not is_sound:
        raise ArtefactError(
            "not the predictions of test images",
            where=str(path.absolute()),
            fix="remove the file, and run the command again",
        )
    return PredictionsOnTest(
        labels.astype(np.int64),
        probabilities,
        None if groups is None else groups.astype(np.int64),
    )


def write(
    folder: RunFolder, name: str, content: Mapping[str, Any], found: PredictionsOnTest
) -> dict[str, Any]:
    """Write an evaluation on test images; return the content of ``NAME.json``.

    Args:
        folder: the folder of the run, whose lock this process holds.
        name: name of the evaluation, from :func:`name_of`.
        content: ``identity`` of the run, ``test_fingerprint``, ``num_test``, ``num_leaked``,
            ``command``, ``tricks``, ``tta``, ``metrics``, ``seconds`` and ``environment``.
        found: the predictions.

    Raises:
        StorageError: a file cannot be written.
    """
    named = {} if found.groups is None else {"groups": found.groups}
    return write_pair(
        folder,
        f"{FOLDER}/{name}",
        {"evaluation": name, "split": "test", **content},
        labels=found.labels,
        probabilities=found.probabilities,
        **named,
    )
