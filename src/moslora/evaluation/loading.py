"""The model that ``moslora eval`` scores, loaded, with its tokenizer."""

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
    """The model in evaluation mode on the GPU or else the CPU, sharded if the strategy asks for it."""
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
    """The base's tokenizer, which must be the one that the run was trained with."""
    tokenizer = load_tokenizer(target.model)
    if target.trained is not None:
        encoder = Encoder(tokenizer, max_length=None)
        check_encoding(target.trained, encoding(encoder, target.trained.recipe.data.format))
    return tokenizer


def load(
    run: str | Path, *, dtype: DType | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that ``moslora eval`` would score, on the GPU or else the CPU, in evaluation mode, and its tokenizer.

    >>> model, tokenizer = moslora.load("runs/mine")
    >>> logits = model(**tokenizer("A stone falls.", return_tensors="pt").to(model.device)).logits  # (1, T, vocabulary)

    ``run`` is a run, an adapter folder, or a model without adapters, such as ``moslora merge`` writes. ``dtype`` is
    that of the base and the computation, by default the run's, or bfloat16; A, M and B stay in float32.

    Raises:
        MosloraError: there is no such thing, it is damaged, or it does not fit into the GPU's memory.
    """
    target = open_target(str(run), dtype=dtype, trust_remote_code=trust_remote_code, strategy="ddp")
    return load_model(target), tokenizer_of(target)
