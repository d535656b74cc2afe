"""The folder of option files, and what is in it."""

from dataclasses import fields
from pathlib import Path

from runner.config.schema import RunConfig

_PACKAGED = Path(__file__).parents[1] / "conf"


CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "conf"
"""The folder of option files: inside the package in a wheel, next to the package in a checkout."""


GROUPS = tuple(sorted({entry.name for entry in CONF_DIR.iterdir() if entry.is_dir()} - {"hydra"}))


OVERLAYS = tuple(sorted({*GROUPS} - {item.name for item in fields(RunConfig)}))
"""Groups of ``conf/`` whose options change other groups and that hold no keys of their own."""

LAUNCHERS = {
    "joblib": "parallel",
    "submitit_local": "slurm",
    "submitit_slurm": "slurm",
    "ray": "ray",
}
"""Launchers with an option file of ours, and the extra that installs each."""

EVALUATION_KEYS = (
    "tta", "tta.KEY", "eval.batch_size", "device", "precision", "threads", "data.root",
    "data.num_workers", "data.cache_gb", "outputs",
)  # fmt: skip
"""What the evaluation of a trained run may change; ``tta.KEY`` is any key of ``tta``."""


def option_names(group: str) -> list[str]:
    """Return the names of the options of a group or an overlay."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
