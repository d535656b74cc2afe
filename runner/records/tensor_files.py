"""Files of tensors that can be read without running anything: safetensors, and JSON in them."""

import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from runner.machine import fields

DESCRIPTION = "trick-runner"
"""Key of the description, equal to ``model.json``, in the metadata of a bundle's weights."""

# Keys by which Hydra and similar libraries name code to run; our files have none of these keys.
_CODE = {"_target_", "_partial_", "_args_"}


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file with ``tensors``, which may be on any device."""
    plain = {
        # A clone, because safetensors refuses tensors that share memory or are not contiguous.
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in tensors.items()
    }
    content: bytes = save(plain)
    if not metadata:
        return content
    # Not safetensors' own `metadata`, whose order changes from call to call.
    length = int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(metadata), **json.loads(content[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors lie aligned
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def from_bytes(content: bytes) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        ValueError: ``content`` is not a safetensors file.
    """
    try:
        tensors: dict[str, Tensor] = load(content)
    except (SafetensorError, KeyError, OverflowError) as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    return tensors


def described(content: bytes) -> dict[str, Any] | None:
    """Read the description in the metadata of a safetensors file; None if there is none.

    Raises:
        ValueError: the file has no header, or the description is not a JSON object or names
            code.
    """
    length = int.from_bytes(content[:8], "little")
    try:
        metadata = parsed(content[8 : 8 + length]).get("__metadata__")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    text = metadata.get(DESCRIPTION) if isinstance(metadata, dict) else None
    return parsed(text.encode()) if isinstance(text, str) else None


def parsed(content: bytes) -> dict[str, Any]:
    """Parse ``content`` as a JSON object.

    Raises:
        ValueError: ``content`` is not a JSON object, or has a key that names code to run.
    """
    found = fields.parsed(content)
    below: list[tuple[str, Any]] = [("", found)]
    while below:
        place, value = below.pop()
        if isinstance(value, dict):
            if named := _CODE & value.keys():
                raise ValueError(f"it has the key {place}{min(named)}, which names code to run")
            below += [(f"{place}{key}.", item) for key, item in value.items()]
        elif isinstance(value, list):
            below += [(f"{place}{index}.", item) for index, item in enumerate(value)]
    return found
