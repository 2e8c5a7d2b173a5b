"""The adapter folded into the base's weights: an ordinary Hugging Face model, proved against the adapter.

W' = W + s · B · M · A, tensor by tensor, in float32, cast once. The base is read from its safetensors files and
never held whole, and the result is written in shards, so that a machine with little memory can merge.

An adapter of a quantised base has two W to go onto: the checkpoint's own (``original``), or the rounded ones that it
met in training (``dequantized``). The result is not quantised either way.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters import AdapterLinear, LoraPair
from moslora.agreement import Proof, compare
from moslora.card import write_card
from moslora.checkpoint import AdapterFolder, load_adapted, open_adapter
from moslora.errors import MosloraError, UsageError
from moslora.files import new_folder, write_json, writing
from moslora.folded import fixed_task, lora_pairs
from moslora.locate import weight_files
from moslora.model import DTYPES, dequantize, load_base, load_tokenizer, name_task, quantized_layers
from moslora.probe import log_probabilities

ONTO = ("original", "dequantized")
"""Which weights of a quantised base the adapter is added to."""

SHARD_BYTES = 10**9
"""Most bytes of one output file, unless a single tensor is larger."""


def merge(
    adapter: Path,
    *,
    out: Path,
    onto: str = "original",
    task: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Proof:
    """Writes the merged model to ``out`` and compares it with the adapter model.

    One model is in memory at a time: the adapter model first, for the values to compare with. Only ``dequantized``
    keeps the quantised layers as well.

    Args:
        adapter: an adapter folder.
        out: must not exist yet, or be empty.
        onto: ``original`` for the checkpoint's weights, ``dequantized`` for those of the quantised base.
        task: the one that a task gate is fixed to.
        dtype: what the weights are written in, and both models compared in, if not the recipe's.
        trust_remote_code: whether the base's own Python code may be run.

    Raises:
        UsageError: ``out`` is in use, the base is not the adapter's, ``onto`` does not fit it, the mixer is no one
            matrix, its gate was not trained on the task, or ``dtype`` is none.
        MosloraError: the merged model differs by more than its dtype explains; ``out`` is then not written.
    """
    folder = open_adapter(adapter, trust_remote_code=trust_remote_code)
    if dtype not in (None, *DTYPES):
        raise UsageError(f"--dtype {dtype}: none of {', '.join(DTYPES)}")
    section = folder.recipe.model.model_copy(update={"dtype": dtype} if dtype else {})
    if onto not in ONTO:
        raise UsageError(f"--onto {onto}: none of {', '.join(ONTO)}")
    if onto == "dequantized" and section.quantization is None:
        raise UsageError(f"--onto {onto}: the base of {adapter} is not quantised, so there is only --onto original")
    task = fixed_task(folder, task)
    with new_folder(out) as scratch:
        name = out.resolve().name
        tokenizer = load_tokenizer(section)
        model = load_adapted(folder, dtype=section.dtype)
        pairs = lora_pairs(model, task=task)
        adapted = log_probabilities(model, tokenizer)
        del model
        model = load_base(section)
        base = log_probabilities(model, tokenizer)
        layers = quantized_layers(model) if onto == "dequantized" else {}
        del model
        expected = adapted
        if section.quantization is not None:
            expected = log_probabilities(_unquantized(folder, layers, task=task, dtype=section.dtype), tokenizer)
        files = weight_files(section.name, revision=section.revision)
        with writing(out):
            ratio = _write_weights(files, pairs, scratch, layers=layers, dtype=DTYPES[section.dtype])
            layers = {}
            for path in sorted(files[0].parent.iterdir()):
                if path.name in ("config.json", "generation_config.json") or path.suffix == ".py":
                    shutil.copy(path, scratch / path.name)
            _set_dtype(scratch / "config.json", section.dtype)
            tokenizer.save_pretrained(scratch)
            merged = load_base(
                section.model_copy(update={"name": str(scratch), "revision": None, "quantization": None})
            )
            proof = compare(
                base=base,
                adapted=adapted,
                expected=expected,
                merged=log_probabilities(merged, tokenizer),
                ratio=ratio,
                dtype=section.dtype,
                quantization=section.quantization,
                onto=onto,
            )
            write_card(
                scratch,
                folder,
                kind="Merged weights",
                use=(
                    "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                    f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
                    f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
                ),
                proof=str(proof),
            )
    return proof


@torch.no_grad()
def _unquantized(
    folder: AdapterFolder, layers: Mapping[str, nn.Module], *, task: str | None, dtype: str
) -> PreTrainedModel:
    """The adapter model on a base that is not quantised, with the weights of ``layers`` in place of its own."""
    model = load_adapted(folder, quantization=None, dtype=dtype)
    for name, layer in layers.items():
        place, weight = model.get_submodule(name), dequantize(layer)
        plain = place.base if isinstance(place, AdapterLinear) else place
        plain.get_parameter("weight").copy_(weight)
        if isinstance(place, AdapterLinear) and place.magnitude is not None:
            place.magnitude.measure(weight)
    if task is not None:
        name_task(model, task)
    return model


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the files, one at a time."""
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                yield key, file.get_tensor(key)


def _write_weights(
    files: Sequence[Path],
    pairs: Mapping[str, LoraPair],
    out: Path,
    *,
    layers: Mapping[str, nn.Module],
    dtype: torch.dtype,
) -> float:
    """Writes the base's tensors with every ΔW added, in shards of at most :data:`SHARD_BYTES`.

    Args:
        files: the base's.
        pairs: ΔW by layer.
        out: the folder.
        layers: quantised layers whose weights take the place of those in the files.
        dtype: of what is written.

    Returns:
        The mean over the adapted layers of ‖ΔW‖ / ‖W‖.
    """
    ratios: dict[str, float] = {}
    replaced: set[str] = set()
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
        if name in layers:
            tensor = dequantize(layers[name])
            replaced.add(name)
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
    if missing := sorted((pairs.keys() - ratios.keys()) | (layers.keys() - replaced)):
        raise MosloraError(f"{files[0].parent}: no weight for the layers {', '.join(missing)}")
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
