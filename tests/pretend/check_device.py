"""The pretend device itself: it refuses what CUDA refuses, waits where CUDA waits, and computes what the CPU does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pretend_kit import ANOTHER, DEVICE, MODULE, by_triton, watch

Use = Callable[[Tensor, Tensor], object]


def adamw(parameter: Tensor, *, on_host: str) -> None:
    optimizer = torch.optim.AdamW([parameter.detach().requires_grad_()], fused=True)
    (learned,) = optimizer.param_groups[0]["params"]
    for _ in range(2):
        learned.grad = torch.ones_like(learned)
        optimizer.step()
        state = optimizer.state[learned]
        if on_host:
            state[on_host] = state[on_host].cpu()


MIXES: dict[str, Use] = {
    "a sum": lambda there, host: there + host,
    "a product": lambda there, host: F.linear(there, host),
    "into the host's": lambda there, host: host.add_(there),
    "out": lambda there, host: torch.add(host, host, out=there),
    "cat": lambda there, host: torch.cat([host, there]),
    "stacked numbers": lambda there, host: torch.stack([there[0, 0], host[0, 0]]),
    "chosen": lambda there, host: there.index_select(0, host[0, :1].long()),
    "embedding": lambda there, host: F.embedding(host[0, :1].long(), there),
    "attention": lambda there, host: F.scaled_dot_product_attention(there, host, host),
    "norm": lambda there, host: F.rms_norm(there, (3,), host[0]),
    "AdamW's count": lambda there, host: adamw(there, on_host="step"),
    "AdamW's moment": lambda there, host: adamw(there, on_host="exp_avg"),
    "oneDNN": lambda there, host: torch.ops.mkldnn._linear_pointwise(there, there, None, "none", [], ""),
}
WAITS: dict[str, Use] = {
    "float": lambda there, host: float(there.sum()),
    "if": lambda there, host: bool((there > 0).any()),
    "list": lambda there, host: there.tolist(),
    "to the host": lambda there, host: there.cpu(),
    "into the host's": lambda there, host: host.copy_(there),
    "to the device": lambda there, host: host.to(DEVICE),
    "not pinned": lambda there, host: host.to(DEVICE, non_blocking=True),
    "pinned": lambda there, host: host.pin_memory().to(DEVICE),
    "made there": lambda there, host: torch.tensor([1.0, 2.0], device=DEVICE),
    "nonzero": lambda there, host: there.nonzero(),
    "a mask": lambda there, host: there[there > 1],
    "values by a mask": lambda there, host: there.index_put_((there == 1,), there[:1, 0]),
    "a number by places": lambda there, host: there.__setitem__(there.new_zeros(1, dtype=torch.long), 1),
    "places on the host": lambda there, host: there[torch.tensor([1, 0])],
    "masked_select": lambda there, host: there.masked_select(there > 1),
    "unique": lambda there, host: there.unique(),
    "repeat": lambda there, host: there.repeat_interleave(there.long()[0], dim=1),
    "equal": lambda there, host: there.equal(there),
}
FREE: dict[str, tuple[Use, int]] = {
    "a number": (lambda there, host: there * 2 + torch.tensor(3.0), 2),
    "filled": (lambda there, host: there.masked_fill(there > 1, torch.tensor(0.0)), 2),
    "a number by a mask": (lambda there, host: there.__setitem__(there > 1, 0), 2),
    "sent": (lambda there, host: host.pin_memory().to(DEVICE, non_blocking=True), 1),
    "back": (lambda there, host: there.to("cpu", non_blocking=True), 1),
    "made there": (lambda there, host: torch.ones(3, device=DEVICE), 1),
    "places": (lambda there, host: there[:, there.new_zeros(2, dtype=torch.long)], 2),
    "views": (lambda there, host: [part.T.unsqueeze(0) for part in there.split(1)], 0),
    "attention": (lambda there, host: F.scaled_dot_product_attention(there, there, there), 1),
    "norm": (lambda there, host: F.rms_norm(there, (3,), there[0]), 1),
    "silu's gradient": (lambda there, host: torch.ops.aten.silu_backward(there, there), 1),
    "AdamW, twice": (lambda there, host: adamw(there, on_host=""), 9),
}
"""Uses that do not wait, and how many operations each is."""


def both() -> tuple[Tensor, Tensor]:
    host = torch.arange(6.0).view(2, 3)
    return host.to(DEVICE), host


@pytest.mark.parametrize("what", MIXES)
def test_devices_do_not_mix(what):
    with pytest.raises((RuntimeError, NotImplementedError), match="CPU"):
        MIXES[what](*both())


def test_triton_launches_on_the_current_device():
    there, _ = both()
    double = by_triton(lambda x: x * 2)
    with MODULE.device(DEVICE):
        assert torch.ones(1, device="pretend").device == double(there).device == DEVICE
        with pytest.raises(RuntimeError, match=f"{ANOTHER}"):
            double(there.to(ANOTHER))
    with MODULE.device(ANOTHER), pytest.raises(RuntimeError, match=f"{ANOTHER}"):
        double(there)


@pytest.mark.parametrize("what", WAITS)
def test_every_wait_is_counted(what):
    there, host = both()
    with watch() as seen:
        WAITS[what](there, host)
    assert seen.waits.total() == 1, seen.waits


@pytest.mark.parametrize("what", FREE)
def test_what_does_not_wait_is_not(what):
    there, host = both()
    with watch() as seen:
        FREE[what][0](there, host)
    assert not seen.waits and seen.operations.total() == FREE[what][1], seen
