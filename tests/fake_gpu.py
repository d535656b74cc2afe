"""A GPU that only pretends: its tensors live in main memory, and what would wait for it raises.

Torch's third-party device type gets the name ``fakegpu``. A tensor there is a wrapper around a
tensor of the CPU, on which every operation is really computed, so a training on it has the numbers
of the CPU. Four things are as on a real GPU:

* an operation that mixes its tensors with those of the CPU raises, single numbers in pointwise
  operations aside;
* within :func:`no_waits`, so does what is known here to wait until the GPU has done all that is
  queued: numbers that are read (``.item()``, ``bool(tensor)``, ``print``, …), results whose size
  depends on values, checks of linear algebra, and copies as CUDA documents them: blocking ones,
  uploads above 64 KB from memory that is not pinned, and downloads to memory that is not pinned;
* memory of the CPU is pinned by ``pin_memory()`` and by ``.to("cpu", non_blocking=True)``;
* ``.numpy()`` raises.

It does not know everything that waits on a real GPU: what operations do inside, such as some of
``torch.linalg``, is known for those in the list only; neither are waits for memory imitated
(``cudaMalloc``, pinning itself), nor mixed precision.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch._dynamo  # which an optimizer imports, and whose annotations need torch's own Generator
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from runner.machine import hardware

NAME = "fakegpu"

aten = torch.ops.aten
_READS = {torch.Tag.data_dependent_output: "a value", torch.Tag.dynamic_output_shape: "a size"}
"""Tags by which torch itself marks operations that read values, and what they read."""
_CHECKED_INSIDE = {
    aten._linalg_check_errors.default, aten._linalg_svd.default, aten._linalg_eigh.default,
    aten.linalg_eig.default, aten.linalg_lstsq.default,
    aten.multinomial.default, aten.histc.default, aten.unique_dim_consecutive.default,
    aten.normal.Tensor_Tensor, aten.normal.float_Tensor,
}  # fmt: skip
"""Operations that read values, too, but have no such tag."""
_WITH_NUMBERS = {
    aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.fill.Tensor, aten.fill_.Tensor,
}  # fmt: skip
"""Operations that are not pointwise and take a single number of the CPU."""
_INDEX = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)


class WaitError(RuntimeError):
    """Something would wait for the GPU."""


class MixedError(RuntimeError):
    """An operation has tensors of the GPU and of the CPU."""


class _State:
    forbids_waits = False


@contextmanager
def no_waits() -> Iterator[None]:
    """Let everything raise :class:`WaitError` in the block that would wait for the GPU."""
    before, _State.forbids_waits = _State.forbids_waits, True
    try:
        yield
    finally:
        _State.forbids_waits = before


def _wait(why: str) -> None:
    if _State.forbids_waits:
        raise WaitError(f"waits for the GPU: {why}")


class GpuTensor(Tensor):
    """A tensor of the pretended GPU; ``inner`` is the one of the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "GpuTensor":
        made: GpuTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {})

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert a tensor of a GPU to numpy")

    def tolist(self) -> Any:
        _wait("a list is read")
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:  # pytest prints tensors of failed tests
        _wait("values are printed")
        return f"GpuTensor({tuple(self.shape)}, {self.dtype})"


class FakeGpu(TorchDispatchMode):
    """While it is entered, factory functions such as ``torch.zeros`` know the device, too."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if func is aten.is_pinned.default:
        return _is_pinned(args[0])
    if func in (aten.pin_memory.default, aten._pin_memory.default):
        return _pinned(args[0])
    on_gpu = [leaf for leaf in leaves if isinstance(leaf, GpuTensor)]
    asked = kwargs.get("device")
    target = None if asked is None else torch.device(asked).type
    if not on_gpu and target != NAME:
        return func(*args, **kwargs)
    if func._can_decompose():  # into operations that autograd knows; inference mode leaves it to us
        with FakeGpu():
            return func.decompose(*args, **kwargs)
    if func is aten._to_copy.default:
        return _copied(args[0], target, kwargs)
    if func is aten.copy_.default:
        return _copied_into(args[0], args[1], *args[2:], **kwargs)
    if func in _INDEX:
        _check_index(*args[:3])
    else:
        _check_reads(func, kwargs)
        _check_devices(func, args, leaves)
    if target == NAME:
        kwargs = {**kwargs, "device": "cpu"}
    found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if torch.Tag.data_dependent_output in func.tags:
        return found
    # A view of a tensor of training is one, too, although an evaluation makes it.
    is_view = any(each.alias_info is not None for each in func._schema.returns)
    is_plain = is_view and not any(each.is_inference() for each in on_gpu)
    with torch.inference_mode(torch.is_inference_mode_enabled() and not is_plain):
        wrapped = tree_map(lambda leaf: GpuTensor(leaf) if type(leaf) is Tensor else leaf, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if on_gpu else wrapped


def _inner(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, GpuTensor) else leaf


def _check_reads(func: Any, kwargs: Mapping[str, Any]) -> None:
    if kwargs.get("output_size") is not None:  # of repeat_interleave
        return
    for tag, what in _READS.items():
        if tag in func.tags:
            _wait(f"{func} reads {what}")
    if func in _CHECKED_INSIDE:
        _wait(f"{func} checks values")


def _check_devices(func: Any, args: Sequence[Any], leaves: Sequence[Tensor]) -> None:
    of_cpu = [leaf for leaf in leaves if not isinstance(leaf, GpuTensor)]
    takes_numbers = torch.Tag.pointwise in func.tags or func in _WITH_NUMBERS
    is_changed = func._schema.name.endswith("_") and any(args[0] is leaf for leaf in of_cpu)
    if is_changed or any(leaf.ndim > 0 or not takes_numbers for leaf in of_cpu):
        raise MixedError(f"{func} has tensors of the GPU and of the CPU")
    if of_cpu and func is aten.where.self:
        _wait("a number is copied to the GPU")


def _check_index(
    indexed: Tensor, indices: Sequence[Tensor | None], value: Tensor | None = None
) -> None:
    if not isinstance(indexed, GpuTensor):
        raise MixedError("a tensor of the CPU is indexed by one of the GPU")
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            _wait("the number of elements of a mask is read")
        if index is not None and not isinstance(index, GpuTensor):
            _wait("an index is copied to the GPU")
    if value is not None and not isinstance(value, GpuTensor):
        if value.ndim > 0:
            raise MixedError("values of the CPU for a tensor of the GPU")
        _wait("a number is copied to the GPU")


def _copied(source: Tensor, target: str | None, kwargs: Mapping[str, Any]) -> Tensor:
    """``source.to(…)``; torch pins the memory for what is copied to the CPU without waiting."""
    is_to_gpu = target == NAME or target is None
    is_non_blocking = bool(kwargs.get("non_blocking"))
    more = {name: value for name, value in kwargs.items() if name not in ("device", "non_blocking")}
    copied: Tensor = aten._to_copy.default(_inner(source), **more)
    if not is_to_gpu and is_non_blocking:
        _mark_pinned(copied)
    found = GpuTensor(copied) if is_to_gpu else copied
    _check_copy(found, source, is_non_blocking)
    return found


def _copied_into(into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    _check_copy(into, source, non_blocking)
    _inner(into).copy_(_inner(source))
    return into


def _check_copy(into: Tensor, source: Tensor, is_non_blocking: bool) -> None:
    """A copy between the devices waits as CUDA documents; without pinned memory it mostly does."""
    is_upload = isinstance(into, GpuTensor)
    if is_upload == isinstance(source, GpuTensor):
        return
    if not is_non_blocking:
        _wait("a blocking copy")
    # Torch converts to another type before the copy, and to another order of elements on the CPU if
    # its tensor is not contiguous: there in memory that is not pinned.
    on_cpu, is_same_type = source if is_upload else into, into.dtype == source.dtype
    is_direct = is_same_type and _strides(into) == _strides(source)
    is_direct |= on_cpu.is_contiguous() and (is_same_type or not is_upload)
    is_pinned = is_direct and _is_pinned(on_cpu)
    if not is_pinned and not (is_upload and into.nbytes <= hardware._MOST_STAGED):
        _wait("a copy with memory that is not pinned")


def _strides(tensor: Tensor) -> list[int]:
    """Of the dimensions in which there is more than one element."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def _is_pinned(tensor: Tensor) -> bool:
    return not isinstance(tensor, GpuTensor) and hasattr(tensor.untyped_storage(), "pinned")


def _pinned(tensor: Tensor) -> Tensor:
    if _is_pinned(tensor):
        return tensor
    copied = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)
    _mark_pinned(copied)
    return copied


def _mark_pinned(tensor: Tensor) -> None:
    tensor.untyped_storage().pinned = True  # type: ignore[attr-defined]


class _Backend(ModuleType):
    """What torch asks of the module ``torch.fakegpu``."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers: dict[str, Any] = {
            "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
            "_is_in_bad_fork": False, "get_amp_supported_dtype": [torch.bfloat16],
            "manual_seed_all": None, "get_rng_state": torch.empty(0), "set_rng_state": None,
        }  # fmt: skip
        if name not in answers:
            raise AttributeError(name)
        return lambda *_: answers[name]


_LIBRARY = torch.library.Library("aten", "IMPL")


def register() -> None:
    """Make the device known to torch, for the rest of the process."""
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend(NAME))

    # For torch.tensor(…, device=…), which goes past the modes.
    def empty_strided(size: Sequence[int], stride: Sequence[int], **options: Any) -> Tensor:
        return GpuTensor(torch.empty_strided(size, stride, dtype=options.get("dtype")))

    def copy_from(source: Tensor, into: Tensor, non_blocking: bool = False) -> Tensor:
        return _copied_into(into, source, non_blocking)

    _LIBRARY.impl("empty_strided", empty_strided, "PrivateUse1")
    _LIBRARY.impl("_copy_from", copy_from, "PrivateUse1")


def generator(device: torch.device | str = "cpu") -> torch.Generator:
    """``torch.Generator``, which for the pretended GPU is one of the CPU."""
    return _Generator("cpu" if torch.device(device).type == NAME else device)


_Generator = torch.Generator
