"""What `moslora check` compares, on the pretend device: its pieces there are those of a GPU."""

import pytest
import torch
from transformers import LlamaConfig

from moslora.check import piece as measure
from moslora.check.pieces import PIECES, SMALL_LLAMA, step_piece
from moslora.kernels import attention, liger, loss, rotary, vocabulary
from moslora.kernels.plain import PIECES as PARTS
from moslora.kernels.plain import left_out
from pretend_kit import DEVICE, watch
from tests.check.faults import FAULTS as planted_on_a_cpu

CONFIG = LlamaConfig(
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=400,
)
STEP = step_piece(SMALL_LLAMA)
BY_NAME = {piece.name: piece for piece in (*PIECES, STEP)}


@pytest.fixture(autouse=True)
def in_a_moment(monkeypatch):
    monkeypatch.setattr(vocabulary, "LOGITS_AT_ONCE", 400 * 100)
    monkeypatch.setattr(liger, "installed", lambda: True)
    yield
    left_out.cache_clear()


right_turn = rotary._turn
right_loss = loss.label_loss


def wrong(module, name, change):
    """A function whose result is changed."""
    right = getattr(module, name)
    return module, name, lambda *given, **options: change(right(*given, **options))


FAULTS = {
    "RoPE": ("rope", (rotary, "_turn", lambda q, k, cos, sin, back: right_turn(q, k, cos, sin, back=False))),
    "attention": ("attention", wrong(attention, "_unpadded", lambda out: out * 1.2)),
    "adapters, dense": ("adapters", planted_on_a_cpu["adapters, scale"].plant),
    "loss": ("loss", (loss, "label_loss", lambda states, *given: -right_loss(states, *given))),
}
"""Piece -> what it is left out by, and a fault in what a GPU alone computes."""


def is_off(piece, dtype):
    found = measure.measure(piece, CONFIG, DEVICE, dtype)
    assert not found.fault, found
    return not found.passed


@pytest.mark.parametrize("renamed", [False, True])
def test_ligers_kernels_are_tried_in_inference_too(monkeypatch, renamed):
    """Whoever asks a model first may have left gradients out; and a file of Triton's cache may be renamed by another
    process on a network's disk, once."""
    tried = liger._try
    faults = [OSError("Stale file handle")] * renamed

    def fails_once(device):
        if faults:
            raise faults.pop()
        tried(device)

    monkeypatch.setattr(liger, "there", lambda: True)
    monkeypatch.setattr(liger, "_try", fails_once)
    with torch.inference_mode():
        assert liger.fault.__wrapped__() is None


@pytest.mark.parametrize("name", BY_NAME)
def test_all_are_equal(name):
    piece = BY_NAME[name]
    with watch() as seen:
        for dtype in piece.tolerances:
            found = measure.measure(piece, CONFIG, DEVICE, dtype)
            assert found.passed, found
    assert seen.operations.total() > 10


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_left_out(monkeypatch, name):
    """By the piece's comparison and that of a step; without the piece the step is transformers' own."""
    part, plant = FAULTS[name]
    monkeypatch.setattr(*plant)
    assert is_off(BY_NAME[name], torch.bfloat16) and is_off(STEP, torch.bfloat16)
    monkeypatch.setenv("MOSLORA_PLAIN", part)
    left_out.cache_clear()
    assert not is_off(STEP, torch.bfloat16)


def test_all_can_be_left_out(monkeypatch):
    monkeypatch.setenv("MOSLORA_PLAIN", ",".join(PARTS))
    left_out.cache_clear()
    with watch() as seen:
        assert not is_off(STEP, torch.bfloat16)
    assert not any(name.startswith("moslora") or "flash" in name for name in seen.operations), seen.operations
