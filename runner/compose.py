"""The border: what Hydra composed becomes a checked ``RunConfig``, or an error worth reading.

Only this module, ``hydra_command`` and the sweeper know Hydra. Hydra accepts `+mixup.alpah=1` and
`+triks=mixup` and would run the baseline in silence; here every key is held against the schema
before anything is written.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner import checks, schema
from runner.errors import ConfigError
from runner.machine.hardware import device_kind, used_precision
from runner.records import VERSION
from runner.schema import RunConfig

_PACKAGED = Path(__file__).parent / "conf"
CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "conf"
"""The option files: inside the package in a wheel, beside it in a checkout."""

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

# What someone means who gives a group a number.
_MAIN_KEYS = {
    "mixup": "mixup=beta mixup.alpha",
    "smoothing": "smoothing.epsilon",
    "resize": "resize.size",
    "budget": "budget.epochs",
    "optim": "optim.lr",
    "tta": "tta=book tta.passes",
}

_NO_NAME = re.compile(r"null|true|false|nan|inf|[-+]?[0-9.][0-9.eE+-]*")

GROUPS = tuple(sorted({entry.name for entry in CONF_DIR.iterdir() if entry.is_dir()} - {"hydra"}))


LAUNCHERS = {"joblib": "parallel", "submitit_local": "slurm", "submitit_slurm": "slurm"}
"""Launchers with an option file of ours, and the extra that installs each."""


def register() -> None:
    """Tell Hydra the defaults of every key, and our sweeper; call before ``hydra.main``."""
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
        raise ConfigError(_first_line(error), where=getattr(error, "full_key", "") or "") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def config_of(words: Sequence[str]) -> RunConfig:
    """The configuration of one run from its words; call :func:`register` before.

    Raises:
        ConfigError: as of :func:`run_config`; Hydra's own errors: see :func:`translated`.
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


def asked(words: Sequence[str]) -> dict[str, Any]:
    """What words set, for :func:`runner.checks.changed`; call :func:`register` before.

    Args:
        words: ``GROUP=OPTION``, ``GROUP.KEY=VALUE`` and ``KEY=VALUE``.

    Returns:
        Values by key and group: of a group whose option is chosen all keys, else those named.

    Raises:
        ConfigError: an option is no name; Hydra's errors say what else is wrong, see
            :func:`translated`.
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


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse what Hydra would accept but must not happen.

    Raises:
        ConfigError: for a rerun from a pickle, and for an option outside the configuration folders.
    """
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
            neutral = "[]" if key in schema.OVERLAYS else "none"
            meant = _MAIN_KEYS.get(key) if re.match(r"[-+0-9.]", no_name or "") else None
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


def translated(error: Exception) -> ConfigError | None:
    """Hydra's complaint as ours, or None where ``error`` is not about configuration."""
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return _bad_override(error.override)
    if isinstance(error, ConfigCompositionException):
        return _bad_composition(error)
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        where = f"{mark.name}, line {mark.line + 1}" if mark else ""
        return ConfigError(f"not valid YAML: {error.problem}", where=where)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return ConfigError(_first_line(error))
    return None


def _missing_option(error: MissingConfigException) -> ConfigError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return ConfigError(_first_line(error))
    options = [str(option) for option in error.options or []]
    if group == "hydra/launcher":
        options = [option for option in options if not option.endswith("_plugin")]
        name = name.removesuffix("_plugin")
        if name in LAUNCHERS:
            return ConfigError(
                f"the launcher {name} is not installed",
                where=f"hydra/launcher={name}",
                fix=f"pip install 'trick-runner[{LAUNCHERS[name]}]'",
            )
    guess = checks.nearest(name, options)
    others = f", or model=torchvision model.name={name}" if group == "model" else ""
    hint = f" (did you mean {guess}?)" if guess else ""
    return ConfigError(
        f"{group} has no option {name}{hint}",
        where=f"{group}={name}",
        fix=f"one of {', '.join(sorted(options))}{others}",
    )


def _bad_override(override: str) -> ConfigError:
    key, separator, value = override.partition("=")
    if not separator:
        return ConfigError(
            f"not an option: {override}", where=override, fix="KEY=VALUE, or see --help"
        )
    quoted = value.strip("'\"").replace("\\", "\\\\").replace('"', '\\"')
    return ConfigError(
        "the value needs quotes of its own, inside those of the shell",
        where=override,
        fix=f"""'{key}="{quoted}"'""",
    )


def _bad_composition(error: ConfigCompositionException) -> ConfigError:
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match.group(1)
        group, option = key.partition("@")[0], ""
        if group in GROUPS:
            option = f" ({group} is a group: choose an option with {group}=NAME)"
        message, fix = checks.unknown_key(key)
        return ConfigError(message + option, where=key, fix=fix)
    if match := re.search(r"Could not append to config. An item is already at '([^']+)'", text):
        key = match.group(1)
        return ConfigError(f"{key} exists already", where=f"+{key}", fix=f"{key}=VALUE")
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        key, _, values = match.group(1).partition("=")
        return ConfigError(
            "several values, but not a sweep",
            where=match.group(1),
            fix=f"-m to run one after the other, or '{key}=[{values}]' for a list",
        )
    if match := re.search(r"Sweep parameters '([^']+)' requires --multirun", text):
        return ConfigError(
            "several values, but not a sweep",
            where=match.group(1),
            fix="-m to run one after the other",
        )
    if match := re.search(r"Multiple values for (\w+)", text):
        group = match.group(1)
        several = f"'+{group}=[first,second]'" if group in schema.OVERLAYS else f"{group}=NAME"
        return ConfigError(f"{group} is chosen twice", where=f"+{group}", fix=several)
    return ConfigError(_first_line(error))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
