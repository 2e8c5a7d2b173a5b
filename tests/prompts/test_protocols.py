"""The protocols as objects: their names, their scorers, and which of them fits a model and what was typed."""

from dataclasses import fields
from typing import get_args

import pytest

from moslora.errors import UsageError
from moslora.evaluation.scorers import SCORERS
from moslora.evaluation.scores import Score
from moslora.prompts.protocols import PROTOCOLS, Asked, ProtocolName, ScoringProtocolName, choose


def test_names_and_scorers_are_those_of_the_objects() -> None:
    assert get_args(ProtocolName) == tuple(PROTOCOLS) == tuple(SCORERS)
    scoring = tuple(name for name, protocol in PROTOCOLS.items() if protocol.scores_options)
    assert get_args(ScoringProtocolName) == scoring
    for name, scorer in SCORERS.items():
        assert scorer.protocol is PROTOCOLS[name]
        assert scorer.protocol.primary in {field.name for field in fields(Score)}


@pytest.mark.parametrize(
    ("own", "typed", "chosen"),
    [
        (Asked("choice", "chat"), (None, None), ("choice", "chat")),
        (Asked("generate", "chat"), (None, "label"), ("generate", "label")),
        (Asked("generate", "chat"), (None, "cloze-passage"), ("cloze", "cloze-passage")),
        (Asked("cloze", "cloze"), (None, "llm-adapters"), ("choice", "llm-adapters")),
        (Asked("choice", "llm-adapters"), ("generate", None), ("generate", "llm-adapters")),
        (Asked("choice", "llm-adapters"), ("cloze", None), ("cloze", "cloze")),
        (Asked("cloze", "cloze-passage"), ("choice", None), ("choice", "label")),
        (Asked("cloze", "cloze"), ("generate", "chat"), ("generate", "chat")),
    ],
)
def test_what_is_not_typed_is_the_models_own_or_fits(own, typed, chosen) -> None:
    protocol, format = typed
    assert choose(own, protocol=protocol, format=format) == chosen


def test_a_protocol_that_does_not_read_the_format_is_refused() -> None:
    with pytest.raises(UsageError, match="--format cloze; choose --protocol cloze"):
        choose(Asked(), protocol="choice", format="cloze")
