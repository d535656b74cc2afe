"""What is distributed: the weights, and everything that using them needs.

``model.safetensors`` holds the tensors, ``model.json`` the architecture, the classes in order and
the one description of how an image becomes an input: above all the statistics of normalization.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

FORMAT = 1


def bundle_files(
    model: nn.Module,
    *,
    architecture: Mapping[str, Any],
    classes: Sequence[str],
    preprocess: Mapping[str, Any],
) -> dict[str, bytes]:
    """The files of the bundle of a trained network: content by name.

    Args:
        model: trained.
        architecture: what ``build_model`` needs to build it again.
        classes: names in the order of the outputs.
        preprocess: how an image becomes an input; values are JSON.
    """
    tensors = {
        # A clone, since safetensors refuses tensors that share memory or are not contiguous.
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
    }
    weights = save(tensors)
    description = {
        "format": FORMAT,
        "model": {**architecture, "torch": torch.__version__},
        "classes": list(classes),
        "preprocess": dict(preprocess),
        "files": {"model.safetensors": hashlib.sha256(weights).hexdigest()},
    }
    text = json.dumps(description, indent=2) + "\n"
    return {"model.safetensors": weights, "model.json": text.encode()}
