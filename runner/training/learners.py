"""Build a network ready for use: to train as configured, or restored from a bundle."""

from collections.abc import Callable, Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runner.config.idea import IdeaFile
from runner.config.schema import Model, RunConfig
from runner.data.dataset import Dataset
from runner.data.preprocess import Preprocess
from runner.data.statistics import training_statistics
from runner.errors import ArtefactError, ConfigError, ProcessError
from runner.machine.hardware import (
    device_kind,
    keep_freed_memory,
    num_cores,
    own_gpu,
    require_device,
    used_precision,
)
from runner.machine.processes import ALONE, Processes
from runner.models import (
    Loaded,
    Weights,
    build_model,
    changes_of,
    find_weights,
    fitted,
    layer_groups,
    load_weights,
    own_drop_rate,
    share_batch_norm,
    suit_convolutions,
)
from runner.randomness import torch_seed
from runner.records.bundle import BCE, Bundle
from runner.terminal.display import Display
from runner.training.memory import ran_out
from runner.training.step import BLACK, Learner
from runner.tricks.idea import NO_IDEA, Idea, load_idea
from runner.tricks.loss import class_weights


def fitted_to_weights(
    config: RunConfig,
    display: Display,
    code: IdeaFile | None = None,
    find: Callable[[Model], Weights | None] = find_weights,
) -> tuple[RunConfig, Weights | None]:
    """Return ``config`` adapted to its pretrained weights, and the weights. Prints notes.

    Args:
        config: the requested configuration.
        display: prints the notes.
        code: the file with the user's own code, if any.
        find: finds the weights; a caller may pass a function that remembers them for many jobs.

    Raises:
        ConfigError: there are no such weights, or they were trained with other statistics.
        ArtefactError: the file cannot be used; or the weights belong to a network that was changed
            by code, and ``code`` is not that code.
    """
    weights = find(config.model)
    if weights is not None:
        require_code(weights.code, ("model",), code, f"model.weights={weights.name}", "code=FILE")
    config = fitted(config, weights)
    if weights is not None and weights.blurpool != config.blurpool.layers:
        display.line(
            f"warning: the weights were trained with blurpool={weights.blurpool}, and the run has "
            f"blurpool={config.blurpool.layers}, which changes their features"
        )
    rate = config.stochastic_depth.probability
    if rate > 0 and (own := own_drop_rate(config.model.source, config.model.name)):
        display.line(
            f"note: {config.model.name} itself has stochastic depth with a probability of up to "
            f"{own:.2g}; stochastic_depth.probability={rate:g} replaces it"
        )
    if weights is not None and config.resize.schedule != "fixed":
        display.line(
            "warning: progressive resizing may damage pretrained weights: it trains on smaller "
            "images than they were trained on"
        )
    if weights is not None and config.data.name == "imagenette":
        display.line(
            "note: Imagenette is a part of ImageNet: ImageNet's weights have seen these images"
        )
    return config, weights


def build_learner(
    config: RunConfig,
    dataset: Dataset,
    processes: Processes = ALONE,
    weights: Weights | None = None,
    idea: Idea = NO_IDEA,
) -> tuple[Learner, Loaded | None]:
    """Build the network with its initial or pretrained weights, its device and its statistics.

    Returns:
        The learner, and a report on loading ``weights``; None without weights.

    Raises:
        ConfigError: the device does not exist, or the network does not fit the data.
        DataError: a class without training images must have a weight.
        CodeError: the function ``model`` of ``idea`` does not return a network.
        ArtefactError: the weights belong to another architecture.
        StorageError: the weights cannot be downloaded.
    """
    device = _device(config.device, config.threads, processes)
    num_outputs = config.model.num_outputs or len(dataset.classes)
    if num_outputs < len(dataset.classes):
        raise ConfigError(
            f"{num_outputs} outputs cannot tell {len(dataset.classes)} classes apart",
            where=f"model.num_outputs={num_outputs}",
            fix="model.num_outputs=null",
        )
    model = build_model(
        config.model.source,
        config.model.name,
        num_outputs,
        seed=torch_seed(config.seed, "weights"),
        dropout=config.model.dropout,
        head_bias=-log(num_outputs) if config.loss.kind == "bce" else 0.0,
        changes=changes_of(config, idea),
        idea=idea,
    )
    with processes.first_alone():  # so that only one process downloads the file
        loaded = load_weights(model, weights) if weights else None
    model = _placed(model, device)
    if processes.count > 1:
        model = share_batch_norm(model, device)
    groups = layer_groups(model) if config.optim.layer_groups == 3 else [list(model.parameters())]
    if config.compile != "none":
        # Compiled in place, which keeps the names of the weights; one program per image size.
        model.compile(mode=config.compile, dynamic=False)
    precision = used_precision(config.precision, str(device))
    set_determinism(precision)
    preprocess = _preprocess(config, dataset, processes)
    by_class = class_weights(config.loss, dataset.train.labels, dataset.classes, num_outputs)
    return Learner(
        model,
        groups,
        num_outputs,
        preprocess,
        device,
        precision,
        processes,
        idea,
        class_weights=None if by_class is None else by_class.to(device),
        mean=_statistics(config, dataset, processes)[0]
        if config.erasing.fills_with_mean
        else BLACK,
        loss=config.loss.kind,
    ), loaded


def set_determinism(precision: str) -> None:
    """Let a GPU sum in the same order in every run, for ``fp32``."""
    torch.backends.cudnn.deterministic = precision == "fp32"


def trained_learner(
    bundle: Bundle,
    *,
    device: str,
    precision: str,
    threads: int,
    code: IdeaFile | None = None,
    processes: Processes = ALONE,
) -> Learner:
    """Build the network of a bundle, for predictions.

    Args:
        bundle: the bundle of the network.
        device: the device, spelled as in the configuration.
        precision: ``fp32``, ``bf16``, or ``auto``: the precision of the run's evaluation, if it is
            fast on this machine.
        threads: threads of the CPU; 0 means all cores.
        code: the user's file that changed the network. It runs only if the bundle names its
            SHA-256.
        processes: the processes that share the images.

    Raises:
        ArtefactError: the weights do not fit the architecture that the bundle names; or the network
            was changed by code, and ``code`` is not that code.
        ConfigError: the device, or the package that defines the architecture, does not exist; or
            ``code`` is given, but no code changed the network.
    """
    place = _device(device, threads, processes)
    architecture = bundle.architecture
    where = str(bundle.folder.absolute())
    if code is not None and architecture.code is None:
        raise ConfigError(
            f"no code changed this network: {where}",
            where=f"--code {code.path}",
            fix="leave out --code",
        )
    require_code(architecture.code, ("model", "predictions"), code, where, "--code FILE")
    idea = load_idea(code) if code is not None else NO_IDEA
    model = build_model(
        architecture.source,
        architecture.name,
        architecture.num_outputs,
        seed=0,
        changes=architecture.changes,
        idea=idea,
    )
    bundle.load_into(model)
    model = _placed(model, place)
    if precision == "auto":
        precision = bundle.evaluated.precision
        if precision == "bf16":
            precision = used_precision("auto", str(place))
    set_determinism(precision)
    groups = [list(model.parameters())]
    return Learner(
        model,
        groups,
        architecture.num_outputs,
        bundle.preprocess,
        place,
        precision,
        processes,
        idea,
        loss="bce" if any(each.name == BCE for each in architecture.changes) else "cross_entropy",
    )


def require_code(
    needed: Mapping[str, Any] | None,
    functions: Sequence[str],
    code: IdeaFile | None,
    where: str,
    word: str,
) -> None:
    """Refuse a network that was changed by the user's file, unless ``code`` is that file.

    Args:
        needed: the recorded change by code, if there is one.
        functions: the functions of such a file that matter to the caller.
        code: the file that the user has named, if any.
        where: the place of the network, for the error.
        word: the word that names a file on the command line, for the error.

    Raises:
        ArtefactError: ``code`` is another file, or None.
    """
    if needed is None or not set(needed["functions"]) & set(functions):
        return
    if code is None or code.sha256 != needed["sha256"]:
        given = f"; {code.name} has {code.sha256}" if code else ""
        raise ArtefactError(
            f"the network was changed by the code of {needed['file']}, SHA-256 "
            f"{needed['sha256']}{given}",
            where=where,
            fix=f"{word} with that file; the run folder has a copy, code.py: read it before you "
            "run it",
        )


def _placed(model: nn.Module, device: torch.device) -> nn.Module:
    """Move ``model`` to its device, with the memory format and convolutions that suit it.

    Raises:
        ProcessError: the device has no memory for the network.
    """
    if device.type == "cpu":
        suit_convolutions(model)
    try:
        model = model.to(device)
        if device.type == "mps":  # wrong gradients in channels-last memory: pytorch/pytorch#175189
            return model
        return model.to(memory_format=torch.channels_last)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise ProcessError(
            "out of memory: the device has none left, not even for the network",
            where=f"device={device}",
            fix="end the other programs on it, which nvidia-smi lists; or device=cpu",
        ) from error


def _preprocess(config: RunConfig, dataset: Dataset, processes: Processes) -> Preprocess:
    if config.normalize.source == "dataset":
        mean, std = _statistics(config, dataset, processes)
    else:
        mean, std = config.normalize.mean, config.normalize.std
    return Preprocess(
        presize=dataset.presize,
        max_aspect=dataset.max_aspect,
        crop=config.eval_crop,
        size=config.eval_size,
        interpolation=dataset.interpolation,
        mean=mean,
        std=std,
        depth=dataset.depth,
    )


def _statistics(
    config: RunConfig, dataset: Dataset, processes: Processes
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel of the training images; measured once, by one process."""
    cache = Path(config.outputs).expanduser() / "cache"
    with processes.first_alone():
        return training_statistics(dataset, cache)


def _device(name: str, threads: int, processes: Processes) -> torch.device:
    """Choose the device of that name, and set the requested number of CPU threads.

    ``auto`` prefers a GPU. Each of several processes has its own GPU.
    """
    torch.set_num_threads(threads or max(1, num_cores() // processes.cores_shared_by))
    keep_freed_memory()
    require_device(name)
    device = torch.device(device_kind(name) if name == "auto" else name)
    if device.type == "cuda" and processes.count > 1:
        device = torch.device("cuda", own_gpu(processes.local_count, processes.local_rank))
    # By default, a GPU with TF32 rounds the factors of convolutions in fp32 to ten bits.
    torch.backends.cudnn.allow_tf32 = False
    return device
