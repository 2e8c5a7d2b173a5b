"""The protocols as objects: their names, their scorers, and which of them fits a model and what was typed."""

from typing import get_args

import pytest

from moslora.errors import UsageError
from moslora.evaluation import Request
from moslora.evaluation.scorers import SCORERS
from moslora.prompts.protocols import PROTOCOLS, ProtocolName, ScoringProtocolName


def test_names_and_scorers_are_those_of_the_objects():
    assert get_args(ProtocolName) == tuple(PROTOCOLS) == tuple(SCORERS)
    scoring = tuple(name for name, protocol in PROTOCOLS.items() if protocol.scores_options)
    assert get_args(ScoringProtocolName) == scoring
    for name, scorer in SCORERS.items():
        assert scorer.protocol is PROTOCOLS[name]


@pytest.mark.parametrize(
    ("own", "typed", "chosen"),
    [
        (("choice", "chat"), (None, None), ("choice", "chat")),
        (("generate", "chat"), (None, "label"), ("generate", "label")),
        (("generate", "chat"), (None, "cloze-passage"), ("cloze", "cloze-passage")),
        (("cloze", "cloze"), (None, "llm-adapters"), ("choice", "llm-adapters")),
        (("choice", "llm-adapters"), ("generate", None), ("generate", "llm-adapters")),
        (("choice", "llm-adapters"), ("cloze", None), ("cloze", "cloze")),
        (("cloze", "cloze-passage"), ("choice", None), ("choice", "label")),
        (("cloze", "cloze"), ("generate", "chat"), ("generate", "chat")),
    ],
)
def test_options_not_given_are_the_models_own_or_fit(own, typed, chosen):
    own = Request(protocol=own[0], format=own[1])
    given = {name: value for name, value in zip(("protocol", "format"), typed, strict=True) if value}
    request = own.with_overrides(given)
    assert (request.protocol, request.format) == chosen


def test_a_protocol_that_does_not_read_the_format_is_refused():
    with pytest.raises(UsageError, match="--format cloze; choose --protocol cloze"):
        Request().with_overrides({"protocol": "choice", "format": "cloze"})
