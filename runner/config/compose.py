"""The border: what Hydra composed becomes a checked ``RunConfig``, or an error worth reading.

Only this room, ``terminal.start`` and the sweeper know Hydra. Hydra accepts `+mixup.alpah=1` and
`+triks=mixup` and would silently run the baseline; here every key is compared with the schema
before anything is written.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config import checks, schema
from runner.config.launchers import PREFIX, bad_launcher_word, check_added, check_launcher
from runner.config.options import CONF_DIR, LAUNCHERS
from runner.config.overrides import (
    check_composed,
    check_references,
    checked_words,
    is_known_key,
)
from runner.config.schema import RunConfig
from runner.errors import ConfigError, RunnerError, first_line
from runner.machine.files import read_whole

_LARGEST_OPTION = 2**20  # bytes of an option file


def register() -> None:
    """Give Hydra the defaults of every key, and our sweeper; call before :func:`composed`."""
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


def composed(words: Sequence[str], *, is_sweep: bool = False) -> DictConfig:
    """Return what Hydra makes of ``words``, inside :func:`opened`; with its own node ``hydra``.

    Args:
        words: as :func:`runner.config.overrides.checked_words` returns them.
        is_sweep: leave the words of a sweep to the sweeper.
    """
    mode = RunMode.MULTIRUN if is_sweep else RunMode.RUN
    loader = GlobalHydra.instance().config_loader()
    try:
        config: DictConfig = loader.load_configuration("config", list(words), run_mode=mode)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, RunnerError, OSError) as error:
        is_of_launcher = any(PREFIX in word for word in words)
        problem = is_of_launcher and bad_launcher_word(str(error), _launcher_without(words))
        if problem:
            raise problem from error
        raise
    except Exception as error:
        # Only Hydra's own code runs here. Odd words and files let it fail in any way.
        raise ConfigError(
            f"Hydra cannot compose these words: {type(error).__name__}: {first_line(error)}",
            where=" ".join(words)[:200],
            fix="--help lists the words",
        ) from error
    check_composed(config.hydra)
    if any(word.startswith(f"+{PREFIX}") for word in words):
        check_added(words, _launcher_without(words))
    check_launcher(_launcher(config))
    return config


def _launcher_without(words: Sequence[str]) -> dict[str, Any]:
    """Return the values of ``hydra.launcher`` without the words that set any."""
    return _launcher(composed([word for word in words if PREFIX not in word], is_sweep=True))


def _launcher(config: DictConfig) -> dict[str, Any]:
    """Return the values of ``hydra.launcher``."""
    values = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def run_config(composed: DictConfig) -> RunConfig:
    """Return the typed configuration of one run.

    Raises:
        ConfigError: for unknown keys, wrong types and values out of range, and where Hydra's own
            values were changed.
    """
    if "hydra" in composed:
        check_composed(composed.hydra)
    return checks.from_dict(_plain(composed))


def _plain(composed: DictConfig) -> dict[str, Any]:
    """Return the values of our own keys, interpolations resolved."""
    try:
        ours = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        check_references(OmegaConf.to_container(ours, resolve=False))
        values = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error), where=getattr(error, "full_key", "") or "") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def config_of(words: Sequence[str], folder: Path | None = None) -> RunConfig:
    """Return the configuration that the words of one run describe; call :func:`register` before.

    Args:
        words: words of the run.
        folder: folder with the user's option files; None if there is none.

    Raises:
        ConfigError: see :func:`run_config`. Hydra raises errors of its own;
            :func:`runner.config.complaints.translated` converts them.
    """
    checked = words_to_compose(words, folder)
    with opened():
        # The user may change option files while this process runs, as between cells of a notebook.
        return run_config(composed(checked)) if folder else _with_our_options().of(checked)


@cache
def _with_our_options() -> "Configs":
    return Configs(composed)


def followers(words: Sequence[str], folder: Path | None, keys: Sequence[str]) -> list[str]:
    """Return the other keys whose values change with those of ``keys``, through references.

    ``data.fold=${seed}`` is such a reference; an option file can have one too. Call
    :func:`register` before.

    Args:
        words: words of one run, which :func:`config_of` accepts.
        folder: folder with the user's option files; None if there is none.
        keys: the keys, none of which is a group.
    """
    if not _may_refer(words, folder):
        return []
    checked = words_to_compose(words, folder)
    with opened():
        config = composed(checked)
        before = schema.leaves(_plain(config))
        for key in keys:
            OmegaConf.update(config, key, f"another {key}")
        after = schema.leaves(_plain(config))
    return [key for key in before if before[key] != after[key] and key not in keys]


def _may_refer(words: Sequence[str], folder: Path | None) -> bool:
    """Return whether a word or an option file of the user may have a reference; ours have none."""
    if any("$" in word for word in words):  # Hydra itself writes $\{seed\}
        return True
    files = () if folder is None else folder.rglob("*.yaml")
    try:
        return any(b"$" in read_whole(path, at_most=_LARGEST_OPTION) for path in files)
    except OSError:
        return True


def jobs(words: Sequence[str]) -> list[list[str]]:
    """Return the words of every job of a sweep: all combinations of its values."""
    checked = checked_words(words)
    with opened():
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        (grid,) = BasicSweeper.split_arguments(parser.parse_overrides(checked), None)
    return [list(job) for job in dict.fromkeys(map(tuple, grid))]


class Configs:
    """The configurations of many lists of words, in a fraction of the time that Hydra takes.

    Hydra reads all option files anew for each list. The jobs of a sweep and the arms of a
    comparison choose few different options, and otherwise set keys to plain values, such as
    ``seed=3``, which Hydra applies last. So Hydra composes each choice of options once, and plain
    values are set here.

    Args:
        compose: what Hydra makes of words, inside :func:`opened`.
    """

    def __init__(self, compose: Callable[[list[str]], DictConfig]) -> None:
        self._compose = compose
        self._bases: dict[tuple[str, ...], dict[str, Any] | None] = {}

    def of(self, words: Sequence[str]) -> RunConfig:
        """Return the configuration of one list of words, equal to what Hydra composes.

        Raises:
            ConfigError: see :func:`run_config`. Hydra raises errors of its own;
                :func:`runner.config.complaints.translated` converts them.
        """
        plain = [found for word in words if (found := _plain_value(word)) is not None]
        choices = tuple(word for word in words if _plain_value(word) is None)
        if choices not in self._bases:
            self._bases[choices] = self._base(choices)
        base = self._bases[choices]
        values = None if base is None else _with_values(base, plain)
        if values is None:
            return run_config(self._compose(list(words)))
        return checks.from_dict(values)

    def _base(self, choices: tuple[str, ...]) -> dict[str, Any] | None:
        """Return the values with these words alone; None if Hydra must see all words."""
        try:
            composed = self._compose(list(choices))
            check_composed(composed.hydra)
            if _has_references(OmegaConf.to_container(composed, resolve=False)):
                return None
            return _plain(composed)
        except Exception:  # whatever it is, Hydra says it of all words
            return None


def job_configs(config: DictConfig) -> Configs:
    """Return the configurations of jobs.

    Args:
        config: the composed configuration of the command that has these jobs, inside
            :func:`opened`.
    """
    return Configs(partial(GlobalHydra.instance().config_loader().load_sweep_config, config))


@cache
def _plain_value(word: str) -> tuple[str, Any] | None:
    """Return key and value of a word that sets one of our keys to a plain value; else None."""
    key, is_set, text = word.partition("=")
    if not is_set or not is_known_key(key) or "$" in text or "\\" in text or "???" in text:
        return None
    try:
        override = OverridesParser.create().parse_override(word)
    except Exception:  # Hydra says what is wrong with it
        return None
    if override.is_sweep_override() or override.key_or_group != key:
        return None
    value = override.value()
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, str | int | float | bool | None):
            return None
    return key, value


def _with_values(base: dict[str, Any], plain: Sequence[tuple[str, Any]]) -> dict[str, Any] | None:
    """Set plain values in ``base``; None if ``base`` lacks one of the keys."""
    values = copy.deepcopy(base)
    for key, value in plain:
        *groups, name = key.split(".")
        inner: Any = values
        for group in groups:
            inner = inner.get(group) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or name not in inner:
            return None
        inner[name] = value
    return values


def _has_references(values: Any) -> bool:
    if isinstance(values, dict):
        return any(key != "hydra" and _has_references(value) for key, value in values.items())
    if isinstance(values, list):
        return any(map(_has_references, values))
    return isinstance(values, str) and "${" in values


def opened() -> AbstractContextManager[object]:
    """Hydra with our option files; without ``hydra.main``, whose parser can unpickle files."""
    context: AbstractContextManager[object] = hydra.initialize_config_dir(
        version_base="1.3", config_dir=str(CONF_DIR)
    )
    return context


def words_to_compose(words: Sequence[str], folder: Path | None) -> list[str]:
    """Return ``words``, checked, with the user's option files, for :func:`composed`.

    Raises:
        ConfigError: a word is refused, or there is no such folder.
    """
    options = [] if folder is None else [own_options(folder)]
    return [*checked_words(words, folder=folder), *options]


def own_options(folder: Path) -> str:
    """Return the word that adds the option files of ``folder``, for :func:`composed`.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError("no such folder", where=f"--config-dir {folder}", fix="--config-dir DIR")
    path = str(folder.absolute()).replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.searchpath=['file://{path}']"


def requested_values(words: Sequence[str]) -> dict[str, Any]:
    """Return the values that words set, for :func:`runner.config.checks.changed`.

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
    checked = checked_words(words)
    with opened():
        values = _plain(composed(checked))
    found: dict[str, Any] = {}
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        group, _, name = key.rpartition(".")
        if group:
            found.setdefault(group, {})[name] = values[group][name]
        else:
            found[key] = values[key]
    return found
