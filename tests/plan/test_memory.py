"""The formulas against what autograd keeps, what the allocator gives out and what bitsandbytes stores."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM

from moslora.adapters import SharedInputLayers, inject, named_adapters
from moslora.base import sharded
from moslora.base.load import DTYPES, load_base
from moslora.base.own_engine import use_own_modules
from moslora.base.quantized import dequantize, quantized_layers
from moslora.base.shapes import meta_model
from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.data.steps import collate
from moslora.plan.memory import NCCL_BUFFERS, Devices, Memory, largest_budget, memory
from moslora.plan.outline import outline
from moslora.plan.step import Work, measure
from moslora.recipe import ModelSection, load_recipe
from moslora.training.objective import LabelLoss
from moslora.training.optimizer import build_optimizer
from reference import PROJECTIONS, tiny_llama

SHAPES: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}
WORK = Work((30, 64, 100, 200), labelled=0.1)
CASES: dict[str, dict[str, Any]] = {
    "paper": {},
    "all-linear without dropout": {"target_modules": "all-linear", "dropout": 0.0},
    "one layer": {"target_modules": r"model\.layers\.1\.mlp\.up_proj|model\.layers\.0\.self_attn\.q_proj"},
    "token gate": {"mixer": {"kind": "token-gate", "experts": 4}},
    "input split": {"mixer": {"kind": "input-split", "blocks": 2}},
    "dora": {"dora": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "checkpointing": {"checkpointing": True},
    "checkpointing in float32": {"checkpointing": True, "dtype": "float32", "dropout": 0.0},
}


def micro_batch(work):
    rows = []
    for length in work.lengths:
        labelled = round(work.labelled * length)
        labels = [IGNORE_INDEX] * (length - labelled) + [1] * labelled
        rows.append(Encoded("", "", [1] * length, labels, truncated=False))
    return collate(rows, device=torch.device("cpu"))


def given_out(run):
    """Bytes that torch's allocator gives out for ``run``: at the most, and at its end, its result included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    del result
    return peak, live


def allocated(model):
    """Bytes that are allocated for a real step: kept by its forward pass, and the most."""
    model.enable_input_require_grads()  # as in all layers but the first, the input has a gradient
    batch = micro_batch(WORK)
    objective = LabelLoss(model).train()

    def forward():
        """What lives until the backward pass ends: the loss, and the factors that the pass has folded."""
        with SharedInputLayers(model).folded(model.dtype):
            loss, _ = objective(batch)
            return loss, [layer.context.factors.get(layer) for _, layer in named_adapters(model)]

    def step():
        with SharedInputLayers(model).folded(model.dtype):
            loss, _ = objective(batch)
            loss.backward()
            return [layer.context.factors.get(layer) for _, layer in named_adapters(model)]

    step()  # packs weights, and makes gradients
    _, kept = given_out(forward)
    peak, _ = given_out(step)
    if model.is_gradient_checkpointing:  # which keeps the generator's states
        kept -= SHAPES["num_hidden_layers"] * torch.get_rng_state().nbytes
    return kept, peak


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_allocated_bytes_equal_the_measured_bytes(case):
    case = {"dtype": "bfloat16", "target_modules": PROJECTIONS, "dropout": 0.1, "mixer": {"kind": "dense"}} | case
    dtype = DTYPES[case.pop("dtype")]
    checkpointing = case.pop("checkpointing", False)
    shape = SHAPES | {key: case.pop(key) for key in ("model_type", "head_dim") if key in case}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=dtype)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    use_own_modules(model)
    inject(model, rank=4, alpha=4, **case)
    kept, temporary = measure(model, WORK, dtype=dtype, checkpointing=checkpointing, on_gpu=False)
    really_kept, peak = allocated(model)
    assert kept == pytest.approx(really_kept, rel=0.01)
    assert kept + temporary == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_int8_layers_keep_nothing(tmp_path, checkpointing):
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES))
    plain.save_pretrained(tmp_path)
    options = {"dtype": "float32", "quantization": "int8", "gradient_checkpointing": checkpointing}
    model = load_base(ModelSection.model_validate({"name": str(tmp_path)} | options))
    for one in (plain, model):
        inject(one, rank=4, alpha=4, mixer={"kind": "dense"}, target_modules=PROJECTIONS, dropout=0.1)
    use_own_modules(plain)
    planned, _ = measure(plain, WORK, dtype=torch.float32, checkpointing=checkpointing, on_gpu=False)
    assert planned == pytest.approx(allocated(model)[0], rel=0.01)


@pytest.mark.parametrize(
    ("change", "by_hand"),
    [
        ("model.dtype=bfloat16", 2 * (4096 * 2 + 4) + 2 * (4096 + 1024) * 2 + 128 + 4 * 14336 + 22528 + 5 * 32),
        ("model.dtype=float32", 2 * (4096 * 4 + 4) + 4 * 4096 * 4 + 128 + 8 * 14336 + 22528 + 5 * 64),
        ("adapter.dropout=0", 94_504),
        ("model.gradient_checkpointing=true", 4096 * 2),
    ],
)
def test_layer_on_a_gpu_equals_a_count_by_hand(change, by_hand):
    """Bytes per token of LLaMA-3-8B, as in docs/plan.md; in float32 keys are repeated for each head. Beside them all
    factors in the base's dtype, and in float32 A and M."""
    recipe = load_recipe("llama3-8b", [change])
    dtype = DTYPES[recipe.model.dtype]
    checkpointing = recipe.model.gradient_checkpointing
    work = Work((256,) * 16, labelled=0)
    kept, _ = measure(outline(recipe).model, work, dtype=dtype, checkpointing=checkpointing, on_gpu=True)
    outside = 4096 * (4096 * dtype.itemsize + 4 + 2 * 128 * dtype.itemsize)  # norm and positions
    a = 16 * (4 * 4096 + 14336)
    b = 16 * (2 * 4096 + 2 * 1024 + 14336)
    m = 5 * 16 * 16
    factors = 32 * (dtype.itemsize * (a + b) + 4 * (a + m))
    assert kept - outside == pytest.approx(32 * 4096 * by_hand + factors, rel=0.0001)


@pytest.mark.parametrize("rows", [4, 8])
def test_loss_on_a_gpu_holds_logits_twice_in_float32(rows):
    """Those of 1,020 positions: all of four rows, or half of eight, as 2²⁷ / 128,256 is 1,046. Beside them are the last
    layer's output and what the loss takes of it, which go before the backward pass."""
    work = Work((256,) * rows, labelled=1)
    model = outline(load_recipe("llama3-8b")).model
    _, temporary = measure(model, work, dtype=torch.bfloat16, checkpointing=False, on_gpu=True)
    assert temporary == pytest.approx(1020 * 128_256 * (4 + 4) + 2 * work.tokens * 4096 * 2, rel=0.001)


@pytest.fixture
def one_of_two():
    """Rank 0 of two processes, in torch's fake group that sends nothing: gathered tensors have only their size."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_sharded_pass_takes_what_fully_shard_gathers(one_of_two, checkpointing):
    """Few tokens, so that weights dominate."""
    model = tiny_llama(layers=4, hidden_size=256, intermediate_size=512)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    use_own_modules(model.requires_grad_(False))
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules=PROJECTIONS)
    section = ModelSection(name="x", dtype="float32", gradient_checkpointing=checkpointing)
    planned = memory(model, section, Work((4,), 0.75), Devices(on_gpu=False, processes=2, shards=2))
    sharded.shard_base(model, device=torch.device("cpu"))
    batch = micro_batch(Work((4,), 0.75))
    objective = LabelLoss(model).train()

    def step():
        loss, _ = objective(batch)
        loss.backward()

    step()
    peak, _ = given_out(step)
    assert planned.gathered + planned.activations + planned.temporary == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dora", [False, True])
def test_unpacked_weights_of_a_recomputed_layer_count(tmp_path, dora, dtype, monkeypatch):
    """Beside the peak of all else, which may be elsewhere. DoRA with dropout keeps those of adapted layers twice, and
    all are planned twice: a quarter too much where a processor emulates bfloat16."""
    monkeypatch.setattr("moslora.base.quantized.PACKED_ROWS", 0)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES), dtype=DTYPES[dtype])
    plain.save_pretrained(tmp_path)
    section = ModelSection(name=str(tmp_path), dtype=dtype, quantization="nf4", gradient_checkpointing=True)
    model = load_base(section)
    options = {"mixer": {"kind": "dense"}, "dropout": 0.1, "dora": dora, "weight_of": dequantize}
    for one in (plain, model):
        inject(one, rank=4, alpha=4, target_modules=PROJECTIONS, **options)
    use_own_modules(plain)
    planned = memory(plain, section, WORK, Devices(on_gpu=False))
    kept, peak = allocated(model)
    assert planned.activations == pytest.approx(kept, rel=0.01)
    assert 0.99 * peak < planned.activations + planned.temporary < (1.2 if dtype == "float32" else 1.3) * peak


@pytest.mark.parametrize(
    ("options", "shards"),
    [
        ({}, 1),
        ({}, 2),
        ({"double_quantization": False}, 1),
        ({"double_quantization": False}, 2),
        ({"quantization": "int8"}, 1),
    ],
    ids=str,
)
def test_quantised_weights_equal_bitsandbytes_bytes(tmp_path_factory, one_of_two, options, shards):
    folder = tmp_path_factory.mktemp("model")
    plain = tiny_llama(hidden_size=64, intermediate_size=192).requires_grad_(False)
    plain.save_pretrained(folder)
    section = ModelSection.model_validate({"name": str(folder), "dtype": "float32", "quantization": "nf4"} | options)
    model = load_base(section)
    quantized = [layer.weight for layer in quantized_layers(model).values()]
    whole = sum(weight.nbytes for weight in model.parameters())
    if shards > 1:
        sharded.shard_base(model, device=torch.device("cpu"))
    stored = 0
    for weight in model.parameters():
        if isinstance(weight, DTensor):
            stored += weight.to_local().nbytes
        else:
            stored += weight.nbytes
    assert (stored < whole) == (shards > 1)
    for weight in quantized:
        if section.quantization == "int8":
            stored += weight.SCB.nbytes
        else:
            state = weight.quant_state
            constants = [state.absmax, state.code]
            if state.nested:
                constants += [state.offset, state.state2.absmax, state.state2.code]
            stored += sum(tensor.nbytes for tensor in constants)
    assert needed(plain, section, shards=shards).weights == stored


def test_quantised_base_must_fit_before_sharding():
    """A base that is not quantised is sharded from the CPU."""
    quantized = ModelSection(name="meta-llama/Meta-Llama-3-70B", quantization="nf4")
    plain = ModelSection(name="meta-llama/Meta-Llama-3-70B")
    model = meta_model(plain).requires_grad_(False)
    for section, is_whole in ((quantized, True), (plain, False)):
        alone = needed(model, section)
        shared = needed(model, section, processes=8, shards=8)
        assert shared.weights < alone.weights / 3
        assert (shared.total > alone.weights + alone.overhead) == is_whole
        assert not alone.loading


def test_adapters_gradients_and_optimizer_equal_training():
    model = tiny_llama()
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules=PROJECTIONS, dora=True)
    optimizer = build_optimizer(model, load_recipe("llama3-8b").training)
    (sum(weight.sum() for weight in model.parameters() if weight.requires_grad)).backward()
    optimizer.step()
    found = needed(model, ModelSection(name="x", dtype="float32"))
    own = list[torch.Tensor]()
    for _, layer in named_adapters(model):
        own += [*layer.mixer.parameters(), layer.lora_a, layer.lora_b]
        own += [layer.magnitude.weight, layer.magnitude.squared_norms]
    assert found.adapters == sum(tensor.nbytes for tensor in own)
    assert found.gradients == sum(weight.grad.nbytes for weight in model.parameters() if weight.grad is not None)
    moments = []
    for state in optimizer.state.values():
        moments += [state["exp_avg"], state["exp_avg_sq"]]
        assert len(state) == 3, "beside the step"
    assert found.optimizer == sum(moment.nbytes for moment in moments)
    assert found.weights == sum(weight.nbytes for weight in tiny_llama().parameters())


def needed(model, section, **options):
    return memory(model, section, Work((32, 32), 0.125), Devices(on_gpu=True, **options))


def test_shards_divide_the_decoder_layers_and_gather_three():
    model = tiny_llama(layers=3)
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules=PROJECTIONS)
    section = ModelSection(name="x", dtype="float32")
    alone = needed(model, section)
    ddp = needed(model, section, processes=4)
    fsdp = needed(model, section, processes=4, shards=4)
    others = {"gradients": 2 * alone.gradients, "overhead": alone.overhead + NCCL_BUFFERS}
    assert ddp == replace(alone, **others), "the buffer of gradients, and NCCL's"
    layer = sum(weight.nbytes for weight in tiny_llama().model.layers[0].parameters())
    assert fsdp == replace(ddp, weights=alone.weights - 3 * layer + 3 * layer // 4, gathered=3 * layer)


@pytest.mark.parametrize("room", [10, 900, 1_000, 1_263, 1_264, 5_000, 100_000])
def test_the_largest_budget_is_the_last_that_fits(room):
    step = Work((40,) * 47 + (60, 60), 0.25)

    def need(work):
        return Memory(100, 0, 0, 0, 0, work.tokens * 5, work.tokens, 0, 0)

    fitting = [tokens for tokens in range(60, 2_001) if need(step.limited_to(tokens)).total <= room]
    expected = None
    if fitting:
        expected = fitting[-1]
        if expected != 2_000:
            expected = max(60, expected // 64 * 64)
    assert largest_budget(step, room=room, need=need) == expected
