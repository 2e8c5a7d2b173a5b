"""Private names of torch and transformers in use: each is known, is still there, and has a way out."""

import ast
from pathlib import Path

import torch
from torch.distributed import ProcessGroup, ProcessGroupGloo
from transformers import LlamaForCausalLM, PretrainedConfig

import moslora

PRIVATE = {
    "_attn_implementation": (PretrainedConfig, "keep beside the model which attention was set"),
    "_cdata": (torch.UntypedStorage, "a number of its own on each storage that is made"),
    "_get_backend": (ProcessGroup, "three hours of waiting for other GPUs also in training"),
    "_flash_attention_backward": (torch.ops.aten, "varlen_attn, which launches three fills more"),
    "_flash_attention_forward": (torch.ops.aten, "varlen_attn, which launches three fills more"),
    "_foreach_copy_": (torch, "a copy for each gradient, and one back"),
    "_int_mm": (torch, "int8 on a CPU by unpacked weights alone"),
    "_is_mkldnn_bf16_supported": (torch.ops.mkldnn, "try a product of bfloat16 once"),
    "_is_stateful": (LlamaForCausalLM, "a list of the architectures that are tested"),
    "_linear_pointwise": (torch.ops.mkldnn, "F.linear: slower by what packing the weight takes"),
    "_local_scalar_dense": (torch.ops.aten, "no plan for GPUs of a model that transformers computes"),
    "_reorder_linear_weight": (torch.ops.mkldnn, "F.linear: slower by what packing the weight takes"),
    "_scaled_dot_product_flash_attention": (torch.ops.aten, "in a plan count what it keeps by hand"),
    "_set_default_timeout": (ProcessGroupGloo, "three hours of waiting for other GPUs also in training"),
    "_softmax_backward_data": (torch, "w * (d - (w * d).sum(-1, keepdim=True)): one more pass over the scores"),
    "_supports_attention_backend": (LlamaForCausalLM, "a list of the architectures that are tested"),
    "_supports_sdpa": (LlamaForCausalLM, "a list of the architectures that are tested"),
    "_version": (torch.Tensor, "pack_nothing: without packed copies no change has to be noticed"),
}
"""Name -> where it is, and what would replace it."""

PUBLIC = {"_asdict", "_exit", "_replace"}
"""Of os and of named tuples: documented."""

OF_VLLM = {"_adapter_manager"}
"""Read where vLLM is installed, which the tests do without; there is no public way to a worker's adapters."""


def test_every_private_name_in_use_is_known_and_there():
    nodes = []
    for path in Path(moslora.__file__).parent.rglob("*.py"):
        nodes += ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    imported = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            imported |= {alias.name for alias in node.names}
    private = {name for name in used | imported if name.startswith("_") and not name.startswith("__")}
    assert private - own - PUBLIC - OF_VLLM == PRIVATE.keys()
    assert [name for name, (place, _) in PRIVATE.items() if not hasattr(place, name)] == []
