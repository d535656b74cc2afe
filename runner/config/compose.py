"""The border: what Hydra composed becomes a checked ``RunConfig``, or an error worth reading.

Only this room, ``terminal.start`` and the sweeper know Hydra. Hydra accepts `+mixup.alpah=1` and
`+triks=mixup` and would run the baseline in silence; here every key is compared with the schema
before anything is written.
"""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config import checks, schema
from runner.config.options import CONF_DIR, GROUPS, LAUNCHERS, OVERLAYS
from runner.config.schema import RunConfig
from runner.errors import ConfigError, first_line

_NO_NAME = re.compile(r"null|true|false|nan|inf|[-+]?[0-9.][0-9.eE+-]*")


def register() -> None:
    """Give Hydra the defaults of every key, and our sweeper; call before ``hydra.main``."""
    store = ConfigStore.instance()
    store.store(name="base", node=schema.default_dict())
    sweeper = {"_target_": "hydra_plugins.trick_runner.CheckedSweeper"}
    store.store(group="hydra/sweeper", name="checked", node=sweeper)
    # Our option files change some of a launcher's values: they take its name and extend the
    # plugin's own entry by another one.
    Plugins.instance()
    known = store.repo["hydra"]["launcher"]
    for name in LAUNCHERS:
        if entry := known.pop(f"{name}.yaml", None):
            store.store(group="hydra/launcher", name=f"{name}_plugin", node=entry.node)


def run_config(composed: DictConfig) -> RunConfig:
    """The typed configuration of one run.

    Raises:
        ConfigError: for unknown keys, wrong types and values out of range.
    """
    return checks.from_dict(_plain(composed))


def _plain(composed: DictConfig) -> dict[str, Any]:
    """The values of our own keys, interpolations resolved."""
    try:
        ours = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        values = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error), where=getattr(error, "full_key", "") or "") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def config_of(words: Sequence[str]) -> RunConfig:
    """The configuration that the words of one run describe; call :func:`register` before.

    Raises:
        ConfigError: see :func:`run_config`. Hydra raises errors of its own;
            :func:`runner.config.complaints.translated` converts them.
    """
    check_arguments(words)
    with _hydra():
        return run_config(hydra.compose("config", overrides=list(words)))


def jobs(words: Sequence[str]) -> list[list[str]]:
    """The words of every job of a sweep: all combinations of its values."""
    with _hydra():
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        (grid,) = BasicSweeper.split_arguments(parser.parse_overrides(list(words)), None)
    return [list(job) for job in dict.fromkeys(map(tuple, grid))]


def _hydra() -> AbstractContextManager[object]:
    """Hydra with our option files, outside of ``hydra.main``."""
    context: AbstractContextManager[object] = hydra.initialize_config_dir(
        version_base="1.3", config_dir=str(CONF_DIR)
    )
    return context


def requested_values(words: Sequence[str]) -> dict[str, Any]:
    """The values that words set, for :func:`runner.config.checks.changed`.

    Call :func:`register` before.

    Args:
        words: ``GROUP=OPTION``, ``GROUP.KEY=VALUE`` and ``KEY=VALUE``.

    Returns:
        Values by key and group: every key of a group whose option is chosen, otherwise the named
        keys.

    Raises:
        ConfigError: an option is not a name. Hydra raises errors of its own for other mistakes;
            :func:`runner.config.complaints.translated` converts them.
    """
    check_arguments(words)
    with _hydra():
        values = _plain(hydra.compose("config", overrides=list(words)))
    found: dict[str, Any] = {}
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        group, _, name = key.rpartition(".")
        if group:
            found.setdefault(group, {})[name] = values[group][name]
        else:
            found[key] = values[key]
    return found


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse words that Hydra would accept although they must not be obeyed.

    Raises:
        ConfigError: for a rerun from a pickle, and for an option outside the configuration folders.
    """
    main_keys = {name: group.MAIN_KEY for name, group in RunConfig().groups.items()}
    for argument in arguments:
        if argument.startswith("--experimental-rerun"):
            raise ConfigError(
                "--experimental-rerun would execute code from a pickle file",
                where=argument,
                fix="run the command again: python -m runner.train …",
            )
        key, separator, value = argument.lstrip("+~").partition("=")
        is_choice = separator and key.split("@")[0].split("/")[0] in GROUPS
        parts = re.split(r"[\[\],]", value)  # of a sweep, or of a list
        no_name = next((part for part in parts if _NO_NAME.fullmatch(part.strip())), None)
        if is_choice and (no_name is not None or not value):
            neutral = "[]" if key in OVERLAYS else "none"
            meant = main_keys.get(key) if re.match(r"[-+0-9.]", no_name or "") else None
            raise ConfigError(
                f"{key} is a group: choose one of its options by name",
                where=argument,
                fix=f"{meant}={value}" if meant else f"{key}={neutral}, or see --help",
            )
        if is_choice and re.search(r"(^|[\[,'\"/])\s*(\.\.|/)", value):
            raise ConfigError(
                "an option is a name, not a path",
                where=argument,
                fix=f"data=folder data.root={value}"
                if key == "data"
                else f"--config-dir DIR, where DIR/{key}/NAME.yaml is {key}=NAME",
            )
