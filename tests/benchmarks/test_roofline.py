"""benchmarks/gpu/roofline.py and operations.py: what a step launches, multiplies and moves, counted by hand."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent
from torch.profiler import ProfilerActivity

from benchmarks.gpu import roofline
from benchmarks.gpu.operations import (
    IDLE,
    OUTPUT,
    PRODUCTS,
    REST,
    SUMS,
    Achieved,
    Device,
    Ledger,
    Operation,
    Watched,
    estimate,
    unevenness,
)
from benchmarks.timing import kernels
from forked_kit import python
from moslora.adapters import inject
from moslora.plan.duration import SHARE_OF_PEAK

ROOT = Path(__file__).parents[2]
T = 5
IN = 8
OUT = 12
RANK = 2
VOCABULARY = 7


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(IN, OUT, bias=False)
        self.head = nn.Linear(OUT, VOCABULARY, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))


def one_layer(add_adapter: Callable[[nn.Module], object]) -> Ledger:
    """Forward and backward pass of H (W x + s B A x) in float32, where x has a gradient, too."""
    model = OneLayer()
    add_adapter(model)
    x = torch.randn(T, IN, requires_grad=True)
    gradient = torch.ones(T, VOCABULARY)
    with Watched(Ledger(model)) as seen:
        model(x).backward(gradient)
    return seen.ledger


def of_part(ledger: Ledger, part: str) -> tuple[float, float]:
    mine = [one for one in ledger.done if one.part == part]
    return sum(one.flops for one in mine), sum(one.bytes for one in mine)


FLOPS = {
    PRODUCTS: 4 * T * IN * OUT,
    OUTPUT: 4 * T * OUT * VOCABULARY,
    "adapters": 6 * T * RANK * (IN + OUT),
    SUMS: 0,
}


def test_one_layer_with_one_adapter_of_peft():
    config = LoraConfig(r=RANK, lora_alpha=4, target_modules=["layer"])
    ledger = one_layer(lambda model: inject_adapter_in_model(config, model))
    assert Counter((one.part, one.name) for one in ledger.done) == {
        (PRODUCTS, "mm"): 2,
        ("adapters", "mm"): 2 + 4,  # h = x Aᵀ, h Bᵀ; the gradients of B, h, A and x
        ("adapters", "mul"): 2,  # by s
        ("adapters", "add"): 1,
        (OUTPUT, "mm"): 2,
        (SUMS, "add"): 1,  # both gradients of x
    }
    # Entries of two factors and a product.
    down = T * IN + IN * RANK + T * RANK
    up = T * RANK + RANK * OUT + T * OUT
    entries = {
        PRODUCTS: 2 * (T * IN + IN * OUT + T * OUT),
        OUTPUT: 2 * (T * OUT + OUT * VOCABULARY + T * VOCABULARY),
        "adapters": 3 * (down + up) + 2 * 2 * T * OUT + 3 * T * OUT,
        SUMS: 3 * T * IN,
    }
    for part, count in entries.items():
        assert of_part(ledger, part) == (FLOPS[part], 4 * count), part
    assert not ledger.waits


def test_one_layer_with_one_adapter_of_ours():
    """However it is computed, the products are the same."""
    options = {"rank": RANK, "alpha": 4, "mixer": {"kind": "identity"}, "target_modules": ["layer"]}
    ledger = one_layer(lambda model: inject(model, **options))
    assert {part: of_part(ledger, part)[0] for part in FLOPS} == FLOPS


def test_what_an_operation_moves():
    """Views and empty tensors nothing; lookups what they return; what is only written is not read."""
    with Watched(Ledger(OneLayer())) as seen:
        x = torch.empty(6, 4)
        x.view(3, 8).T.fill_(1)
        x.index_select(0, torch.zeros(2, dtype=torch.long))
        x[:1].expand(6, 4) + x
        x.sum().item()
        x.addmm_(torch.ones(6, 5), torch.ones(5, 4))
    moved = {one.name: one.bytes for one in seen.ledger.done}
    assert [moved[name] for name in ("fill_", "index_select", "add")] == [24 * 4, 2 * 8 * 4, (4 + 24 + 24) * 4]
    assert seen.ledger.done[-1][1:4] == ("addmm_", 2 * 6 * 5 * 4, (2 * 24 + 30 + 20) * 4)
    assert "view" not in moved and "empty" not in moved and seen.ledger.waits == 1


def test_the_estimate_is_the_formula():
    """A product of 1 ms, a copy of 2 ms and the shortest kernel; on a slow host; what is slow, drawn, and several."""
    device = Device(bfloat16=1e12, float32=1e11, bandwidth=1e9, multiprocessors=10)
    achieved = Achieved(0.5, 0.5, slow=0.25, drawn=1e6, host=0.5, kernel=0.25e-3)
    one = Operation(REST, "", 0.0, 0.0, torch.bfloat16)
    ledger = Ledger(OneLayer())
    ledger.done = [one._replace(part=PRODUCTS, flops=0.5e9), one._replace(part=SUMS, bytes=1e6), one]
    found = estimate(ledger, device, achieved, tokens=13, host=6e-3)
    assert [found["parts"][part]["ms"] for part in (PRODUCTS, SUMS, REST, IDLE)] == pytest.approx([1, 2, 0.25, 0])
    assert (found["tokens_per_second"], found["share_of_peak"]) == pytest.approx((4000, 0.5 / 3.25))
    ledger.done[0] = ledger.done[0]._replace(dtype=torch.float32)
    found = estimate(ledger, device, achieved, tokens=13, host=30e-3)
    assert found["floor_ms"] == pytest.approx(10) and found["device_ms"] == pytest.approx(12.25)
    assert found["parts"][IDLE]["ms"] == pytest.approx(2.75)
    assert found["parts"]["step"]["ms"] == pytest.approx(15)
    ledger.done = [one._replace(bytes=1e6, slow=True), one._replace(drawn=3000), one._replace(kernels=4)]
    found = estimate(ledger, device, achieved, tokens=13, host=30e-3)
    assert found["device_ms"] == pytest.approx(4 + 3 + 1) and found["step_ms"] == pytest.approx(15)
    assert found["parts"]["step"]["launches"] == 6


def test_tiles_that_leave_multiprocessors_idle():
    """q of 1,749 tokens: 14 · 16 tiles of 128 × 256 in two waves of 132. k and v: 14 · 8 tiles of 128 × 128, at nine
    tenths of the speed, in one wave. A product that fills one wave is even."""
    assert unevenness(1749, 4096, 132) == pytest.approx(2 * 132 * 128 * 256 / (1749 * 4096))
    assert unevenness(1749, 1024, 132) == pytest.approx(132 * 128 * 128 / (1749 * 1024) / 0.9)
    assert unevenness(128 * 11, 256 * 12, 132) == 1
    device = Device(bfloat16=1e12, float32=1e11, bandwidth=1e9, multiprocessors=132)
    achieved = Achieved(0.5, 0.5, slow=0.25, drawn=1e6, host=0.5, kernel=0)
    one = Operation(REST, "", 1e9, 0.0, torch.bfloat16, shape=(128, 256))
    assert achieved.seconds(one, device) == pytest.approx(2e-3 * min(132, 66 / 0.9, 33 / 0.75))


def test_which_kernels_are_slow():
    """A product with a side as short as a rank, and a bool that meets a number; not one of float32 and 16 bits."""
    with Watched(Ledger(OneLayer())) as seen:
        x = torch.ones(200, 200, dtype=torch.bfloat16)
        mask = torch.empty_like(x, dtype=torch.bool).bernoulli_(0.5)
        x.addcmul(x, mask), x * mask, x * x.float(), mask & mask
        x @ x, x @ x[:16].T, torch.native_dropout(x, 0.5, True)
    found = [(one.name, one.slow, one.drawn) for one in seen.ledger.done[1:]]
    assert found[:2] == [("bernoulli_", False, 40_000), ("addcmul", True, 0)]
    slow = [("mul", True), ("_to_copy", False), ("mul", False), ("bitwise_and", False), ("mm", False), ("mm", True)]
    assert [one[:2] for one in found[2:8]] == slow
    assert sum(drawn for _, _, drawn in found[8:]) >= 40_000


def test_the_parts_of_a_step_on_a_gpu_are_timed_by_its_kernels(monkeypatch):
    """As torch's profiler has it: each part also as a span on the device, and a kernel once with its operation, once
    by itself. 3 + 4 µs in the part, and 5 outside."""

    def on_gpu(name: str, begin: float, end: float, span: bool = False) -> FunctionEvent:
        options = {"use_device": "cuda", "device_type": DeviceType.CUDA, "is_user_annotation": span}
        return FunctionEvent(0, name, 7, begin, end, **options)

    def on_host(name: str, number: int, begin: float, end: float, **kernels: float) -> FunctionEvent:
        event = FunctionEvent(number, name, 1, begin, end, use_device="cuda", device_type=DeviceType.CPU)
        for kernel, took in kernels.items():
            event.append_kernel(kernel, 0, took)
        return event

    def events() -> EventList:
        found = [on_gpu("gemm", 100, 103), on_gpu("add", 103, 107), on_gpu("adam", 200, 205)]
        found += [on_gpu("part: norms", 100, 107, True), on_gpu("Optimizer.step", 200, 205, True)]
        found += [on_host("part: norms", 1, 0, 9), on_host("mm", 2, 1, 4, gemm=3, add=4)]
        found.append(on_host("Adam", 3, 20, 30, adam=5))
        tree = EventList(found, use_device="cuda")
        tree._build_tree()
        return tree

    def profile(activities: list[ProfilerActivity]) -> object:
        assert {*activities} == {ProfilerActivity.CPU, ProfilerActivity.CUDA}  # names are of the host's activity
        return nullcontext(SimpleNamespace(events=events))

    monkeypatch.setattr(torch.profiler, "profile", profile)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    parts = Counter[str]()
    assert sorted(kernels(lambda: None, parts)) == [("adam", 5e-6), ("add", 4e-6), ("gemm", 3e-6)]
    assert parts == {"norms": pytest.approx(7e-6)}


def test_plans_use_the_estimate_in_the_document():
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    (ends,) = re.findall(r"^\| H100 \| moslora \|.* (\d+)%–(\d+)% \|$", page, re.M)
    assert [int(end) for end in ends] == [round(100 * share) for share in reversed(SHARE_OF_PEAK)]


@pytest.mark.slow
def test_a_layer_of_llama_3_8b_without_data():
    """In processes of their own, as the pretend device stays where it is. The first layer's input has no gradient."""
    square = 4096 * 4096
    narrow = 4096 * 1024
    wide = 4096 * 14336
    forward = 2 * square + 2 * narrow + 3 * wide
    backward = square + 3 * wide
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    for name, tokens, labels in (("moslora", 1749, 1749 - 16), ("peft", 16 * 192, 16 * 192)):
        ran = python("-m", roofline.__name__, "estimated", name, 1, 16, env=environment, cwd=ROOT)
        said, errors = ran.communicate()
        assert ran.returncode == 0, errors
        fast, slow = json.loads(said.splitlines()[-1])["H100"]
        assert fast["step_ms"] < slow["step_ms"]
        assert fast["waits"] == 1 or name == "peft"
        parts = fast["parts"]
        assert parts[PRODUCTS]["launches"] == 11
        assert parts[PRODUCTS]["TFLOP"] == pytest.approx(2 * tokens * (forward + backward) / 1e12)
        assert parts[OUTPUT]["TFLOP"] == pytest.approx(4 * labels * 4096 * 128256 / 1e12)
        assert parts[REST]["launches"] < 20 and parts["attention"]["TFLOP"] > 0
