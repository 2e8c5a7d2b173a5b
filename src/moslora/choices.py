"""The closed sets of names that recipes and the command line share; pydantic and Typer check them."""

from typing import Literal

BadRows = Literal["stop", "skip"]
BestBy = Literal["loss", "accuracy"]
DType = Literal["bfloat16", "float16", "float32"]
EngineName = Literal["own", "padded", "transformers"]
EngineChoice = Literal["auto", "own", "padded", "transformers"]
FormatName = Literal["label", "llm-adapters", "cloze", "cloze-passage", "chat"]
LossOn = Literal["response", "last", "all"]
Required = Literal["better", "not-worse", "equal"]
SizeName = Literal["full", "half", "third"]
Split = Literal["train", "test", "dev"]
Onto = Literal["original", "dequantized"]
Strategy = Literal["ddp", "fsdp"]
TrackerName = Literal["wandb", "tensorboard", "trackio", "mlflow"]

BUILTIN_MODEL = "smollm2-135m-instruct"
"""The name of the model that needs no hub, whatever folder is called so."""
