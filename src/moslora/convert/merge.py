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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.adapters import AdapterLinear, LoraPair, describe_task, named_adapters
from moslora.base.load import DTYPES, load_base, load_tokenizer
from moslora.base.peft_methods import merged_by_peft
from moslora.base.quantized import dequantize, quantized_layers
from moslora.base.resolve import INDEX, weight_files
from moslora.base.stored import refuse_stored_together, stored_names
from moslora.choices import DType, Onto
from moslora.convert.card import public_name, write_card
from moslora.convert.export import lora_pairs, refuse_unfoldable
from moslora.convert.proof import LogProbabilities, Proof, log_probabilities, prove, weight_sums
from moslora.data.encode import Encoder, encoding
from moslora.errors import MosloraError, UsageError
from moslora.files import new_folder, write_json
from moslora.recipe import ModelSection
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import AdapterFolder, check_encoding, open_adapter
from moslora.runs.evaluation_defaults import write_evaluation_defaults
from moslora.runs.origin import origin_of, write_origin

Value = TypeVar("Value")

SHARD_BYTES = 10**9
"""Maximum size of one output file, unless a single tensor is larger."""

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
    section = folder.recipe.model
    if dtype is not None:
        section = section.model_copy(update={"dtype": dtype})
    if onto == "dequantized" and section.quantization is None:
        raise UsageError(f"--onto {onto}: the base of {adapter} is not quantised; use --onto original")
    refuse_unfoldable(folder, task)
    with new_folder(out) as scratch:
        tokenizer = load_tokenizer(section)
        check_encoding(folder, encoding(Encoder(tokenizer, max_length=None), folder.recipe.data.format))
        merging = Merging(folder, section, onto, task, tokenizer)
        proof = merging.write_model(scratch)
        write_evaluation_defaults(scratch, folder.recipe, dtype=section.dtype, task=task)
        origin = origin_of(folder, base=public_name(section.name))
        write_origin(scratch, origin)
        write_card(scratch, folder, origin=origin, proof=str(proof), task=task, tokenizer=tokenizer)
    return proof


class Adapters(NamedTuple):
    """The adapters of a model, which is no longer in memory."""

    log_p: Tensor  # of the adapter model, as `log_probabilities`
    layers: dict[str, AdapterLinear]  # without their bases
    pairs: dict[str, LoraPair]  # of the same layers


class Base(NamedTuple):
    """A base, which is no longer in memory."""

    log_p: Tensor
    quantized: dict[str, nn.Module]  # its layers, where the adapter is merged onto them
    stored: Mapping[str, str]  # the name of a weight in the model -> its name in the files


@dataclass(frozen=True)
class Merging:
    """One merge, of whose models one is in memory at a time."""

    folder: AdapterFolder
    section: ModelSection  # the base in the dtype of the result
    onto: Onto
    task: str | None
    tokenizer: PreTrainedTokenizerBase

    def write_model(self, out: Path) -> Proof:
        """Writes weights, tokenizer and config to ``out``, and compares them with the adapter model."""
        adapters = self._adapters()
        base = self._base()
        refuse_stored_together(adapters.pairs, base.stored)
        expected = adapters.log_p
        if self.section.quantization is not None:
            expected = self._log_p(self._load(self.section.dtype, quantization=None, layers=base.quantized))
        weights = self._write_weights(out, adapters, base)
        base_log_p = base.log_p
        del base  # with its layers, before another model is loaded
        section = self.section.model_copy(update={"name": str(out), "revision": None, "quantization": None})
        found = LogProbabilities(base_log_p, adapters.log_p, expected, merged=self._log_p(load_base(section)))
        return prove(
            found,
            weights,
            dtype=self.section.dtype,
            quantization=self.section.quantization,
            onto=self.onto,
        )

    def _load(self, dtype: DType, **overrides: Any) -> PreTrainedModel:
        """The adapter model, for the task; ``overrides`` as for `load_adapted`."""
        model = load_adapted(self.folder, dtype=dtype, **overrides)
        if self.task is not None:
            describe_task(model, self.task)
        return model

    def _log_p(self, model: PreTrainedModel) -> Tensor:
        return log_probabilities(model, self.tokenizer)

    def _adapters(self) -> Adapters:
        model = self._load(self.section.dtype)
        pairs = lora_pairs(model, str(self.folder.path))
        log_p = self._log_p(model)
        layers = dict(named_adapters(model))
        for layer in layers.values():
            layer.base = nn.Identity()  # the layers stay, the model does not
        return Adapters(log_p, layers, pairs)

    def _base(self) -> Base:
        model = load_base(self.section)
        log_p = self._log_p(model)
        quantized: dict[str, nn.Module] = {}
        if self.onto == "dequantized":
            quantized = quantized_layers(model)
        return Base(log_p, quantized, stored_names(model))

    def _write_weights(self, out: Path, adapters: Adapters, base: Base) -> dict[str, Tensor]:
        """Writes all but a card to ``out``; the `weight_sums` of each adapted layer there."""
        files = weight_files(self.section.name, revision=self.section.revision)
        exact = {}
        if self.folder.recipe.adapter.needs_peft:
            merged = merged_by_peft(self._load("float32", quantization=None, layers=base.quantized))
            exact = {base.stored.get(key, key): weight for key, weight in merged.items()}
        start = Start(files, by_stored_layer(base.quantized, base.stored), exact)
        pairs = by_stored_layer(adapters.pairs, base.stored)
        _write_weights(start, pairs, out, dtype=DTYPES[self.section.dtype])
        _write_settings(files[0].parent, out, self.tokenizer, dtype=self.section.dtype)
        return _compare_weights(start, by_stored_layer(adapters.layers, base.stored), out)


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
        if layer is not None:
            return dequantize(layer)
        weight: Tensor = sources[key].get_tensor(key)
        return weight


def by_stored_layer(layers: Mapping[str, Value], stored: Mapping[str, str]) -> dict[str, Value]:
    """``layers`` by the names that their weights have in the files."""
    return {stored.get(f"{name}.weight", name).removesuffix(".weight"): value for name, value in layers.items()}


def _write_weights(start: Start, pairs: Mapping[str, LoraPair], out: Path, *, dtype: torch.dtype) -> None:
    """Writes the base's tensors with the ΔW of every layer in ``pairs``, at most :data:`SHARD_BYTES` in memory."""
    with _opened(start.files) as sources:
        needed = {f"{name}.weight" for name in (*pairs, *start.quantized)} | start.exact.keys()
        missing = needed - sources.keys()
        if missing:
            raise MosloraError(f"{start.files[0].parent}: {', '.join(sorted(missing))} missing from its weights")
        shapes = {key: _cast(file.get_tensor(key).to("meta"), dtype) for key, file in sources.items()}
        shards = split_torch_state_dict_into_shards(shapes, max_shard_size=SHARD_BYTES)
        for name, keys in shards.filename_to_tensors.items():
            shard = {}
            for key in keys:
                tensor = start.tensor(key, sources)
                pair = pairs.get(key.removesuffix(".weight"))
                if pair is not None:
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
    found: dict[str, Tensor] = {}
    with _opened(start.files) as base, _opened(out.glob("*.safetensors")) as merged:
        for key, exact in start.exact.items():
            found[key] = weight_sums(merged[key].get_tensor(key), exact=exact, plain=exact)
        for name, layer in layers.items():
            key = f"{name}.weight"
            plain = start.tensor(key, base)
            weight_there = merged[key].get_tensor(key)
            delta = layer.delta_weight()
            sums = torch.zeros(3, dtype=torch.float64)
            for begin in range(0, len(plain), ROWS):
                rows = slice(begin, begin + ROWS)
                weight = plain[rows].float()
                adapted = weight + delta[rows]
                if layer.magnitude is not None:
                    gain = layer.magnitude.weight[rows] / adapted.norm(dim=1)
                    adapted *= gain.nan_to_num(0, 0)[:, None]
                sums += weight_sums(weight_there[rows], exact=adapted, plain=weight)
            found[name] = sums
    return found


def _adapted(weight: Tensor, pair: LoraPair, *, dtype: torch.dtype) -> Tensor:
    """W' in ``dtype``. By a few rows at a time, so that the float32 copies stay small."""
    adapted = torch.empty_like(weight, dtype=dtype)
    for begin in range(0, len(weight), ROWS):
        rows = slice(begin, begin + ROWS)
        adapted[rows] = pair.of_rows(rows).adapted(weight[rows].float())
    return adapted


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in ``dtype``, where it has floating-point numbers."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(dtype)


def _write_settings(base: Path, out: Path, tokenizer: PreTrainedTokenizerBase, *, dtype: DType) -> None:
    """Writes the tokenizer, the base's code, and its configuration with the new dtype."""
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
