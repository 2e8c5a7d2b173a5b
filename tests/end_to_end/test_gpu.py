"""What only a GPU can show, on a small model: each kind of base through a whole life, every mixer, the codes of CUDA.

Skipped without CUDA. ``MOSLORA_GPU_DRY_RUN=1`` runs it on the CPU, to see that the tests themselves work.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evaluation_kit import tokenizer
from moslora.adapters import named_adapters
from moslora.adapters.start import LARGE, largest_triplets
from moslora.base.load import load_base
from moslora.base.quantized import dequantize, quantized_layers
from moslora.convert.export import export_peft, lora_pairs
from moslora.convert.merge import merge
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.recipe import Recipe, load_recipe
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.training import train_recipe
from moslora.training.loop import accumulate
from moslora.training.optimizer import trainable
from moslora.training.prepare import prepare
from reference import tiny_llama
from training_kit import adapter, cut_after, same_bits

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPU and not os.environ.get("MOSLORA_GPU_DRY_RUN"), reason="no CUDA device"),
]
LIMIT = 8 if GPU else 2
BASES = {
    "bfloat16": ("model.dtype=bfloat16",),
    "float16": ("model.dtype=float16",),
    "nf4": ("model.dtype=bfloat16", "model.quantization=nf4"),
    "int8": ("model.dtype=bfloat16", "model.quantization=int8"),
}
Make = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def measure_memory(record_property):
    """The peak of each test goes into the report."""
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield
    if GPU:
        record_property("peak_mb", round(torch.cuda.max_memory_allocated() / 1e6, 1))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random LLaMA whose widths suit 4 bits on every device."""
    folder = tmp_path_factory.mktemp("gpu") / "model"
    tiny_llama(vocab_size=len(tokenizer()), hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def make(world, base):
    """The world's recipe over this base, with overrides."""
    return lambda *overrides: load_recipe(world / "recipe.yaml", (f"model.name={base}", *overrides))


@contextlib.contextmanager
def no_waiting():
    """An error wherever the host would wait for the device."""
    if not GPU:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def close(one, other):
    """The largest relative distance of two adapters' tensors."""
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).norm() / (one[key].norm() + 1e-12)) for key in one)


@pytest.mark.parametrize("kind", BASES)
def test_train_stop_resume_evaluate_merge_export(make, tmp_path, record_property, kind):
    if "quantization" in "".join(BASES[kind]):
        pytest.importorskip("bitsandbytes")
    recipe = make(*BASES[kind], "training.keep_checkpoints=9")
    run = tmp_path / "run"
    train_recipe(recipe, out=run)
    again = cut_after(8, Path(shutil.copytree(run, tmp_path / "again")))
    train_recipe(recipe, out=again, resuming=True)
    record_property("resumed_to_the_same_bits", same_bits(adapter(run), adapter(again)))
    assert close(adapter(run), adapter(again)) < 0.02  # a fused attention's backward pass may add in any order

    for protocol in ("choice", "cloze", "generate"):
        results, _ = evaluate_target(open_target(str(run)), protocol=protocol, limit=LIMIT, out=tmp_path / protocol)
        assert len(results.predictions) == 3 * LIMIT
    proof = merge(run / "adapter", out=tmp_path / "merged")
    record_property("merge", str(proof))
    export_peft(run / "adapter", out=tmp_path / "peft")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").num_parameters() > 0
    assert len(load_file(tmp_path / "peft" / "adapter_model.safetensors")) == 12


@pytest.mark.parametrize(
    "mixer",
    [
        "kind: identity",
        "kind: butterfly",
        "kind: hadamard, blocks: 4",
        "kind: kronecker, blocks: 2",
        "kind: dense",
        "kind: diagonal, orthogonality: 0.1",
        "kind: input-split, blocks: 2",
        "kind: token-gate, experts: 4, top_k: 2, balance: 0.01",
        "kind: gate-inside, experts: 2",
        "kind: task-gate, experts: 2",
    ],
)
def test_every_mixer_takes_a_step_that_never_waits(make, mixer):
    recipe = make("model.dtype=bfloat16", f"adapter.mixer={{{mixer}}}")
    parts, data = prepare(Accelerator(mixed_precision="no"), recipe)
    parts.objective.train()
    drawn = data.rows[:8]
    accumulate(parts, drawn)  # the first warms up: libraries load and allocate
    with no_waiting():
        share = accumulate(parts, drawn)
    assert share.isfinite().all() and share[0] > 0
    assert all(parameter.grad.isfinite().all() for parameter in trainable(parts.optimizer))
    assert any(parameter.grad.any() for parameter in trainable(parts.optimizer))
    parts.optimizer.step()
    assert all(layer.lora_b.isfinite().all() for _, layer in named_adapters(parts.model))


@pytest.mark.parametrize(
    ("change", "rtol"), [("model.gradient_checkpointing=true", 1e-3), ("training.micro_batch_tokens=60", 2e-3)]
)
def test_what_saves_memory_changes_no_gradient(make, record_property, change, rtol):
    gradients = []
    for overrides in ((), (change,)):
        parts, data = prepare(
            Accelerator(mixed_precision="no"), make("model.dtype=float32", "adapter.dropout=0", *overrides)
        )
        parts.objective.train()
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        accumulate(parts, data.rows[:8])
        if GPU:
            record_property(f"peak_mb {overrides}", torch.cuda.max_memory_allocated() / 1e6)
        gradients.append([parameter.grad.clone() for parameter in trainable(parts.optimizer)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("double", ["true", "false"])
def test_the_dequantized_merge_has_the_weights_that_the_gpu_had(make, tmp_path, record_property, double):
    """The merge packs the base once more, on the CPU; training packed it on the GPU. The codes must agree."""
    pytest.importorskip("bitsandbytes")
    recipe = make(*BASES["nf4"], f"model.double_quantization={double}", "training.max_steps=6")
    train_recipe(recipe, out=tmp_path / "run")
    merge(tmp_path / "run" / "adapter", out=tmp_path / "merged", onto="dequantized", dtype="float32")
    folder = open_adapter(tmp_path / "run" / "adapter")
    pairs = lora_pairs(load_adapted(folder), str(folder.path))
    section = recipe.model.model_copy(update={"dtype": "float32"})
    packed = {
        name: dequantize(layer).cpu() for name, layer in quantized_layers(load_base(section, device=DEVICE)).items()
    }
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert len(packed) == 14
    same, worst = 0, 0.0
    for name, weight in packed.items():
        expected = pairs[name].adapted(weight, torch.float32) if name in pairs else weight
        error = float((merged[f"{name}.weight"] - expected).norm() / weight.norm())
        same, worst = same + (error < 1e-6), max(worst, error)
    record_property("layers_with_equal_codes", f"{same} of 14, worst relative error {worst:.1e}")
    assert worst < 1e-3  # NF4's own error is 0.09


def test_a_pissa_start_and_its_merge(make, tmp_path):
    train_recipe(
        make("model.dtype=bfloat16", "adapter.start=pissa", "adapter.mixer.init=orthogonal"), out=tmp_path / "run"
    )
    merge(tmp_path / "run" / "adapter", out=tmp_path / "merged")
    weight = torch.randn(LARGE + 16, LARGE + 16, device=DEVICE)
    weight[:, 0] *= 20
    u, s, v = largest_triplets(weight, 4)
    full = torch.linalg.svdvals(weight)[:4]
    torch.testing.assert_close(s, full, rtol=1e-2, atol=0)
    torch.testing.assert_close(s[:1], full[:1], rtol=1e-4, atol=0)
    assert u.device.type == v.device.type == DEVICE.type
