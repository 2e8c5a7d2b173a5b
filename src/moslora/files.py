"""Files and folders: written whole or not at all, by one process at a time; disk errors become one line."""

import difflib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from moslora.errors import MosloraError, UsageError, some

LOCK = ".lock"
"""The lock file in a folder that is being written. A killed process leaves the file, but not the lock on it."""

SCRATCH = ".moslora.writing"
"""Holds the unfinished content of a new folder."""

MARKS = ("config.json", "adapter_config.json", "adapter")
"""Readers identify a folder by these, so they are moved into place last."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_fault(error: BaseException, path: Path | str | None = None) -> MosloraError | None:
    """One line for a disk error, with the file that ``error`` names, or ``path``. ``None`` for any other error.

    The system's error may be the cause of ``error``, or only quoted in it, as libraries written in Rust do.
    """
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    number = int(quoted[1]) if quoted else getattr(error, "errno", None)
    named = getattr(error, "filename", None)  # network errors have none
    place = named or path or "the output"
    if number in FULL:
        again = "give the same command again (train: with --resume)"
        return MosloraError(f"{place}: {os.strerror(number)}; free some space there, then {again}")
    if number is not None and (named or number == errno.EIO):
        return UsageError(f"{place}: {os.strerror(number)}; choose another path")
    return disk_fault(error.__cause__, path) if error.__cause__ else None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a disk error inside the block into one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MosloraError) or (fault := disk_fault(error, path)) is None:
            raise
        raise fault from None


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A scratch path, on the same disk, whose file or folder replaces ``path`` when the block succeeds.

    A lock must keep this machine's other processes from ``path``, such as `locked` or `once_per_machine`.
    """
    with writing(path), _scratch(path.with_name(f".{path.name}.{os.uname().nodename}.writing")) as scratch:
        new = scratch / path.name
        yield new
        sync_all(new)
        if path.is_dir():
            os.replace(path, scratch / "old")
        os.replace(new, path)
        _sync(path.parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks ``folder`` against other processes while the block runs; the lock ends with this process.

    A missing folder is created, and removed afterwards if it stays empty. One that is locked is refused.
    """
    place = Path(os.path.realpath(folder))  # a link may lead to a folder that does not exist yet
    made = not place.exists()
    lock = FileLock(place / LOCK, blocking=False)
    with writing(folder):
        place.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(
                f"{folder}: another process is writing here; wait for it, or choose another folder with --out"
            ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            (place / LOCK).unlink()  # before the release: afterwards it may be another process's
        lock.release()
        if made:
            with suppress(OSError):
                place.rmdir()


def once_per_machine(place: Path) -> FileLock:
    """A lock among this machine's processes for making ``place``, to be waited for: the next one finds it made.

    It lies in the system's folder for temporary files: ``place`` may be on a file system without locks.
    """
    name = hashlib.sha256(str(place.absolute()).encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"moslora-{os.getuid()}-{name}.lock")


def in_use(folder: Path, *, older: Collection[str] = ()) -> list[str]:
    """Names in ``folder`` besides ``older`` and the leftovers of a killed `new_folder`."""
    try:
        # The real path, since a part of it may not be there yet: run/new/../adapter.
        return sorted({*os.listdir(os.path.realpath(folder))} - {LOCK, SCRATCH, *older})
    except FileNotFoundError:
        return []


def refuse_used(out: Path, *, older: Collection[str] = ()) -> None:
    """Raises a `UsageError` if the output folder holds anything but files named ``older``."""
    if found := in_use(out, older=older):
        raise UsageError(f"{out}: not empty ({some(found)}); choose another folder with --out, or remove what is there")


@contextmanager
def new_folder(out: Path, *, older: Collection[str] = ()) -> Iterator[Path]:
    """A scratch folder whose content is moved into ``out`` when the block succeeds, :data:`MARKS` last.

    ``out`` may exist if it is empty but for files named ``older``, which go, and stays the same folder: it may be a
    mount point. It is locked, and checked again before the move, so that nothing is replaced that another program put
    there. A folder in use is refused.
    """
    with locked(out), writing(out):
        refuse_used(out, older=older)
        with _scratch(out / SCRATCH) as scratch:
            yield scratch
            sync_all(scratch)
            refuse_used(out, older=older)
            new = sorted(scratch.iterdir(), key=lambda path: path.name in MARKS)
            for path in new:
                os.replace(path, out / path.name)
            for name in {*older} - {path.name for path in new}:
                (out / name).unlink(missing_ok=True)
            _sync(out)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """An empty folder, removed afterwards; leftovers of a killed process are removed first."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: a reader finds the old text or the new one, never a part."""
    with placed(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync_all(folder: Path) -> None:
    """Flushes everything in ``folder`` to the disk, and gives its files the folder's permissions, which follow the
    umask: safetensors' own are private."""
    mode = folder.stat().st_mode & 0o666
    for path in (*folder.rglob("*"), folder):
        if path.is_file():
            with suppress(OSError):  # a file system without modes
                path.chmod(mode)
        _sync(path)


def _sync(path: Path) -> None:
    """Flushes a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def near_folders(path: Path) -> list[str]:
    """The folders beside ``path`` with a name close to its own, the closest first, each as ``path`` is written."""
    try:
        names = sorted(found.name for found in path.parent.iterdir() if found.is_dir() and found.name[0] != ".")
    except OSError:  # no such folder
        return []
    return [str(path.parent / name) for name in difflib.get_close_matches(path.name, names, n=3)]
