"""The adapter folder, the only thing passed between commands. Importing this module does not load torch.

``adapter.safetensors``  A, M and B of every adapter
``recipe.yaml``          the resolved recipe: rebuilds model, tokenizer and adapters
``manifest.json``        format, base and its fingerprint, step, data hashes, sha256 of every other file and of itself

A folder is written under another name and renamed, so that a reader finds a whole one or none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moslora.choices import EngineChoice
from moslora.console import note
from moslora.errors import MosloraError, UsageError
from moslora.files import sha256
from moslora.recipe import Recipe
from moslora.runs.best import TRAINED_STEPS
from moslora.runs.manifest import RECIPE, TRUST, WEIGHTS, read_manifest, written_recipe
from moslora.runs.origin import Origin, predecessor_of
from moslora.runs.run import Run, run_of
from moslora.runs.strength import Strength, strength_of

if TYPE_CHECKING:
    from torch import Tensor

ENGINE = "engine"
"""Key of the engine that trained an adapter, in its manifest."""


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter folder whose hashes were checked."""

    path: Path
    recipe: Recipe
    manifest: dict[str, Any]

    @property
    def run(self) -> Run:
        """Run that the adapter belongs to; the adapter folder itself if it was copied elsewhere."""
        return run_of(self.path)

    @property
    def strength(self) -> Strength | None:
        """Strength at which the adapter applies a run's change; ``None`` for an adapter as it was trained."""
        return strength_of(self.manifest)

    @property
    def run_name(self) -> str:
        """Name of the run that trained the adapter."""
        return self.strength.run if self.strength else self.run.name

    @property
    def predecessor(self) -> Origin | None:
        """Adapter that the run continued; ``None`` if it started at the base."""
        return predecessor_of(self.manifest)

    @property
    def engine(self) -> EngineChoice:
        """Engine that computes the model: one over padded rows if it trained the adapter, else the recipe's choice."""
        trained_by: EngineChoice | None = self.manifest.get(ENGINE)
        if trained_by in ("padded", "transformers"):
            return trained_by
        return self.recipe.model.engine

    def origin_for(self, base: str) -> Origin:
        """Origin to record in a folder made from the adapter; ``base`` is the public name of its base."""
        steps = self.run.facts.get("steps")
        if TRAINED_STEPS in self.manifest:
            steps = None
        return Origin(
            run=self.strength.run if self.strength else self.recipe.name,
            adapter=self.manifest["sha256"][WEIGHTS],
            step=self.manifest.get("step"),
            steps=steps,
            base=base,
            fingerprint=self.manifest["base"]["fingerprint"],
            gate_tasks=tuple(sorted(self.trained_tasks() or ())),
            continued_from=self.predecessor,
            strength=self.strength.value if self.strength else None,
        )

    def weights(self) -> "dict[str, Tensor]":
        """A ``(r, in)``, M and B ``(out, rank_out)`` of every adapted layer, by parameter name."""
        return load_tensors(self.path / WEIGHTS)

    def trained_tasks(self) -> tuple[str, ...] | None:
        """Tasks whose embeddings the task gate was trained on; ``None`` for other mixers."""
        if not self.recipe.adapter.gated_by_task:
            return None
        before = self.predecessor.gate_tasks if self.predecessor else ()
        return tuple(dict.fromkeys((*self.manifest["data"]["tasks"], *before)))

    def refuse_untrained(self, task: str) -> None:
        """Refuse a task whose embedding in the adapter's gate was never trained."""
        trained = self.trained_tasks()
        if trained is not None and task not in trained:
            raise UsageError(
                f"{self.path}: its gate was never trained on {task}; --task must be one of {', '.join(trained)}"
            )


def open_adapter(folder: Path, *, trust_remote_code: bool = False) -> AdapterFolder:
    """Read an adapter folder and check the hash of every file.

    Its recipe cannot allow the base's own Python code to run; only ``trust_remote_code`` does.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["sha256"].items():
        path = folder / name
        if not path.is_file() or sha256(path) != expected:
            raise MosloraError(f"{path}: missing, altered or truncated; use another checkpoint")
    trust = f"{TRUST}={str(trust_remote_code).lower()}"
    return AdapterFolder(folder, written_recipe(folder / RECIPE, [trust], by=manifest["moslora"]), manifest)


def changed_encoding(manifest: Mapping[str, Any], encoding: Mapping[str, str]) -> str:
    """Names of what changed since training, tokenizer or chat template; empty if neither did.

    ``manifest`` is the adapter's, ``encoding`` the hashes of `moslora.data.encode.encoding`.
    """
    then = manifest.get("encoding", {})
    return " and ".join(key.replace("_", " ") for key, value in encoding.items() if value != then.get(key))


def check_encoding(folder: AdapterFolder, encoding: Mapping[str, str]) -> None:
    """Refuse a tokenizer or a chat template that differs from the one of the training.

    If tokenizers or transformers has another version than in training, only note either difference: another version
    may serialise the same tokenizer differently.
    """
    changed = changed_encoding(folder.manifest, encoding)
    if not changed:
        return
    then = folder.manifest.get("packages", {})
    if any(then.get(name) != version(name) for name in ("tokenizers", "transformers")):
        note(
            f"{folder.path}: the base's {changed} may have changed since training, which used other versions of"
            " tokenizers or transformers"
        )
        return
    raise UsageError(
        f"{folder.path}: the base's {changed} changed since training; restore it, or train again, with"
        " model.revision for a base of the hub"
    )


def load_tensors(path: Path) -> "dict[str, Tensor]":
    """Read the tensors of a safetensors file by name, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # imports torch

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise MosloraError(f"{path}: cannot be read ({error}); use another checkpoint") from None
