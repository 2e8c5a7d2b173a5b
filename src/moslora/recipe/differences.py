"""Differences between two recipes, or other nested mappings of JSON values."""

from collections.abc import Mapping
from typing import Any

from .yaml_text import render_inline


def changed_keys(then: Mapping[str, Any], now: Mapping[str, Any], *, free: tuple[str, ...] = ()) -> list[str]:
    """`key was …, is …` for every dotted key whose value differs, but for keys that begin with one of ``free``."""
    before, after = flat(then), flat(now)
    return [
        f"{key} was {render_inline(before.get(key))}, is {render_inline(after.get(key))}"
        for key in dict.fromkeys((*after, *before))
        if not key.startswith(free) and before.get(key) != after.get(key)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
