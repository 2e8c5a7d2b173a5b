"""What each of two processes runs: the gradient of a step as stock DDP reduces it, beside ours, for every method."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from methods_kit import METHODS, PEFT_METHODS, recipe_of
from moslora.data.steps import label_count
from moslora.process_rank import rank
from moslora.training import gradients, loop
from moslora.training.prepare import prepare

DIFFERENCE = 1e-6
"""Largest difference, relative to the largest entry of each parameter's gradient."""

FEW = ("adapter.dropout=0", "training.micro_batch_tokens=300")


def methods(machines: int) -> list[str]:
    """Methods: all of them within a machine, and one of each kind between machines, where only the exchanges' order
    differs."""
    if machines == 1:
        return [*METHODS, *PEFT_METHODS]
    return ["methods/lora", "methods/moslora", "methods/adalora", "methods/moelora", "methods/dora", "peft/lora"]


def compare(state: Any) -> None:
    """Compare gradients of the same passes, folded in the same parts."""
    rows = state.drawn(0)
    torch.manual_seed(0)
    loop.accumulate(state, rows)
    learned = [weight for weight in state.model.parameters() if weight.requires_grad]
    ours = [weight.grad.clone() for weight in learned]
    state.optimizer.zero_grad()
    objective = DistributedDataParallel(state.objective)
    passes = state.passes(rows)
    assert len(passes) > 1
    tokens = sum(len(row.input_ids) for row in rows)
    for number, of_pass in enumerate(passes, start=1):
        weight = sum(len(row.input_ids) for row in of_pass) / tokens
        last = number == len(passes)
        with nullcontext() if last else objective.no_sync(), state.folded_layers.folded(state.model.dtype):
            loss, penalty = objective(state.micro_batch(of_pass, training=True))
            (state.accelerator.num_processes * (loss / label_count(rows) + penalty * weight)).backward()
    for own, weight in zip(ours, learned, strict=True):
        assert weight.grad.any() and largest(own - weight.grad) <= DIFFERENCE * largest(weight.grad)


def largest(x: Tensor) -> float:
    return float(x.abs().max())


def perturb(state: Any) -> None:
    """Move the weights off their start."""
    generator = torch.Generator().manual_seed(0)
    for weight in state.model.parameters():
        if weight.requires_grad:
            weight.data.add_(0.05 * torch.randn(weight.shape, generator=generator))


def sent_early(state: Any) -> int:
    """Number of buckets that are sent before the step's last backward pass reaches the first layer."""
    sent: list[Any] = []
    found: list[int] = []
    send = gradients._Bucket.send

    def noted(bucket: Any) -> Any:
        sent.append(bucket)
        return send(bucket)

    def watch(_: Any, __: Any, output: Any) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        states.register_hook(lambda _: found.append(len(sent)))

    hook = state.model.get_decoder().layers[0].register_forward_hook(watch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients._Bucket, "send", noted)
        loop.accumulate(state, state.drawn(0))
    hook.remove()
    return found[-1]


def main(world: str, folder: str) -> None:
    own = Path(folder, str(rank()))
    own.mkdir()
    for machines in (1, 2):
        os.environ["LOCAL_WORLD_SIZE"] = str(2 // machines)
        for method in methods(machines):
            few = FEW if method in METHODS else FEW[1:]
            state, _ = prepare(Accelerator(cpu=True), recipe_of(method, Path(world), own, *few))
            perturb(state)
            frozen = {weight for weight in state.model.parameters() if not weight.requires_grad}
            in_buckets = [weight for bucket in state.gradients._buckets for weight in bucket.weights]
            assert len(in_buckets) == len({*in_buckets}) and frozen.isdisjoint(in_buckets), method
            if method in ("methods/lora", "methods/moslora", "peft/lora"):
                assert sent_early(state) == {1: 0, 2: 2}[machines], method
            compare(state)
            if rank() == 0:
                print(method, machines, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
