"""vLLM's own loader of adapters, over a model without weights. Only its functions need vLLM."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from moslora.errors import first_line

SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}

LARGEST_RANK = 512
"""Largest rank of an adapter that vLLM allows."""


def load(folder: Path, modules: Sequence[str], base: Path | str) -> tuple[str, list[str], str]:
    """Let vLLM load the adapter in ``folder`` over the model of ``base`` on the meta device.

    Args:
        folder: in PEFT's format.
        modules: names of the adapter's modules.
        base: folder or hub id of the base.

    Returns:
        vLLM's version; the ``modules`` that it applies; and why it refuses the adapter, or an empty string.
    """
    os.environ |= {name: value for name, value in SETTINGS.items() if name not in os.environ}
    import vllm
    from vllm.lora.request import LoRARequest

    version: str = vllm.__version__
    try:
        with TemporaryDirectory() as scratch:
            manager = manager_of(base, Path(scratch))
            manager.add_adapter(LoRARequest("adapter", 1, str(folder)))
    except (ValueError, RuntimeError, AssertionError) as error:
        return version, [], first_line(error)
    return version, [name for name in modules if applies(manager, name)], ""


def manager_of(base: Path | str, scratch: Path) -> Any:
    """vLLM's manager of adapters, over the model of ``base``; its process group uses a file in ``scratch``."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.worker_manager import WorkerLoRAManager
    from vllm.model_executor.model_loader.utils import initialize_model

    engine = EngineArgs(
        model=str(base),
        enable_lora=True,
        max_lora_rank=LARGEST_RANK,
        enforce_eager=True,
        max_model_len=32,
        max_num_batched_tokens=64,
        max_num_seqs=1,
        skip_tokenizer_init=True,
    ).create_engine_config()
    meta = torch.device("meta")
    with set_current_vllm_config(engine):
        if not torch.distributed.is_initialized():
            init_distributed_environment(1, 0, f"file://{scratch}/store", 0, "gloo")
            initialize_model_parallel(1)
        with meta:
            model = initialize_model(engine)
            manager = WorkerLoRAManager(engine, meta, getattr(model, "embedding_modules", {}))
            manager.create_lora_manager(model, engine)
    return manager


def applies(manager: Any, module: str) -> bool:
    """Whether a layer of the model takes the weights of an adapter's ``module``."""
    from vllm.lora.utils import parse_fine_tuned_lora_name

    layers = manager._adapter_manager
    mapper = getattr(layers.model, "hf_to_vllm_mapper", None)
    if mapper is not None:
        mapper = mapper.get_rename_mapper()
    name, _ = parse_fine_tuned_lora_name(f"base_model.model.{module}.lora_A.weight", mapper)
    return any(name in layers.packed_modules.get(layer, [layer]) for layer in layers.modules)
