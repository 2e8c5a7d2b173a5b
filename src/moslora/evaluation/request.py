"""How a model is asked: one frozen object instead of ten options."""

from typing import Literal, TypedDict, Unpack

from moslora.choices import FormatName, Protocol
from moslora.errors import UsageError
from moslora.recipe import PROTOCOLS, EvaluationSection, Recipe


class Options(TypedDict, total=False):
    """Changes to a request; ``None`` keeps its value, and a limit of "all" removes the limit."""

    protocol: Protocol | None
    format: FormatName | None
    limit: int | Literal["all"] | None
    source: str | None
    batch_tokens: int | None
    beams: int | None


class Request(EvaluationSection):
    """A recipe's section `evaluation`, with the prompt format and the source of the questions."""

    format: FormatName = "label"
    source: str = "wheel"

    @classmethod
    def of(cls, recipe: Recipe) -> "Request":
        """How a recipe asks."""
        own = {"format": recipe.data.format, "source": recipe.questions.source}
        return cls.model_validate({**recipe.evaluation.model_dump(), **own})

    def changed(self, **options: Unpack[Options]) -> "Request":
        """This request with the given options. If only one of protocol and format is given, the other is chosen to fit.

        Raises:
            UsageError: the protocol cannot read the answers of the format.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if given.get("limit") == "all":
            given["limit"] = None
        protocol, format = options.get("protocol"), options.get("format")
        pairs = [
            {"protocol": p, "format": f}
            for f in ([format] if format else [self.format, *PROTOCOLS])
            for p in ([protocol] if protocol else [self.protocol, *PROTOCOLS[f]])
            if p in PROTOCOLS[f]
        ]
        if not pairs:
            raise UsageError(
                f"--protocol {protocol} cannot read the answers of --format {format};"
                f" choose --protocol {' or '.join(PROTOCOLS[str(format)])}"
            )
        return Request.model_validate({**self.model_dump(), **given, **pairs[0]})
