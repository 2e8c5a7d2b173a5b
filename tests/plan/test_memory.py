"""The formulas against what autograd keeps, what the allocator gives out and what bitsandbytes stores."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from moslora.adapters import inject, named_adapters
from moslora.base import sharded
from moslora.base.load import DTYPES, load_base, use_own_modules
from moslora.base.quantized import quantized_layers
from moslora.base.shapes import meta_model
from moslora.data.encode import Encoded
from moslora.data.steps import MicroBatch, collate
from moslora.plan.activations import Work, kept, loss_needs
from moslora.plan.memory import NCCL_BUFFERS, Memory, _copies, largest_budget, memory
from moslora.recipe import ModelSection, load_recipe
from moslora.training.objective import LabelLoss
from moslora.training.optimizer import build_optimizer
from reference import PROJECTIONS, tiny_llama

SHAPES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}
LENGTHS, LABELS = (100, 30, 64, 200), 6
CASES: dict[str, dict[str, Any]] = {
    "paper": {},
    "float32": {"dtype": "float32"},
    "no dropout": {"dropout": 0.0},
    "all-linear": {"targets": "all-linear"},
    "all-linear without dropout": {"targets": "all-linear", "dropout": 0.0},
    "two targets": {"targets": ["q_proj", "v_proj"]},
    "one layer": {"targets": r"model\.layers\.1\.mlp\.up_proj|model\.layers\.0\.self_attn\.q_proj"},
    "token gate": {"mixer": {"kind": "token-gate", "experts": 4}},
    "input split": {"mixer": {"kind": "input-split", "blocks": 2}},
    "input split without dropout": {"mixer": {"kind": "input-split", "blocks": 2}, "dropout": 0.0},
    "dora": {"dora": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "checkpointing": {"checkpointing": True},
    "checkpointing in float32": {"checkpointing": True, "dtype": "float32", "dropout": 0.0},
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def built(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, ModelSection]:
    case = {"dtype": "bfloat16", "checkpointing": False, "dropout": 0.1, "targets": PROJECTIONS} | request.param
    head = {"head_dim": case["head_dim"]} if "head_dim" in case else {}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(case.get("model_type", "llama"), **SHAPES, **head), dtype=DTYPES[case["dtype"]]
    )
    if case["checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    use_own_modules(model)
    options = {"dora": case.get("dora", False), "mixer": case.get("mixer", {"kind": "dense"})}
    inject(model, rank=4, alpha=4, target_modules=case["targets"], dropout=case["dropout"], **options)
    # As in all layers but the first, the input has a gradient.
    model.get_input_embeddings().requires_grad_()
    section = ModelSection(name="x", dtype=case["dtype"], gradient_checkpointing=case["checkpointing"])
    return model.train(), section


def micro_batch() -> tuple[MicroBatch, Work]:
    rows = [
        Encoded(str(row), "boolq", list(range(n)), [-100] * (n - LABELS) + list(range(n - LABELS, n)), truncated=False)
        for row, n in enumerate(LENGTHS)
    ]
    batch, tokens = collate(rows, device=torch.device("cpu")), sum(LENGTHS)
    return batch, Work(tokens, max(LENGTHS), LABELS * len(LENGTHS), batch.rows.scores / tokens, padding=1.0)


def test_autograd_keeps_what_the_formula_says(built: tuple[PreTrainedModel, ModelSection]) -> None:
    model, section = built
    batch, work = micro_batch()
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = LabelLoss(model).train()(batch)
    sizes = {place: tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in own}
    assert loss.requires_grad
    expected = sum(sizes.values())
    if section.gradient_checkpointing:  # hooks do not see its arguments, to which cosines and sines belong
        expected += 2 * 32 * work.tokens * DTYPES[section.dtype].itemsize
    assert kept(model, section, work, on_gpu=False)[0] == pytest.approx(expected, rel=0.01)


def given_out(run: Callable[[], Any]) -> tuple[int, int]:
    """The bytes that torch's allocator gives out for ``run``: at the most, and at its end, its result included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    del result
    return peak, live


def test_the_allocator_gives_out_what_a_step_needs_at_most(built: tuple[PreTrainedModel, ModelSection]) -> None:
    model, section = built
    batch, work = micro_batch()
    objective = LabelLoss(model).train()
    model.get_input_embeddings().requires_grad_(False)  # its gradient is none of a run's
    peak, _ = given_out(lambda: objective(batch)[0].backward())
    activations, backward = kept(model, section, work, on_gpu=False)
    planned = activations + max(backward, loss_needs(model, section, work, on_gpu=False))
    planned += _copies(model, section)  # made in the first pass
    assert planned == pytest.approx(peak, rel=0.12)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_int8_layers_keep_nothing(tmp_path_factory: pytest.TempPathFactory, checkpointing: bool) -> None:
    """By the allocator: saved tensors' hooks do not see what bitsandbytes' own keep."""
    folder = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPES)).save_pretrained(folder)
    options = {"dtype": "float32", "quantization": "int8", "gradient_checkpointing": checkpointing}
    section = ModelSection.model_validate({"name": str(folder)} | options)
    model = load_base(section)
    inject(model, rank=4, alpha=4, mixer={"kind": "dense"}, target_modules=PROJECTIONS, dropout=0.1)
    model.get_input_embeddings().requires_grad_()
    batch, work = micro_batch()
    objective = LabelLoss(model).train()
    objective(batch)
    _, live = given_out(lambda: objective(batch))
    live -= 4 * work.labels * SHAPES["hidden_size"]  # the loss's gradient, which is not of the layers
    live -= checkpointing * SHAPES["num_hidden_layers"] * torch.get_rng_state().nbytes
    assert kept(model, section, work, on_gpu=False)[0] == pytest.approx(live, rel=0.01)


def test_keys_are_repeated_in_float32_on_a_gpu() -> None:
    """As if there were as many key heads as heads: no kernel that keeps no scores shares keys in float32."""
    work = Work(tokens=64, longest=32, labels=8, row=32, padding=1.5)

    def bytes_kept(dtype: str, key_heads: int) -> int:
        config = AutoConfig.for_model("llama", **SHAPES | {"num_key_value_heads": key_heads})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        return kept(model, ModelSection(name="x", dtype=dtype), work, on_gpu=True)[0]

    assert bytes_kept("float32", 2) == bytes_kept("float32", 8)
    assert bytes_kept("bfloat16", 2) < bytes_kept("bfloat16", 8)


@pytest.fixture
def one_of_two() -> Iterator[None]:
    """Rank 0 of two processes, in torch's group that sends nothing: what is gathered has only its size."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_sharded_pass_takes_what_fully_shard_gathers(one_of_two: None, checkpointing: bool) -> None:
    """Few tokens, so that it is mostly weights."""
    model = tiny_llama(layers=4, hidden_size=256, intermediate_size=512)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    use_own_modules(model.requires_grad_(False))
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules=PROJECTIONS)
    section = ModelSection(name="x", dtype="float32", gradient_checkpointing=checkpointing)
    work = Work(tokens=4, longest=4, labels=3, row=4, padding=1.0)
    planned = memory(model, section, work, on_gpu=False, processes=2, shards=2)
    sharded.shard_base(model, device=torch.device("cpu"))
    row = Encoded("0", "boolq", [3, 4, 5, 6], [-100, 4, 5, 6], truncated=False)
    batch, objective = collate([row], device=torch.device("cpu")), LabelLoss(model).train()
    objective(batch)[0].backward()
    peak, _ = given_out(lambda: objective(batch)[0].backward())
    assert planned.gathered + planned.activations + planned.temporary == pytest.approx(peak, rel=0.05)


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
def test_quantised_weights_take_the_bytes_that_bitsandbytes_stores(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    one_of_two: None,
    options: dict[str, Any],
    shards: int,
) -> None:
    folder = tmp_path_factory.mktemp("model")
    plain = tiny_llama(hidden_size=64, intermediate_size=192)
    plain.save_pretrained(folder)
    section = ModelSection.model_validate({"name": str(folder), "dtype": "float32", "quantization": "nf4"} | options)
    model = load_base(section)
    quantized: list[Any] = [layer.weight for layer in quantized_layers(model).values()]
    whole = sum(weight.nbytes for weight in model.parameters())
    if shards > 1:
        monkeypatch.setattr(sharded, "_probe", lambda model: torch.zeros(1))
        sharded.shard_base(model, device=torch.device("cpu"))
    stored = sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in model.parameters())
    assert (stored < whole) == (shards > 1)
    for weight in quantized:
        if section.quantization == "int8":
            stored += weight.SCB.nbytes
        else:
            state = weight.quant_state
            constants = [state.absmax, state.code]
            constants += [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
            stored += sum(tensor.nbytes for tensor in constants)
    assert needed(plain, section, shards=shards).weights == stored


def test_a_base_that_is_quantised_before_it_is_sharded_has_to_fit_whole() -> None:
    """Another one is shared out from the CPU."""
    quantized, plain = (ModelSection(name="meta-llama/Meta-Llama-3-70B", quantization=how) for how in ("nf4", None))
    model = meta_model(plain).requires_grad_(False)
    for section, is_whole in ((quantized, True), (plain, False)):
        alone, shared = needed(model, section), needed(model, section, processes=8, shards=8)
        assert shared.weights < alone.weights / 3
        assert (shared.total > alone.weights + alone.overhead) == is_whole
        assert not alone.loading


def test_adapters_gradients_and_optimizer_take_what_training_makes() -> None:
    model = tiny_llama()
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules=PROJECTIONS, dora=True)
    optimizer = build_optimizer(model, load_recipe("llama3-8b").training)
    (sum(weight.sum() for weight in model.parameters() if weight.requires_grad)).backward()
    optimizer.step()
    found = needed(model, ModelSection(name="x", dtype="float32"))
    own = [tensor for _, layer in named_adapters(model) for tensor in (*layer.mixer.parameters(), layer.lora_a)]
    own += [layer.lora_b for _, layer in named_adapters(model)]
    own += [
        tensor for _, layer in named_adapters(model) for tensor in layer.magnitude.state_dict(keep_vars=True).values()
    ]
    own += [layer.magnitude.squared_norms for _, layer in named_adapters(model)]
    assert found.adapters == sum(tensor.nbytes for tensor in own)
    assert found.gradients == sum(weight.grad.nbytes for weight in model.parameters() if weight.grad is not None)
    moments = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    assert found.optimizer == sum(moment.nbytes for moment in moments)
    assert found.weights == sum(weight.nbytes for weight in tiny_llama().parameters())


def needed(model: PreTrainedModel, section: ModelSection, **options: Any) -> Memory:
    work = Work(tokens=64, longest=32, labels=8, row=32, padding=1.0)
    return memory(model, section, work, on_gpu=True, **options)


def test_shards_divide_the_decoder_layers_and_gather_three() -> None:
    model = tiny_llama(layers=3)
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules=PROJECTIONS)
    section = ModelSection(name="x", dtype="float32")
    alone, ddp, fsdp = (
        needed(model, section, **options) for options in ({}, {"processes": 4}, {"processes": 4, "shards": 4})
    )
    buckets = {"gradients": 2 * alone.gradients, "overhead": alone.overhead + NCCL_BUFFERS}
    assert ddp == replace(alone, **buckets), "DDP's and NCCL's"
    layer = sum(weight.nbytes for weight in tiny_llama().model.layers[0].parameters())
    assert fsdp == replace(ddp, weights=alone.weights - 3 * layer + 3 * layer // 4, gathered=3 * layer)


@pytest.mark.parametrize("room", [10, 900, 1_000, 1_263, 1_264, 5_000, 100_000])
def test_the_largest_budget_is_the_last_that_fits(room: int) -> None:
    step = Work(tokens=2_000, longest=60, labels=500, row=50, padding=1.0)

    def need(work: Work) -> Memory:
        return Memory(100, 0, 0, 0, 0, work.tokens * 10 // 2, 4 * work.labels, 0, 0)

    fitting = [tokens for tokens in range(60, 2_001) if need(step.of(tokens)).total <= room]
    expected = None if not fitting else 2_000 if fitting[-1] == 2_000 else max(60, fitting[-1] // 64 * 64)
    assert largest_budget(step, room=room, need=need) == expected
