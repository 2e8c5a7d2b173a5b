"""A whole small world on disk: a random LLaMA with its tokenizer, data in LLM-Adapters' layout, a recipe."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from changes_kit import write_jsonl
from evaluation_kit import WORDS, make_examples, make_model, tokenizer
from moslora.prompts.instructions import llm_adapters_row
from moslora.tasks import TASKS

WORLD_TASKS = ("boolq", "arc_easy", "obqa")

RECIPE = """
name: small
seed: 3
model: {{name: {model}, dtype: float32}}
adapter:
  rank: 4
  alpha: 8
  dropout: 0.1
  target_modules: [q_proj, v_proj, down_proj]
  mixer: {{kind: dense}}
data:
  source: {data}
  tasks: [boolq, arc_easy, obqa]
  format: label
  max_length: 128
  validation_rows: 6
training:
  epochs: 2
  global_batch_size: 8
  micro_batch_tokens: 200
  learning_rate: 3e-2
  warmup_steps: 2
  checkpoint_every: 4
  validate_every: 5
  log_every: 2
evaluation: {{tasks: [boolq, arc_easy, obqa]}}
"""


def make_world(root: Path) -> None:
    """Writes ``model/``, ``data/`` and ``recipe.yaml`` into ``root``."""
    make_model().save_pretrained(root / "model")
    tokenizer().save_pretrained(root / "model")
    for task in WORLD_TASKS:
        folder = root / "data" / TASKS[task].folder
        folder.mkdir(parents=True)
        for split, begin, end in (("train", 0, 30), ("test", 30, 50)):
            rows = [llm_adapters_row(example) for example in make_examples(task, 50)[begin:end]]
            (folder / f"{split}.json").write_text(json.dumps(rows, indent=4), encoding="utf-8")
    (root / "recipe.yaml").write_text(RECIPE.format(model=root / "model", data=root / "data"), encoding="utf-8")


def write_rows(folder: Path, answers: Sequence[str], column: str) -> None:
    """Writes ``rows.jsonl``, twenty rows for each answer: a ``text`` that begins with it, and itself in ``column``."""
    draw = random.Random(0)
    rows = [{"text": " ".join([answer, *draw.choices(WORDS, k=5)]), column: answer} for answer in [*answers] * 20]
    write_jsonl(folder / "rows.jsonl", rows)


def loads_of_models(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that transformers loads from now on."""
    load = AutoModelForCausalLM.from_pretrained
    loaded: list[str] = []

    def noted(name: str, **options: Any) -> Any:
        loaded.append(name)
        return load(name, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", noted)
    return loaded
