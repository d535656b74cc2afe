"""The identity of a run: a hash over what decides its weights; and the name of its folder.

Keys that only the evaluation reads (TTA) have their own identity: runs that differ only there are
one training with several evaluations.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config import checks, schema
from runner.config.idea import IdeaFile
from runner.config.schema import RunConfig, leaves
from runner.machine.hardware import device_kind, used_precision
from runner.records.run_folder import VERSION

if TYPE_CHECKING:
    from runner.data.dataset import Dataset

# Keys that do not change a result beyond its last bits: where it is written and how it is
# computed. The content of data.root counts, through the data fingerprint, and that of code, through
# its SHA-256; their paths do not. The fingerprint also covers the groups of images.
_COSMETIC = (
    "code",
    "outputs",
    "run_dir",
    "threads",
    "force",
    "data.root",
    "data.group_column",
    "data.group_pattern",
    "data.num_workers",
    "data.cache_gb",
    "data.on_corrupt",
    "data.on_leak",
    "normalize.allow_mismatch",
    "model.pretrained",
    "eval.batch_size",
    "eval.every",
    "checkpoint.minutes",
    "logger.name",
    "logger.folder",
    "logger.project",
    "logger.online",
)


def identity(
    config: RunConfig,
    num_classes: int,
    presize: int,
    fingerprint: str,
    weights: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """Compute the identity of a training, for ``RunFolder.check``: equal for equal values.

    The hash covers the values that are not neutral. So a key that is added later, with a default
    that changes nothing, keeps the identity of every earlier run.

    Args:
        config: the requested configuration; the meaning of ``auto`` and null on this machine and
            for this data is part of the identity.
        num_classes: number of classes of the data.
        presize: short side of the stored images, px.
        fingerprint: fingerprint of the data.
        weights: identity of the pretrained weights, if any.
        code: SHA-256 of the file with the user's own code, if any.

    Returns:
        ``values``, all values that decide the weights, neutral or not; ``fingerprint``; and
        ``identity``, sixteen hex digits over the values that are not neutral, the fingerprint and
        the version of the record format.
    """
    kind = device_kind(config.device)
    precision = used_precision(config.precision, config.device)
    meant = schema.resolved(
        config, num_classes=num_classes, presize=presize, device=kind, precision=precision
    )
    values = decisive_values(meant)
    values["model"]["weights"] = weights
    values["code"] = code
    for group in schema.evaluation_groups():
        del values[group]
    name = hash_of(values, neutral_values(type(config)()), fingerprint)
    return {"identity": name, "fingerprint": fingerprint, "values": values}


def identified(
    config: RunConfig, dataset: "Dataset", weights: str | None, code: IdeaFile | None
) -> tuple[RunConfig, dict[str, Any]]:
    """Return the identity of a training on data that was read.

    Args:
        config: the requested configuration, adapted to its pretrained weights if it has any.
        dataset: the data of ``config``.
        weights: identity of the pretrained weights, if any.
        code: the file with the user's own code, if any.

    Returns:
        ``config`` with the rule that the data chose for deep images; and what :func:`identity`
        returns, with the facts of the code.
    """
    config = replace(config, data=dataset.resolved(config.data))
    what = identity(
        config,
        len(dataset.classes),
        dataset.presize,
        dataset.fingerprint,
        weights,
        code.sha256 if code else None,
    )
    if code is not None:
        what["code"] = code.facts
    return config, what


def keys_with_auto(config: RunConfig) -> list[str]:
    """Return the keys whose meaning this machine chooses, and which decide the weights."""
    return [key for key in ("device", "precision") if getattr(config, key) == "auto"]


def evaluation_identity(config: RunConfig) -> str | None:
    """Return the identity of the evaluation that ``config`` requests; None without TTA.

    Sixteen hex digits over the values that are not neutral, of the groups that only the evaluation
    reads.
    """
    if config.tricks == config.training.tricks:
        return None
    values = decisive_values(config)
    groups = schema.evaluation_groups()
    return hash_of(
        {name: values[name] for name in groups}, {name: NEUTRAL[name] for name in groups}, ""
    )


def decisive_values(config: RunConfig) -> dict[str, Any]:
    """Return the values of a resolved ``config`` that decide its result, by group and key.

    Keys that have no effect in ``config`` have their default.
    """
    values = schema.to_dict(checks.effective(config))
    for dotted in _COSMETIC:
        group, _, key = dotted.rpartition(".")
        (values[group] if group else values).pop(key)
    return {key: value for key, value in values.items() if value != {}}


def neutral_values(default: RunConfig | None = None) -> dict[str, Any]:
    """Return the values of a run that sets no key, nested like the values of a run.

    They do not depend on data or machine, so that a key never has two neutral values. If the
    meaning of null differs from run to run, the neutral value is one that no run can have.
    """
    meant = schema.resolved(
        default or RunConfig(), num_classes=0, presize=0, device="cpu", precision="fp32"
    )
    return {**decisive_values(meant), "code": None}


NEUTRAL: Mapping[str, Any] = neutral_values()
"""The neutral value of every key that decides a result."""


def hash_of(values: Mapping[str, Any], neutral: Mapping[str, Any], fingerprint: str) -> str:
    """Sixteen hex digits over the ``values`` that are not ``neutral``, and the data."""
    plain = leaves(neutral)
    missing = object()
    chosen = {
        key: value for key, value in leaves(values).items() if plain.get(key, missing) != value
    }
    content = json.dumps([chosen, fingerprint, VERSION], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Complete ``values`` of a run of any age with the neutral value of every missing key."""
    filled = {**NEUTRAL, **values}
    for name, neutral in NEUTRAL.items():
        if isinstance(neutral, dict) and isinstance(filled[name], Mapping):
            filled[name] = {**neutral, **filled[name]}
    return filled


def folder_name(config: RunConfig, run_identity: str) -> str:
    """Name the folder of a run: data, model, tricks, code, seed, fold, start of the identity."""
    code = [] if config.code is None else [_legible(Path(config.code).stem)[:40]]
    tricks = "+".join([*config.training.tricks, *code]) or "baseline"
    model = _legible(config.model.name)
    fold = "" if config.data.num_folds is None else f"-fold{config.data.fold}"
    return f"{config.data.name}-{model}-{tricks}-seed{config.seed}{fold}-{run_identity[:8]}"


def _legible(text: str) -> str:
    """Replace the characters of the user's text that could lead out of the folder."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)
