"""The check: what it finds where a fault is planted, what it says then, and that runs can do without the piece."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import Gemma2Config, LlamaConfig

from cli_kit import run
from message_kit import says
from moslora.kernels.plain import PIECES, disabled_kernels
from moslora.selfcheck import check, pieces, steps
from moslora.selfcheck import piece as measure
from moslora.selfcheck.piece import distance
from moslora.selfcheck.pieces import quantized_pieces
from moslora.selfcheck.steps import SMALL_LLAMA, whole_pieces
from moslora.training import train_recipe
from moslora.training.optimizer import build_optimizer
from tests.selfcheck.faults import FAULTS, planted

WHOLE = whole_pieces(SMALL_LLAMA)
STEP = replace(WHOLE[0], draws=1)
CPU = torch.device("cpu")
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 9_000,
}


@pytest.fixture(autouse=True)
def in_a_moment(monkeypatch):
    monkeypatch.setattr(check, "SIZES", SMALL)
    monkeypatch.setattr(steps, "STEP_DRAWS", 2)
    monkeypatch.setattr(check, "two_processes", lambda: [])


@pytest.fixture
def disable(monkeypatch):
    def disabling(part):
        monkeypatch.setenv("MOSLORA_PLAIN", part)
        disabled_kernels.cache_clear()

    yield disabling
    disabled_kernels.cache_clear()


def all_pieces():
    return [*pieces.PIECES, *quantized_pieces(), *whole_pieces(SMALL_LLAMA)]


def only(monkeypatch, *names):
    """Has these pieces checked alone."""
    chosen = [piece for piece in all_pieces() if piece.name in names]
    monkeypatch.setattr(check, "PIECES", chosen)
    monkeypatch.setattr(check, "quantized_pieces", lambda: [])
    monkeypatch.setattr(check, "whole_pieces", lambda _: [])


def off_in(piece, config=None):
    return not measure.measure(piece, config or LlamaConfig(**SMALL), CPU, torch.float32).passed


def off(part):
    return measure.Finding("a piece", part, "float32", 1e-4)


def test_settings_cover_all_failed_pieces():
    """A step has its own where no piece is off."""
    assert measure.said_of([off(STEP.part)])[-1].endswith(": model.engine=transformers")
    several = [off(STEP.part), off("norm"), off("model.quantization=null"), off("loss"), off("norm")]
    *lines, settings = measure.said_of(several)
    assert len(lines) == 5 and settings.endswith(": model.quantization=null MOSLORA_PLAIN=loss,norm")


def test_without_a_fault_all_passes(capsys):
    code, out, _ = run(capsys, "check")
    assert code == 0 and "MOSLORA_PLAIN" not in out
    assert all(piece.name in out for piece in all_pieces())


def test_every_piece_has_a_fault():
    assert {fault.piece for fault in FAULTS.values()} == {piece.name for piece in all_pieces()}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named_with_its_setting(monkeypatch, capsys, name):
    fault = planted(name, monkeypatch)
    sound = "RoPE" if fault.part != "rope" else "linear"
    only(monkeypatch, sound, fault.piece)
    code, out, _ = run(capsys, "check")
    off = {line for line in out.splitlines() if line.startswith("off: ")}
    assert code == 1 and off
    assert all(line.startswith(f"off: {fault.piece} in ") for line in off)
    setting = fault.part if "=" in fault.part else f"MOSLORA_PLAIN={fault.part}"
    assert out.splitlines()[-1].endswith(f": {setting}")


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.in_step])
def test_a_step_without_the_piece_is_transformers_own(monkeypatch, disable, name):
    """Its loss and the gradients of all factors."""
    fault = planted(name, monkeypatch)
    assert off_in(STEP)
    disable(fault.part)
    assert not off_in(STEP)


@pytest.mark.parametrize("name", ["linear, stale", "dropout, share", "loss, stale"])
def test_disabled_piece_is_the_plain_formula(monkeypatch, disable, name):
    fault = planted(name, monkeypatch)
    (piece,) = (piece for piece in pieces.PIECES if piece.name == fault.piece)
    assert off_in(piece)
    disable(fault.part)
    assert not off_in(piece)


def test_the_optimizer_without_its_kernel_is_torchs(disable, recipe):
    disable("optimizer")
    adamw = build_optimizer(torch.nn.Linear(2, 2), recipe().training)
    assert not any(group["fused"] for group in adamw.param_groups)


def test_all_pieces_can_be_disabled(capsys, disable):
    disable(",".join(PIECES))
    code, out, _ = run(capsys, "check")
    assert code == 0 and says(out, STEP.name, "left out", *sorted(PIECES))
    assert not any(f"\n{piece.name} " in out for piece in pieces.PIECES if piece.part in PIECES)


def attention_fails(monkeypatch, message):
    def fails(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(pieces, "attend", fails)


def test_a_kernel_that_fails_is_off(monkeypatch, capsys):
    attention_fails(monkeypatch, "CUDA error: no kernel image is available\nCUDA kernel errors …")
    only(monkeypatch, "norm", "attention")
    code, out, _ = run(capsys, "check")
    assert code == 1 and says(out, "off: attention in float32", "no kernel image", "MOSLORA_PLAIN=attention")
    code, out, _ = run(capsys, "check", "--json")
    found = json.loads(out)
    faulty = [(piece["name"], piece["off"]) for piece in found["findings"] if "no kernel image" in piece["fault"]]
    assert code == 1 and not found["passed"] and {*faulty} == {("attention", None)}


def test_a_width_that_is_refused_says_why(monkeypatch, capsys):
    monkeypatch.setattr(check, "SIZES", SMALL | {"hidden_size": 48})
    only(monkeypatch, "product, NF4")
    monkeypatch.setattr(check, "quantized_pieces", quantized_pieces)
    _, out, _ = run(capsys, "check")
    assert says(out, "product, NF4 in float32", "48 inputs", "multiple of 64", "model.quantization=null")


def test_a_check_begins_with_the_environment(monkeypatch, capsys):
    only(monkeypatch, "norm")
    _, environment, _ = run(capsys, "env")
    _, out, _ = run(capsys, "check")
    assert out.startswith(environment)
    found = json.loads(run(capsys, "check", "--json")[1])["environment"]
    assert "".join(f"{name}: {value}\n" for name, value in found.items()) == environment


def test_too_little_memory_is_no_fault_of_a_piece(monkeypatch, capsys):
    attention_fails(monkeypatch, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    only(monkeypatch, "norm", "attention")
    code, out, _ = run(capsys, "check")
    assert code == 0 and says(out, "not compared: attention in float32", "memory", "all 3 comparisons")


@pytest.fixture
def rounded_factors():
    """As a GPU rounds them under TF32, and a CPU with AMX to bfloat16 where it is told to."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    x, weight = torch.rand(2, 64, 64)
    rounded = distance(F.linear(x, weight), x.double() @ weight.double().T) > 1e-5
    try:
        yield rounded
    finally:
        settings.fp32_precision = before


def test_rounded_factors_are_no_fault_of_a_piece(monkeypatch, rounded_factors):
    """Where the plain formula is as far off; an error beside that is the piece's."""
    if not rounded_factors:
        pytest.skip("this CPU rounds no factors")
    (piece,) = (piece for piece in pieces.PIECES if piece.name == "linear")
    found = measure.measure(piece, LlamaConfig(**SMALL), CPU, torch.float32)
    assert not found.passed and says(found.fault, "TF32") and found.part == "NVIDIA_TF32_OVERRIDE=0"
    planted("linear, scale", monkeypatch)
    assert measure.measure(piece, LlamaConfig(**SMALL), CPU, torch.float32).part == "linear"


def test_an_unknown_piece_is_refused_with_the_nearest(capsys, disable):
    for text, fix in (("atention", "attention"), ("norm,xyz", "rope")):
        disable(text)
        code, _, err = run(capsys, "recipes")
        assert code == 2 and says(err, "MOSLORA_PLAIN", text.rpartition(",")[2], fix)


def test_run_card_names_disabled_kernels(disable, recipe, tmp_path):
    disable(" loss,attention,norm ")
    train_recipe(recipe("training.epochs=null", "training.max_steps=4"), out=tmp_path / "run")
    kernels = json.loads((tmp_path / "run" / "run.json").read_text())["kernels"]
    assert kernels["MOSLORA_PLAIN"] == "attention,loss,norm"
    assert kernels["attention"] == "the plain formula" and kernels["norm"] == "transformers'"


def test_one_wrong_row_among_many_is_far_off():
    exact = torch.randn(1_000, 64)
    found = exact.clone()
    found[7] = 0
    assert distance(found, exact) > 0.5 and distance(exact, exact) == 0
    found[7, 0] = torch.nan
    assert distance(found, exact) == float("inf")


def test_a_step_of_a_recipe_stands_beside_its_plan(world, monkeypatch, capsys):
    only(monkeypatch, "norm")
    code, out, _ = run(capsys, "check", world / "recipe.yaml", "training.global_batch_size=4")
    assert code == 0 and says(out, "a step of", "estimate", "measured", "memory, GB", "time, s", "norm")


def test_what_is_neither_model_nor_recipe_is_refused(world, capsys):
    for words, parts in {
        ("smolm2-135m",): ("smolm2-135m", "did you mean smollm2-135m"),
        ("methods/lroa",): ("methods/lroa", "did you mean methods/lora"),
        (f"{world}/model", "training.epochs=1"): ("training.epochs=1", "a model"),
    }.items():
        code, _, err = run(capsys, "check", *words)
        assert code == 2 and says(err, *parts)


def test_a_model_that_transformers_computes_has_the_step_of_another(monkeypatch, capsys, tmp_path):
    configs = []
    only(monkeypatch, "norm")
    monkeypatch.setattr(check, "whole_pieces", lambda config: configs.append(config) or [])
    sizes = {name: size for name, size in SMALL.items() if name != "head_dim"}
    Gemma2Config(**sizes, num_hidden_layers=2, architectures=["Gemma2ForCausalLM"]).save_pretrained(tmp_path)
    code, out, _ = run(capsys, "check", tmp_path)
    assert code == 0 and "model.engine = padded" in out and configs[0].model_type == "llama"


def test_the_sizes_are_those_of_the_model(world, monkeypatch, capsys):
    seen = []

    def noted(piece, config, *place):
        seen.append((config.hidden_size, config.head_dim))
        return right(piece, config, *place)

    right = measure.measure
    monkeypatch.setattr(check, "measure", noted)
    only(monkeypatch, "norm")
    assert run(capsys, "check", world / "model")[0] == 0
    said = json.loads((world / "model" / "config.json").read_text())
    assert {*seen} == {(said["hidden_size"], said["head_dim"])} != {(64, 16)}
