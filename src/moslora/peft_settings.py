"""PEFT's ``adapter_config.json``, stock or as the MoSLoRA repository writes it: what of it moslora can hold."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_READ = {
    "base_model_name_or_path",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "lora_use_mixer",
    "peft_type",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
}
_WITHOUT_EFFECT = {
    "auto_mapping",
    "eva_config",
    "inference_mode",
    "megatron_core",
    "merge_weights",
    "peft_version",
    "qalora_group_size",
}
"""Settings that leave what a trained adapter computes as it is."""

_UNSUPPORTED = {
    "alpha_pattern": "moslora has one scale for all layers",
    "bias": "trained biases are no part of B · M · A",
    "fan_in_fan_out": "transposed base weights are not supported",
    "modules_to_save": "whole modules were trained beside the adapter, and moslora keeps none",
    "rank_pattern": "moslora has one rank for all layers; if it exported this, export without --compact",
    "use_dora": "DoRA's magnitudes are no part of B · M · A",
}
"""Settings that are refused unless they are off, and why. One that is listed nowhere is refused likewise."""

_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the base's weights alone, as PiSSA, OLoRA, LoftQ and others do not."""


def malformed(config: Mapping[str, Any]) -> Iterator[str]:
    """Settings without which nothing else can be judged."""

    def number(key: str, *, least: float, most: float) -> bool:
        value = config.get(key)
        return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def modules(value: Any) -> bool:
        if isinstance(value, str):
            return _groups(value) is not None
        return isinstance(value, list) and all(isinstance(one, str) for one in value)

    def patterns(value: Any) -> bool:
        ones = value if isinstance(value, list) else [value]
        return all(isinstance(one, str) and _groups(_numbered(one)) == 1 for one in ones)

    layers = config.get("layers_to_transform")
    wanted = {
        "peft_type": (config.get("peft_type") == "LORA", "'LORA'"),
        "task_type": (config.get("task_type") in (None, "CAUSAL_LM"), "'CAUSAL_LM'"),
        "r": (whole(config.get("r")) and config["r"] > 0, "a positive whole number"),
        "lora_alpha": (number("lora_alpha", least=1e-30, most=1e30), "a positive number, 1e-30 to 1e30"),
        "lora_dropout": (
            config.get("lora_dropout") is None or number("lora_dropout", least=0, most=math.nextafter(1, 0)),
            "a number from 0 to below 1",
        ),
        "target_modules": (modules(config.get("target_modules")), "a list of names, or a regular expression"),
        "exclude_modules": (
            config.get("exclude_modules") is None or modules(config["exclude_modules"]),
            "a list of names, or a regular expression",
        ),
        "layers_to_transform": (
            layers is None or whole(layers) or (isinstance(layers, list) and all(map(whole, layers))),
            "numbers of layers",
        ),
        "layers_pattern": (
            config.get("layers_pattern") is None or patterns(config["layers_pattern"]),
            "regular expressions without groups, one or a list of them",
        ),
        **{
            key: (config.get(key) is None or isinstance(config[key], bool), "true or false")
            for key in ("lora_use_mixer", "use_rslora")
        },
        **{
            key: (config.get(key) is None or (isinstance(config[key], str) and config[key].isprintable()), "text")
            for key in ("base_model_name_or_path", "revision")
        },
    }
    for key, (fits, want) in wanted.items():
        if not fits:
            yield f"{key} = {_shown(config.get(key))}: wants {want}"


def _shown(value: Any) -> str:
    """A value in Python's words, of which a pattern for every layer would fill the screen."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _groups(pattern: str) -> int | None:
    """How many groups a regular expression has; ``None`` where it is none."""
    try:
        return re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError):
        return None


def _numbered(pattern: str) -> str:
    """Where in a layer's name its number stands, after one of ``layers_pattern``: the one group."""
    return rf".*\.{pattern}\.(\d+)\."


def unsupported(config: Mapping[str, Any]) -> Iterator[str]:
    """Settings of adapters that are more, or other, than B · M · A."""
    if config.get("init_lora_weights") not in _STARTS:
        yield (
            f"init_lora_weights = {_shown(config['init_lora_weights'])}: such a start may change the base's weights, so"
            " that the adapter fits no other; convert it to a plain LoRA with PEFT first"
        )
    for key, value in config.items():
        if key not in _READ | _WITHOUT_EFFECT and value and value != "none":
            key = key if key.isprintable() else repr(key)
            reason = _UNSUPPORTED.get(key, "moslora does not know this setting")
            yield f"{key} = {_shown(value)}: not supported: {reason}"


def adapts(config: Mapping[str, Any], name: str, *, official: bool) -> bool:
    """Whether PEFT adapts the layer ``name`` under these settings (``check_target_module_exists``)."""
    targets = config["target_modules"]
    if official:  # PEFT 0.3's rule: the end of a name, wherever it begins
        return bool(re.fullmatch(targets, name)) if isinstance(targets, str) else name.endswith(tuple(targets))
    if _named(name, config.get("exclude_modules") or []) or not _named(name, targets):
        return False
    layers = config.get("layers_to_transform")
    if layers is None or layers == [] or isinstance(targets, str) or name in targets:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := re.match(_numbered(pattern), name):
            return int(match[1]) in ([layers] if isinstance(layers, int) else layers)
    return False


def _named(name: str, targets: str | list[str]) -> bool:
    if isinstance(targets, str):
        return bool(re.fullmatch(targets, name))
    return any(name == target or name.endswith(f".{target}") for target in targets)
