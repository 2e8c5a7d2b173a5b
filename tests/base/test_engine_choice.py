"""Our engine computes a model if it computes what transformers' own forward does, gradients included; no other."""

import importlib
import json
import shutil
import sys
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from message_kit import says
from moslora.adapters import adapter_state_dict, inject, named_adapters
from moslora.base import engine_choice
from moslora.base.engine_choice import OVER_PADDED_ROWS, choose_engine
from moslora.base.engines import Own, Transformers, engine_of
from moslora.base.load import load_base, read_base
from moslora.base.shapes import meta_model
from moslora.base.twin import small_config, spread_weights
from moslora.console import repeat_warnings
from moslora.download.wheels import home
from moslora.errors import UsageError
from moslora.kernels import attention, loss, mlp, norm, recompute, rotary
from moslora.kernels import linear as linear_kernel
from moslora.kernels.linear import packed_layers
from moslora.recipe import ModelSection

CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "a cap": ("gemma3_text", {"final_logit_softcapping": 30.0}),
    "a cap of a composite model's text": ("gemma3n", {"text_config": {"final_logit_softcapping": 30.0}}),
    "a divisor": ("granite", {"logits_scaling": 8.0}),
    "a multiplier": ("falcon_h1", {"lm_head_multiplier": 0.5}),
    "a divisor that the config computes": ("minicpm3", {}),
    "a cap of another name": ("recurrent_gemma", {"logits_soft_cap": 20.0}),
}


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path_factory, monkeypatch):
    """Remove the verdicts of other tests; `forget` removes each test's own."""
    monkeypatch.setenv("MOSLORA_HOME", str(tmp_path_factory.mktemp("home")))


def forget():
    """Remove all cached verdicts."""
    shutil.rmtree(home() / "engines", ignore_errors=True)


@pytest.mark.parametrize("what", CHANGED)
def test_changed_logits_choose_padded_rows(tmp_path, what):
    family, values = CHANGED[what]
    config = small_config(AutoConfig.for_model(family, **values))
    if family == "gemma3n":  # needs a package for images
        config = config.get_text_config()
    model = AutoModelForCausalLM.from_config(config).eval()
    spread_weights(model)
    model.save_pretrained(tmp_path)
    section = ModelSection(name=str(tmp_path), dtype="float32")
    assert engine_of(load_base(section)).name == "padded"
    planned = meta_model(section)
    choose_engine(planned, computed_here=False)
    assert engine_of(planned).name == "padded"
    with pytest.raises(UsageError, match=r"model.engine = own: .*; set auto"):
        load_base(ModelSection(name=str(tmp_path), dtype="float32", engine="own"))


WINDOWS: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    "phimoe": {"sliding_window": 16},
}


@pytest.mark.parametrize("family", WINDOWS)
def test_window_of_the_mask_chooses_padded_rows(family):
    """The window is wider than the compared rows, so that the model itself computes them without it."""
    config = small_config(AutoConfig.for_model(family, num_experts_per_tok=2))
    values = {**config.to_dict(), "layer_types": None, **WINDOWS[family]}
    model = AutoModelForCausalLM.from_config(type(config)(**values)).eval().requires_grad_(False)
    choose_engine(model)
    assert engine_of(model).name == "padded"


SCALED = """
from transformers import LlamaForCausalLM
class OwnForCausalLM(LlamaForCausalLM):
    def forward(self, **given):
        output = super().forward(**given)
        output.logits = {} * output.logits
        return output
"""


def test_changed_model_code_is_compared_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    config = small_config(AutoConfig.for_model("llama"))
    for factor, engine in ((1, "own"), (1.5, "padded")):
        (tmp_path / "modeling_own.py").write_text(SCALED.format(factor))
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, "modeling_own", raising=False)
        model = importlib.import_module("modeling_own").OwnForCausalLM(config).eval().requires_grad_(False)
        choose_engine(model)
        assert engine_of(model).name == engine


@pytest.fixture
def scaled(monkeypatch):
    """Make every Llama of transformers multiply its logits by a factor that no config mentions."""
    plain = LlamaForCausalLM.forward

    def by(factor):
        def forward(*args, **kwargs):
            output = plain(*args, **kwargs)
            output.logits = output.logits * factor
            return output

        monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
        forget()

    return by


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Llama whose layers all have 64 or 128 inputs, as bitsandbytes needs."""
    shapes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model("llama", num_key_value_heads=2, vocab_size=300, **shapes)
    folder = tmp_path_factory.mktemp("llama")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


FLOAT32: dict[str, Any] = {"dtype": "float32"}

LOADED: dict[str, dict[str, Any]] = {
    "whole": FLOAT32,
    "in 16 bits": {"dtype": "bfloat16"},
    "in 4 bits": {"dtype": "float32", "quantization": "nf4"},
    "in 8 bits": {"dtype": "float32", "quantization": "int8"},
    "checkpointed": {"dtype": "float32", "gradient_checkpointing": True},
}


@pytest.mark.parametrize("how", LOADED)
def test_change_outside_the_config_is_found(llama, scaled, how):
    if "quantization" in LOADED[how]:
        pytest.importorskip("bitsandbytes")
    section = ModelSection(name=llama, **LOADED[how])
    assert engine_of(load_base(section)).name == "own"
    scaled(1.5)
    assert engine_of(load_base(section)).name == "padded"
    scaled(1.001)
    if section.dtype == "float32":
        assert engine_of(load_base(section)).name == "padded"


def test_change_is_found_in_a_sharded_model(world, scaled):
    section = ModelSection(name=str(world / "model"), dtype="bfloat16")
    assert engine_of(load_base(section, computed_here=False)).name == "own"
    scaled(1.001)
    assert engine_of(load_base(section, computed_here=False)).name == "padded"


def test_twin_separates_rounding_from_a_change(world, monkeypatch, scaled):
    section = ModelSection(name=str(world / "model"), dtype="bfloat16")
    monkeypatch.setattr(engine_choice, "TOLERANCE_IN_16_BITS", 3e-3)  # as in a model of many layers
    twins = []
    compare_twin = engine_choice._compare_twins
    monkeypatch.setattr(
        engine_choice, "_compare_twins", lambda *of, **how: (twins.append(of), compare_twin(*of, **how))[1]
    )
    load_base(section)
    assert twins
    scaled(1.001)
    assert engine_of(load_base(section)).name == "padded"


def test_comparison_leaves_the_model_unchanged(world, monkeypatch):
    section = ModelSection(name=str(world / "model"), dtype="float32")
    before = torch.get_rng_state()
    model, other = load_base(section), load_base(section, computed_here=False)
    assert torch.get_rng_state().equal(before)
    assert model.config._attn_implementation == "sdpa"
    assert not any(module.training for module in model.modules())
    stock = AutoModelForCausalLM.from_pretrained(section.name, dtype=torch.float32)
    for weight, same, expected in zip(*(one.parameters() for one in (model, other, stock)), strict=True):
        assert weight.equal(same)
        assert weight.equal(expected)
        assert not weight.is_inference()
    assert packed_layers(model)
    assert all(layer.packs for layer in packed_layers(model))


@pytest.mark.parametrize("engine", ["auto", "transformers"])
def test_adapters_are_as_they_were(world, engine):
    model = read_base(ModelSection(name=str(world / "model"), dtype="float32"))
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules="all-linear", dropout=0.1)
    before = {name: value.clone() for name, value in adapter_state_dict(model).items()}
    choose_engine(model, engine)
    after = adapter_state_dict(model)
    assert all(after[name].equal(value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {layer.context.plain for _, layer in named_adapters(model)} == {engine == "transformers"}


def wrong_sign(of):
    """Return a backward pass whose gradients have the other sign."""

    def backward(ctx, *gradients):
        found = of(ctx, *gradients)
        if not isinstance(found, tuple):
            return -found
        return tuple(None if one is None else -one for one in found)

    return staticmethod(backward)


BACKWARD = {
    "attention": (attention, "_Grouped"),
    "linear": (linear_kernel, "_Product"),
    "loss": (loss, "ChunkedLoss"),
    "norm": (norm, "_InPlace"),
    "rotary": (rotary, "RotaryEmbedding"),
    "MLP": (mlp, "_SwiGLU"),
    "adapter": (recompute, "_Projection"),
}
PIECE = {"linear": "linear", "loss": "loss", "norm": "norm", "MLP": "mlp", "adapter": "adapters"}
PIECE |= {"attention": None, "rotary": None}
"""Kernel -> our piece that uses it over padded rows."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", BACKWARD)
def test_wrong_gradient_chooses_padded_rows(world, monkeypatch, capsys, kernel, dtype):
    """Logits stay right. Each kernel's own backward pass is wrong; in 16 bits the twin decides, computed in the model's
    dtype."""
    module, name = BACKWARD[kernel]
    function = getattr(module, name)
    right = function.backward
    wrong = wrong_sign(right).__func__

    def backward(ctx, gradient, *more):
        """Wrong in this dtype alone; the loss's own gradient is always in float32."""
        is_meant = kernel == "loss" or gradient.dtype == getattr(torch, dtype)
        return (wrong if is_meant else right)(ctx, gradient, *more)

    monkeypatch.setattr(function, "backward", staticmethod(backward))
    model = read_base(ModelSection(name=str(world / "model"), dtype=dtype))
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules="all-linear")
    choose_engine(model)
    assert engine_of(model).name == "padded"
    assert {*OVER_PADDED_ROWS} - {*model.moslora_pieces} == {PIECE[kernel]} - {None}
    capsys.readouterr()
    repeat_warnings()
    assert says(capsys.readouterr().out, "warning: ", "three times", "gradient", "-m pip install", "torch==")
    with pytest.raises(UsageError, match=r"own: LlamaForCausalLM: the gradient of .* differs"):
        choose_engine(model, "own")


@pytest.mark.parametrize("family", ["mixtral", "gemma2"])
def test_a_name_that_our_code_misses_is_a_fault_and_another_formula_a_limit(monkeypatch, capsys, family):
    model = AutoModelForCausalLM.from_config(small_config(AutoConfig.for_model(family))).eval()
    if family == "mixtral":
        monkeypatch.delattr(attention, "ROWS")
    choose_engine(model)
    assert engine_of(model).name == "padded"
    assert says(capsys.readouterr().out, "warning: " if family == "mixtral" else "note: ", "model.engine = padded")
    repeat_warnings()
    assert ("'ROWS' is not defined" in capsys.readouterr().out) == (family == "mixtral")


def test_a_repaired_installation_is_compared_again(monkeypatch):
    model = AutoModelForCausalLM.from_config(small_config(AutoConfig.for_model("mixtral"))).requires_grad_(False)
    with monkeypatch.context() as patch:
        patch.delattr(attention, "ROWS")
        choose_engine(model)
        assert engine_of(model).name == "padded"
    choose_engine(model)
    assert engine_of(model).name == "own"


@pytest.mark.parametrize("alpha", [4e38, 4e-40])
def test_extreme_scale_keeps_our_engine(world, alpha):
    model = read_base(ModelSection(name=str(world / "model"), dtype="float32"))
    inject(model, rank=4, alpha=alpha, mixer={"kind": "dense"}, target_modules="all-linear")
    choose_engine(model, "own")


@torch.no_grad()
def test_gradients_are_compared_under_no_grad(world):
    model = read_base(ModelSection(name=str(world / "model"), dtype="float32"))
    inject(model, rank=4, alpha=8, mixer={"kind": "identity"}, target_modules="all-linear")
    choose_engine(model)
    assert engine_of(model).name == "own"


def test_verdict_is_cached_per_method_dtype_and_setting(world, monkeypatch):
    compared = []
    compare = engine_choice._why_not
    monkeypatch.setattr(
        engine_choice, "_why_not", lambda *given, **how: (compared.append(1), compare(*given, **how))[1]
    )

    def load(kind, **section):
        model = read_base(ModelSection(name=str(world / "model"), **section))
        inject(model, rank=4, alpha=8, mixer={"kind": kind}, target_modules=["q_proj"])
        choose_engine(model)
        assert engine_of(model).name == "own"

    for times, kind, section in ((1, "dense", {}), (1, "dense", {}), (2, "identity", {}), (3, "dense", FLOAT32)):
        load(kind, **section)
        assert len(compared) == times
    monkeypatch.setenv("MOSLORA_PLAIN", "norm")
    load("dense")
    assert len(compared) == 4


def test_lost_loss_scale_chooses_padded_rows(world, monkeypatch):
    model = read_base(ModelSection(name=str(world / "model"), dtype="float32"))
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules="all-linear")
    monkeypatch.setattr(Own, "loss", lambda *given: 0.9 * Transformers.loss(*given))
    choose_engine(model)
    assert engine_of(model).name == "padded"


def test_cache_key_of_peft_is_the_same_in_every_process(world):
    """PEFT's configs have sets, which each process orders differently."""
    peft = pytest.importorskip("peft")
    model = read_base(ModelSection(name=str(world / "model"), dtype="float32"))
    choose_engine(peft.get_peft_model(model, peft.LoraConfig(target_modules=["v_proj", "k_proj", "q_proj"])))
    (note,) = (home() / "engines").iterdir()
    assert '"target_modules": ["k_proj", "q_proj", "v_proj"]' in json.loads(note.read_text())["of"]
