"""How the processes of a run hold the model: each the whole of it (``ddp``), or each a share of the base (``fsdp``).

In both the adapters are whole everywhere, and DDP reduces their gradients once a step. Sharded, they would be gathered
twice for every micro-batch, and spare a process 16 (1 − 1/n) bytes per trainable parameter: on 8 GPUs 0.4 GB for
LLaMA-3-8B at rank 16 on five projections (28 million), and 1.9 GB for 70B (139 million), beside the 12 and 120 GB that
sharding the base spares.
"""

import warnings
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from moslora.adapters import own_parameters
from moslora.base.sharded import shard_base, shards
from moslora.choices import Strategy
from moslora.training.objective import LabelLoss


def distribute(objective: LabelLoss, accelerator: Accelerator, strategy: Strategy) -> nn.Module:
    """``objective`` as the processes compute it together, on the accelerator's device."""
    if shards(strategy):
        shard_base(objective.model, device=accelerator.device)
    if accelerator.num_processes == 1:
        return objective
    # DDP first sends what is of rank 0 to all: the adapters, as their start may come from a decomposition that another
    # machine rounds differently. Not the base, which all have read: on a CPU each would then have a copy of its own.
    own = own_parameters(objective)
    base = [name for name, weight in objective.named_parameters() if weight not in own]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, base)
    # No buffer changes in training, so none is sent before each pass; what is to replace the argument sends them once.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
    # Not by accelerate, which refuses a sharded base on GPUs.
    return DistributedDataParallel(objective, broadcast_buffers=False)


def facts(objective: nn.Module) -> dict[str, Any]:
    """The strategy that :func:`distribute` chose, and the share of the frozen weights here, read from the model."""
    frozen = [parameter for parameter in objective.parameters() if not parameter.requires_grad]
    here = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in frozen)
    sharded = any(isinstance(p, DTensor) for p in frozen)
    together = isinstance(objective, DistributedDataParallel)
    strategy = ("fsdp" if sharded else "ddp") if together else None
    return {"strategy": strategy, "frozen_share": round(here / sum(p.numel() for p in frozen), 4)}
