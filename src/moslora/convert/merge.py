"""Merge of an adapter into its base's weights: an ordinary Hugging Face model, compared with the adapter model.

W' = W + s · B · M · A, tensor by tensor, in float32, cast once. The base's safetensors files are read and the result is
written shard by shard, so that a machine with little memory can merge.

Over a quantised base W is either the checkpoint's own (``original``), or the rounded one of the training
(``dequantized``). The result is not quantised.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.adapters import AdapterLinear, LoraPair, named_adapters
from moslora.adapters.folding import ROWS
from moslora.base.adapted import adapters_of
from moslora.base.load import DTYPES, in_files, load_tokenizer, read_base, stored_names
from moslora.base.quantized import dequantize, quantized_layers, write_out
from moslora.base.resolve import INDEX, weight_files
from moslora.choices import DType, Onto
from moslora.convert.card import public_name, write_card
from moslora.convert.export import lora_pairs, refuse_unfoldable
from moslora.convert.proof import Measured, Proof, log_probabilities, prove, weight_sums
from moslora.data.encode import Encoder, encoding
from moslora.errors import MosloraError, UsageError
from moslora.files import new_folder, write_json
from moslora.recipe import ModelSection
from moslora.runs.adapted_model import check_base, with_adapters_of
from moslora.runs.adapter_folder import AdapterFolder, check_encoding, open_adapter
from moslora.runs.evaluation_defaults import write_evaluation_defaults
from moslora.runs.origin import write_origin

SHARD_BYTES = 10**9
"""Maximum size of one output file, unless a single tensor is larger."""


def merge(
    adapter: Path,
    *,
    out: Path,
    onto: Onto = "original",
    task: str | None = None,
    dtype: DType | None = None,
    trust_remote_code: bool = False,
) -> Proof:
    """Write the merged model to ``out`` and compare it with the adapter model.

    The base is loaded once. It is loaded again if an adapter over a quantised base is merged onto the original weights,
    and, in float32, if PEFT does the merging. The written model is loaded once.

    ``task`` is the task at which a task gate is fixed. ``dtype``, by default the recipe's, is that of the weights and
    of both models compared. One model is in memory at a time; ``onto="dequantized"`` keeps the quantised layers as
    well.

    Raises:
        MosloraError: the merged model differs by more than rounding explains; nothing is written.
    """
    folder = open_adapter(adapter, trust_remote_code=trust_remote_code)
    section = folder.recipe.model.model_copy(update={"dtype": dtype or folder.recipe.model.dtype})
    if onto == "dequantized" and section.quantization is None:
        raise UsageError(f"--onto {onto}: the base of {adapter} is not quantised; use --onto original")
    refuse_unfoldable(folder, task)
    with new_folder(out) as scratch:
        tokenizer = load_tokenizer(section)
        check_encoding(folder, encoding(Encoder(tokenizer, max_length=None), folder.recipe.data.format))
        check_base(folder)
        measured = _write_model(scratch, folder, section, tokenizer, onto=onto, task=task)
        written = section.model_copy(update={"name": str(scratch), "revision": None, "quantization": None})
        merged = log_probabilities(read_base(written), tokenizer)
        proof = prove(measured, merged, dtype=section.dtype, quantization=section.quantization, onto=onto)
        write_evaluation_defaults(scratch, folder.recipe, dtype=section.dtype, task=task)
        origin = folder.origin_for(public_name(section.name))
        write_origin(scratch, origin)
        write_card(scratch, folder, origin=origin, proof=str(proof), task=task, tokenizer=tokenizer)
    return proof


def _write_model(
    out: Path,
    folder: AdapterFolder,
    section: ModelSection,
    tokenizer: PreTrainedTokenizerBase,
    *,
    onto: Onto,
    task: str | None,
) -> Measured:
    """Write weights, tokenizer and config to ``out``; ``section`` is the recipe's `model` with the result's dtype."""
    base = read_base(section)
    of_base = log_probabilities(base, tokenizer)
    stored = stored_names(base)
    quantized = quantized_layers(base) if onto == "dequantized" else {}
    merge_whole = adapters_of(folder.recipe).merge

    def load_plain(dtype: DType) -> PreTrainedModel:
        """Adapter model on the unquantised weights that the adapter is merged onto."""
        plain = read_base(section.model_copy(update={"dtype": dtype, "quantization": None}))
        write_out(plain, quantized, DTYPES[dtype])
        return with_adapters_of(folder, plain, task=task)

    model = with_adapters_of(folder, base, task=task)
    del base  # one model is in memory at a time
    of_adapted = expected = log_probabilities(model, tokenizer)
    pairs = in_files(lora_pairs(model, str(folder.path)), stored)
    if section.quantization is not None:
        if onto == "dequantized" and merge_whole is None:
            write_out(model, quantized_layers(model), DTYPES[section.dtype])
        else:
            del model
            model = load_plain(section.dtype)
        expected = log_probabilities(model, tokenizer)
    exact: dict[str, Tensor] = {}
    if merge_whole is not None:
        if section.dtype != "float32":
            del model
            model = load_plain("float32")
        exact = {stored.get(key, key): weight for key, weight in merge_whole(model).items()}
    layers = dict(named_adapters(model))
    for layer in layers.values():
        layer.base = nn.Identity()  # the layers stay, the model does not
    del model
    files = weight_files(section.name, revision=section.revision)
    unmerged = Unmerged(files, in_files(quantized, stored), exact)
    _write_weights(unmerged, pairs, out, dtype=DTYPES[section.dtype])
    _write_settings(files[0].parent, out, tokenizer, dtype=section.dtype)
    return Measured(of_base, of_adapted, expected, _compare_weights(unmerged, in_files(layers, stored), out))


class Unmerged(NamedTuple):
    """Weights that a merge starts from."""

    files: Sequence[Path]  # of the base
    quantized: Mapping[str, nn.Module]  # name of a tensor -> quantised layer that replaces it
    exact: Mapping[str, Tensor]  # name of a tensor -> weight that PEFT has merged

    def tensor(self, key: str, sources: Mapping[str, Any]) -> Tensor:
        """Tensor ``key`` before the merge; ``sources`` maps each name to its open file."""
        if key in self.exact:
            return self.exact[key]
        if key in self.quantized:
            return dequantize(self.quantized[key])
        weight: Tensor = sources[key].get_tensor(key)
        return weight


def _write_weights(unmerged: Unmerged, pairs: Mapping[str, LoraPair], out: Path, *, dtype: torch.dtype) -> None:
    """Write the base's tensors, plus ΔW for each in ``pairs``, with at most :data:`SHARD_BYTES` in memory."""
    with _opened(unmerged.files) as sources:
        missing = {*pairs, *unmerged.quantized, *unmerged.exact} - sources.keys()
        if missing:
            raise MosloraError(
                f"{unmerged.files[0].parent}: {', '.join(sorted(missing))} missing from its weights; download it again"
            )
        shapes = {key: _cast(file.get_tensor(key).to("meta"), dtype) for key, file in sources.items()}
        shards = split_torch_state_dict_into_shards(shapes, max_shard_size=SHARD_BYTES)
        for name, keys in shards.filename_to_tensors.items():
            shard = {}
            for key in keys:
                tensor = unmerged.tensor(key, sources)
                if key in pairs:
                    if tensor.shape != (len(pairs[key].b), pairs[key].a.shape[1]):
                        raise UsageError(
                            f"{key} is stored transposed in the base's files; moslora cannot merge into it"
                        )
                    tensor = pairs[key].adapted(tensor, dtype)
                shard[key] = _cast(tensor, dtype).contiguous()
            save_file(shard, out / name, metadata={"format": "pt"})
    if shards.is_sharded:
        write_json(out / INDEX, {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename})


@contextmanager
def _opened(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Open safetensors files as a mapping from the name of each tensor to its file."""
    with ExitStack() as stack:
        sources: dict[str, Any] = {}
        for path in files:
            file = stack.enter_context(safe_open(path, framework="pt"))
            sources |= dict.fromkeys(file.keys(), file)
        yield sources


@torch.no_grad()
def _compare_weights(unmerged: Unmerged, layers: Mapping[str, AdapterLinear], out: Path) -> dict[str, Tensor]:
    """`weight_sums` of each adapted weight in ``out``, compared with the ΔW that the adapter layer itself computes, not
    with that of the LoRA pair that was merged."""
    sums: dict[str, Tensor] = {}
    with _opened(unmerged.files) as base, _opened(out.glob("*.safetensors")) as merged:
        for key, exact in unmerged.exact.items():
            sums[key] = weight_sums(merged[key].get_tensor(key), exact=exact, plain=exact)
        for key, layer in layers.items():
            plain = unmerged.tensor(key, base)
            written = merged[key].get_tensor(key)
            delta = layer.delta_weight()
            sums[key] = torch.zeros(3, dtype=torch.float64)
            for begin in range(0, len(plain), ROWS):
                rows = slice(begin, begin + ROWS)
                weight = plain[rows].float()
                adapted = weight + delta[rows]
                if layer.magnitude is not None:
                    gain = layer.magnitude.weight[rows] / adapted.norm(dim=1)
                    adapted *= gain.nan_to_num(0, 0)[:, None]
                sums[key] += weight_sums(written[rows], exact=adapted, plain=weight)
    return sums


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in ``dtype`` if it is floating-point, otherwise unchanged."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _write_settings(base: Path, out: Path, tokenizer: PreTrainedTokenizerBase, *, dtype: DType) -> None:
    """Write the tokenizer, the base's own code, and its configuration with the new dtype."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # older versions of transformers wrote the path on their own disk
    config["dtype"] = dtype
    if "torch_dtype" in config:  # its old name
        config["torch_dtype"] = dtype
    write_json(out / "config.json", config)
    for path in base.iterdir():
        if path.name == "generation_config.json" or path.suffix == ".py":
            shutil.copy(path, out / path.name)
    tokenizer.save_pretrained(out)
