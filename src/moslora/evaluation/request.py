"""How a model is asked: what a recipe says, changed by what was typed."""

from collections.abc import Mapping
from typing import Any, get_args

from moslora.choices import FormatName, Protocol
from moslora.errors import UsageError
from moslora.recipe import PROTOCOLS, EvaluationSection


class Request(EvaluationSection):
    """A recipe's section `evaluation`, with the prompt format and the source of the questions."""

    format: FormatName = "label"
    source: str = "wheel"

    def changed(self, typed: Mapping[str, Any]) -> "Request":
        """This request with the ``typed`` fields. If only one of protocol and format is typed, the other is chosen to
        fit.

        Raises:
            UsageError: the protocol cannot read the answers of the format.
        """
        protocol, format = typed.get("protocol"), typed.get("format")
        fitting = [
            {"protocol": p, "format": f}
            for f in ([format] if format else [self.format, *PROTOCOLS])
            for p in ([protocol] if protocol else [self.protocol, *get_args(Protocol)])
            if p in PROTOCOLS[f]
        ]
        if not fitting:
            raise UsageError(
                f"--protocol {protocol} cannot read the answers of --format {format};"
                f" choose --protocol {' or '.join(PROTOCOLS[str(format)])}"
            )
        return Request.model_validate({**self.model_dump(), **typed, **fitting[0]})
