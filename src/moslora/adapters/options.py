"""The options of adapters, and what each of them must be."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args

from moslora.adapters.linear import Trains
from moslora.adapters.start import Start

Scaling = Literal["lora", "rslora"]


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """The arguments of :func:`moslora.adapters.inject` that describe the adapters."""

    rank: int
    alpha: float
    mixer: Mapping[str, Any]
    target_modules: Collection[str] | str
    dropout: float
    rank_out: int | None
    scaling: Scaling
    start: Start
    trains: Trains
    dora: bool
    seed: int

    @property
    def scale(self) -> float:
        """s."""
        if self.scaling == "lora":
            return float(self.alpha) / self.rank
        return float(self.alpha) / self.rank**0.5

    def check(self) -> None:
        """Refuses values of a wrong type, or out of range. A misspelt word would otherwise be another method, silently.

        Raises:
            ValueError: a line for each.
        """
        wrong: dict[str, str] = {}  # name -> what it must be
        if not _is_positive_integer(self.rank):
            wrong["rank"] = "a whole number above 0"
        if self.rank_out is not None and not _is_positive_integer(self.rank_out):
            wrong["rank_out"] = "a whole number above 0, or None"
        if not _is_number(self.alpha) or not self.alpha > 0:  # a NaN is not, either
            wrong["alpha"] = "a number above 0"
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            wrong["dropout"] = "a number from 0 to below 1"
        if not isinstance(self.mixer, Mapping) or "kind" not in self.mixer:
            wrong["mixer"] = "a mapping such as {'kind': 'dense'}"
        if not isinstance(self.target_modules, Collection):
            wrong["target_modules"] = "a list of names, or a regular expression"
        for name, kind in (("scaling", Scaling), ("start", Start), ("trains", Trains)):
            if getattr(self, name) not in get_args(kind):
                wrong[name] = f"one of {', '.join(get_args(kind))}"
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral):
            wrong["seed"] = "a whole number"
        if wrong:
            raise ValueError(
                "\n".join(f"{name} = {getattr(self, name)!r}: must be {what}" for name, what in wrong.items())
            )

    def plain(self) -> dict[str, Any]:
        """The options by name, as a recipe can hold them: numbers of numpy are Python's."""
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Real) and hasattr(value, "item"):
                value = value.item()
            values[field.name] = value
        return {**values, "mixer": dict(self.mixer)}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_positive_integer(value: Any) -> bool:
    return _is_number(value) and isinstance(value, Integral) and int(value) > 0
