"""How the processes of a run hold the model: each the whole of it (``ddp``), or each a share of the base (``fsdp``).

Under ``fsdp`` each of n processes keeps 1/n of every decoder layer's frozen weights, and has a layer whole only while
it computes it: torch's ``fully_shard``, the same on every device. The adapters are whole everywhere in both, and DDP
reduces their gradients once a step. Sharded, they would be gathered twice for every micro-batch, and spare a process
16 (1 − 1/n) bytes per trainable parameter: on 8 GPUs 0.4 GB for LLaMA-3-8B at rank 16 on five projections (28 million),
and 1.9 GB for 70B (139 million), beside the 14 and 123 GB that sharding the base spares.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from moslora.adapters import named_adapters
from moslora.base.quantized import quantized_layers
from moslora.choices import Strategy
from moslora.data.encode import Encoded
from moslora.data.steps import collate
from moslora.errors import MosloraError
from moslora.training.objective import LabelLoss


def shards(strategy: Strategy, accelerator: Accelerator) -> bool:
    """Whether the base is sharded: not where there is one process."""
    return strategy == "fsdp" and accelerator.num_processes > 1


def distribute(objective: LabelLoss, accelerator: Accelerator, strategy: Strategy) -> nn.Module:
    """``objective`` as the processes compute it together, on the accelerator's device.

    To be sharded its model may lie on the CPU: it goes to the device layer by layer. A quantised one is on its device.

    Raises:
        MosloraError: a quantised model computes something else when it is sharded.
    """
    if shards(strategy, accelerator):
        # Packed in a floating dtype 4-bit codes can be NaNs, which a copy may change (bitsandbytes issue 1945).
        before = _probe(objective, accelerator) if quantized_layers(objective) else None
        _shard(objective, accelerator)
        if before is not None and (after := _probe(objective, accelerator)) != before:
            raise MosloraError(
                f"training.strategy = fsdp: the loss of the sharded model is {after}, of the whole one {before}; set"
                " model.quantization_storage=uint8, or training.strategy=ddp"
            )
    return accelerator.prepare_model(objective)


def _shard(objective: LabelLoss, accelerator: Accelerator) -> None:
    layers = [layer for _, layer in named_adapters(objective)]
    adapters = {parameter for layer in layers for parameter in layer.parameters()}
    adapters -= {parameter for layer in layers for parameter in layer.base.parameters()}
    for parameter in adapters:
        parameter.data = parameter.data.to(accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # The whole last: it takes what is in no layer. Embeddings and output layer may be one tensor.
    for module in (*objective.model.get_decoder().layers, objective):
        fully_shard(module, mesh=mesh, ignored_params=adapters)
    base = {name: parameter for name, parameter in objective.named_parameters() if parameter not in adapters}
    assert all(isinstance(parameter, DTensor) for parameter in base.values())
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, base)


@torch.no_grad()
def _probe(objective: LabelLoss, accelerator: Accelerator) -> float:
    """The loss of 64 tokens, without dropout."""
    tokens = list(range(64))
    row = Encoded(id="", task="", input_ids=tokens, labels=tokens, truncated=False)
    loss, _ = objective.eval()(collate([row], device=accelerator.device))
    if isinstance(objective, FSDPModule):
        objective.reshard()  # without a backward pass the output layer stays gathered
    return float(loss)


def facts(objective: nn.Module) -> dict[str, Any]:
    """What :func:`distribute` made, read from the model: the strategy, and the share of the frozen weights here."""
    frozen = [parameter for parameter in objective.parameters() if not parameter.requires_grad]
    here = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in frozen)
    sharded = any(isinstance(p, DTensor) for p in frozen)
    together = isinstance(objective, DistributedDataParallel)
    strategy = ("fsdp" if sharded else "ddp") if together else None
    return {"strategy": strategy, "frozen_share": round(here / sum(p.numel() for p in frozen), 4)}
