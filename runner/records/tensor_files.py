"""Files of tensors that can be read without running anything: safetensors, and JSON in them."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from runner.machine import fields

DESCRIPTION = "trick-runner"
"""Key of the description, equal to ``model.json``, in the metadata of a bundle's weights."""

# Keys by which Hydra and similar libraries name code to run; our files have none of these keys.
_CODE = {"_target_", "_partial_", "_args_"}


_DTYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Names of the types of numbers, in the order in which safetensors lays tensors out."""


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytearray:
    """Return a safetensors file with ``tensors``, which may be on any device.

    The layout is that of ``safetensors.torch.save``, which copies all tensors several times, each
    time into new memory, which takes longer than the copying itself. Here each tensor is copied
    once, to its place; and ``metadata`` stay in order, so that equal arguments give equal bytes.

    Raises:
        KeyError: safetensors has no such type of number.
    """
    order = {dtype: place for place, dtype in enumerate(_DTYPES)}
    names = sorted(tensors, key=lambda name: (order[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors lie aligned
    content = bytearray(8 + len(text) + end)
    content[: 8 + len(text)] = len(text).to_bytes(8, "little") + text
    for name in names:
        tensor = tensors[name].detach()
        if (count := tensor.numel()) > 0:
            start = 8 + len(text) + header[name]["data_offsets"][0]
            place = torch.frombuffer(content, dtype=tensor.dtype, count=count, offset=start)
            place.view(tensor.shape).copy_(tensor)
    return content


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
