"""Base sharded over n processes: each keeps 1/n of every decoder layer's frozen weights (torch's ``fully_shard``).

A process holds a whole layer only while it computes it. Every process holds whole adapters, embeddings, final norm and
output layer, as a pass needs them from beginning to end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel

from moslora.adapters import describe_task
from moslora.base.adapted import own_parameters
from moslora.base.load import DTYPES
from moslora.base.quantized import quantized_layers
from moslora.base.shapes import meta_model
from moslora.choices import Strategy
from moslora.errors import UsageError
from moslora.kernels.linear import pack_nothing
from moslora.processes.devices import total_memory
from moslora.processes.group import group_size
from moslora.recipe import ModelSection


def shards(strategy: Strategy) -> bool:
    """Whether the base is sharded, which takes several processes."""
    return strategy == "fsdp" and group_size() > 1


def read_on_host(strategy: Strategy, section: ModelSection, device: torch.device) -> bool:
    """Whether a base that will be sharded is read on the CPU first, where processes share the pages of its file.

    A quantised base is read on the GPU instead. So is one that fits into the GPU's memory twice, because on the CPU
    each process would make its own copy of a file that has another dtype than the base.
    """
    if not shards(strategy) or section.quantization:
        return False
    if device.type == "cpu":
        return True
    numbers = sum(weight.numel() for weight in meta_model(section).parameters())
    return 2 * numbers * DTYPES[section.dtype].itemsize > total_memory(device)


def shard_base(model: PreTrainedModel, *, device: torch.device) -> None:
    """Shard the decoder layers of ``model``, and move it to ``device`` layer by layer.

    Raises:
        UsageError: torch or the model's architecture does not allow it.
    """
    if quantized_layers(model) and torch.__version__ < "2.13":  # fully_shard took only weights that may have a gradient
        raise UsageError(f"fsdp: torch {torch.__version__} cannot shard a base in 4 bits; use ddp, or torch 2.13")
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UsageError(f"fsdp: {type(model).__name__} does not name its decoder layers as LLaMA does; use ddp")
    whole = {*model.parameters()} - {*layers.parameters()} | own_parameters(model)
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    mesh = init_device_mesh(device.type, (group_size(),))
    # The decoder has no weights left, but as their root it gathers a layer while the one before it computes.
    for module in (*layers, model.get_decoder()):
        fully_shard(module, mesh=mesh, ignored_params=whole)
    pack_nothing(model)  # a packed copy would be whole


@contextmanager
def join_uneven_passes(model: PreTrainedModel) -> Iterator[None]:
    """Let processes make different numbers of passes of a sharded ``model``, although each pass takes all processes.

    Like torch's ``Join``: processes that finish early run empty passes until all are done. A model that is not sharded
    is left alone.
    """
    decoder: Any = model.get_decoder()
    if not isinstance(model.get_decoder(), FSDPModule):
        yield
        return

    def before_a_pass(*_: Any) -> None:
        _announce(model, 1)

    hook = decoder.register_forward_pre_hook(before_a_pass, prepend=True)
    try:
        yield
    finally:
        hook.remove()
    describe_task(model, "")
    with torch.inference_mode():
        while _announce(model, 0).item():
            decoder(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)


def _announce(model: PreTrainedModel, passes: int) -> Tensor:
    """Return the number of processes that have a pass to make next; this process contributes ``passes``, 0 or 1."""
    count = torch.full((), passes, device=model.device)
    dist.all_reduce(count)
    return count
