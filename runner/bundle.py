"""What is distributed: the weights, and everything that using them needs.

``model.safetensors`` holds the tensors, ``model.json`` the architecture, the classes in order and
the one description of how an image becomes an input: above all the statistics of normalization.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save

from runner.data.dataset import Dataset
from runner.engine import Learner
from runner.errors import StorageError
from runner.schema import RunConfig

FORMAT = 1


def write_bundle(folder: Path, learner: Learner, config: RunConfig, dataset: Dataset) -> None:
    """Write the bundle of a trained network into ``folder``.

    Raises:
        StorageError: the folder cannot be written.
    """
    tensors = {
        # A clone, since safetensors refuses tensors that share memory or are not contiguous.
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in learner.model.state_dict().items()
    }
    content = save(tensors)
    description = {
        "format": FORMAT,
        "model": {
            "source": config.model.source,
            "name": config.model.name,
            "num_outputs": learner.num_outputs,
            "torch": torch.__version__,
        },
        "classes": list(dataset.classes),
        "preprocess": {
            "presize": dataset.presize,
            "max_aspect": config.data.max_aspect,
            "crop": "centre square",
            "size": config.eval_size,
            "interpolation": "bilinear, antialiased",
            "mean": list(learner.mean),
            "std": list(learner.std),
            "color": "RGB, EXIF orientation applied, transparency over white",
        },
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
