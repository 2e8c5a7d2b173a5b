"""The options of adapters, and what each of them must be."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, ValidationError

from moslora.adapters.linear import Trains
from moslora.adapters.start import Start
from moslora.strict import StrictModel, fault_lines

Scaling = Literal["lora", "rslora"]


def _as_python(number: Any) -> Any:
    """A number of numpy as Python's, which a recipe can hold."""
    return number.item() if hasattr(number, "item") else number


def _as_list(names: Any) -> Any:
    if isinstance(names, Collection) and not isinstance(names, str):
        return [str(name) for name in names]
    return names


def _with_kind(mixer: Any) -> dict[str, Any]:
    if not isinstance(mixer, Mapping) or "kind" not in mixer:
        raise ValueError("must be a mapping such as {'kind': 'dense'}")
    return dict(mixer)


Number = BeforeValidator(_as_python)


class AdapterOptions(StrictModel):
    """The arguments of :func:`moslora.adapters.inject` that describe the adapters."""

    rank: Annotated[PositiveInt, Number]
    alpha: Annotated[PositiveFloat, Number]
    mixer: Annotated[Any, AfterValidator(_with_kind)]
    target_modules: Annotated[list[str] | str, BeforeValidator(_as_list)]
    dropout: Annotated[float, Number, Field(ge=0, lt=1)]
    rank_out: Annotated[PositiveInt | None, Number]
    scaling: Scaling
    start: Start
    trains: Trains
    dora: bool
    seed: Annotated[int, Number]

    @property
    def scale(self) -> float:
        """s."""
        if self.scaling == "lora":
            return self.alpha / self.rank
        return self.alpha / self.rank**0.5


def checked(**values: Any) -> AdapterOptions:
    """These options. A misspelt word would otherwise be another method, silently.

    Raises:
        ValueError: a line for each of a wrong type, or out of range.
    """
    try:
        return AdapterOptions(**values)
    except ValidationError as error:
        raise ValueError("\n".join(fault_lines(error))) from None
