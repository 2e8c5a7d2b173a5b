"""Load a model into memory as ``moslora eval`` scores it, and its tokenizer. `moslora.load` is defined here."""

from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.failures import fitting
from moslora.base.load import load_base, load_tokenizer
from moslora.base.sharded import read_on_host, shard_base, shards
from moslora.choices import DType
from moslora.console import note_once
from moslora.data.encode import Encoder, encoding
from moslora.evaluation.target import Target, open_target
from moslora.processes.devices import device
from moslora.processes.group import group_size
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import check_encoding


def load_model(target: Target) -> PreTrainedModel:
    """Load a model with its adapter in evaluation mode, onto the GPU or else the CPU; sharded for strategy ``fsdp``."""
    if target.remark:
        note_once(target.remark)
    sharded = shards(target.strategy)
    sharding = "--strategy fsdp, " if group_size() > 1 and not sharded else ""
    on_host = read_on_host(target.strategy, target.model, device())
    place = torch.device("cpu") if on_host else device()
    with fitting(target.model, sharding=sharding):
        if target.adapter is None:
            model = load_base(target.model, device=place, computed_here=not on_host)
        else:
            model = load_adapted(
                target.adapter,
                device=place,
                computed_here=not on_host,
                dtype=target.model.dtype,
                engine=target.model.engine,
            )
        if sharded:
            shard_base(model, device=device())
    return model


def tokenizer_of(target: Target) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer.

    Raises:
        MosloraError: the base's tokenizer is not the tokenizer of the run's training.
    """
    tokenizer = load_tokenizer(target.model)
    if target.trained is not None:
        encoder = Encoder(tokenizer, max_length=None)
        check_encoding(target.trained, encoding(encoder, target.trained.recipe.data.format))
    return tokenizer


def load(
    run: str | Path, *, dtype: DType | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a run's model and tokenizer, in evaluation mode, onto the GPU or else the CPU.

    >>> model, tokenizer = moslora.load("runs/mine")
    >>> logits = model(**tokenizer("A stone falls.", return_tensors="pt").to(model.device)).logits  # (1, T, vocabulary)

    Args:
        run: folder of a run or of an adapter, or a model without adapters, such as ``moslora merge`` writes.
        dtype: precision of the base and of the computation; ``None`` for the recipe's, or without a recipe bfloat16. A,
            M and B stay in float32.
        trust_remote_code: allow the base's own Python code.

    Raises:
        MosloraError: there is no such run or model, a file is damaged, or the GPU's memory is too small.
    """
    target = open_target(str(run), dtype=dtype, trust_remote_code=trust_remote_code, strategy="ddp")
    return load_model(target), tokenizer_of(target)
