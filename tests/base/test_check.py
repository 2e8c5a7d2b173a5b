"""A model whose logits are not hidden states times the output layer is refused when it is loaded; no other is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from moslora.base import check
from moslora.base.check import refuse_by_config
from moslora.base.load import load_base
from moslora.base.shapes import SHAPES, meta_model
from moslora.base.twin import small_twin, spread_weights
from moslora.errors import UsageError
from moslora.kernels import linear as linear_kernel
from moslora.kernels.linear import packed_layers
from moslora.recipe import ModelSection

CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "a cap": ("gemma3_text", {"final_logit_softcapping": 30.0}),
    "a cap of a composite model's text": ("gemma3n", {"text_config": {"final_logit_softcapping": 30.0}}),
    "another": ("gemma4", {"text_config": {"final_logit_softcapping": 30.0}}),
    "a divisor": ("granite", {"logits_scaling": 8.0}),
    "a factor": ("cohere", {"logit_scale": 0.5}),
    "a multiplier": ("falcon_h1", {"lm_head_multiplier": 0.5}),
    "a divisor that the config computes": ("minicpm3", {}),
    "a cap of another name": ("recurrent_gemma", {"logits_soft_cap": 20.0}),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_config_that_changes_logits_is_refused_before_weights_are_read(tmp_path: Path, what: str) -> None:
    family, values = CHANGED[what]
    AutoConfig.for_model(family, **values).save_pretrained(tmp_path)
    for load in (load_base, meta_model):
        with pytest.raises(UsageError, match="changes its logits"):
            load(ModelSection(name=str(tmp_path), dtype="float32"))


@pytest.mark.parametrize("family", ["mamba", "qwen3_next", "gpt_oss", "jamba", "bloom"])
def test_a_family_that_mixes_tokens_in_its_own_way_is_refused_by_its_class(family: str) -> None:
    config = AutoConfig.for_model(family)
    with pytest.raises(UsageError, match="ForCausalLM"):
        refuse_by_config(config)


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Has every Llama of transformers multiply its logits by a factor, of which no config tells."""
    plain = LlamaForCausalLM.forward

    def by(factor: float) -> None:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = plain(*args, **kwargs)
            output.logits = output.logits * factor
            return output

        monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
        monkeypatch.setattr(check, "_equal", set())

    return by


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama whose layers all have 64 or 128 inputs, which bitsandbytes needs."""
    shapes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model("llama", num_key_value_heads=2, vocab_size=300, **shapes)
    folder = tmp_path_factory.mktemp("llama")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


LOADED: dict[str, dict[str, Any]] = {
    "whole": {"dtype": "float32"},
    "in 16 bits": {"dtype": "bfloat16"},
    "in 4 bits": {"dtype": "float32", "quantization": "nf4"},
    "in 8 bits": {"dtype": "float32", "quantization": "int8"},
    "checkpointed": {"dtype": "float32", "gradient_checkpointing": True},
}


@pytest.mark.parametrize("how", LOADED)
def test_a_change_that_no_config_tells_of_is_found(llama: str, scaled: Callable[[float], None], how: str) -> None:
    if "quantization" in LOADED[how]:
        pytest.importorskip("bitsandbytes")
    section = ModelSection(name=llama, **LOADED[how])
    load_base(section)
    scaled(1.5)
    with pytest.raises(UsageError, match="LlamaForCausalLM computes its logits"):
        load_base(section)
    scaled(1.001)
    if section.dtype == "float32":
        with pytest.raises(UsageError, match="LlamaForCausalLM computes its logits"):
            load_base(section)


def test_it_is_found_where_the_model_is_never_whole(world: Path, scaled: Callable[[float], None]) -> None:
    section = ModelSection(name=str(world / "model"), dtype="bfloat16")
    meta_model(section)
    load_base(section, computed_here=False)
    scaled(1.001)
    with pytest.raises(UsageError, match="LlamaForCausalLM computes its logits"):
        meta_model(section)
    with pytest.raises(UsageError, match="LlamaForCausalLM computes its logits"):
        load_base(section, computed_here=False)


def test_rounding_is_told_from_a_change_by_the_twin(
    world: Path, monkeypatch: pytest.MonkeyPatch, scaled: Callable[[float], None]
) -> None:
    section = ModelSection(name=str(world / "model"), dtype="bfloat16")
    monkeypatch.setattr(check, "TOLERANCE_IN_16_BITS", 3e-3)  # as in a model of many layers
    monkeypatch.setattr(check, "_equal", set())
    load_base(section)
    assert check._equal
    scaled(1.001)
    with pytest.raises(UsageError, match="LlamaForCausalLM computes its logits"):
        load_base(section)


def test_products_in_tf32_are_told_from_a_change_by_the_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaled: Callable[[float], None]
) -> None:
    """As on a GPU in an image that sets TORCH_ALLOW_TF32_CUBLAS_OVERRIDE; the twin is computed on the CPU."""
    shapes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = AutoConfig.for_model("llama", num_key_value_heads=4, vocab_size=300, **shapes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    spread_weights(model)
    model.save_pretrained(tmp_path)
    linear = functional.linear
    on_gpu = [True]

    def rounded(x: Tensor) -> Tensor:
        return ((x.detach().contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    def in_tf32(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if on_gpu[0]:
            return linear(rounded(x), rounded(weight), bias)
        return linear(x, weight, bias)

    def twin_on_cpu(*arguments: Any, **options: Any) -> Any:
        on_gpu[0] = False
        return small_twin(*arguments, **options)

    monkeypatch.setattr(functional, "linear", in_tf32)
    monkeypatch.setattr(linear_kernel, "kernel", lambda device, dtype: "torch")
    monkeypatch.setattr(check, "small_twin", twin_on_cpu)
    monkeypatch.setattr(check, "_equal", set())
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    section = ModelSection(name=str(tmp_path), dtype="float32")
    load_base(section)
    assert check._equal, "the twin decided"
    on_gpu[0] = True
    scaled(1.001)
    with pytest.raises(UsageError, match="LlamaForCausalLM computes its logits"):
        load_base(section)


@pytest.mark.parametrize("name", SHAPES)
def test_the_planned_models_have_a_twin(name: str) -> None:
    config = AutoConfig.for_model(**SHAPES[name])
    twin = small_twin(config)
    assert type(twin.config) is type(config)
    assert sum(weight.numel() for weight in twin.parameters()) < 2**22
    heads = config.num_attention_heads, config.num_key_value_heads
    assert (twin.config.num_attention_heads > twin.config.num_key_value_heads) == (heads[0] > heads[1])
    assert twin.config.tie_word_embeddings == config.tie_word_embeddings


def test_checking_leaves_nothing_behind(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_equal", set())
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


def test_an_output_layer_with_a_bias_is_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("phi", vocab_size=64, **small)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="has a bias"):
        load_base(ModelSection(name=str(tmp_path), dtype="float32"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "phi"
    with pytest.raises(UsageError, match="has a bias"):
        meta_model(ModelSection(name=str(tmp_path), dtype="float32"))
