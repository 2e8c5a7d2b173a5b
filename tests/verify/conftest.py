"""A run with a tokenizer that adds a BOS, evaluated as its base and its checkpoints are, to be served."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.adapters import named_adapters
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.recipe import load_recipe
from moslora.training import train_recipe
from moslora.verify import server
from reference import tiny_llama
from server_kit import Pretended

CHAT = "{{ bos_token }}{% for message in messages %}user: {{ message['content'] }}\n{% endfor %}assistant: "


@dataclass(frozen=True)
class Served:
    """A run, and how to pretend to serve it."""

    path: Path

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.path.parent / "model")

    def model(self, target: str = "", *, base: bool = False, scale: float = 1.0) -> PreTrainedModel:
        """The run, or its adapter ``target``, or its base; the adapter ``scale`` times as strong."""
        model = open_target(str(self.path / target), base=base).load()
        for _, layer in named_adapters(model):
            layer.scale *= scale
        return model

    def pretended(self, model: PreTrainedModel | None = None, **faults: Any) -> Pretended:
        return Pretended(model or self.model(), self.tokenizer, **faults)

    @property
    def small(self) -> PreTrainedModel:
        """A model of another size with the same tokenizer."""
        model = tiny_llama(seed=5, vocab_size=len(self.tokenizer), layers=1, hidden_size=32, context=512)
        with torch.no_grad():
            model.lm_head.weight.mul_(8)  # as sure of its answers as a trained model
        return model


@pytest.fixture(scope="session")
def served_world(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Served]:
    """``served_world(*overrides)``: a run of the world's recipe over a base with a BOS and a chat template."""

    def make(*overrides: str) -> Served:
        root = tmp_path_factory.mktemp("served")
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
        return Served(root / "run")

    return make


@pytest.fixture(scope="session")
def choice_run(served_world: Callable[..., Served]) -> Served:
    """Evaluated by ``choice``, 60 questions. Read only."""
    return served_world()


@pytest.fixture
def served(choice_run: Served, tmp_path: Path) -> Served:
    """The same, which may be changed."""
    shutil.copytree(choice_run.path.parent, tmp_path / "served")
    return Served(tmp_path / "served" / "run")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr(server, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(server, "LONGEST_WAIT", 0.01)
