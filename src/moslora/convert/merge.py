"""The adapter folded into the base's weights: an ordinary Hugging Face model, compared with the adapter model.

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
from typing import Any, NamedTuple, TypeVar

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.adapters import AdapterLinear, LoraPair, describe_task, named_adapters
from moslora.base.adapted import merged_by_peft
from moslora.base.load import DTYPES, load_base, load_tokenizer
from moslora.base.quantized import dequantize, quantized_layers
from moslora.base.resolve import INDEX, weight_files
from moslora.base.stored import refuse_stored_together, stored_names
from moslora.choices import DType, Onto
from moslora.convert.card import THIS_FOLDER, Made, public_name, write_card
from moslora.convert.export import lora_pairs, refuse_unfoldable
from moslora.convert.verify import Proof, compare, log_probabilities, weight_sums
from moslora.data.encode import encoding
from moslora.errors import MosloraError, UsageError
from moslora.files import new_folder, write_json
from moslora.recipe import PeftSection
from moslora.runs.adapter_folder import check_encoding, load_adapted, open_adapter
from moslora.runs.evaluation_defaults import write_evaluation_defaults
from moslora.runs.origin import origin_of, write_origin

Value = TypeVar("Value")

SHARD_BYTES = 10**9
"""Most bytes of one output file, unless a single tensor is larger."""

ROWS = 256
"""Rows of a weight that are merged at a time."""


def merge(
    adapter: Path,
    *,
    out: Path,
    onto: Onto = "original",
    task: str | None = None,
    dtype: DType | None = None,
    trust_remote_code: bool = False,
) -> Proof:
    """Writes the merged model to ``out`` and compares it with the adapter model.

    ``task`` fixes a task gate. ``dtype``, by default the recipe's, is that of the weights and of both models compared.
    One model is in memory at a time; only ``dequantized`` keeps the quantised layers as well.

    Raises:
        MosloraError: the merged model differs by more than rounding explains; nothing is written.
    """
    folder = open_adapter(adapter, trust_remote_code=trust_remote_code)
    section = folder.recipe.model.model_copy(update={"dtype": dtype} if dtype else {})
    if onto == "dequantized" and section.quantization is None:
        raise UsageError(f"--onto {onto}: the base of {adapter} is not quantised; use --onto original")
    refuse_unfoldable(folder, task)
    with new_folder(out) as scratch:
        tokenizer = load_tokenizer(section)
        check_encoding(folder, encoding(tokenizer, folder.recipe.data.format))
        model = load_adapted(folder, dtype=section.dtype)
        pairs = lora_pairs(folder, model, task=task)
        adapted = expected = log_probabilities(model, tokenizer)
        layers = dict(named_adapters(model))
        for layer in layers.values():
            layer.base = nn.Identity()  # the layers stay, the model does not
        del model
        model = load_base(section)
        base = log_probabilities(model, tokenizer)
        quantized = quantized_layers(model) if onto == "dequantized" else {}
        stored = stored_names(model)
        refuse_stored_together(pairs, stored)
        del model
        if section.quantization is not None:
            model = load_adapted(folder, dtype=section.dtype, quantization=None, layers=quantized)
            if task is not None:
                describe_task(model, task)
            expected = log_probabilities(model, tokenizer)
            del model
        files = weight_files(section.name, revision=section.revision)
        exact: dict[str, Tensor] = {}
        if isinstance(folder.recipe.adapter, PeftSection):
            exact = merged_by_peft(load_adapted(folder, dtype="float32", quantization=None, layers=quantized))
        start = Start(files, by_stored_layer(quantized, stored), {stored.get(key, key): x for key, x in exact.items()})
        _write_weights(start, by_stored_layer(pairs, stored), scratch, dtype=DTYPES[section.dtype])
        weights = _compare_weights(start, by_stored_layer(layers, stored), scratch)
        del quantized, exact, start  # before another model is loaded
        _write_settings(files[0].parent, scratch, tokenizer, dtype=section.dtype)
        written = section.model_copy(update={"name": str(scratch), "revision": None, "quantization": None})
        merged = log_probabilities(load_base(written), tokenizer)
        proof = compare(
            merged, base=base, adapted=adapted, expected=expected, weights=weights, section=section, onto=onto
        )
        write_evaluation_defaults(scratch, folder.recipe, dtype=section.dtype, task=task)
        write_origin(scratch, origin_of(folder, base=public_name(section.name)))
        made = Made(
            kind="Merged weights",
            scored="Of the adapter over its base, before the merge",
            use=(
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                f'folder = "."  # {THIS_FOLDER}\n'
                "model = AutoModelForCausalLM.from_pretrained(folder)\n"
                "tokenizer = AutoTokenizer.from_pretrained(folder)"
            ),
            proof=str(proof),
            task=task,
        )
        write_card(scratch, folder, made, tokenizer=tokenizer)
    return proof


class Start(NamedTuple):
    """The weights that a merge starts from."""

    files: Sequence[Path]  # of the base
    quantized: Mapping[str, nn.Module]  # by layer, what replaces its weight in the files
    exact: Mapping[str, Tensor]  # by tensor, what is merged already, by PEFT

    def tensor(self, key: str, sources: Mapping[str, Any]) -> Tensor:
        """The tensor ``key``; ``sources`` has the open file of each."""
        if key in self.exact:
            return self.exact[key]
        layer = self.quantized.get(key.removesuffix(".weight"))
        return sources[key].get_tensor(key) if layer is None else dequantize(layer)


def by_stored_layer(layers: Mapping[str, Value], stored: Mapping[str, str]) -> dict[str, Value]:
    """``layers`` by the names that their weights have in the files."""
    return {stored.get(f"{name}.weight", name).removesuffix(".weight"): value for name, value in layers.items()}


def _write_weights(start: Start, pairs: Mapping[str, LoraPair], out: Path, *, dtype: torch.dtype) -> None:
    """Writes the base's tensors with the ΔW of every layer in ``pairs``, at most :data:`SHARD_BYTES` in memory."""
    with _opened(start.files) as sources:
        if missing := {*(f"{name}.weight" for name in (*pairs, *start.quantized)), *start.exact} - sources.keys():
            raise MosloraError(f"{start.files[0].parent}: {', '.join(sorted(missing))} missing from its weights")
        shapes = {key: _cast(file.get_tensor(key).to("meta"), dtype) for key, file in sources.items()}
        shards = split_torch_state_dict_into_shards(shapes, max_shard_size=SHARD_BYTES)
        for name, keys in shards.filename_to_tensors.items():
            shard = {}
            for key in keys:
                tensor = start.tensor(key, sources)
                if pair := pairs.get(key.removesuffix(".weight")):
                    tensor = _adapted(tensor, pair, dtype=dtype)
                shard[key] = _cast(tensor, dtype).contiguous()
            save_file(shard, out / name, metadata={"format": "pt"})
    if shards.is_sharded:
        write_json(out / INDEX, {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename})


@contextmanager
def _opened(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The open file of each tensor."""
    with ExitStack() as stack:
        sources: dict[str, Any] = {}
        for path in files:
            file = stack.enter_context(safe_open(path, framework="pt"))
            sources |= dict.fromkeys(file.keys(), file)
        yield sources


@torch.no_grad()
def _compare_weights(start: Start, layers: Mapping[str, AdapterLinear], out: Path) -> dict[str, Tensor]:
    """`weight_sums` of each adapted layer in ``out``, by the ΔW it computes with, not its pair, and of ``exact``."""
    with _opened(start.files) as base, _opened(out.glob("*.safetensors")) as merged:
        found = {key: weight_sums(merged[key].get_tensor(key), exact=x, plain=x) for key, x in start.exact.items()}
        for name, layer in layers.items():
            key = f"{name}.weight"
            plain = start.tensor(key, base)
            written, delta = merged[key].get_tensor(key), layer.delta_weight()
            found[name] = torch.zeros(3, dtype=torch.float64)
            for begin in range(0, len(plain), ROWS):
                rows = slice(begin, begin + ROWS)
                weight = plain[rows].float()
                adapted = weight + delta[rows]
                if layer.magnitude is not None:
                    adapted *= (layer.magnitude.weight[rows] / adapted.norm(dim=1)).nan_to_num(0, 0)[:, None]
                found[name] += weight_sums(written[rows], exact=adapted, plain=weight)
    return found


def _adapted(weight: Tensor, pair: LoraPair, *, dtype: torch.dtype) -> Tensor:
    """W' in ``dtype``. By a few rows at a time, so that the float32 copies stay small."""
    adapted = torch.empty_like(weight, dtype=dtype)
    for begin in range(0, len(weight), ROWS):
        rows = slice(begin, begin + ROWS)
        adapted[rows] = pair.of_rows(rows).adapted(weight[rows].float())
    return adapted


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _write_settings(base: Path, out: Path, tokenizer: PreTrainedTokenizerBase, *, dtype: DType) -> None:
    """Writes the tokenizer, the base's code, and its configuration with the new dtype."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # older versions of transformers wrote the path on their own disk
    config |= dict.fromkeys(("dtype", "torch_dtype") if "torch_dtype" in config else ("dtype",), dtype)  # its old name
    write_json(out / "config.json", config)
    for path in base.iterdir():
        if path.name == "generation_config.json" or path.suffix == ".py":
            shutil.copy(path, out / path.name)
    tokenizer.save_pretrained(out)
