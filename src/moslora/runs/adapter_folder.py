"""The adapter folder, the only thing passed between commands.

``adapter.safetensors``  A, M and B of every adapter
``recipe.yaml``          the resolved recipe: rebuilds model, tokenizer and adapters
``manifest.json``        format, base and its fingerprint, step, data hashes, sha256 of every other file and of itself

A folder is written under another name and renamed, so that a reader finds a whole one or none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.base.adapted import adapter_state, with_adapters
from moslora.base.identity import fingerprint
from moslora.base.load import load_base
from moslora.base.quantized import dequantize
from moslora.base.shapes import meta_model
from moslora.console import note
from moslora.errors import MosloraError, UsageError
from moslora.files import replacing, sha256, write_json
from moslora.recipe import Recipe
from moslora.runs.lineage import Predecessor, predecessor_of, tasks_of_gate
from moslora.runs.manifest import FORMAT, MANIFEST, RECIPE, TRUST, WEIGHTS, read_checked, with_own_hash
from moslora.runs.run import Run, run_of
from moslora.tasks import INSTRUCTION
from moslora.version import __version__


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter folder whose hashes were checked."""

    path: Path
    recipe: Recipe
    manifest: dict[str, Any]

    @property
    def run(self) -> Run:
        """The run that it is of; the folder itself if it was copied elsewhere."""
        return run_of(self.path)

    @property
    def predecessor(self) -> Predecessor | None:
        """The adapter that its run continued."""
        return predecessor_of(self.manifest)

    def weights(self) -> dict[str, Tensor]:
        """A, M and B of every adapter, by parameter name."""
        return load_tensors(self.path / WEIGHTS)

    def trained_tasks(self) -> tuple[str, ...] | None:
        """The tasks whose embedding a task gate has trained; ``None`` for other mixers."""
        if not self.recipe.adapter.gated_by_task:
            return None
        return tuple(tasks_of_gate(self.manifest))

    def refuse_untrained(self, task: str) -> None:
        """Refuses a task whose embedding in the adapter's gate is still random."""
        trained = self.trained_tasks()
        if trained is None or task in trained:
            return
        known = ", ".join(name for name in trained if name != INSTRUCTION)
        unknown = "questions without a task" if task == INSTRUCTION else task
        raise UsageError(f"{self.path}: its gate was never trained on {unknown}; --task must be one of {known}")


def save_adapter(
    folder: Path,
    model: PreTrainedModel,
    recipe: Recipe,
    *,
    facts: Mapping[str, Any],
    extra: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Writes ``folder`` whole, replacing an older one.

    Args:
        folder: where.
        model: has the adapters.
        recipe: of its run.
        facts: JSON values for the manifest, such as the step and the data hashes.
        extra: more files of tensors by file name, such as the optimizer's.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in adapter_state(model).items()}
    write_adapter(folder, state, recipe, facts=facts, extra=extra)


def write_adapter(
    folder: Path,
    state: Mapping[str, Tensor],
    recipe: Recipe,
    *,
    facts: Mapping[str, Any],
    extra: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """As :func:`save_adapter`, with the weights in ``state``, on the CPU."""
    files = {WEIGHTS: state, **(extra or {})}
    base = recipe.model.name
    revision = recipe.model.revision
    with replacing(folder) as scratch:
        scratch.mkdir()
        for name, tensors in files.items():
            save_file(dict(tensors), scratch / name)
        (scratch / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "moslora": __version__,
            "base": {"name": base, "revision": revision, "fingerprint": fingerprint(base, revision=revision)},
            **facts,
            "sha256": {name: sha256(scratch / name) for name in (*files, RECIPE)},
        }
        write_json(scratch / MANIFEST, with_own_hash(manifest))


def open_adapter(folder: Path, *, trust_remote_code: bool = False) -> AdapterFolder:
    """Reads and checks an adapter folder; its stored recipe cannot allow the base's own Python code to run."""
    overrides = []
    if trust_remote_code:
        overrides.append(f"{TRUST}=true")
    recipe, manifest = read_checked(folder, overrides)
    return AdapterFolder(folder, recipe, manifest)


def load_adapted(
    folder: AdapterFolder,
    *,
    device: Any = "cpu",
    computed_here: bool = True,
    layers: Mapping[str, nn.Module] | None = None,
    **overrides: Any,
) -> PreTrainedModel:
    """The base of ``folder`` with its adapters, in evaluation mode.

    Args:
        folder: the adapters, and the recipe of their base.
        device: where the model is loaded.
        computed_here: as for `load_base`.
        layers: by name layers whose weights the base's have instead of their own.
        overrides: changes of the recipe's ``model`` section.
    """
    check_base(folder)
    section = folder.recipe.model.model_copy(update=overrides)
    base = load_base(section, device=device, computed_here=computed_here)
    with torch.no_grad():
        for name, layer in (layers or {}).items():
            base.get_submodule(name).get_parameter("weight").copy_(dequantize(layer))
    return _adapt(base, folder)


def load_without_base(folder: AdapterFolder) -> PreTrainedModel:
    """The model on the meta device, with its adapters in memory: enough to fold them."""
    return _adapt(meta_model(folder.recipe.model), folder)


def _adapt(model: PreTrainedModel, folder: AdapterFolder) -> PreTrainedModel:
    try:
        model = with_adapters(model, folder.recipe, state=folder.weights())
    except ValueError as error:
        raise MosloraError(f"{folder.path / WEIGHTS}: does not fit its recipe:\n{error}") from None
    return model.eval()


def check_base(folder: AdapterFolder) -> None:
    """Refuses a base whose weights or config are not those that the adapter was trained on."""
    base = folder.manifest["base"]
    section = folder.recipe.model
    found = fingerprint(section.name, revision=section.revision)
    if found != base["fingerprint"]:
        raise UsageError(
            f"{folder.path}: trained on {base['name']} with fingerprint {base['fingerprint']}, but it now has {found}:"
            " its weights or its config.json changed; restore them, or pin the hub's with model.revision"
        )


def changed_encoding(manifest: Mapping[str, Any], encoding: Mapping[str, str]) -> str:
    """Which of tokenizer and chat template are not those of the adapter with this ``manifest``; empty if none.
    ``encoding`` as from `moslora.data.encode.encoding`."""
    then = manifest.get("encoding", {})
    return " and ".join(key.replace("_", " ") for key, value in encoding.items() if value != then.get(key))


def check_encoding(folder: AdapterFolder, encoding: Mapping[str, str]) -> None:
    """Refuses a tokenizer or a chat template that is not the one that the adapter was trained with.

    Only notes it where the libraries that read the tokenizer are other versions too: they may write the same one
    differently.
    """
    changed = changed_encoding(folder.manifest, encoding)
    if not changed:
        return
    then = folder.manifest.get("packages", {})
    others = [f"{name} {then.get(name)}" for name in ("tokenizers", "transformers") if then.get(name) != version(name)]
    if others:
        note(f"{folder.path}: the base's {changed} may have changed since training, which used {', '.join(others)}")
        return
    raise UsageError(
        f"{folder.path}: the base's {changed} changed since training; restore it, or pin the hub's with model.revision"
    )


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file, on the CPU."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise MosloraError(f"{path}: cannot be read ({error}); use another checkpoint") from None
