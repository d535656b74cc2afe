"""What a run is: a hash over all that decides its result, and the name of its folder."""

import hashlib
import json
import re
from typing import Any

from runner.config import checks, schema
from runner.config.schema import RunConfig
from runner.machine.hardware import device_kind, used_precision
from runner.records.run_folder import VERSION

# What a result does not depend on, or only in its last bits: where it is written and how it is
# computed. The content of data.root counts, through the data fingerprint; its path does not.
_COSMETIC = (
    "outputs",
    "run_dir",
    "threads",
    "force",
    "data.root",
    "data.num_workers",
    "data.cache_gb",
    "data.on_corrupt",
    "data.on_leak",
    "normalize.allow_mismatch",
    "model.pretrained",
    "eval.batch_size",
    "eval.every",
    "checkpoint.minutes",
)


def identity(
    config: RunConfig,
    num_classes: int,
    presize: int,
    fingerprint: str,
    weights: str | None = None,
) -> dict[str, Any]:
    """What a run is, for ``RunFolder.check``: equal for equal values, however they were spelled.

    Args:
        config: as asked for; what ``auto`` and null mean here is part of the identity.
        num_classes: of the data.
        presize: of the data.
        fingerprint: of the data.
        weights: identity of the pretrained weights, if any.

    Returns:
        ``values``, all that decides the result; ``fingerprint``; and ``identity``, sixteen hex
        digits over both and the version of the record format.
    """
    kind = device_kind(config.device)
    precision = used_precision(config.precision, kind, config.size)
    meant = schema.resolved(
        config, num_classes=num_classes, presize=presize, device=kind, precision=precision
    )
    values = schema.to_dict(checks.effective(meant))
    values["model"]["weights"] = weights
    for dotted in _COSMETIC:
        group, _, key = dotted.rpartition(".")
        (values[group] if group else values).pop(key)
    values = {key: value for key, value in values.items() if value != {}}
    content = json.dumps([values, fingerprint, VERSION], sort_keys=True)
    name = hashlib.sha256(content.encode()).hexdigest()[:16]
    return {"identity": name, "fingerprint": fingerprint, "values": values}


def folder_name(config: RunConfig, run_identity: str) -> str:
    """A legible name: data, model, tricks, seed, start of the identity."""
    tricks = "+".join(config.tricks) or "baseline"
    # The model's name is the user's text: keep it from reaching outside the folder.
    model = re.sub(r"[^A-Za-z0-9_.-]", "_", config.model.name)
    return f"{config.data.name}-{model}-{tricks}-seed{config.seed}-{run_identity[:8]}"
