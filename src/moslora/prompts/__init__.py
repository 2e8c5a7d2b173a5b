"""Prompts: how an `Example` becomes a prompt and an answer, in training and evaluation alike.

`make_format` knows five formats:

* ``label``: the question lists its options and the answer names one, "the correct answer is answer2".
* ``llm-adapters``: the same inside LLM-Adapters' wrappers (arXiv 2304.01933; ``finetune.py`` and
  ``commonsense_evaluate.py``), byte for byte; training and evaluation texts differ, as theirs do.
* ``cloze``: the question alone, answered by the option's text: lm-eval 0.4.13's prompts for the eight sets,
  except that BoolQ has no passage, as in LLM-Adapters.
* ``cloze-passage``: the same with BoolQ's passage, as in lm-eval's ``boolq``.
* ``chat``: the question that lists its options in the tokenizer's chat template, answered by a label.
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
