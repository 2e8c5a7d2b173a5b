"""What `moslora check` compares, on the pretend device: its pieces there are those of a GPU."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

import pretend_kit
from moslora.kernels import attention, liger, loss, rotary, vocabulary
from moslora.kernels.plain import PIECES as PARTS
from moslora.kernels.plain import disabled_kernels
from moslora.kernels.rows import Rows
from moslora.selfcheck import piece as measure
from moslora.selfcheck.pieces import PIECES
from moslora.selfcheck.steps import SMALL_LLAMA, whole_pieces
from moslora.training import loop
from pretend_kit import DEVICE, watch
from tests.selfcheck.faults import FAULTS as planted_on_a_cpu

CONFIG = LlamaConfig(
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=400,
)
STEP, *OTHERS = (replace(piece, draws=2) for piece in whole_pieces(SMALL_LLAMA))
BY_NAME = {piece.name: piece for piece in (*PIECES, STEP, *OTHERS)}


@pytest.fixture(autouse=True)
def in_a_moment(monkeypatch):
    monkeypatch.setattr(vocabulary, "LOGITS_AT_ONCE", 400 * 100)
    monkeypatch.setattr(liger, "is_used", lambda: True)
    monkeypatch.setattr(measure, "ON_GPU", 2)
    yield
    disabled_kernels.cache_clear()


right_rotation = rotary._rotate
right_loss = loss.label_loss


def wrong(module, name, change):
    """A function whose result is changed."""
    right = getattr(module, name)
    return module, name, lambda *given, **options: change(right(*given, **options))


FAULTS = {
    "RoPE": ("rope", (rotary, "_rotate", lambda q, k, cos, sin, back: right_rotation(q, k, cos, sin, back=False))),
    "attention": ("attention", wrong(attention, "_unpadded", lambda out: out * 1.2)),
    "adapters, dense": ("adapters", planted_on_a_cpu["adapters, scale"].plant),
    "loss": ("loss", (loss, "label_loss", lambda states, *given: -right_loss(states, *given))),
}
"""Piece -> what it is left out by, and a fault in what a GPU alone computes."""


def moved_end(rows):
    """The third row has a token of the fourth."""
    ends = right_ends.func(rows)
    for of_rows in ends:
        of_rows[3] += 1
    return ends


right_ends = Rows.ends
right_start = loop.start_step
right_backward = liger.swiglu_backward
FAULTS_OF_A_GPU = {
    "attention, no shared start": (Rows, "ends", property(moved_end)),
    "attention, sliding window": wrong(attention, "_unpadded", lambda out: out * 1.05),
    "dropout": (pretend_kit, "mask", lambda x, *_: torch.ones_like(x)),
    "dropout, wide": wrong(pretend_kit, "mask", lambda mask: mask.roll(1, -1)),
    "MLP": (liger, "swiglu_backward", lambda gate, up, g: right_backward(gate, up, g)[::-1]),
    "decoding": planted_on_a_cpu["decoding, place"].plant,
    "optimizer, scaled": planted_on_a_cpu["scaler"].plant,
    "a training step, checkpointing": planted_on_a_cpu["checkpointing"].plant,
    "the training loop": (loop, "start_step", lambda parts, step: right_start(parts, max(0, step - 1))),
}
"""Piece -> a fault in what a GPU computes, found in that piece."""


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

    monkeypatch.setattr(liger, "is_installed", lambda: True)
    monkeypatch.setattr(liger, "_try", fails_once)
    with torch.inference_mode():
        assert liger.fault.__wrapped__() is None


@pytest.mark.parametrize("name", BY_NAME)
def test_pieces_equal_their_formulas(name):
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
    disabled_kernels.cache_clear()
    assert not is_off(STEP, torch.bfloat16)


@pytest.mark.parametrize("name", FAULTS_OF_A_GPU)
def test_a_fault_is_found_in_its_piece(monkeypatch, name):
    monkeypatch.setattr(*FAULTS_OF_A_GPU[name])
    piece = BY_NAME[name]
    assert all(is_off(piece, dtype) for dtype in piece.tolerances if dtype.itemsize == 2 or len(piece.tolerances) == 1)


def test_all_can_be_left_out(monkeypatch):
    monkeypatch.setenv("MOSLORA_PLAIN", ",".join(PARTS))
    disabled_kernels.cache_clear()
    with watch() as seen:
        assert not is_off(STEP, torch.bfloat16)
    assert not any(name.startswith("moslora") or "flash" in name for name in seen.operations), seen.operations
