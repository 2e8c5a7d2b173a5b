"""All families of transformers' causal language models, tiny and random: each is computed by our engine or by
transformers' forward, or refused in a line. Those that are not refused are trained, scored and merged into a model of
stock transformers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from evaluation_kit import tokenizer
from families_kit import ROWS, adapt, make, off, outcome, stock
from families_kit import load_adapted as load_adapted_tiny
from moslora.adapters import named_adapters
from moslora.base.adapted import with_adapters
from moslora.base.engine_choice import choose_engine
from moslora.base.load import read_base
from moslora.convert.export import LOST_BY_PEFT, export_peft
from moslora.convert.merge import merge
from moslora.errors import UsageError
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.plan.duration import cost
from moslora.plan.outline import outline
from moslora.plan.step import Work, measure
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.manifest import MANIFEST
from moslora.runs.save import save
from moslora.training import train_recipe

ROPE = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 64}
"""Positions as Llama 3.1 counts them."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": ROPE},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
}


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text("utf-8")
KINDS = {
    "own": "own",
    "padded": "padded",
    "transformers": "transformers",
    "not causal: refused": "not causal",
    "no tiny model could be built": "not computable",
}
"""Row of the page's table -> what becomes of its families."""

EXPECTED: dict[str, str] = {}
for _row, _kind in KINDS.items():
    (_families,) = re.findall(rf"^\| {_row} \| (.+) \|$", PAGE, re.M)
    EXPECTED |= dict.fromkeys(_families.split(", "), _kind)


@pytest.mark.parametrize("family", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_a_family_is_computed_or_refused(tmp_path, family):
    """``python tests/kits/families_kit.py`` prints the table."""
    if family not in EXPECTED:
        pytest.skip("a newer transformers has it; docs/models.md does not list it yet")
    found = outcome(family, tmp_path)
    assert found.kind == EXPECTED[family], found
    assert "\n" not in found.reason


def make_small(family, folder):
    """A random model of a family that our engine computes, in training's shapes."""
    torch.manual_seed(0)
    shapes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    own = {"num_key_value_heads": 2, "vocab_size": len(tokenizer()), "initializer_range": 0.1, **FAMILIES[family]}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shapes, **own)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@pytest.mark.parametrize("family", [*FAMILIES, "gpt_oss", "qwen3_next", "gemma2", "deepseek_v3", "mamba"])
def test_a_family_is_trained_scored_and_merged(recipe, tmp_path, family):
    """Stock transformers computes what the adapters do, from the merged files."""
    base = tmp_path / "base"
    if family in FAMILIES:
        make_small(family, base)
    else:
        make(family, base, steep=False)
    layers = named_adapters(load_adapted_tiny(base))
    targets = sorted({name.rpartition(".")[2] for name, _ in layers})
    short = ("training.epochs=null", "training.max_steps=4", f"adapter.target_modules=[{', '.join(targets)}]")
    made = recipe(f"model.name={base}", *short, "data.format=cloze", "evaluation.protocol=cloze")
    run = train_recipe(made, out=tmp_path / "run")
    engine = "own" if family in FAMILIES else "padded"
    assert json.loads((run / MANIFEST).read_text())["engine"] == engine
    results, _ = evaluate_target(open_target(str(tmp_path / "run")), limit=3)
    assert results.macro.n == 9
    proof = merge(run, out=tmp_path / "merged")
    assert 100 * proof.mean_error < proof.effect
    ids = torch.tensor([ROWS[1]])
    with torch.no_grad():
        expected = load_adapted(open_adapter(run))(input_ids=ids, use_cache=False).logits
        assert off(stock(tmp_path / "merged")(input_ids=ids, use_cache=False).logits, expected) < 1e-4
        assert off(stock(base)(input_ids=ids, use_cache=False).logits, expected) > 1e-3


def test_a_multimodal_model_is_planned_trained_scored_and_merged(recipe, tmp_path):
    """Adapters are in the part that reads text alone: an image encoder's would get no gradient."""
    make("gemma3", tmp_path / "base", steep=False)
    short = ("training.epochs=null", "training.max_steps=4", "adapter.target_modules=all-linear")
    made = recipe(f"model.name={tmp_path / 'base'}", *short, "data.format=cloze", "evaluation.protocol=cloze")
    planned = outline(made)
    assert cost(planned.model, made.model, tokens=1e6, labels=1e5, row=100, passes=10).operations > 0
    assert measure(planned.model, Work((50, 80), 0.5), dtype=torch.float32, checkpointing=False, on_gpu=True)[0] > 0
    train_recipe(made, out=tmp_path / "run")
    names = [name for name, _ in named_adapters(load_adapted(open_adapter(tmp_path / "run" / "adapter")))]
    assert len(names) == 14
    assert all(name.startswith("model.language_model.layers.") for name in names)
    assert {name for name, _ in named_adapters(planned.model)} == {*names}
    results, _ = evaluate_target(open_target(str(tmp_path / "run")), limit=3)
    assert results.macro.n == 9
    proof = merge(tmp_path / "run" / "adapter", out=tmp_path / "merged")
    assert 100 * proof.mean_error < proof.effect


@pytest.mark.parametrize(("family", "router"), [("hunyuan_v1_moe", "wg"), ("phimoe", "router")])
def test_a_router_that_cannot_be_adapted_is_named(recipe, tmp_path, family, router):
    """Its weight is read, or more comes back than a tensor."""
    make(family, tmp_path, steep=False)
    made = recipe(f"model.name={tmp_path}", "adapter.target_modules=all-linear")
    model = with_adapters(read_base(made.model), made)
    with pytest.raises(UsageError, match=rf"weights of {router} itself, or never calls") as caught:
        choose_engine(model)
    assert "\n" not in str(caught.value)
    others = re.search(r"\[(.+)\]", str(caught.value))[1].split(", ")
    model = with_adapters(read_base(made.model), recipe(f"model.name={tmp_path}", f"adapter.target_modules={others}"))
    choose_engine(model)
    assert model(input_ids=torch.tensor([ROWS[0]])).logits.isfinite().all()


def test_an_adapter_of_peft_outside_the_text_is_refused(recipe, tmp_path):
    pytest.importorskip("peft")
    make("gemma3", tmp_path, steep=False)
    theirs = (f"model.name={tmp_path}", "extends=peft/lora", "adapter.target_modules=[q_proj]")
    with pytest.raises(UsageError, match="reads no text"):
        train_recipe(recipe(*theirs), out=tmp_path / "run")


CONVOLUTIONS = ("gpt2", "gpt-sw3")
"""Families whose layers PEFT alone adapts."""

STORED_OTHERWISE = {"ergo": "is stored transposed", "param2moe": "is part of", "sarvam_moe": "is part of"}
"""Families whose files have q, k and v in one tensor, or transposed weights, unlike their modules -> the refusal."""

COMPUTED = [family for family, kind in EXPECTED.items() if kind == "own" and family not in CONVOLUTIONS]
MERGED = [family for family in COMPUTED if family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
FAST = ("llama", "gemma3", "fuyu", "mixtral")
"""One whose weights are named as its modules, two multimodal ones, one whose experts are stored one by one."""


@pytest.mark.parametrize("family", [pytest.param(f, marks=() if f in FAST else pytest.mark.slow) for f in MERGED])
def test_a_family_is_merged_and_exported(tmp_path, capsys, family):
    """Stock transformers, and PEFT over its base, compute what the adapters do in stock modules."""
    base, run = tmp_path / "base", tmp_path / "run"
    make(family, base, steep=False)
    model = load_adapted_tiny(base)
    save(model, run, base=str(base))
    if family in STORED_OTHERWISE:
        with pytest.raises(UsageError, match=STORED_OTHERWISE[family]):
            merge(run, out=tmp_path / "merged")
        return
    merge(run, out=tmp_path / "merged")
    export_peft(run, out=tmp_path / "peft")
    assert ("will load nothing" in "".join(capsys.readouterr())) == (family in LOST_BY_PEFT)

    adapted = stock(base)
    before = adapted(input_ids=torch.tensor([ROWS[1]]), use_cache=False).logits.detach()
    adapt(adapted, [name for name, _ in named_adapters(model)])
    with torch.no_grad():
        expected = adapted(input_ids=torch.tensor([ROWS[1]]), use_cache=False).logits
        merged = stock(tmp_path / "merged")(input_ids=torch.tensor([ROWS[1]]), use_cache=False).logits
        peft = pytest.importorskip("peft").PeftModel.from_pretrained(stock(base), tmp_path / "peft").eval()
        exported = peft(input_ids=torch.tensor([ROWS[1]]), use_cache=False).logits
    assert off(before, expected) > 1e-2
    assert off(merged, expected) < 1e-4
    if family not in LOST_BY_PEFT:
        assert off(exported, expected) < 1e-4


def test_the_pages_count_the_families():
    own, padded, stock = ([*EXPECTED.values()].count(kind) for kind in ("own", "padded", "transformers"))
    assert f"our engine computes {own}, transformers with our pieces {padded}, and transformers alone {stock}" in PAGE
    assert f"[{own + padded + stock} model families]" in (ROOT / "README.md").read_text("utf-8")
