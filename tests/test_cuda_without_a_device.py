"""The loss on a GPU that is not there: fake tensors have a device and a shape, and no values.

Two devices in one operation raise; so does whatever would have the host wait for a value of the device. A build of
torch without CUDA cannot index a tensor on CUDA: there the device is ``meta``, with the same way through the code.
"""

from itertools import product
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from moslora.adapters import inject, named_adapters
from moslora.base.load import use_own_modules
from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.data.steps import collate, cut
from moslora.training.objective import LabelLoss
from reference import PROJECTIONS, tiny_llama

CUDA = torch.device("cuda:0" if torch.version.cuda else "meta")
ROWS = [
    Encoded(str(n), "boolq", [5] * length, [IGNORE_INDEX] * (length - 2) + [5] * 2, truncated=False)
    for n, length in enumerate((7, 19, 3, 11, 30, 8))
]
MIXERS: dict[str, dict[str, Any]] = {
    "identity": {"kind": "identity"},
    "butterfly": {"kind": "butterfly"},
    "hadamard": {"kind": "hadamard", "blocks": 4},
    "kronecker": {"kind": "kronecker", "blocks": 2},
    "dense": {"kind": "dense"},
    "diagonal": {"kind": "diagonal", "orthogonality": 0.1},
    "input-split": {"kind": "input-split", "blocks": 2},
    "token-gate": {"kind": "token-gate", "experts": 4, "top_k": 2, "balance": 0.01},
    "gate-inside": {"kind": "gate-inside", "experts": 2},
    "task-gate": {"kind": "task-gate", "experts": 2},
}


class Waits(TorchDispatchMode):
    """Counts operations, and collects those copies between host and device that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.copies: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        self.operations += function is not torch.ops.prim.device.default
        if "_to_copy" in str(function) and out.device != args[0].device and not kwargs.get("non_blocking"):
            self.copies.append(f"{args[0].device} to {out.device}: {tuple(out.shape)}")
        return out


def on_cuda(module: torch.nn.Module) -> None:
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            moved = torch.nn.Parameter(parameter.detach().to(CUDA), requires_grad=parameter.requires_grad)
            setattr(part, name, moved)
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, buffer.to(CUDA), persistent=False)


@pytest.mark.parametrize("options", [{}, {"dora": True}], ids=["plain", "dora"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_nothing_in_the_loss_waits_for_the_device(
    monkeypatch: pytest.MonkeyPatch, mixer: str, options: dict[str, Any]
) -> None:
    if options and "gate" in mixer:
        pytest.skip("DoRA over a gate does not exist")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # needs a driver
    model = tiny_llama(dtype=torch.bfloat16)
    use_own_modules(model)
    inject(model, rank=4, alpha=8, dropout=0.1, mixer=MIXERS[mixer], target_modules=PROJECTIONS, **options)
    objective = LabelLoss(model).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_cuda(model)
        with Waits() as waits:
            for batch, share in product(cut([len(row.input_ids) for row in ROWS], tokens=40), (False, True)):
                loss, penalty = objective(collate([ROWS[i] for i in batch], device=CUDA, share=share))
        assert loss.device == penalty.device == CUDA and loss.dtype == torch.float32
    assert waits.operations > 100 and not (waits.copies and torch.version.cuda)
    assert len(list(named_adapters(model))) == 10


def test_what_waits_is_noticed() -> None:
    with FakeTensorMode():
        with pytest.raises(DataDependentOutputException):
            bool(torch.ones(3, device=CUDA).any())
        with pytest.raises(RuntimeError, match="device"):
            torch.ones(3, device=CUDA) + torch.ones(3, device="cpu")
        with Waits() as waits:
            torch.ones(3).to(CUDA)
    assert len(waits.copies) == 1
