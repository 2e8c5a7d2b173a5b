"""The closed sets of names, which recipes and the command line share.

Pydantic and Typer check, word and complete them. Tasks and recipes are open sets, and no names of theirs are here.
"""

from typing import Literal

DType = Literal["bfloat16", "float16", "float32"]
Protocol = Literal["rank", "cloze", "generate"]
FormatName = Literal["label", "llm-adapters", "cloze", "cloze-passage"]
LossOn = Literal["response", "all"]
Split = Literal["train", "test", "dev"]
Winogrande = Literal["xl", "nested"]
Onto = Literal["original", "dequantized"]
