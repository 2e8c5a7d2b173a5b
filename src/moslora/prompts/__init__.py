"""One renderer for training and evaluation: how an `Example` becomes a prompt and an answer.

Four formats, all objects of `FORMATS`:

* ``label``: the question lists its options and the answer names one, "the correct answer is answer2".
* ``llm-adapters``: the same inside LLM-Adapters' wrappers (arXiv 2304.01933; ``finetune.py`` and
  ``commonsense_evaluate.py``), byte for byte: their training and evaluation texts differ, and so do these.
* ``cloze``: the answer is the option's own text behind the bare question: lm-eval 0.4.13's prompts for the
  eight sets, except that BoolQ comes without its passage, as LLM-Adapters asks it.
* ``cloze-passage``: the same with BoolQ's passage, as lm-eval's ``boolq`` has it.
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
