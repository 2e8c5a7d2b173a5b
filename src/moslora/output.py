"""Folders and files that appear in one piece, or not at all."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from moslora.disk import LOCK, DiskFull, held, refuse_file, resolved, writing
from moslora.errors import UsageError

MADE = "moslora"
"""Key of the metadata of merged and exported weights, for what they were made of."""

SCRATCH = ".moslora.writing"
"""What is not yet whole in a folder that was there before."""

MARKS = ("config.json", "adapter_config.json", "adapter")
"""By these a reader takes a folder for what it is: the last to be there."""


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


def in_use(folder: Path) -> bool:
    """Whether there is anything in ``folder`` but what `new_folder` puts there before it is done."""
    return folder.is_dir() and any(path.name not in (LOCK, SCRATCH) for path in folder.iterdir())


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
        refuse_used(out)
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
                sync_all(scratch)
                refuse_used(out)
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
            sync_all(scratch)
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


def sync_all(folder: Path) -> None:
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
