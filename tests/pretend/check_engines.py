"""The engine of a model on the pretend device in bfloat16, whose kernels are not a CPU's: ours, unless one is wrong."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moslora.adapters import inject
from moslora.base.check import choose_engine
from moslora.base.engines import engine_of
from moslora.kernels import loss, mlp, recompute
from pretend_kit import DEVICE
from reference import tiny_llama

BACKWARD = {"MLP": mlp._SwiGLU, "adapter": recompute._Projection, "loss": loss.ChunkedLoss}


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("MOSLORA_HOME", str(tmp_path_factory.mktemp("home")))


def engine() -> str:
    model = tiny_llama(layers=2).to(torch.bfloat16).requires_grad_(False).eval().to(DEVICE)
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    choose_engine(model)
    return engine_of(model).name


def test_our_engine_computes() -> None:
    assert engine() == "own"


@pytest.mark.parametrize("kernel", BACKWARD)
def test_transformers_takes_over_where_a_gradient_is_wrong(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """On that device alone."""
    function: Any = BACKWARD[kernel]
    right = function.backward

    def backward(ctx: Any, gradient: Tensor, *more: Any) -> Any:
        found = right(ctx, gradient, *more)
        if gradient.device.type == "cpu":
            return found
        return tuple(None if one is None else -one for one in found)

    monkeypatch.setattr(function, "backward", staticmethod(backward))
    assert engine() == "transformers"
