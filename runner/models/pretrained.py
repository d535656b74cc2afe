"""Weights to start from, and the statistics that they were trained with.

A pretrained network works only on inputs like those of its training, so its weights and its
preprocessing are looked up together: in the library or in the file that provides both.
"""

import hashlib
import io
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runner.config.schema import Data, Model, Normalize, RunConfig
from runner.data import preprocess
from runner.data.preprocess import Preprocess
from runner.errors import ArtefactError, ConfigError, RunnerError, StorageError
from runner.machine.files import read_whole
from runner.models.build import head_of, import_timm, require_architecture
from runner.models.changes import settings_of
from runner.records import tensor_files
from runner.records.bundle import Change, changes_in, code_of

_ASPECT = Data.max_aspect  # cutting the long side does not change the center square
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_PLACES = ("bundle/model.safetensors", "model.safetensors", "pytorch_model.bin")
# The keys under which training programs store the weights, averaged weights first.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")
_SHOWN = 5


@dataclass(frozen=True)
class Weights:
    """Weights that were found, but not yet read.

    Attributes:
        name: name of the weights in messages.
        identity: a text that is different for different weights.
        preprocess: the preprocessing that the weights were trained with; None if it is unknown.
        hint: a hint at the preprocessing if it is unknown; mostly empty.
        changes: the file's record of changes of the network; empty if there is no record.
        read: a function that returns the tensors by name.
    """

    name: str
    identity: str
    preprocess: Preprocess | None
    read: Callable[[], dict[str, Tensor]]
    hint: str = ""
    changes: tuple[Change, ...] = ()

    @property
    def code(self) -> Mapping[str, Any] | None:
        """The record of code that changed the network; None if no code did."""
        return code_of(self.changes)

    @property
    def blurpool(self) -> str:
        """The value of ``blurpool.layers`` that the weights were trained with, or the default."""
        return settings_of(self.changes).blurpool.layers


@dataclass(frozen=True)
class Loaded:
    """A report on loading pretrained weights into a network.

    Attributes:
        num_loaded: number of tensors that the network took.
        fresh: names of the network's tensors that stay as they were drawn.
        unused: names of tensors among the weights that the network does not have.
    """

    num_loaded: int
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.num_loaded} tensors loaded"]
        for what, names in (("drawn anew", self.fresh), ("not used", self.unused)):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                parts.append(f"{what}: {', '.join(names[:_SHOWN])}{more}")
        return "; ".join(parts)


def find_weights(model: Model) -> Weights | None:
    """Find the weights that ``model`` names; None if it starts from scratch.

    Raises:
        ConfigError: there are no weights of that name.
        ArtefactError: the file is not a valid file of weights.
    """
    name = "DEFAULT" if model.pretrained else model.weights
    if name is None:
        return None
    if _is_path(name):
        return _from_file(Path(name).expanduser(), model)
    if model.source == "torchvision":
        return _from_torchvision(model.name, name)
    if model.source == "timm":
        architecture, _, tag = model.name.partition(".")
        return _from_timm(architecture, tag if tag and name == "DEFAULT" else name)
    raise ConfigError(
        "this package's own networks come without pretrained weights",
        where=f"model={model.name} model.weights={name}",
        fix="model.weights=FILE, or model=torchvision, or model=timm",
    )


def fitted(config: RunConfig, weights: Weights | None) -> RunConfig:
    """Adapt ``config`` to its pretrained weights.

    If the statistics are those of the weights, ``normalize.source`` becomes ``pretrained``, with
    their mean and std. With ``normalize=pretrained``, size, crop, interpolation and presize are
    those of the weights too, unless ``config`` sets them.

    Raises:
        ConfigError: the statistics are not those that the weights were trained with.
    """
    chosen = config.normalize
    if weights is None:
        if chosen.source == "pretrained":
            raise ConfigError(
                "normalize=pretrained needs pretrained weights",
                where="normalize=pretrained model.weights=null",
                fix="model.pretrained=true, or model.weights=FILE, or normalize=dataset",
            )
        return config
    architecture = config.model.name
    if config.model.source == "timm":
        architecture = architecture.partition(".")[0]  # the rest names weights
    model = replace(config.model, name=architecture, pretrained=False, weights=weights.name)
    config = replace(config, model=model)
    own = weights.preprocess
    if own is None:
        return _without_metadata(config, weights)
    if chosen.source == "pretrained":
        if _given(chosen) and not _agree(chosen.mean + chosen.std, own.mean + own.std):
            raise ConfigError(
                f"normalize=pretrained means the weights' own mean {_list(own.mean)} "
                f"std {_list(own.std)}",
                where=f"normalize.mean={_list(chosen.mean)} normalize.std={_list(chosen.std)}",
                fix="normalize=pretrained alone",
            )
        normalize = replace(chosen, mean=own.mean, std=own.std)
        return replace(
            config,
            normalize=normalize,
            resize=replace(config.resize, size=config.resize.size or own.size),
            eval=replace(config.eval, crop=config.eval.crop or own.crop),
            data=replace(
                config.data,
                interpolation=config.data.interpolation or own.interpolation,
                presize=config.data.presize or _presize(config, own),
            ),
        )
    if chosen.source == "fixed" and _agree(chosen.mean + chosen.std, own.mean + own.std):
        return replace(config, normalize=replace(chosen, source="pretrained"))
    if not chosen.allow_mismatch:
        found = (
            f"mean {_list(chosen.mean)} std {_list(chosen.std)}"
            if chosen.source == "fixed"
            else "those of the training split"
        )
        raise ConfigError(
            f"the pretrained weights were trained with mean {_list(own.mean)} "
            f"std {_list(own.std)}, not with {found}",
            where=f"model.weights={weights.name} normalize.source={chosen.source}",
            fix="normalize=pretrained, or normalize.allow_mismatch=true to see what it costs",
        )
    return config


def _presize(config: RunConfig, own: Preprocess) -> int | None:
    """Return the presize of the weights if the size is theirs too: the crop needs no resizing."""
    return own.presize if config.resize.size in (None, own.size) else None


def _without_metadata(config: RunConfig, weights: Weights) -> RunConfig:
    """Require the statistics from the user, because the weights do not state them."""
    chosen = config.normalize
    is_said = chosen.source == "fixed" and _given(chosen)
    if is_said:
        return replace(config, normalize=replace(chosen, source="pretrained"))
    if chosen.allow_mismatch and chosen.source != "pretrained":
        return config
    raise ConfigError(
        "these weights do not state the statistics that they were trained with",
        where=f"model.weights={weights.name} normalize.source={chosen.source}",
        fix="normalize=imagenet, normalize=half or 'normalize.mean=[…]' 'normalize.std=[…]'"
        f"{weights.hint}, as stated where the weights come from; normalize.allow_mismatch=true "
        "skips this check",
    )


def _given(chosen: Normalize) -> bool:
    """Return whether mean or std differ from the neutral values."""
    return (chosen.mean, chosen.std) != (Normalize.mean, Normalize.std)


def _agree(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Return whether two statistics agree to the digits in which statistics are published."""
    return all(abs(a - b) < 1e-4 for a, b in zip(one, other, strict=True))


def _list(values: tuple[float, ...]) -> str:
    return "[" + ",".join(f"{value:g}" for value in values) + "]"


def load_weights(model: nn.Module, weights: Weights) -> Loaded:
    """Load pretrained weights into ``model``; a head of another shape keeps its fresh weights.

    Prefixes of names, such as ``module.``, are found and removed.

    Raises:
        ArtefactError: the weights belong to another architecture; ``model`` may be partly loaded.
        StorageError: the weights cannot be downloaded.
    """
    own = model.state_dict()
    found = _without_prefix(weights.read(), own)
    head = {id(parameter) for module in head_of(model) for parameter in module.parameters()}
    in_head = {name for name, parameter in model.named_parameters() if id(parameter) in head}
    taken = {
        name: tensor
        for name, tensor in found.items()
        if name in own and tensor.shape == own[name].shape
    }
    fresh = [name for name in own if name not in taken]
    # num_batches_tracked is read only by BatchNorms without momentum; old files lack it.
    missing = [n for n in fresh if n not in in_head and not n.endswith("num_batches_tracked")]
    if missing:
        shapes = [
            f"{name} {tuple(found[name].shape)} for {tuple(own[name].shape)}"
            if name in found
            else f"no {name}"
            for name in missing[:_SHOWN]
        ]
        raise ArtefactError(
            f"not the weights of this architecture: {len(missing)} of {len(own)} tensors are "
            f"missing or of other shapes: {', '.join(shapes)}",
            where=f"model.weights={weights.name}",
            fix="model=… model.name=… as the weights were trained with",
        )
    model.load_state_dict(taken, strict=False)
    unused = tuple(name for name in found if name not in taken)
    return Loaded(len(taken), tuple(name for name in fresh if name in in_head), unused)


def _without_prefix(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove from ``found`` the prefix whose removal makes most names equal to those of ``own``."""
    prefixes = {""} | {
        name.removesuffix(last)
        for last in (min(own), max(own))
        for name in found
        if name.endswith(f".{last}")
    }

    def matches(prefix: str) -> int:
        return sum(f"{prefix}{name}" in found for name in own)

    best = max(sorted(prefixes, key=len), key=matches)
    return {
        name.removeprefix(best) if name.startswith(best) else name: tensor
        for name, tensor in found.items()
    }


def _is_path(name: str) -> bool:
    return os.sep in name or "." in name or os.path.exists(name)  # noqa: PTH110  false for any text


def _from_file(path: Path, model: Model) -> Weights:
    where = f"model.weights={path}"
    if os.path.isdir(path):  # noqa: PTH112  false for any text
        inside = [path / place for place in _PLACES if (path / place).is_file()]
        if not inside:
            raise ConfigError(
                f"no weights in this folder: it has none of {', '.join(_PLACES)}",
                where=where,
                fix="model.weights=FILE",
            )
        path = inside[0]
    if path.suffix not in (".safetensors", *_TORCH_SUFFIXES):
        raise ConfigError(
            f"weights are .safetensors or {', '.join(_TORCH_SUFFIXES)}",
            where=where,
            fix="a file with one of these endings",
        )
    try:
        content = read_whole(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot read the weights: {reason}", where=where, fix="another FILE"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    own, changes = _metadata(path, content)

    def read() -> dict[str, Tensor]:
        again = read_whole(path)
        if hashlib.sha256(again).hexdigest() != digest:
            raise _refused(path, ValueError("the file has changed since it was checked"))
        return _tensors(path, again)

    hint = "" if own else _hint(model)
    return Weights(str(path), f"sha256:{digest}", own, read, hint, changes)


def _metadata(path: Path, content: bytes) -> tuple[Preprocess | None, tuple[Change, ...]]:
    """Return the preprocessing and the changes of the network that a file of weights records.

    The file itself, or timm's ``config.json`` next to it, may describe the preprocessing. Only the
    file itself may record changes.

    Raises:
        ArtefactError: a description is invalid.
    """
    says = path
    try:
        if path.suffix == ".safetensors" and (found := tensor_files.described(content)):
            changes = changes_in(found.get("model", {}))
            return preprocess.from_dict(found["preprocess"]), changes
        says = path.with_name("config.json")
        if not says.is_file():
            return None, ()
        described = tensor_files.parsed(read_whole(says)).get("pretrained_cfg")
        return _of_timm(described) if isinstance(described, dict) else None, ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise _refused(says, error) from error


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return tensor_files.from_bytes(content)
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise nearly any error
        raise _refused(path, error) from error
    for key in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    tensors = found.items() if isinstance(found, dict) else ()
    named = {str(name): tensor for name, tensor in tensors if isinstance(tensor, Tensor)}
    if not named:
        raise _refused(path, ValueError("it does not hold tensors by name"))
    return named


def _refused(path: Path, error: Exception) -> ArtefactError:
    return ArtefactError(
        f"the weights are refused: {_reason(error)}",
        where=f"model.weights={path}",
        fix="a whole file that holds tensors and nothing else, best as .safetensors",
    )


def _reason(error: Exception) -> str:
    """Return the reason in one line, without torch's advice to run the code that a file names."""
    text = str(error).strip()
    if named := re.search(r"GLOBAL (\S+)", text):
        return f"it needs {named[1]}, and only tensors are read"
    if "weights_only" in text:
        return "it is not a file of tensors that torch.save wrote"
    if isinstance(error, KeyError):
        return f"it has no {text}"
    return text.partition("\n")[0][:300] or f"it is empty or cut ({type(error).__name__})"


def _from_torchvision(architecture: str, name: str) -> Weights:
    import torchvision

    require_architecture("torchvision", architecture)
    offered = torchvision.models.get_model_weights(architecture)
    known = {entry.name: entry for entry in offered}
    chosen = offered.DEFAULT if name == "DEFAULT" else known.get(name)
    if chosen is None:
        raise _unknown(name, list(known), f"torchvision's {architecture}")
    says = chosen.transforms()
    own = Preprocess(
        presize=int(says.resize_size[0]),
        max_aspect=_ASPECT,
        crop=int(says.crop_size[0]) / int(says.resize_size[0]),
        size=int(says.crop_size[0]),
        interpolation=_interpolation(says.interpolation.value, chosen.name),
        mean=tuple(says.mean),
        std=tuple(says.std),
    )

    def read() -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = chosen.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
        return tensors

    label = f"torchvision {architecture} {chosen.name}"
    return Weights(chosen.name, label, own, _downloading(read, label))


def _from_timm(architecture: str, name: str) -> Weights:
    timm = import_timm()
    require_architecture("timm", architecture)
    known = [tag.partition(".")[2] for tag in timm.list_pretrained(f"{architecture}.*")]
    if name not in known and not (name == "DEFAULT" and known):
        raise _unknown(name, known, f"timm's {architecture}")
    says = timm.get_pretrained_cfg(architecture if name == "DEFAULT" else f"{architecture}.{name}")

    def read() -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(f"{architecture}.{says.tag}", pretrained=True)
        tensors: dict[str, Tensor] = model.state_dict()
        return tensors

    label = f"timm {architecture}.{says.tag}"
    return Weights(says.tag, label, _of_timm(says.to_dict()), _downloading(read, label))


def _of_timm(says: Mapping[str, Any]) -> Preprocess:
    """Convert timm's ``pretrained_cfg`` to our preprocessing.

    Raises:
        ConfigError: the configuration requires something that this program does not support.
        ValueError: a value is out of range.
        KeyError, TypeError, ArithmeticError: ``says`` is not such a configuration.
    """
    _, height, width = says["input_size"]
    if height != width or says["input_size"][0] != 3:
        raise ConfigError(f"the weights need inputs {says['input_size']}, not square RGB images")
    crop = float(says.get("crop_pct") or 0.875)
    # timm's `squash` and `border`, and crops beyond the image, which timm fills with black, are not
    # supported; no crop comes closest to them.
    if says.get("crop_mode", "center") != "center" or crop > 1:
        crop = 1.0
    found = Preprocess(
        presize=int(height / crop),
        max_aspect=_ASPECT,
        crop=min(1.0, height / int(height / crop)),
        size=int(height),
        interpolation=_interpolation(str(says["interpolation"]), str(says.get("tag"))),
        mean=tuple(says["mean"]),
        std=tuple(says["std"]),
    )
    return preprocess.from_dict(found.to_dict())  # checks the values, which may come from a file


def _interpolation(name: str, weights: str) -> preprocess.Interpolation:
    if name == "bilinear":
        return "bilinear"
    if name in ("bicubic", "random"):
        return "bicubic"
    raise ConfigError(
        f"the weights need the interpolation {name}; this program has bilinear and bicubic",
        where=f"model.weights={weights}",
        fix="other weights",
    )


def _hint(model: Model) -> str:
    """Return the statistics of timm's own weights of the architecture, as a hint for the user."""
    if model.source != "timm":
        return ""
    timm = import_timm()
    try:
        says = timm.get_pretrained_cfg(model.name)
    except RuntimeError:  # an unknown tag does not matter: the weights come from a file
        says = None
    if says is None:
        return ""
    return (
        f" (timm's own weights of {model.name} have mean {_list(says.mean)} std {_list(says.std)})"
    )


def _unknown(name: str, known: list[str], owner: str) -> ConfigError:
    return ConfigError(
        f"{owner} has no pretrained weights called {name}"
        if known
        else f"{owner} has no pretrained weights",
        where=f"model.weights={name}",
        fix=f"model.weights=FILE, or one of DEFAULT, {', '.join(known)}"
        if known
        else "model.weights=FILE, or another model.name",
    )


def _downloading(
    read: Callable[[], dict[str, Tensor]], label: str
) -> Callable[[], dict[str, Tensor]]:
    def wrapped() -> dict[str, Tensor]:
        try:
            return read()
        except RunnerError:
            raise
        except Exception as error:  # many libraries raise errors: hashes, pickles, connections
            raise StorageError(
                f"cannot get the pretrained weights: {_reason(error)}",
                where=label,
                fix="a connection to the internet, or model.weights=FILE with a local file",
            ) from error

    return wrapped
