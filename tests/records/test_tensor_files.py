"""Files of tensors: equal content gives equal bytes, and what is none is told as such."""

import json
from collections.abc import Iterable

import pytest
import safetensors.torch
import torch

from runner.records import tensor_files

TENSORS = {
    "whole": torch.arange(3),
    "half": torch.tensor([0.5], dtype=torch.bfloat16),
    "turned": torch.arange(6.0).reshape(2, 3).T,
}
METADATA = {"format": "pt", tensor_files.DESCRIPTION: json.dumps({"name": "grün"}), "more": "x"}


def test_equal_content_gives_equal_bytes() -> None:
    assert len({bytes(tensor_files.to_bytes(TENSORS, METADATA)) for _ in range(20)}) == 1
    own = {safetensors.torch.save({"x": torch.zeros(1)}, METADATA) for _ in range(50)}
    assert len(own) > 1  # negative control: safetensors' own order is another each time


@pytest.mark.parametrize("dtypes", [tensor_files._DTYPES, [torch.float32, torch.int64]])
def test_the_layout_is_that_of_safetensors(dtypes: Iterable[torch.dtype]) -> None:
    tensors = {
        f"{name}.{number}": (10 * torch.randn(shape)).to(dtype)
        for name, shape in {"b": (2, 3, 4), "a": (5,), "scalar": (), "empty": (0, 2)}.items()
        for number, dtype in enumerate(dtypes)
    }
    assert tensor_files.to_bytes(tensors) == safetensors.torch.save(tensors)


def test_any_memory_layout_and_shared_memory_are_written() -> None:
    """As a network in channels-last memory has them, and networks with tied weights."""
    images = torch.randn(4, 3, 5, 5)
    tensors = {
        "last": images.to(memory_format=torch.channels_last),
        "expanded": torch.randn(1, 3).expand(4, 3),
        "tied": images[1:],
        "parameter": torch.nn.Parameter(images),
    }
    found = tensor_files.from_bytes(bytes(tensor_files.to_bytes(tensors)))
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("metadata", [None, METADATA])
def test_what_was_written_is_read_back(metadata: dict[str, str] | None, tmp_path) -> None:
    content = bytes(tensor_files.to_bytes(TENSORS, metadata))
    (tmp_path / "file.safetensors").write_bytes(content)
    for found in (
        tensor_files.from_bytes(content),
        safetensors.torch.load_file(tmp_path / "file.safetensors"),  # maps it: needs alignment
    ):
        assert found.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name
    with safetensors.safe_open(tmp_path / "file.safetensors", "pt") as file:
        assert file.metadata() == metadata
    assert tensor_files.described(content) == (metadata and {"name": "grün"})
    assert (8 + int.from_bytes(content[:8], "little")) % 8 == 0


def header(text: str) -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode()


WRONG = {
    "empty": b"",
    "short": b"\x07",
    "a page of HTML": b"<!doctype html><html><body>Not found</body></html>",
    "a header longer than any memory": b"\xff" * 8 + b"{}",
    "a header longer than the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "no JSON": header("{tensors}"),
    "a list": header("[]"),
    "nested deeply": header("[" * 100_000),
    "tensors beyond the end": header(
        '{"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}'
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_none_is_told(name: str) -> None:
    with pytest.raises(ValueError, match="not a safetensors file"):
        tensor_files.from_bytes(WRONG[name])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"_target_": "os.system"}', "_target_"),
        ('{"a": [1, {"b": {"_partial_": true}}]}', "a.1.b._partial_"),
        ('{"a": {"_args_": ["ls"]}, "c": 0}', "a._args_"),
    ],
)
def test_code_in_a_description_is_refused_with_its_key(text: str, key: str) -> None:
    content = tensor_files.to_bytes(TENSORS, {tensor_files.DESCRIPTION: text})
    with pytest.raises(ValueError, match=rf"it has the key {key}, which names code to run"):
        tensor_files.described(content)
    assert tensor_files.parsed(text.replace("_", "").encode())  # negative control
