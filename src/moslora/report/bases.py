"""What the bases of several runs are called: "base", or what tells them apart."""

from collections.abc import Sequence
from pathlib import Path

from moslora.runs.settings import Settings

FIELDS = ("base", "quantization", "dtype", "protocol", "format", "beams")
"""What bases are told apart by, fields of `Settings.model` and `Settings.asked`."""

NOT_SET = "None"
"""The value of such a field that an evaluation does not have, such as the beams of ``choice``: all values are text."""


def base_names(bases: Sequence[Settings | None]) -> list[str]:
    """A name for each of these evaluations of bases: "base", with the values in which they differ, such as "base (nf4)"
    and "base (llama-3, cloze)". ``None`` is a run whose base was not evaluated; it counts for no difference."""
    models = _model_names([settings for settings in bases if settings is not None])
    described = [_described(settings, models) for settings in bases]
    differing = []
    for field in FIELDS:
        values = {known[field] for known in described if known}
        if len(values) > 1:
            differing.append(field)
    names = []
    for known in described:
        values_of_base = [known.get(field, NOT_SET) for field in differing]
        shown = [value for value in values_of_base if value != NOT_SET]
        if shown:
            names.append(f"base ({', '.join(shown)})")
        else:
            names.append("base")
    return names


def _described(settings: Settings | None, models: dict[str, str]) -> dict[str, str]:
    """Field -> value, of all that bases are told apart by; empty if there is no base."""
    if settings is None:
        return {}
    return {**settings.model, **settings.asked, "base": models[base_model(settings)]}


def base_model(settings: Settings) -> str:
    """What identifies the weights of a base: its fingerprint, or the name where there is none."""
    return str(settings.metadata.get("fingerprint") or settings.metadata.get("base"))


def _model_names(bases: Sequence[Settings]) -> dict[str, str]:
    """Name of every model, by :func:`base_model`: the last part of its path, or all of it, or with its fingerprint, if
    otherwise two had the same."""
    paths = {base_model(settings): str(settings.metadata.get("base")) for settings in bases}
    shorts = {model: Path(path).name for model, path in paths.items()}
    for names in (shorts, paths):
        if len(set(names.values())) == len(names):
            return names
    return {model: f"{short} {model[:6]}" for model, short in shorts.items()}
