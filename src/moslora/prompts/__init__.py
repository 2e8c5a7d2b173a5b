"""Prompts: how an `Example` becomes a prompt and an answer, in training and evaluation alike.

`FORMATS` has four formats:

* ``label``: the question lists its options and the answer names one, "the correct answer is answer2".
* ``llm-adapters``: the same inside LLM-Adapters' wrappers (arXiv 2304.01933; ``finetune.py`` and
  ``commonsense_evaluate.py``), byte for byte; training and evaluation texts differ, as theirs do.
* ``cloze``: the question alone, answered by the option's text: lm-eval 0.4.13's prompts for the eight sets,
  except that BoolQ has no passage, as in LLM-Adapters.
* ``cloze-passage``: the same with BoolQ's passage, as in lm-eval's ``boolq``.
"""

from moslora.prompts.formats import FORMATS, ClozeFormat, Format, LabelFormat, Option
from moslora.prompts.instructions import (
    RESPONSE_LEAD,
    answer_pattern,
    instruction,
    labels,
    llm_adapters_row,
    parse_instruction,
    response,
)

__all__ = [
    "FORMATS",
    "RESPONSE_LEAD",
    "ClozeFormat",
    "Format",
    "LabelFormat",
    "Option",
    "answer_pattern",
    "instruction",
    "labels",
    "llm_adapters_row",
    "parse_instruction",
    "response",
]
