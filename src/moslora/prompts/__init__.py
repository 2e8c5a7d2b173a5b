"""Prompts: how an `Example` becomes a prompt and an answer, in training and evaluation alike.

A recipe's field `data.format` describes the formats. The texts of ``llm-adapters`` are LLM-Adapters' (arXiv 2304.01933;
``finetune.py`` and ``commonsense_evaluate.py``), byte for byte; for training and evaluation they differ, as theirs do.
``cloze`` has lm-eval 0.4.13's prompts for the eight sets, except that BoolQ's passage is in ``cloze-passage`` alone.
"""

from moslora.prompts.formats import FORMATS, Format, LabelFormat, Option, make_format
from moslora.prompts.instructions import (
    RESPONSE_LEAD,
    answer_pattern,
    instruction,
    labels,
    llm_adapters_row,
    parse_instruction,
)

__all__ = [
    "FORMATS",
    "RESPONSE_LEAD",
    "Format",
    "LabelFormat",
    "Option",
    "answer_pattern",
    "instruction",
    "labels",
    "llm_adapters_row",
    "make_format",
    "parse_instruction",
]
