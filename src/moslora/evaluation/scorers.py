"""The protocols with their scorers: here a scorer is attached to its protocol, and nowhere else."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.shapes import context_length
from moslora.data.encode import Encoder
from moslora.errors import UsageError
from moslora.evaluation.generate import Generate, OpenAnswers
from moslora.evaluation.request import Request
from moslora.evaluation.scorer import Choice, Cloze, Scorer, Texts
from moslora.prompts.formats import make_format
from moslora.prompts.protocols import ProtocolName
from moslora.tasks import Example

SCORERS: Mapping[ProtocolName, type[Scorer[Any]]] = {
    scorer.protocol.name: scorer for scorer in (Choice, Cloze, Generate)
}


def make_encoder(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, request: Request) -> Encoder:
    """Return what encodes the questions of ``request``, up to its limit in tokens or the model's context.

    Raises:
        UsageError: the limit is longer than the context.
    """
    context = context_length(config)
    if request.max_length and context and request.max_length > context:
        raise UsageError(
            f"evaluation.max_length = {request.max_length}: the model's context has {context:,} tokens; set at most"
            " this, or null"
        )
    # In a recipe `data.max_length` is of the training rows alone.
    return Encoder(tokenizer, max_length=request.max_length or context, key="evaluation.max_length")


def make_scorer(example: Example, encoder: Encoder, request: Request) -> Scorer[Any]:
    """Return what scores the task of an example: texts and open-ended questions have their own scorers, whatever the
    protocol that ``request`` names."""
    format = make_format(request.format, encoder.tokenizer)
    if example.is_text:
        return Texts(encoder, format)
    if example.is_open_ended:
        return OpenAnswers(encoder, format)
    return SCORERS[request.protocol](encoder, format, beams=request.beams)
