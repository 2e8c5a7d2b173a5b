"""The adapter folder, the only thing passed between commands.

``adapter.safetensors``  A, M and B of every adapter
``recipe.yaml``          the resolved recipe: rebuilds model, tokenizer and adapters
``manifest.json``        format, base and its fingerprint, step, data hashes, sha256 of every other file and of itself

A folder is written beside its place and renamed into it, so that a reader finds a whole one or none.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from moslora.adapters import adapter_state_dict, inject
from moslora.data.fetch import sha256
from moslora.disk import LOCK, DiskFull, held, refuse_file, resolved, writing
from moslora.errors import MosloraError, UsageError
from moslora.locate import fingerprint
from moslora.manifest import FORMAT, MANIFEST, RECIPE, TRUST, WEIGHTS, load_written, read_manifest, with_own_hash
from moslora.model import dequantize, load_base
from moslora.recipe import Recipe

RUN = "run.json"

MADE = "moslora"
"""Key of the metadata of merged and exported weights, for what they were made of."""

SCRATCH = ".moslora.writing"
"""What is not yet whole in a folder that was there before."""

MARKS = ("config.json", "adapter_config.json", "adapter")
"""By these a reader takes a folder for what it is: the last to be there."""


@dataclass(frozen=True)
class AdapterFolder:
    """A checked adapter folder: every hash fits."""

    path: Path
    recipe: Recipe
    manifest: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """A, M and B of every adapter, by parameter name."""
        return load_tensors(self.path / WEIGHTS)

    def metadata(self, kind: str, *, task: str | None) -> dict[str, str]:
        """What goes into the header of weights that are made of this adapter, for :func:`refuse_used` to tell."""
        step = self.manifest.get("step")
        made = f"{kind} of {'an imported adapter' if step is None else f'step {step}'}{f' for {task}' if task else ''}"
        return {"format": "pt", MADE: made}

    def trained_tasks(self) -> tuple[str, ...] | None:
        """The tasks whose embedding a task gate has trained; ``None`` for other mixers, or where not recorded."""
        counts = self.manifest.get("data", {}).get("tasks")
        return tuple(counts) if counts is not None and self.recipe.adapter.mixer.kind == "task-gate" else None


def locate_adapter(path: Path) -> Path:
    """The adapter folder that ``path`` means: itself, a run's ``adapter/``, or the run's newest checkpoint.

    Raises:
        UsageError: there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    if (path / "adapter" / MANIFEST).is_file():
        return path / "adapter"
    if found := checkpoints(path):
        return found[-1]
    if not path.exists():
        raise UsageError(f"{path}: no such run; {_known_runs(path)}")
    if (path / "adapter_config.json").is_file():
        raise UsageError(f"{path}: a PEFT adapter, not an adapter folder of moslora; read it by moslora import {path}")
    if (path / "config.json").is_file():
        raise UsageError(f"{path}: a model, without an adapter in it; name a run or an adapter folder")
    if (path / RECIPE).is_file():
        raise UsageError(f"{path}: this run has no checkpoint yet; go on with it: moslora train {path} --resume")
    raise UsageError(f"{path}: neither a run nor an adapter folder (no {MANIFEST}); {_known_runs(path)}")


def progress(run: Path, adapter: Path) -> str | None:
    """How far ``run`` is, where ``adapter`` is only the newest of its checkpoints, for want of a result."""
    if adapter.parent != run / "checkpoints":
        return None
    steps = _run_facts(run).get("steps")
    return adapter.name.replace("-", " ") + (f" of {steps}" if steps else "")


def _run_facts(run: Path) -> dict[str, Any]:
    """What run.json says; nothing where the run was killed before it was written."""
    try:
        facts = json.loads((run / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def run_folder(adapter: Path) -> Path:
    """The run that an adapter folder lies in; the folder itself if it was copied elsewhere."""
    for parent in (adapter.parent, adapter.parent.parent):
        if (parent / RUN).is_file():
            return parent
    return adapter


def newest_run(runs: Path) -> Path:
    """The run in ``runs`` that was written to last.

    Raises:
        UsageError: there is none.
    """
    found = [manifest.parent.parent for manifest in runs.glob(f"*/adapter/{MANIFEST}")]
    if not found:
        raise UsageError(f"{runs}: no finished run here; name a run or a model, or train one: moslora train RECIPE")
    return max(found, key=lambda run: (run / "adapter" / MANIFEST).stat().st_mtime)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Unfinished ones have other names and do not count."""
    found = [path for path in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _known_runs(path: Path) -> str:
    """What there is in place of ``path``: a run of that name, or else the checkpoints or runs nearest to it."""
    folder = next(place for place in (path, *path.parents) if place.is_dir())
    runs = sorted(found.parent for place in (folder, folder / "runs") for found in place.glob(f"*/{RUN}"))
    if named := [run for run in runs if run.name == path.name]:
        return f"did you mean {named[0]}?"
    steps = checkpoints(folder.parent if folder.name == "checkpoints" else folder)
    for what, found in (("checkpoints", steps), ("runs", runs)):
        if found:
            return f"{what} here: {', '.join(map(str, found))}"
    return "there are no runs here"


def save_adapter(
    folder: Path,
    model: PreTrainedModel,
    recipe: Recipe,
    *,
    facts: Mapping[str, Any],
    extra: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Writes ``folder`` in one piece, replacing an older one, and reads the weights back.

    Args:
        folder: where.
        model: with adapters.
        recipe: the resolved recipe that made them.
        facts: JSON values for the manifest, such as the step and the data hashes.
        extra: more files of tensors by file name, such as the optimizer's.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in adapter_state_dict(model).items()}
    with replacing(folder) as scratch:
        files = {WEIGHTS: state, **(extra or {})}
        for name, tensors in files.items():
            save_file(dict(tensors), scratch / name)
        (scratch / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "moslora": version("moslora"),
            "base": {
                "name": recipe.model.name,
                "revision": recipe.model.revision,
                "fingerprint": fingerprint(recipe.model.name, revision=recipe.model.revision),
            },
            **facts,
            "sha256": {name: sha256(scratch / name) for name in (*files, RECIPE)},
        }
        write_json(scratch / MANIFEST, with_own_hash(manifest))
        written = load_tensors(scratch / WEIGHTS)
        if any(not value.equal(written[key]) for key, value in state.items()):
            raise MosloraError(f"{folder}: the weights read back differ from those written; is the disk sound?")


def open_adapter(folder: Path, *, trust_remote_code: bool = False) -> AdapterFolder:
    """Reads and checks an adapter folder.

    Args:
        folder: the adapter folder.
        trust_remote_code: whether the base's own Python code may be run; the stored recipe cannot allow it.

    Raises:
        UsageError: not an adapter folder, or one of a newer version.
        MosloraError: a file is missing or was altered.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["sha256"].items():
        if not (folder / name).is_file():
            raise MosloraError(f"{folder / name}: missing; take another checkpoint")
        if sha256(folder / name) != expected:
            raise MosloraError(f"{folder / name}: altered or truncated (its sha256 differs); take another checkpoint")
    overrides = (f"{TRUST}=true",) if trust_remote_code else ()
    return AdapterFolder(folder, load_written(folder / RECIPE, overrides, by=manifest["moslora"]), manifest)


def stored_recipe(run: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a run was begun with, to go on with it; what it trusted, ``overrides`` have to say again.

    Raises:
        UsageError: ``run`` is no run, or one that was imported, or its recipe cannot be read here.
    """
    if (run / MANIFEST).is_file():
        raise UsageError(f"{run}: an adapter folder or a checkpoint; name the run that it lies in, to go on with that")
    if "imported" in _run_facts(run):
        raise UsageError(f"{run}: an imported adapter, without a training to go on with; evaluate, merge or export it")
    if not (run / RECIPE).is_file():
        locate_adapter(run)  # says what the folder is instead
        raise UsageError(f"{run / RECIPE}: missing, so this run cannot go on; put it back from one of its checkpoints")
    return load_written(run / RECIPE, overrides, by=_run_facts(run).get("moslora"))


def load_adapted(folder: AdapterFolder, *, device: Any = "cpu", **overrides: Any) -> PreTrainedModel:
    """The base of ``folder`` with its adapters, in evaluation mode.

    Args:
        folder: from :func:`open_adapter`.
        device: where the model goes.
        overrides: arguments of :func:`moslora.model.load_base` that differ from the recipe's, such as ``dtype``.

    Raises:
        UsageError: the base is another one than the adapter was trained on.
    """
    check_base(folder)
    model = load_base(**{**folder.recipe.model.model_dump(), **overrides}, device=device)
    try:
        inject(model, **folder.recipe.adapter.model_dump(), state=folder.weights(), weight_of=dequantize)
    except ValueError as error:
        raise MosloraError(f"{folder.path / WEIGHTS}: does not fit its recipe:\n{error}") from None
    return model.eval()


def check_base(folder: AdapterFolder) -> None:
    """Refuses a base that is not the one the adapter was trained on.

    Raises:
        UsageError: the name stands for other weights by now.
    """
    base, section = folder.manifest["base"], folder.recipe.model
    if (found := fingerprint(section.name, revision=section.revision)) != base["fingerprint"]:
        raise UsageError(
            f"{folder.path}: trained on {base['name']} with fingerprint {base['fingerprint']}, but what lies there now"
            f" has {found}; put the weights back, or pin the hub's with model.revision"
        )


def refuse_used(out: Path) -> None:
    """Refuses an output folder with something in it.

    Raises:
        UsageError: it is not empty, or it or one that it lies in is a file.
    """
    refuse_file(out)
    if in_use(out):
        raise UsageError(f"{out}: {_content(out)}; choose another folder with --out, or remove it")


def _content(folder: Path) -> str:
    """What is in a folder in use, as far as weights in it tell."""
    for path in sorted(folder.glob("*.safetensors"))[:1]:
        with suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
            made = (file.metadata() or {}).get(MADE, "")
            return f"holds {made}" if made and made.isprintable() else "not empty"
    return "not empty"


def in_use(folder: Path, *, besides: Sequence[str] = (LOCK,)) -> bool:
    """Whether anything but ``besides`` is in ``folder``."""
    return folder.is_dir() and any(path.name not in besides for path in folder.iterdir())


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A scratch folder whose content is what ``out`` holds once the block has ended well; it is gone otherwise.

    ``out`` is held from before it is looked at until it is written, and looked at again before: what another process
    put there is never replaced. One that does not exist appears in one piece. One that does stays the same folder, as
    it may be a mount point, or where the shell stands: what was written is moved into it, :data:`MARKS` last.

    Raises:
        UsageError: ``out`` is in use, another process is writing there, or it is no place to write to.
        DiskFull: no room.
    """
    with writing(out):
        place = resolved(out)
    beside, lock = (place.parent / f".{place.name}{suffix}" for suffix in (".writing", LOCK))
    # With one of these the folder is another writer's, made for the lock inside, and perhaps left when that was killed.
    stays = place.is_dir() and not (beside.exists() or lock.exists())
    scratch = place / SCRATCH if stays else beside
    with ExitStack() as locks:
        if not stays:
            locks.enter_context(held(out, lock=lock))
        inside = locks.enter_context(ExitStack())
        inside.enter_context(held(out, lock=place / LOCK))
        _refuse_others(out, place)
        try:
            with writing(out):
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir()
            try:
                yield scratch
            except DiskFull as full:
                if scratch not in Path(full.path).parents:
                    raise  # another disk's, such as the cache's
                raise DiskFull(out, full.reason) from None
            with writing(out):
                _sync_all(scratch)
                _refuse_others(out, place)
                if stays:
                    for path in sorted(scratch.iterdir(), key=lambda path: path.name in MARKS):
                        os.replace(path, place / path.name)
                    scratch.rmdir()
                    _sync(place)
                else:
                    inside.close()
                    _rename(scratch, place, out)
                    _sync(place.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _refuse_others(out: Path, place: Path) -> None:
    """Refuses ``out`` if more is in it than what `new_folder` puts there."""
    if in_use(place, besides=(LOCK, SCRATCH)):
        refuse_used(out)


def _rename(scratch: Path, place: Path, out: Path) -> None:
    """Renames, which the system does over an empty folder and refuses over any other."""
    try:
        os.replace(scratch, place)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise UsageError(f"{out}: another process wrote here meanwhile; choose another folder with --out") from None
        raise


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A scratch folder that takes the place of ``folder`` when the block ends well, and is gone otherwise.

    For folders inside of one that is held, where an older ``folder`` is meant to go: see `new_folder` for any other.
    What a killed predecessor left is cleared first: its scratch folder, and the old folder that it was replacing.

    Raises:
        UsageError: another process is writing the same folder, or this is no place to write to.
        DiskFull: no room.
    """
    with held(folder, lock=folder.parent / f".{folder.name}{LOCK}"), writing(folder):
        scratch, old = (folder.parent / f".{folder.name}.{state}" for state in ("writing", "old"))
        shutil.rmtree(scratch, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(old, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
            _sync_all(scratch)
            if folder.exists():
                os.replace(folder, old)
            os.replace(scratch, folder)
            _sync(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader finds the old text or the new one, never a part."""
    scratch = path.with_name(f".{path.name}.writing")
    with writing(path):
        try:
            scratch.write_text(text, encoding="utf-8")
            _sync(scratch)
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """JSON, readable."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file, on the CPU."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise MosloraError(f"{path}: cannot be read ({error}); take another checkpoint") from None


def _sync_all(folder: Path) -> None:
    """Forces everything in ``folder`` to the disk, its files as open to others as itself.

    safetensors writes what nobody else may read, whatever the umask says, which made the folder's mode.
    """
    mode = folder.stat().st_mode & 0o666
    for path in (*folder.rglob("*"), folder):
        if path.is_file() and path.stat().st_mode & 0o777 != mode:
            with suppress(OSError):  # a file system without modes
                path.chmod(mode)
        _sync(path)


def _sync(path: Path) -> None:
    """Forces a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
