"""A run with a tokenizer that adds a BOS, evaluated as its base is, to be served."""

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.adapters import named_adapters
from moslora.errors import MosloraError
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.loading import load_model
from moslora.evaluation.target import open_target
from moslora.recipe import load_recipe
from moslora.training import train_recipe
from server_kit import Pretended

CHAT = "{{ bos_token }}{% for message in messages %}user: {{ message['content'] }}\n{% endfor %}assistant: "


@dataclass(frozen=True)
class Served:
    """A run, and how to pretend to serve it.

    Attributes:
        path: the run, which may be changed.
        original: the same, which is not.
    """

    path: Path
    original: Path

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.path.parent / "model")

    def model(self, target: str = "", *, base: bool = False, scale: float = 1.0) -> PreTrainedModel:
        """The run, or its adapter ``target``, or its base; the adapter ``scale`` times as strong."""
        return load(self.original / target, base=base, scale=scale)

    def pretended(self, model: PreTrainedModel | None = None, **faults: Any) -> Pretended:
        return Pretended(model or self.model(), self.tokenizer, **faults)


@cache
def load(target: Path, *, base: bool, scale: float) -> PreTrainedModel:
    model = load_model(open_target(str(target), base=base))
    for _, layer in named_adapters(model):
        layer.scale *= scale
    return model


def too_large(*_: Any, **__: Any) -> NoReturn:
    """In the place of an evaluation here: of a model that is served elsewhere."""
    raise MosloraError("too large for this machine")


def make_served(world: Path, root: Path, *overrides: str) -> Served:
    """A run of the world's recipe in ``root``, over a base with a BOS and a chat template, evaluated with its base."""
    shutil.copytree(world / "model", root / "model")
    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    tokenizer.add_special_tokens({"bos_token": "<eos>"})
    processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = processor
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(root / "model")
    longer = ("training.epochs=8", "training.learning_rate=1e-2", "training.checkpoint_every=12")
    own = [f"model.name={root / 'model'}", *longer, "training.keep_checkpoints=9", *overrides]
    train_recipe(load_recipe(world / "recipe.yaml", own), out=root / "run")
    for base in (False, True):
        evaluate_target(open_target(str(root / "run"), base=base))
    return Served(root / "run", root / "run")
