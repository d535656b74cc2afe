"""What is distributed: the weights, and everything that using them needs.

``model.safetensors`` holds the tensors, ``model.json`` the architecture, the classes in order and
the one description of how an image becomes an input: above all the statistics of normalization.
Both are read as data: nothing in them can run code.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from runner.errors import ArtefactError

FORMAT = 1
_WEIGHTS, _DESCRIPTION = "model.safetensors", "model.json"
# Keys by which Hydra and its kin name code to run; no file of ours has them.
_CODE = {"_target_", "_partial_", "_args_"}


@dataclass(frozen=True)
class Bundle:
    """A trained network as it was read: checked, but not yet built.

    Attributes:
        folder: it was read from.
        source: where the architecture is looked up; see ``runner.models.build_model``.
        name: of the architecture.
        num_outputs: of the network, at least the number of classes.
        classes: names in the order of the outputs.
        mean: of red, green and blue, that normalization takes off pixels in 0..1.
        std: of red, green and blue, that it then divides by; above 0.
        tensors: the state of the network by name.
    """

    folder: Path
    source: str
    name: str
    num_outputs: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tensors: dict[str, Tensor]

    def load_into(self, model: nn.Module) -> None:
        """Give ``model`` the trained weights.

        Raises:
            ArtefactError: they are of another network; ``model`` may be half loaded.
        """
        try:
            model.load_state_dict(self.tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise _refused(
                self.folder / _WEIGHTS, f"not the weights of {self.name}: {reason}"
            ) from error


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
        "files": {_WEIGHTS: hashlib.sha256(weights).hexdigest()},
    }
    text = json.dumps(description, indent=2) + "\n"
    return {_WEIGHTS: weights, _DESCRIPTION: text.encode()}


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle back; its weights are compared with their SHA-256 before anything parses them.

    Raises:
        ArtefactError: a file is missing, cut, changed, of another format or not as described.
    """
    path = folder / _DESCRIPTION
    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=_without_code)
        if found["format"] != FORMAT:
            raise ValueError(f"of format {found['format']!r}, this program reads {FORMAT}")
        model, preprocess = found["model"], found["preprocess"]
        bundle = Bundle(
            folder,
            source=_text(model, "source"),
            name=_text(model, "name"),
            num_outputs=model["num_outputs"],
            classes=_classes(found["classes"], model["num_outputs"]),
            mean=_statistics(preprocess, "mean"),
            std=_statistics(preprocess, "std"),
            tensors={},
        )
        if min(bundle.std) <= 0:
            raise ValueError(f"std must be above 0, not {bundle.std}")
        digest = _text(found["files"], _WEIGHTS)
    except KeyError as error:
        raise _refused(path, f"it has no {error}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _refused(path, str(error)) from error
    return replace(bundle, tensors=_weights(folder / _WEIGHTS, digest))


def _weights(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("it is not what was written (its SHA-256 differs)")
        tensors: dict[str, Tensor] = load(content)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _refused(path, str(error)) from error
    return tensors


def _refused(path: Path, reason: str) -> ArtefactError:
    return ArtefactError(
        f"cannot use the bundle: {reason}",
        where=str(path.absolute()),
        fix="a whole copy of the folder, or the run's own command with force=true",
    )


def _without_code(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, unless it has a key that names code."""
    if named := _CODE & {key for key, _ in pairs}:
        raise ValueError(f"it has the key {min(named)}, which names code to run")
    return dict(pairs)


def _text(values: Mapping[str, Any], key: str) -> str:
    if not isinstance(value := values[key], str):
        raise ValueError(f"{key} must be text, not {value!r}")
    return value


def _classes(names: Any, num_outputs: Any) -> tuple[str, ...]:
    if not isinstance(num_outputs, int) or not isinstance(names, list):
        raise ValueError("num_outputs must be a number and classes a list")
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise ValueError("classes must be texts, each once")
    if not 2 <= len(names) <= num_outputs:
        raise ValueError(f"{len(names)} classes do not fit {num_outputs} outputs")
    return tuple(names)


def _statistics(preprocess: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = preprocess[key]
    if len(values) != 3 or not all(math.isfinite(value) for value in values):
        raise ValueError(f"{key} must be three finite numbers, not {values!r}")
    return tuple(float(value) for value in values)
