"""A model with the adapters of an adapter folder: loading and saving."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from moslora.adapters import describe_task
from moslora.base.adapted import with_adapters
from moslora.base.identity import fingerprint
from moslora.base.load import choose_engine_of, read_base
from moslora.base.resolve import commit_of
from moslora.base.shapes import meta_model
from moslora.errors import MosloraError, UsageError
from moslora.files import replacing, sha256, write_json
from moslora.recipe import Recipe
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.manifest import FORMAT, MANIFEST, RECIPE, WEIGHTS, with_own_hash
from moslora.version import __version__


def save_adapter(
    folder: Path,
    files: Mapping[str, Mapping[str, Tensor]],
    recipe: Recipe,
    *,
    facts: Mapping[str, Any],
) -> None:
    """Write an adapter folder atomically, replacing an older one.

    Args:
        folder: its path.
        files: tensors by file name: the adapters' weights, and others such as the optimizer's state.
        recipe: the run's recipe.
        facts: JSON values for the manifest, such as the step and the data hashes.
    """
    base = recipe.model.name
    revision = recipe.model.revision
    with replacing(folder) as scratch:
        scratch.mkdir()
        for name, tensors in files.items():
            on_host = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            save_file(on_host, scratch / name)
        (scratch / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "moslora": __version__,
            "base": {
                "name": base,
                "revision": revision,
                "fingerprint": fingerprint(base, revision=revision),
                "commit": commit_of(base, revision=revision),
            },
            **facts,
            "sha256": {name: sha256(scratch / name) for name in (*files, RECIPE)},
        }
        write_json(scratch / MANIFEST, with_own_hash(manifest))


def load_adapted(
    folder: AdapterFolder,
    *,
    device: Any = "cpu",
    computed_here: bool = True,
    **overrides: Any,
) -> PreTrainedModel:
    """Load the base of an adapter folder with its adapters, in evaluation mode.

    Args:
        folder: the adapters, and the recipe of their base.
        device: where the model is loaded.
        computed_here: as for `load_base`.
        overrides: changes of the recipe's ``model`` section.
    """
    check_base(folder)
    section = folder.recipe.model.model_copy(update={"engine": folder.engine, **overrides})
    base = read_base(section, device=device, computed_here=computed_here)
    model = with_adapters_of(folder, base)
    choose_engine_of(model, section, computed_here=computed_here)
    return model


def load_without_base(folder: AdapterFolder, *, task: str | None = None) -> PreTrainedModel:
    """Model with its base's weights on the meta device and its adapters' in memory, which is enough to fold the
    adapters. A task gate is set to ``task``, if it is given."""
    return with_adapters_of(folder, meta_model(folder.recipe.model), task=task)


def with_adapters_of(folder: AdapterFolder, model: PreTrainedModel, *, task: str | None = None) -> PreTrainedModel:
    """Attach the adapters of ``folder`` to its base ``model``, in place, and set evaluation mode. A task gate is set to
    ``task``, if it is given."""
    try:
        model = with_adapters(model, folder.recipe, state=folder.weights())
    except ValueError as error:
        raise MosloraError(f"{folder.path / WEIGHTS}: does not fit its recipe:\n{error}") from None
    if task is not None:
        describe_task(model, task)
    return model.eval()


def check_base(folder: AdapterFolder) -> None:
    """Refuse a base whose weights or config are not those that the adapter was trained on."""
    base = folder.manifest["base"]
    section = folder.recipe.model
    if fingerprint(section.name, revision=section.revision) != base["fingerprint"]:
        raise UsageError(
            f"{folder.path}: the weights or config.json of its base, {base['name']}, changed since training; restore"
            " them, or train again, with model.revision for a base of the hub"
        )
