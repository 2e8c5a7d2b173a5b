"""How a model is asked: a recipe's section `evaluation`, with what a command changes. Importing this loads no torch."""

from collections.abc import Mapping
from typing import Any

from moslora.choices import FormatName
from moslora.errors import UsageError
from moslora.prompts.protocols import DEFAULT_FORMAT, PROTOCOLS, joined_names, readers, writers
from moslora.recipe import EvaluationSection, Recipe


class Request(EvaluationSection):
    """A recipe's section `evaluation`, with the prompt format and the source of the questions."""

    format: FormatName = DEFAULT_FORMAT
    source: str = "wheel"

    @classmethod
    def of(cls, recipe: Recipe | None) -> "Request":
        """How a recipe's run is asked: in the format of its training rows, by the recipe's protocol if that reads it;
        without a recipe by the defaults."""
        if recipe is None:
            return cls()
        asked = {"format": recipe.data.format, "source": recipe.questions.source}
        return cls(**recipe.evaluation.model_dump() | asked).with_overrides({})

    def with_overrides(self, overrides: Mapping[str, Any]) -> "Request":
        """Return a copy with the fields of ``overrides``. If protocol and format do not go together, one that is not
        among these is the usual one for the other.

        Raises:
            UsageError: the protocol does not read the format, or writes nothing that beams could search.
        """
        request = type(self).model_validate({**self.model_dump(), **overrides})
        protocol = PROTOCOLS[request.protocol]
        if request.format not in protocol.formats:
            usual = readers(request.format)
            if "protocol" not in overrides:
                protocol = usual[0]
            elif "format" in overrides:
                raise UsageError(
                    f"--protocol {protocol.name} cannot read the answers of --format {request.format}; choose"
                    f" --protocol {joined_names(usual)}"
                )
            format = request.format if request.format in protocol.formats else protocol.formats[0]
            request = request.model_copy(update={"protocol": protocol.name, "format": format})
        if overrides.get("beams", 1) > 1 and not protocol.writes:
            raise UsageError(
                f"--beams {overrides['beams']}: only with --protocol {joined_names(writers())}, not {protocol.name}"
            )
        return request
