"""Checks of the configuration: unknown keys, types, ranges, contradictions, keys without effect.

Every message names the key with its value, and the fix is something to paste.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from runner.config.schema import (
    OVERLAYS,
    XRESNETS,
    RunConfig,
    has_views,
    mixes_images,
    pastes_boxes,
    shows_more,
    to_dict,
)
from runner.errors import ConfigError


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """Check ``values`` and return them typed.

    Raises:
        ConfigError: naming every unknown key (with the nearest known one), value of a wrong type
            and value out of range, then every contradiction between keys.
    """
    problems: list[tuple[str, str]] = []
    config: RunConfig = _build(RunConfig, values, "", problems)
    if not problems:
        problems = _contradictions(config)
    if problems:
        raise ConfigError(
            "\n".join(problem for problem, _ in problems),
            fix="; ".join(dict.fromkeys(fix for _, fix in problems if fix)),
        )
    return config


def changed(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """``config`` with other values, nested as in :func:`runner.config.schema.to_dict`; checked.

    Raises:
        ConfigError: as of :func:`from_dict`.
    """
    merged = to_dict(config)
    for key, value in values.items():
        merged[key] = {**merged[key], **value} if isinstance(merged.get(key), dict) else value
    return from_dict(merged)


def known_keys(kind: type = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of the configuration."""
    hints = get_type_hints(kind)
    keys = []
    for item in fields(kind):
        if is_dataclass(hints[item.name]):
            keys += known_keys(hints[item.name], f"{prefix}{item.name}.")
        else:
            keys.append(prefix + item.name)
    return keys


def nearest(word: str, choices: Sequence[str]) -> str | None:
    """The choice that ``word`` was probably meant to be, if any is close."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return close[0] if close else None


def unknown_key(key: str) -> tuple[str, str]:
    """The message and the fix for a key that does not exist."""
    group, _, name = key.rpartition(".")
    known = known_keys()
    siblings = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == group]
    if group and siblings:
        found = nearest(name, siblings)
        guess = f"{group}.{found}" if found else None
    else:
        group, siblings = "", [*(item.name for item in fields(RunConfig)), *OVERLAYS]
        guess = nearest(key, [*siblings, *known])
    if guess is None:  # perhaps the right name in the wrong group, or without one
        by_name = {other.rpartition(".")[2]: other for other in known}
        found = nearest(name, list(by_name))
        guess = by_name[found] if found else None
    message = f"unknown key {key}" + (f" (did you mean {guess}?)" if guess else "")
    return message, f"{group or 'the configuration'} has {', '.join(siblings)}"


def _build(kind: Any, values: Any, prefix: str, problems: list[tuple[str, str]]) -> Any:
    """An instance of the dataclass ``kind``; what is wrong is appended to ``problems``."""
    if not isinstance(values, Mapping):
        problems.append((f"{prefix.rstrip('.')}={values!r} must hold keys, not one value", ""))
        return kind()
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}
    problems.extend(unknown_key(f"{prefix}{key}") for key in values if key not in known)
    checked = {}
    for name, item in known.items():
        if name not in values:
            continue
        key = prefix + name
        if is_dataclass(hints[name]):
            checked[name] = _build(hints[name], values[name], f"{key}.", problems)
            continue
        try:
            checked[name] = _convert(hints[name], values[name])
            _check_limits(item, checked[name])
        except ValueError as error:
            problem = f"{key}={_shown(values[name])}: {error} ({item.metadata['help']})"
            meant = getattr(error, "meant", item.default)
            problems.append((problem, f"{key}={_shown(meant)}"))
            checked[name] = item.default
    return kind(**checked)


def _convert(hint: Any, value: Any) -> Any:
    """``value`` as the type ``hint``; ValueError says what was expected."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        if value is None:
            return None
        (inner,) = (arm for arm in get_args(hint) if arm is not NoneType)
        return _convert(inner, value)
    if origin is Literal:
        choices = get_args(hint)
        for choice in choices:
            if str(value) == str(choice) and not isinstance(value, bool):
                return choice
        guess = nearest(str(value), [str(choice) for choice in choices])
        error = ValueError(f"not one of {', '.join(map(str, choices))}")
        if guess:
            error = ValueError(f"{error} (did you mean {guess}?)")
            error.meant = guess  # type: ignore[attr-defined]  # goes into the fix
        raise error
    if origin is tuple:
        if not isinstance(value, list | tuple) or not value:
            raise ValueError("expected a list such as [0.5, 0.5, 0.5]")
        return tuple(_convert(get_args(hint)[0], item) for item in value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError("expected a finite number")
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is int and (not isinstance(value, int) or isinstance(value, bool)):
        raise ValueError("expected a whole number")
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a folder may be called 2024
    if not isinstance(value, hint):
        names = {float: "a number", bool: "true or false", str: "text"}
        raise ValueError(f"expected {names.get(hint, hint)}")
    return value


def _check_limits(item: Field[Any], value: Any) -> None:
    limits: dict[str, float] = item.metadata["limits"]
    holds = {"≥": float.__ge__, ">": float.__gt__, "≤": float.__le__, "<": float.__lt__}
    for number in value if isinstance(value, tuple) else (value,):
        if number is not None and not all(
            holds[sign](float(number), float(limit)) for sign, limit in limits.items()
        ):
            allowed = " and ".join(f"{sign} {limit:g}" for sign, limit in limits.items())
            raise ValueError(f"out of range, must be {allowed}")


def _contradictions(config: RunConfig) -> list[tuple[str, str]]:
    """What each key allows but together makes no sense: (problem, fix) pairs."""
    found = []
    normalize, resize, tta, optim = config.normalize, config.resize, config.tta, config.optim
    chosen, root = config.data.name, config.data.root
    if chosen == "fashion" and root is not None:
        found.append(
            (
                f"data.root={root}: data=fashion is embedded and takes no root",
                f"data=fashion_mnist data.root={root}, or data=folder data.root={root}",
            )
        )
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        found.append(
            (f"device={config.device}: no such device (auto, cpu, cuda, cuda:1 …)", "device=auto")
        )
    if config.model.source == "xresnet" and config.model.name not in XRESNETS:
        guess = nearest(config.model.name, XRESNETS)
        found.append(
            (
                f"model.name={config.model.name}: xresnet has {', '.join(XRESNETS)}",
                f"model={guess or XRESNETS[0]}, or model=torchvision "
                f"model.name={config.model.name}",
            )
        )
    if config.model.pretrained and config.model.weights is not None:
        found.append(
            (
                f"model.pretrained=true means the default weights, not {config.model.weights}",
                f"model.weights={config.model.weights}, or model.pretrained=true, not both",
            )
        )
    if chosen in ("folder", "table") and root is None:
        found.append(
            (
                f"data.root=null: data={chosen} needs to know where the images are",
                f"data={chosen} data.root=PATH",
            )
        )
    for name in ("mean", "std"):
        if len(getattr(normalize, name)) != 3:
            found.append(
                (
                    f"normalize.{name} has {len(getattr(normalize, name))} values: images are RGB",
                    f"normalize.{name}=[0.5,0.5,0.5]",
                )
            )
    if resize.delay + resize.finish > 1:
        found.append(
            (
                f"resize.delay={resize.delay} + resize.finish={resize.finish} exceed 1, "
                "the whole of training",
                "resize.delay=0.5 resize.finish=0.2",
            )
        )
    if resize.schedule == "progressive" and config.size % resize.multiple:
        found.append(
            (
                f"resize.size={config.size} is not a multiple of resize.multiple={resize.multiple}",
                f"resize.size={-(-config.size // resize.multiple) * resize.multiple}",
            )
        )
    if resize.schedule == "book" and (resize.first_size or 0) > config.size:
        found.append(
            (
                f"resize.first_size={resize.first_size} is larger than the final "
                f"size {config.size}",
                f"resize.first_size={config.size // 2}",
            )
        )
    if tta.passes and shows_more(tta):
        found.append(
            (
                f"tta.passes={tta.passes} does not combine with flip, crops, corners or scales",
                "tta=book, or tta.passes=0",
            )
        )
    if tta.beta is not None and tta.reduce != "mean":
        found.append(
            (
                f"tta.beta={tta.beta} weighs a mean, but tta.reduce={tta.reduce}",
                "tta.beta=null",
            )
        )
    if tta.crops % 2 == 0 and tta.corners:
        found.append(("tta.corners=true needs the centre crop", "tta.crops=1"))
    if resize.schedule == "book" and optim.schedule != "one_cycle":
        found.append(
            (
                f"optim.schedule={optim.schedule}: resize=book brings its own, "
                "one_cycle and then fine_tune",
                "optim.schedule=one_cycle",
            )
        )
    if optim.frozen and optim.layer_groups != 3:
        found.append(
            (
                f"optim.frozen=true freezes nothing with optim.layer_groups={optim.layer_groups}",
                "optim.layer_groups=3",
            )
        )
    if optim.frozen and (optim.schedule == "fine_tune" or resize.schedule == "book"):
        found.append(
            (
                "optim.frozen=true freezes all the time, fine_tune and resize=book only at first",
                "optim.frozen=false, or optim=linear_probe with resize=fixed",
            )
        )
    if resize.schedule == "progressive" and optim.schedule == "fine_tune":
        found.append(
            (
                "resize.schedule=progressive has one stage, optim.schedule=fine_tune has two",
                "resize=fixed, or resize=book with optim=adamw",
            )
        )
    return found


def without_effect(config: RunConfig) -> list[str]:
    """Keys set away from their default that this configuration never reads, as KEY=VALUE.

    Not ``data.default_size``, which every data set brings and ``resize.size`` is meant to replace.
    """
    default = RunConfig()
    return [
        f"{group}.{name}={_shown(value)}"
        for group, name in _unread(config)
        if name != "default_size"
        and (value := getattr(getattr(config, group), name))
        != getattr(getattr(default, group), name)
    ]


def effective(config: RunConfig) -> RunConfig:
    """``config`` with every key that it never reads at its default.

    Two configurations that do the same have equal effective ones.
    """
    default = RunConfig()
    for group, name in _unread(config):
        neutral = getattr(getattr(default, group), name)
        changed = replace(getattr(config, group), **{name: neutral})
        config = replace(config, **{group: changed})
    return config


def _unread(config: RunConfig) -> list[tuple[str, str]]:
    """(group, key) of the keys that the rest of the configuration switches off."""
    mixup, optim, resize, tta = config.mixup, config.optim, config.resize, config.tta
    is_blended = mixes_images(mixup)
    is_mixed = is_blended or pastes_boxes(mixup)
    warps = (
        config.augment.max_rotate > 0
        or config.augment.max_zoom > 1
        or (config.augment.max_warp > 0)
    )
    crops = config.augment.min_scale < 1 or config.augment.crop_from == "rectangle"
    cycles = optim.schedule in ("one_cycle", "fine_tune") or resize.schedule == "book"
    is_read = {
        "data.variant": config.data.name == "imagenette" and config.data.root is None,
        "data.label_noise": config.data.name == "imagenette",
        "data.val_fraction": config.data.name in ("folder", "table"),
        "data.default_size": config.resize.size is None,
        "data.path_column": config.data.name == "table",
        "data.label_column": config.data.name == "table",
        "data.split_column": config.data.name == "table",
        "normalize.mean": config.normalize.source != "dataset",
        "normalize.std": config.normalize.source != "dataset",
        "normalize.allow_mismatch": config.model.weights is not None or config.model.pretrained,
        "augment.affine_probability": warps,
        "augment.lighting_probability": config.augment.max_lighting > 0,
        "augment.max_ratio": crops,
        "augment.crop_per": crops,
        **dict.fromkeys(
            [f"resize.{key}" for key in ("initial_scale", "delay", "finish", "multiple", "match")],
            resize.schedule == "progressive",
        ),
        **dict.fromkeys(
            [f"resize.first_{key}" for key in ("size", "epochs", "batch_size", "lr")],
            resize.schedule == "book",
        ),
        "mixup.probability": is_mixed,
        "mixup.cutmix": is_mixed,
        "mixup.until": is_mixed,
        "mixup.per": is_mixed,
        "mixup.distribution": is_blended,
        "mixup.alpha": is_blended and mixup.distribution == "beta",
        "mixup.fold": is_blended and mixup.distribution == "beta",
        "mixup.cutmix_alpha": pastes_boxes(mixup),
        "optim.nesterov": optim.name == "sgd",
        "optim.beta2": optim.name == "adamw",
        "optim.eps": optim.name == "adamw",
        "optim.warmup": optim.schedule == "one_cycle" or resize.schedule == "book",
        "optim.div": cycles,
        "optim.momentum_low": cycles,
        "optim.decay_from": optim.schedule == "flat_cosine",
        "optim.div_final": optim.schedule != "constant",
        "optim.freeze_epochs": optim.schedule == "fine_tune" or resize.schedule == "book",
        "optim.lr_spread": optim.layer_groups > 1 and not optim.frozen,
        "tta.corner_scale": tta.corners,
        "tta.beta": has_views(tta),
        "tta.reduce": has_views(tta),
    }
    return [
        (group, name)
        for group, _, name in (key.partition(".") for key, read in is_read.items() if not read)
    ]


def _shown(value: Any) -> str:
    """``value`` as the command line spells it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(_shown(item) for item in value) + "]"
    return str(value)
