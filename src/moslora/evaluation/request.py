"""Settings of an evaluation: a recipe's section `evaluation`, changed by a command's options. Importing this loads no
torch."""

from collections.abc import Mapping
from typing import Any

from moslora.choices import FormatName
from moslora.errors import UsageError
from moslora.prompts.protocols import DEFAULT_FORMAT, PROTOCOLS, joined_names, readers, writers
from moslora.recipe import EvaluationSection, Recipe


class Request(EvaluationSection):
    """Settings of an evaluation: a recipe's section `evaluation`, the prompt format and the source of the questions."""

    format: FormatName = DEFAULT_FORMAT
    source: str = "wheel"

    @classmethod
    def of(cls, recipe: Recipe | None) -> "Request":
        """Return the settings for a recipe's run: the format of its training rows, and the recipe's protocol if it can
        read this format; the defaults without a recipe."""
        if recipe is None:
            return cls()
        prompts = {"format": recipe.data.format, "source": recipe.questions.source}
        return cls(**recipe.evaluation.model_dump() | prompts).with_overrides({})

    def with_overrides(self, overrides: Mapping[str, Any]) -> "Request":
        """Return a copy with other values of some fields. If the protocol cannot read the format, the one of both that
        is not among ``overrides`` is adapted to the other.

        Raises:
            UsageError: both are overridden and do not fit, or beams are set for a protocol that writes no texts.
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
