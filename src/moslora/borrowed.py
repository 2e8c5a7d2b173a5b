"""Private names of torch that are used here. Each may be missing from another version, and what uses it works without.

`borrowed` is the only place that looks them up.
"""

import importlib
from functools import cache
from typing import Any

WITHOUT = {
    "torch._foreach_copy_": "a copy for each tensor",
    "torch._int_mm": "products of int8 by unpacked weights",
    "torch._softmax_backward_data": "the formula, in several passes over the scores",
    "torch.Tensor._version": "a changed weight is found by a sample of its entries",
    "torch.distributed.ProcessGroup._get_backend": "the long wait for other GPUs also in training",
    "torch.distributed.distributed_c10d._get_default_store": "each process prints its own fault",
    "torch.ops.aten._flash_attention_backward": "padded rows, by torch's other fused kernels",
    "torch.ops.aten._flash_attention_forward": "padded rows, by torch's other fused kernels",
    "torch.ops.aten._scaled_dot_product_flash_attention": "a plan for GPUs that counts the scores",
    "torch.ops.mkldnn._linear_pointwise": "F.linear, which packs the weight for each product",
    "torch.ops.mkldnn._reorder_linear_weight": "F.linear, which packs the weight for each product",
}
"""Private name -> what replaces it where it is missing."""


@cache
def borrowed(name: str) -> Any:
    """Return torch's object of this name, one of :data:`WITHOUT`; ``None`` if the installed torch does not have it."""
    assert name in WITHOUT
    found: Any = importlib.import_module("torch")
    for part in name.split(".")[1:]:
        found = getattr(found, part, None)
    return found
