"""What `moslora check` compares of Triton's kernels, in float16 and float32, and a fault in each, which is found: by a
CPU with TRITON_INTERPRET=1, where Triton and Liger-Kernel are installed."""

import importlib.util
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moslora.kernels import liger
from moslora.kernels.dropout import WITHIN, Dropout
from moslora.selfcheck.piece import measure
from moslora.selfcheck.pieces import ODD_RANK, PIECES, dropout
from tests.kernels.test_liger import on_any_device  # noqa: F401 — a fixture

CAN_RUN = liger.is_used() and os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(not CAN_RUN, reason="no Liger-Kernel, or not TRITON_INTERPRET=1")
CONFIG = SimpleNamespace(
    hidden_size=40,
    intermediate_size=72,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=200,
)
BY_NAME = {piece.name: piece for piece in PIECES if piece.part in ("dropout", "mlp", "rope")}
NARROWER = partial(dropout, rank=ODD_RANK, width=300)  # still several tiles
BY_NAME["dropout, wide"] = replace(BY_NAME["dropout, wide"], compute=NARROWER)

IN_SOURCE = {
    "mask": ("dropout", "(words >> 1) >= limit", "(words >> 2) >= limit"),
    "nothing is dropped": ("dropout", "(words >> 1) >= limit", "(words >> 1) >= 0"),
    "order of the words": ("dropout", "tl.join(a, c), tl.join(b, d)", "tl.join(a, b), tl.join(c, d)"),
    "counters of a row": ("dropout", "tl.cdiv(columns, 4) + four", "columns // 4 + 1 + four"),
    "last row": ("dropout", "there = (row < rows)[:, None]", "there = (row < rows - 1)[:, None]"),
    "last column": ("dropout", "(column < columns)[None, :]", "(column < columns - 1)[None, :]"),
    "rows of A": ("dropout, wide", "rank, columns))", "rank - 1, columns))"),
    "tile": ("dropout", "tl.dot(tl.trans(gradient), left", "tl.dot(tl.trans(gradient), tl.flip(left, 1)"),
    "dropped twice": ("dropout", "back + _load(", "tl.where(kept, 1.0, 0.0) * back * 1.05 + _load("),
    "sum": ("dropout, wide", "found += tl.dot(left", "found = tl.dot(left"),
}
"""Fault of `moslora.kernels.dropped` -> the piece that finds it, and what is written instead of what."""


@pytest.fixture(autouse=True)
def draws_within(monkeypatch):
    monkeypatch.setattr(Dropout, "kernel", staticmethod(lambda x: WITHIN))


def is_off(name, dtype=torch.float16):
    found = measure(BY_NAME[name], CONFIG, torch.device("cpu"), dtype)
    assert not found.fault, found
    return not found.passed


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", BY_NAME)
def test_pieces_equal_their_formulas(name, dtype):
    assert not is_off(name, dtype)


@pytest.mark.parametrize("fault", IN_SOURCE)
def test_a_fault_of_dropout_is_found(monkeypatch, tmp_path, fault):
    piece, right, wrong = IN_SOURCE[fault]
    source = Path(importlib.util.find_spec("moslora.kernels.dropped").origin).read_text("utf-8")
    assert right in source
    file = tmp_path / "dropped.py"
    file.write_text(source.replace(right, wrong), "utf-8")
    spec = importlib.util.spec_from_file_location("moslora.kernels.dropped", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, spec.name, module)
    assert is_off(piece)


def wrong(name, change):
    right = getattr(torch.ops.moslora, name)
    return name, lambda *given: change(right, *given)


@pytest.mark.parametrize(
    ("piece", "planted"),
    [
        ("RoPE", wrong("rope", lambda right, q, k, cos, sin, back: right(q, k, cos, sin, False))),
        ("MLP", wrong("swiglu", lambda right, gate, up: right(up, gate))),
        ("MLP", wrong("swiglu_backward", lambda right, gate, up, gradient: right(gate, up, gradient)[::-1])),
    ],
)
def test_a_fault_of_ligers_is_found(monkeypatch, piece, planted):
    monkeypatch.setattr(torch.ops.moslora, *planted)
    assert is_off(piece)
