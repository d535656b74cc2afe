"""A GPU that only pretends: its tensors live in main memory, and what would wait for it raises.

Torch's third-party device type gets the name ``fakegpu``. A tensor there is a wrapper around a
tensor of the CPU, on which every operation is really computed, so a training on it has the numbers
of the CPU. Three things are as on a real GPU:

* an operation that mixes its tensors with those of the CPU raises, single numbers aside;
* within :func:`no_waits`, so does every operation that waits until the GPU has done all that is
  queued: ``.item()``, ``bool(tensor)``, ``.cpu()``, a blocking copy to it, an index by a mask, …;
* ``.numpy()`` raises.

Only mixed precision is not imitated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "fakegpu"
IS_POSSIBLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
"""Torch has had what this needs since 2.10."""

aten = torch.ops.aten
_WAITING = {
    aten._local_scalar_dense.default: "a number is read",
    aten.equal.default: "a comparison is read",
    aten.nonzero.default: "the number of results is read",
    aten.masked_select.default: "the number of results is read",
    aten._unique2.default: "the number of results is read",
}


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
        return f"GpuTensor({tuple(self.shape)}, {self.dtype})"


class FakeGpu(TorchDispatchMode):
    """While it is entered, factory functions such as ``torch.zeros`` know the device, too."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
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
    if func in _WAITING:
        _wait(_WAITING[func])
    if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
        _check_index(args[1])
    elif any(leaf.ndim > 0 and not isinstance(leaf, GpuTensor) for leaf in leaves):
        raise MixedError(f"{func} has tensors of the GPU and of the CPU")
    if target == NAME:
        kwargs = {**kwargs, "device": "cpu"}
    found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if func is aten._local_scalar_dense.default or func is aten.equal.default:
        return found
    # A view of a tensor of training is one, too, although an evaluation makes it.
    is_view = any(each.alias_info is not None for each in func._schema.returns)
    is_plain = is_view and not any(each.is_inference() for each in on_gpu)
    with torch.inference_mode(torch.is_inference_mode_enabled() and not is_plain):
        wrapped = tree_map(lambda leaf: GpuTensor(leaf) if type(leaf) is Tensor else leaf, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if on_gpu else wrapped


def _inner(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, GpuTensor) else leaf


def _copied(source: Tensor, target: str | None, kwargs: Mapping[str, Any]) -> Tensor:
    """``source.to(…)``: a blocking copy between the devices waits."""
    is_to_gpu = target == NAME or target is None
    if is_to_gpu != isinstance(source, GpuTensor) and not kwargs.get("non_blocking"):
        _wait("a blocking copy")
    more = {name: value for name, value in kwargs.items() if name not in ("device", "non_blocking")}
    copied: Tensor = aten._to_copy.default(_inner(source), **more)
    return GpuTensor(copied) if is_to_gpu else copied


def _copied_into(into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if isinstance(into, GpuTensor) != isinstance(source, GpuTensor) and not non_blocking:
        _wait("a blocking copy")
    _inner(into).copy_(_inner(source))
    return into


def _check_index(indices: Sequence[Tensor | None]) -> None:
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            _wait("the number of elements of a mask is read")
        if index is not None and not isinstance(index, GpuTensor):
            _wait("an index is copied to the GPU")


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
