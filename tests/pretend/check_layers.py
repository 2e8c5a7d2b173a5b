"""A decoder layer on the pretend device in bfloat16, with torch's flash attention: its gradients and its launches."""

import pytest
import torch
from torch import nn

from moslora.adapters import inject
from moslora.base.own_engine import use_own_modules
from moslora.data.encode import Encoded
from moslora.data.steps import collate
from moslora.kernels import liger
from moslora.training.objective import LabelLoss
from pretend_kit import DEVICE, watch
from reference import tiny_llama

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
MOST = {False: (60, 83), True: (44, 60)}
"""Operations of a layer, forwards and backwards, without Liger and with it."""


def pass_of(layers, *, device=DEVICE, dtype=torch.bfloat16, dropout=0, share):
    """The gradients of perturbed adapters, and what the device did in both passes."""
    model = tiny_llama(layers=layers).to(dtype).requires_grad_(False)
    use_own_modules(model)
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, dropout=dropout, target_modules=TARGETS)
    for weight in model.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.2)
    model.to(device).enable_input_require_grads()
    rows = []
    for number in range(5):
        text = [1, 2, 3, *range(5, 9 + number)]
        rows.append(Encoded(str(number), "", text, text, truncated=False))
    objective = LabelLoss(model).train()
    batch = collate(rows, device=device, share=share)
    objective(batch)
    with watch() as forwards:
        loss, _ = objective(batch)
    with watch() as backwards:
        loss.backward()
    gradients = [weight.grad.cpu().double() for weight in model.parameters() if weight.requires_grad]
    return gradients, [forwards, backwards]


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("by_liger", [False, True])
def test_its_gradients_are_those_of_float64(monkeypatch, by_liger, share):
    """Up to the rounding of bfloat16, of which a pass of the CPU has about as much."""
    monkeypatch.setattr(liger, "is_used", lambda: by_liger)
    found, (forwards, _) = pass_of(2, share=share)
    assert forwards.operations["aten._flash_attention_forward.default"] == 2
    assert forwards.operations["moslora.swiglu.default"] == forwards.operations["moslora.rope.default"] == 2 * by_liger
    assert not forwards.waits
    cpu = torch.device("cpu")
    exact, _ = pass_of(2, device=cpu, dtype=torch.float64, share=share)
    plain, _ = pass_of(2, device=cpu, dtype=torch.bfloat16, share=share)
    for one, other, true in zip(found, plain, exact, strict=True):
        assert (one - true).norm() <= 3 * (other - true).norm() + 1e-3 * true.norm()


@pytest.mark.parametrize("by_liger", [False, True])
def test_its_launches(monkeypatch, by_liger):
    """With five adapters and dropout: what one layer more adds."""
    monkeypatch.setattr(liger, "is_used", lambda: by_liger)
    _, fewer = pass_of(1, dropout=0.1, share=False)
    _, more = pass_of(2, dropout=0.1, share=False)
    counts = tuple(two.operations.total() - one.operations.total() for one, two in zip(fewer, more, strict=True))
    kernels = "with" if by_liger else "without"
    print(f"{kernels} Liger: {counts} launches of a layer")
    assert all(count <= most for count, most in zip(counts, MOST[by_liger], strict=True)), counts
