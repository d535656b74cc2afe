"""A network as a program that runs without trick-runner, in ONNX or ``torch.export``.

The program takes the resized squares as uint8 and returns probabilities. Scaling, normalization and
what makes probabilities of logits are inside, traced from the code of prediction, so that users
need not repeat them.
"""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runner import __version__
from runner.errors import ConfigError
from runner.records.bundle import Bundle
from runner.training.step import Learner

_ONNX_BYTES = 2_000_000_000  # capacity of a file of protocol buffers, less some for the graph
_ONNX_OPSET = 18  # the oldest version that PyTorch's exporter writes without converting

Program = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""A function from squares (N, 3, S, S) to probabilities (N, K)."""


def description(bundle: Bundle) -> dict[str, str]:
    """Return the metadata of a program in both formats: texts, and JSON of the bundle's values."""
    size, outputs = bundle.preprocess.size, bundle.architecture.num_outputs
    return {
        "input": f"images: uint8 (N, 3, {size}, {size}), RGB, 0..255, any N; cropped and resized "
        "as preprocess says; scaling to 0..1 and normalization are inside",
        "output": f"probabilities: float32 (N, {outputs}), in the order of classes",
        "classes": json.dumps(bundle.classes),
        "preprocess": json.dumps(bundle.preprocess.to_dict()),
        "model": json.dumps(bundle.architecture.to_dict()),
        "made_with": json.dumps({"trick-runner": __version__, "torch": torch.__version__}),
    }


class _Program(nn.Module):
    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.model = learner.model
        self._learner = learner

    def forward(self, images: Tensor) -> Tensor:
        return self._learner.probabilities(self._learner.logits(images.float() / 255))


def _traced(learner: Learner) -> torch.export.ExportedProgram:
    size = learner.preprocess.size
    # Two images, because a dimension of 1 would be taken for a constant.
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    dynamic = {"images": {0: torch.export.Dim("batch", min=1)}}
    model = _Program(learner)
    model.eval()
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=dynamic)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it holds paths of this machine
    return program


def to_onnx(learner: Learner, about: dict[str, str]) -> bytes:
    """Return the content of an ONNX file with ``about`` as its metadata.

    Raises:
        ConfigError: a package is missing, or the weights do not fit one file.
    """
    onnx, _ = onnx_packages()
    weights = learner.model.state_dict().values()
    if (size := sum(tensor.nbytes for tensor in weights)) > _ONNX_BYTES:
        raise ConfigError(
            f"{size / 1e9:.1f} GB of weights do not fit an ONNX file, which holds 2 GB",
            where="--format onnx",
            fix="--format torch",
        )
    with torch.no_grad():
        program = torch.onnx.export(
            _traced(learner),
            dynamo=True,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": {0: "batch"}},
            opset_version=_ONNX_OPSET,
            verbose=False,
        )
    assert program is not None  # guaranteed by dynamo=True
    model: Any = program.model_proto
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]  # internal notes of the exporter
    onnx.helper.set_model_props(model, about)
    content: bytes = model.SerializeToString()
    return content


def from_onnx(content: bytes) -> tuple[Program, dict[str, str]]:
    """Load an ONNX file in ONNX Runtime; return its function and its metadata."""
    _, runtime = onnx_packages()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(["probabilities"], {"images": squares})[0]
        return found

    return run, session.get_modelmeta().custom_metadata_map


def to_torch(learner: Learner, about: dict[str, str]) -> bytes:
    """Return a file for ``torch.export.load``, with ``about`` as its ``model.json``."""
    file = io.BytesIO()
    torch.export.save(_traced(learner), file, extra_files={"model.json": json.dumps(about)})
    return file.getvalue()


def from_torch(content: bytes) -> tuple[Program, dict[str, str]]:
    """Load a file with ``torch.export.load``; return its function and its metadata.

    Such a file can run code when it is loaded: load only files that this program has just written.
    """
    extra = {"model.json": ""}
    module = torch.export.load(io.BytesIO(content), extra_files=extra).module()

    def run(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = module(torch.from_numpy(squares)).numpy()
        return found

    return run, json.loads(extra["model.json"])


def onnx_packages() -> tuple[Any, Any]:
    """Import the optional packages onnx, onnxruntime and onnxscript, which torch needs.

    Raises:
        ConfigError: one of the packages is not installed.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"export to ONNX needs the package {error.name or error}, which is not installed",
            where="--format onnx",
            fix="pip install 'trick-runner[export]', or --format torch",
        ) from error
    return onnx, onnxruntime
