"""What is distributed: the weights, and everything that using them needs.

``model.safetensors`` holds the tensors, ``model.json`` the architecture, the classes in order and
the one description of how an image becomes an input: above all the statistics of normalization.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from runner.errors import StorageError

FORMAT = 1


def write_bundle(
    folder: Path,
    model: nn.Module,
    *,
    architecture: Mapping[str, Any],
    classes: Sequence[str],
    preprocess: Mapping[str, Any],
) -> None:
    """Write the bundle of a trained network into ``folder``.

    Args:
        folder: exists already.
        model: trained.
        architecture: what ``build_model`` needs to build it again.
        classes: names in the order of the outputs.
        preprocess: how an image becomes an input; values are JSON.

    Raises:
        StorageError: the folder cannot be written.
    """
    tensors = {
        # A clone, since safetensors refuses tensors that share memory or are not contiguous.
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
    }
    content = save(tensors)
    description = {
        "format": FORMAT,
        "model": {**architecture, "torch": torch.__version__},
        "classes": list(classes),
        "preprocess": dict(preprocess),
        "files": {"model.safetensors": hashlib.sha256(content).hexdigest()},
    }
    try:
        (folder / "model.safetensors").write_bytes(content)
        (folder / "model.json").write_text(json.dumps(description, indent=2) + "\n")
    except OSError as error:
        raise StorageError(
            f"cannot write: {error.strerror or error}",
            where=str(folder.absolute()),
            fix="outputs=FOLDER that you may write to, on a disk with space",
        ) from error
