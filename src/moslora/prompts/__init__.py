"""Prompts: how an `Example` becomes a prompt and an answer. Rows and their wording are in `moslora.tasks`.

A recipe's field `data.format` describes the formats. The texts of ``llm-adapters`` are LLM-Adapters' (arXiv 2304.01933;
``finetune.py`` and ``commonsense_evaluate.py``), byte for byte; as in those scripts, the prompts of
training and evaluation differ. ``cloze`` has
lm-eval 0.4.13's prompts for the eight sets, except that BoolQ's passage is in ``cloze-passage`` alone.
"""
