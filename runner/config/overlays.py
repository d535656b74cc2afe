"""The overlays of ``conf/trick``: what ``+trick=all`` turns on, read from the option files."""

import re
from functools import cache
from typing import Any

import yaml

from runner.config.checks import from_dict
from runner.config.options import CONF_DIR


def chosen_options(overlay: str, name: str) -> dict[str, str]:
    """The options that an overlay chooses, by group, as ``override /mixup: beta`` says."""
    content = yaml.safe_load((CONF_DIR / overlay / f"{name}.yaml").read_text()) or {}
    chosen: dict[str, str] = {}
    for entry in content.get("defaults", []):
        for key, option in entry.items():
            chosen[key.removeprefix("override").strip().removeprefix("/")] = option
    return chosen


def option_values(group: str, option: str) -> dict[str, Any]:
    """The keys that an option file sets."""
    content = (CONF_DIR / group / f"{option}.yaml").read_text()
    return _Loader(content).get_single_data() or {}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Reads numbers as Hydra does: 3e-3 is one."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@cache
def tricks_with_overlay() -> frozenset[str]:
    """The names of the overlays that turn on a trick: leaving one out turns the trick off."""
    return frozenset(path.stem for path in (CONF_DIR / "trick").glob("*.yaml"))


@cache
def all_tricks() -> frozenset[str]:
    """The names of the tricks that ``+trick=all`` turns on."""
    chosen = chosen_options("trick", "all").items()
    return frozenset(
        from_dict({group: option_values(group, name) for group, name in chosen}).tricks
    )
