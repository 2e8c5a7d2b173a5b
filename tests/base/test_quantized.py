"""Bases in 4 and 8 bits: what they store, what trains over them, and the two ways of merging."""

import copy
import json
import shutil
import sys
import weakref
from pathlib import Path
from typing import get_args

import bitsandbytes
import peft
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from cli_kit import run
from evaluation_kit import tokenizer
from message_kit import says
from moslora.adapters import adapter_state_dict, fold, inject
from moslora.base.identity import fingerprint
from moslora.base.load import load_base
from moslora.base.own_engine import output_weight
from moslora.base.quantized import dequantize, multiplies_int8, quantized_layers
from moslora.base.sharded import shard_base
from moslora.choices import Onto
from moslora.convert import export
from moslora.convert.export import export_peft
from moslora.convert.merge import merge
from moslora.convert.proof import PROMPTS
from moslora.errors import MosloraError, UsageError
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.loading import load_model
from moslora.evaluation.target import open_target
from moslora.recipe import ModelSection, load_recipe
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.training import train_recipe
from moslora.training.objective import LabelLoss
from reference import PROJECTIONS, as_micro_batch, perturb, tiny_llama, token_batch
from training_kit import adapter, cut_after, in_processes, same_bits, same_files, weights_of
from world_kit import loads_of_models

KINDS = ("nf4", "int8")
NF4_ERROR = 0.09
"""Relative error of a Gaussian weight by NF4's code book (arXiv 2305.14314)."""

INT8_ERROR = 0.01
"""The same by 127 steps to a row's largest."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders ``plain`` and ``tied``: widths that are multiples of NF4's 64, and embeddings with and without a head."""
    root = tmp_path_factory.mktemp("models")
    for name in ("plain", "tied"):
        model = tiny_llama(vocab_size=len(tokenizer()), hidden_size=64, intermediate_size=128, tied=name == "tied")
        model.save_pretrained(root / name)
        tokenizer().save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def runs(models, world, tmp_path_factory):
    """Finished run for each kind: 84 rows, 9 steps. Read only."""
    root = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        short = ("training.epochs=null", "training.max_steps=9")
        overrides = (f"model.name={models / 'plain'}", f"model.quantization={kind}", f"name={kind}", *short)
        (root / f"{kind}.yaml").write_text(load_recipe(world / "recipe.yaml", overrides).to_yaml(), encoding="utf-8")
        train_recipe(load_recipe(root / f"{kind}.yaml"), out=root / kind)
    return root


# What is stored


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "options",
    [
        {"quantization": "nf4"},
        {"quantization": "nf4", "double_quantization": False},
        {"quantization": "int8"},
        {},
    ],
)
def test_dequantize_gives_the_weight_of_the_forward_pass(models, dtype, options):
    """Authority: base(I) = Wᵀ, in both modes, as an identity is exact in 8 bits too."""
    model = load_base(ModelSection(name=str(models / "plain"), dtype=dtype, **options))
    original = weights_of(models / "plain")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert len(layers) == 2 * 7 + 1
    unit = {"float32": 2e-5, "bfloat16": 4e-3, "float16": 5e-4}[dtype]
    errors = {"nf4": (NF4_ERROR - 0.02, NF4_ERROR + 0.01), "int8": (1e-4, INT8_ERROR), "": (0, unit)}
    for name, layer in layers.items():
        kind = str(options.get("quantization", ""))
        if name == "lm_head":
            kind = ""
        weight = dequantize(layer)
        assert weight.dtype == torch.float32 and weight.shape == (layer.out_features, layer.in_features)
        identity = torch.eye(layer.in_features, dtype=output_weight(model).dtype)
        rounding = 0.0
        if kind == "int8":
            rounding = unit * float(weight.abs().max())
        for training in (True, False):
            found = layer.train(training)(identity).detach().float().T
            torch.testing.assert_close(found, weight, rtol=0, atol=rounding, msg=name)
        error = float((weight - original[f"{name}.weight"]).norm() / weight.norm())
        low, high = errors[kind]
        assert low <= error <= high, (name, error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["plain", "tied"])
def test_embeddings_and_output_layer_stay_as_they_are(models, kind, name):
    base = str(models / name)
    before = fingerprint(base)
    model = load_base(ModelSection(name=base, dtype="float32", quantization=kind))
    fingerprint.cache_clear()
    assert fingerprint(base) == before
    assert len(quantized_layers(model)) == 14 and not any("lm_head" in layer for layer in quantized_layers(model))
    embedding = model.get_input_embeddings().weight
    head = output_weight(model)
    original = weights_of(models / name)
    assert embedding.equal(original["model.embed_tokens.weight"])
    if name == "tied":
        assert head is embedding
    else:
        assert head is not embedding and head.equal(original["lm_head.weight"])


@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_in_between_takes_no_gradient_away(models, inference):
    """bitsandbytes would repack a layer in its first evaluation, and have no gradient after it."""
    model = load_base(ModelSection(name=str(models / "plain"), dtype="bfloat16", quantization="nf4"))
    layer = next(iter(quantized_layers(model).values()))
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    before = layer.train()(x)
    with inference():
        between = layer.eval()(x)
    x.requires_grad_(True)
    after = layer.train()(x)
    after.sum().backward()
    assert before.equal(between) and before.equal(after)
    torch.testing.assert_close(x.grad.float(), dequantize(layer).sum(0).expand(5, -1), rtol=2e-2, atol=2e-2)


# What trains over it


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_unpacked_layers(models, kind, checkpointing):
    """In training both kinds compute with the dequantised W. The released code drops the mixer over an 8-bit base."""
    options = {"rank": 4, "alpha": 8, "mixer": {"kind": "dense"}, "target_modules": PROJECTIONS}
    name = str(models / "plain")
    section = ModelSection(name=name, dtype="float32", gradient_checkpointing=checkpointing)
    quantized = load_base(section.model_copy(update={"quantization": kind}))
    plain = load_base(ModelSection(name=name, dtype="float32"))
    for path, layer in quantized_layers(quantized).items():
        plain.get_submodule(path).weight.data.copy_(dequantize(layer))
    ids = token_batch(plain)
    gradients = []
    for model in (quantized, plain):
        assert len(inject(model, **options)) == 10
        perturb(adapter_state_dict(model).values(), seed=1)
        loss, _ = LabelLoss(model).train()(as_micro_batch(ids))
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    one, other = gradients
    assert one.keys() == other.keys() == adapter_state_dict(plain).keys() and len(one) == 30
    for key, gradient in one.items():
        assert gradient is not None and gradient.abs().max() > 0, key
        torch.testing.assert_close(gradient, other[key], rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=key)


class Unpacked(TorchDispatchMode):
    """Number of unpacked NF4 weights alive, at each unpacking. A product in 4 bits unpacks its own."""

    def __init__(self):
        super().__init__()
        self.before = []
        self.alive = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        if function._overloadpacket in (torch.ops.bitsandbytes.gemm_4bit, torch.ops.bitsandbytes.dequantize_4bit):
            self.before.append(len(self.alive))
        if function._overloadpacket == torch.ops.bitsandbytes.dequantize_4bit:
            self.alive.add(made.untyped_storage())
        return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_unpacks_a_4_bit_weight_twice(models, dtype, checkpointing, monkeypatch):
    """In the forward pass, and as its layer is computed again; until its gradient is done, to the same bits as
    bitsandbytes' own layers. Without checkpointing none is kept, and q, k and v of the first layer need no gradient.
    """
    section = ModelSection.model_validate(
        {"name": str(models / "plain"), "dtype": dtype, "quantization": "nf4", "gradient_checkpointing": checkpointing}
    )
    monkeypatch.setattr("moslora.base.quantized.PACKED_ROWS", 0)
    found = []
    for own in (True, False):
        model = load_base(section)
        for layer in quantized_layers(model).values():
            if not own:
                layer.__class__ = bitsandbytes.nn.Linear4bit
        inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules=PROJECTIONS)
        perturb(adapter_state_dict(model).values(), seed=1)
        with Unpacked() as unpacked:
            loss, _ = LabelLoss(model).train()(as_micro_batch(token_batch(model)))
            loss.backward()
        found.append([loss, *(weight.grad for weight in model.parameters() if weight.requires_grad)])
        if own and checkpointing:
            assert unpacked.before == [0] * 14 + 2 * [*range(7)]
        elif not checkpointing:
            assert unpacked.before == [0] * (14 + 7 + 4)
        assert not unpacked.alive
    assert len(found[0]) == 31 and all(map(torch.equal, *found))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_run_resumes_to_the_same_bits(runs, tmp_path, kind):
    out = cut_after(8, shutil.copytree(runs / kind, tmp_path / "run"))
    train_recipe(load_recipe(runs / f"{kind}.yaml"), out=out, resuming=True)
    assert same_files(runs / kind, out)


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.13", reason="fully_shard takes no integers, which is told in one line")
def test_two_processes_train_over_a_quantised_base(runs, tmp_path):
    """Whole on both processes or sharded, with the same bits, and as on one process."""
    changes = ["adapter.dropout=0", "training.max_steps=3"]
    command = ("-m", "moslora", "train", runs / "nf4.yaml", *changes)
    said = in_processes(*command, "--out", tmp_path / "two")
    assert said.count("on a CPU") == 1
    assert in_processes(*command, "training.strategy=fsdp", "--out", tmp_path / "sharded").startswith(said[:200])
    assert 0.5 < json.loads((tmp_path / "sharded" / "run.json").read_text())["frozen_share"] < 1
    assert same_bits(adapter(tmp_path / "two"), adapter(tmp_path / "sharded"))
    in_processes("-m", "moslora", "eval", tmp_path / "sharded", "--limit", 2, "--out", tmp_path / "shared")
    evaluate_target(open_target(str(tmp_path / "sharded")), limit=2, out=tmp_path / "alone")
    scores = [(tmp_path / name / "results.json").read_bytes() for name in ("shared", "alone")]
    assert scores[0] == scores[1]
    recipe = load_recipe(runs / "nf4.yaml", changes)
    one = adapter(train_recipe(recipe, out=tmp_path / "one").parent)
    for key, value in adapter(tmp_path / "two").items():
        assert (value - one[key]).abs().max() < 2e-3 * value.abs().max(), key


def test_what_cannot_be_sharded_is_refused(models, runs, monkeypatch):
    with pytest.raises(UsageError, match=r"--strategy fsdp: .*int8"):
        open_target(str(runs / "int8"), strategy="fsdp")
    model = load_base(ModelSection(name=str(models / "plain"), dtype="float32", quantization="nf4"))
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.11.0"))
    with pytest.raises(UsageError, match=r"fsdp: torch 2\.11\.0"):
        shard_base(model, device=torch.device("cpu"))


# What is done with it


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_scores_quantised_model_and_base(runs, tmp_path, kind):
    run = Path(shutil.copytree(runs / kind, tmp_path / kind))
    scores = []
    for options, suffix in (({}, "float32"), ({"base": True}, "float32-base"), ({"dtype": "bfloat16"}, "bfloat16")):
        target = open_target(str(run), **options)
        model = load_model(target)
        assert len(quantized_layers(model)) == 14 and str(output_weight(model).dtype) == f"torch.{suffix.split('-')[0]}"
        results, out = evaluate_target(target, tasks=("obqa",), limit=6)
        assert out.name == f"choice-label-{kind}-{suffix}" and results.conditions.answered_by.quantization == kind
        scores.append([p.scores for p in results.predictions])
    assert scores[0] != scores[1]


@pytest.mark.parametrize("onto", get_args(Onto))
@pytest.mark.parametrize("kind", KINDS)
def test_merged_weight_is_w_plus_s_b_m_a(runs, models, tmp_path, kind, onto):
    """Authority: float64 from the files and from base(I), with s = α/r = 2. Stock transformers loads the folder."""
    out = tmp_path / "merged"
    proof = merge(runs / kind / "adapter", out=out, onto=onto)
    trained = adapter(runs / kind)
    merged = weights_of(out)
    original = weights_of(models / "plain")
    layers = quantized_layers(load_base(ModelSection(name=str(models / "plain"), dtype="float32", quantization=kind)))
    assert merged.keys() == original.keys()
    for key, weight in original.items():
        name = key.removesuffix(".weight")
        expected = weight.double()
        if onto == "dequantized" and name in layers:
            expected = layers[name].train()(torch.eye(layers[name].in_features)).T.double()
        if f"{name}.lora_a" in trained:
            b, m, a = (trained[f"{name}.{part}"].double() for part in ("lora_b", "mixer.weight", "lora_a"))
            expected = expected + 2 * b @ m @ a
        torch.testing.assert_close(merged[key].double(), expected, rtol=1e-6, atol=1e-5, msg=key)
    changed = sum(not merged[key].equal(weight) for key, weight in original.items())
    assert changed == {"original": 6, "dequantized": 14}[onto]

    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"
    assert not quantized_layers(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32))
    # The merge itself is exact; what is left is the quantisation: of the weights, and in int8 of what they multiply.
    rounds_inputs = kind == "int8" and multiplies_int8()
    assert proof.rounding < 1e-5 and proof.mean_error < proof.effect
    assert (proof.mean_error < 1e-5) == (onto == "dequantized" and not rounds_inputs)


@pytest.mark.parametrize(("onto", "times"), [("original", 2), ("dequantized", 1)])
def test_merge_loads_its_base_once_or_twice(runs, models, tmp_path, monkeypatch, onto, times):
    loaded = loads_of_models(monkeypatch)
    merge(runs / "nf4" / "adapter", out=tmp_path / "merged", onto=onto)
    base = str(models / "plain")
    assert loaded.count(base) == times and len(loaded) == times + 1


def test_proof_of_a_merge_onto_a_quantised_base(runs, tmp_path):
    """Both numbers are computed again, from logits over all positions."""
    proof = merge(runs / "nf4" / "adapter", out=tmp_path / "merged")
    adapted = load_adapted(open_adapter(runs / "nf4" / "adapter"))
    base = load_base(open_adapter(runs / "nf4" / "adapter").recipe.model)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    errors = []
    effects = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = torch.tensor([tokenizer().encode(prompt)])
            rows = torch.arange(ids.shape[1] - 1)
            following = ids[0, 1:]
            p, q, r = [
                model(ids).logits[0].double().softmax(-1)[rows, following].log() for model in (adapted, merged, base)
            ]
            errors.append((p - q).abs())
            effects.append((p - r).abs())
    expected = [float(torch.cat(values).mean()) for values in (errors, effects)]
    assert [proof.mean_error, proof.effect] == pytest.approx(expected, rel=1e-3) and proof.mean_error > 1e-2


@pytest.mark.parametrize("onto", get_args(Onto))
def test_wrong_merge_onto_a_quantised_base_is_refused(runs, tmp_path, monkeypatch, onto):
    monkeypatch.setattr(export, "fold", lambda layer: fold(layer)._replace(scale=layer.scale * 1.1))
    with pytest.raises(MosloraError, match=r"is off by 0\.1 of its ΔW"):
        merge(runs / "int8" / "adapter", out=tmp_path / "merged", onto=onto)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_stock_peft_loads_the_export_over_a_quantised_base(runs, tmp_path, kind):
    export_peft(runs / kind / "adapter", out=tmp_path / "peft")
    folder = open_adapter(runs / kind / "adapter")
    ours = load_adapted(folder)
    base = load_base(folder.recipe.model)
    ids = token_batch(base)
    without = base(ids).logits
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    with torch.inference_mode():
        expected = ours(ids).logits
        # Over int8 a last bit may round an input of the next layer to another of its 255 values.
        bound = {"nf4": 1e-4, "int8": 5e-2}[kind] * float((expected - without).abs().max())
        assert (theirs(ids).logits - expected).abs().max() < bound


# What cannot be


def test_missing_bitsandbytes_names_the_package(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    code, _, line = run(capsys, "train", runs / "nf4.yaml", "--out", tmp_path / "run")
    assert code == 2 and line.count("\n") == 1 and says(line, "model.quantization = nf4", "pip install bitsandbytes")
    assert not (tmp_path / "run").exists()
    assert run(capsys, "train", runs / "nf4.yaml", "--dry-run")[0] == 0, "which needs no weights, and so none of it"


def test_8_bit_layer_keeps_no_input(models):
    """Authority: bitsandbytes' own layer."""
    model = load_base(ModelSection(name=str(models / "plain"), dtype="bfloat16", quantization="int8"))
    ours = model.get_decoder().layers[0].mlp.down_proj.train()
    theirs = copy.deepcopy(ours)
    theirs.__class__ = bitsandbytes.nn.Linear8bitLt
    leaf = torch.randn(5, 128).bfloat16().requires_grad_()
    found = []
    for layer in (ours, theirs):
        x = leaf * 1
        y = layer(x)
        kept = weakref.ref(x)
        del x
        found.append((kept() is not None, y.detach(), *torch.autograd.grad(y.sum(), leaf)))
    assert (found[0][0], found[1][0]) == (False, True)
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=0, atol=0)


def test_widths_that_the_cpu_unpacks_wrongly_are_refused(world):
    """48 inputs are no whole block. On the day that bitsandbytes' AVX-512 code unpacks them rightly, as its plain code
    does, the refusal may go."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    with pytest.raises(UsageError, match=r"model\.quantization = nf4: .*q_proj has 48 inputs"):
        load_base(ModelSection(name=str(world / "model"), dtype="float32", quantization="nf4"))
    assert quantized_layers(load_base(ModelSection(name=str(world / "model"), dtype="float32", quantization="int8")))
    packed, state = quantize_4bit(torch.ones(48, 80), quant_type="nf4")
    state.absmax = torch.arange(60.0)
    unpacked = dequantize_4bit(packed, state)
    right = unpacked.equal(state.absmax.repeat_interleave(64).view(48, 80))
    assert right != bool(torch.cpu.get_capabilities().get("avx512_f"))


def test_quantised_checkpoint_is_refused(models, tmp_path):
    section = ModelSection(name=str(models / "plain"), dtype="float32", quantization="nf4")
    load_base(section).save_pretrained(tmp_path / "packed")
    for options in ({}, {"quantization": "nf4"}):
        with pytest.raises(UsageError, match="already quantised"):
            load_base(ModelSection(name=str(tmp_path / "packed"), dtype="float32", **options))
