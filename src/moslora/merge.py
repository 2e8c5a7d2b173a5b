"""The adapter folded into the base's weights: an ordinary Hugging Face model, proved against the adapter.

W' = W + s · B · M · A, tensor by tensor, in float32, cast once. The base is read from its safetensors files and
never held whole, and the result is written in shards, so that a machine with little memory can merge.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from moslora.adapters import LoraPair, named_adapters
from moslora.card import write_card
from moslora.checkpoint import (
    load_adapted,
    open_adapter,
    refuse_used,
    replacing,
    write_json,
)
from moslora.errors import MosloraError
from moslora.folded import lora_pairs
from moslora.locate import weight_files
from moslora.model import DTYPES, load_base, load_tokenizer
from moslora.probe import LogProbabilities, log_probabilities

SHARD_BYTES = 10**9
"""Most bytes of one output file, unless a single tensor is larger."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2, "float16": 0.03}
"""Largest accepted error of a merged model's log-probabilities, in nats and per position on average."""

WARNING = "; WARNING: that is no more than the rounding of the merge, so keep the adapter or merge in float32"


@dataclass(frozen=True)
class Proof:
    """Merged against adapter model, over all positions of :data:`moslora.probe.PROMPTS`.

    Attributes:
        mean_error: mean |Δ log p| of the token that follows, in nats.
        max_error: the largest.
        kl: mean KL(adapter ‖ merged), in nats.
        effect: mean |Δ log p| between the base and the adapter model: what there was to preserve.
        ratio: ‖ΔW‖ / ‖W‖, the mean over layers; small ones drown in the rounding of the merge.
        dtype: of both models.
    """

    mean_error: float
    max_error: float
    kl: float
    effect: float
    ratio: float
    dtype: str

    def __str__(self) -> str:
        return (
            f"merged against adapter model in {self.dtype}: mean |Δ log p| {self.mean_error:.2g}, largest"
            f" {self.max_error:.2g}, KL {self.kl:.2g} nats; the adapter itself moves them by {self.effect:.2g}"
            f" (‖ΔW‖/‖W‖ {self.ratio:.2%})" + ("" if self.mean_error < self.effect else WARNING)
        )


def merge(adapter: Path, *, out: Path) -> Proof:
    """Writes the merged model to ``out`` and compares it with the adapter model.

    One model is in memory at a time: the adapter model first, for the values to compare with.

    Args:
        adapter: an adapter folder.
        out: must not exist yet, or be empty.

    Raises:
        UsageError: ``out`` is in use, or the base is not the adapter's.
        MosloraError: the merged model differs by more than its dtype explains; ``out`` is then not written.
    """
    folder = open_adapter(adapter)
    refuse_used(out)
    section = folder.recipe.model
    tokenizer = load_tokenizer(**section.tokenizer())
    model = load_adapted(folder)
    adapted = log_probabilities(model, tokenizer)
    pairs = lora_pairs(model, path=folder.path)
    for _, layer in named_adapters(model):
        layer.scale = 0.0
    base = log_probabilities(model, tokenizer)
    del model
    files = weight_files(section.name, revision=section.revision)
    with replacing(out) as scratch:
        ratio = _write_weights(files, pairs, scratch, dtype=DTYPES[section.dtype])
        for path in sorted(files[0].parent.iterdir()):
            if path.name in ("config.json", "generation_config.json") or path.suffix == ".py":
                shutil.copy(path, scratch / path.name)
        _set_dtype(scratch / "config.json", section.dtype)
        tokenizer.save_pretrained(scratch)
        merged = load_base(**{**section.model_dump(), "name": str(scratch), "revision": None})
        proof = compare(
            base=base,
            adapted=adapted,
            merged=log_probabilities(merged, tokenizer),
            ratio=ratio,
            dtype=section.dtype,
        )
        write_card(
            scratch,
            folder,
            kind="Merged weights",
            use=(
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                f'model = AutoModelForCausalLM.from_pretrained("{out.name}")\n'
                f'tokenizer = AutoTokenizer.from_pretrained("{out.name}")'
            ),
            proof=str(proof),
        )
    return proof


def compare(
    *,
    base: list[LogProbabilities],
    adapted: list[LogProbabilities],
    merged: list[LogProbabilities],
    ratio: float,
    dtype: str,
) -> Proof:
    """Measures what the merge changed, and what the adapter had changed.

    Raises:
        MosloraError: the mean error is beyond :data:`TOLERANCE`.
    """

    def differences(others: list[LogProbabilities]) -> Tensor:
        return torch.cat([(one.following - other.following).abs() for one, other in zip(adapted, others, strict=True)])

    errors = differences(merged)
    divergences = [(one.all.exp() * (one.all - other.all)).sum(-1) for one, other in zip(adapted, merged, strict=True)]
    proof = Proof(
        mean_error=float(errors.mean()),
        max_error=float(errors.max()),
        kl=float(torch.cat(divergences).mean()),
        effect=float(differences(base).mean()),
        ratio=ratio,
        dtype=dtype,
    )
    if not proof.mean_error <= TOLERANCE[dtype]:
        raise MosloraError(f"{proof}: beyond the tolerance of {TOLERANCE[dtype]:g}; nothing was written")
    return proof


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the files, one at a time."""
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                yield key, file.get_tensor(key)


def _write_weights(files: Sequence[Path], pairs: Mapping[str, LoraPair], out: Path, *, dtype: torch.dtype) -> float:
    """Writes the base's tensors with every ΔW added, in shards of at most :data:`SHARD_BYTES`.

    Returns:
        The mean over the adapted layers of ‖ΔW‖ / ‖W‖.
    """
    ratios: dict[str, float] = {}
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal pending, size
        save_file(pending, out / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending, size = {}, 0

    for key, tensor in _tensors(files):
        name = key.removesuffix(".weight")
        if name in pairs:
            weight = tensor.float()
            tensor = pairs[name].adapted(weight)
            ratios[name] = float((tensor - weight).norm() / weight.norm())
        if tensor.is_floating_point():
            tensor = tensor.to(dtype)
        if pending and size + tensor.nbytes > SHARD_BYTES:
            flush()
        pending[key] = tensor.contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    if missing := sorted(pairs.keys() - ratios.keys()):
        raise MosloraError(f"{files[0].parent}: no weight for the adapted layers {', '.join(missing)}")
    _name_shards(out, shards, total_bytes=total)
    return sum(ratios.values()) / len(ratios)


def _name_shards(out: Path, shards: list[list[str]], *, total_bytes: int) -> None:
    """Gives the shards the names that transformers expects, which hold their number."""
    if len(shards) == 1:
        (out / "shard-0").rename(out / "model.safetensors")
        return
    weight_map = {}
    for number, keys in enumerate(shards):
        name = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (out / f"shard-{number}").rename(out / name)
        weight_map.update(dict.fromkeys(keys, name))
    write_json(
        out / "model.safetensors.index.json", {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    )


def _set_dtype(config: Path, dtype: str) -> None:
    values: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    values["dtype"] = dtype
    if "torch_dtype" in values:  # the key's former name, which older readers know
        values["torch_dtype"] = dtype
    write_json(config, values)
