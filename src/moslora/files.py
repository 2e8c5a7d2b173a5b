"""Files and folders: written whole or not at all, by one process at a time; disk errors become one line."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from moslora.errors import MosloraError, UsageError, near_words, some

LOCK = ".lock"
"""Name of the lock file in a folder that is being written. A killed process leaves the file, but not the lock on it.

While the content of a new folder is moved in, the file lists it as name -> inode. If the process is killed meanwhile,
the next process that locks the folder removes what the list names."""

LEFTOVER = ".*.writing"
"""Pattern of the names of scratch folders, which a killed process leaves."""

SCRATCH = ".moslora.writing"
"""Name of the scratch folder with the unfinished content of a new folder."""

_OLD = ".old"
"""Name of the place in a scratch folder for the folder that is being replaced."""

MARKS = ("config.json", "adapter_config.json", "adapter", "report.html", "experiment.json")
"""Names by which readers identify a folder, which are moved in last."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk."""

_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""Error numbers of a file system without locks."""


def disk_fault(error: BaseException, path: Path | str | None = None) -> MosloraError | None:
    """Turn a disk error into one line with the file that ``error`` names, or else ``path``.

    The system's error may be ``error`` itself, its cause, or quoted in its text, as libraries written in Rust do.

    Returns:
        ``None`` for any other error.
    """
    number = getattr(error, "errno", None)
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    if quoted:
        number = int(quoted[1])
    named = getattr(error, "filename", None)  # network errors have none
    file = named or path or "the output"
    if number in FULL:
        fix = "free some space there and repeat the command (train: with --resume)"
        return MosloraError(f"{file}: {os.strerror(number)}; {fix}")
    if number is not None and (named or number == errno.EIO):
        return UsageError(f"{file}: {os.strerror(number)}; choose another path")
    if error.__cause__:
        return disk_fault(error.__cause__, path)
    return None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a disk error inside the block into one line."""
    try:
        yield
    except MosloraError:
        raise
    except Exception as error:
        fault = disk_fault(error, path)
        if fault is None:
            raise
        raise fault from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the block a scratch path, whose file or folder replaces ``path`` atomically when the block succeeds.

    The caller must hold a lock against this machine's other processes, such as `locked` or `once_per_machine`.
    """
    with writing(path), _scratch(_scratch_of(path)) as scratch:
        new = scratch / path.name
        yield new
        sync_all(new)
        if path.is_dir():
            (scratch / _OLD).mkdir()
            os.replace(path, scratch / _OLD / path.name)
        os.replace(new, path)
        _sync(path.parent)


def is_unfinished(path: Path) -> bool:
    """Return whether a process was killed while `replacing` moved ``path`` to its place."""
    return _scratch_of(path).exists()


def discard(folder: Path) -> None:
    """Remove ``folder`` atomically: no other process sees a part of it. A missing folder is no error."""
    scratch = _scratch_of(folder)
    _remove_scratch(scratch)  # another program may have a file of it open
    with suppress(OSError):
        os.replace(folder, scratch)
    _remove_scratch(scratch)


@contextmanager
def locked(folder: Path, *, shared: Collection[str] = ()) -> Iterator[None]:
    """Lock ``folder`` against other processes while the block runs; the lock ends with this process.

    A missing folder is created, and removed afterwards if it stays empty. The unfinished content that killed processes
    left is removed first.

    Args:
        folder: the folder to write into.
        shared: names of files that other processes may write meanwhile, with a lock `once_per_machine`.

    Raises:
        UsageError: another process has the lock.
    """
    real = Path(os.path.realpath(folder))  # a link may lead to a folder that does not exist yet
    made = not real.exists()
    with ExitStack() as stack:
        with writing(folder):
            real.mkdir(parents=True, exist_ok=True)
            if made:
                stack.callback(_remove_if_empty, real)
            try:
                stack.enter_context(_lock(real / LOCK))
            except (BlockingIOError, Timeout):
                raise UsageError(
                    f"{folder}: another process is writing here; wait for it, or choose another folder with --out"
                ) from None
            _take_back(real)
            remove_leftovers(real, shared=shared)
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        if not os.listdir(folder):
            folder.rmdir()


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Create and lock ``file`` until the block ends, then remove it.

    Raises:
        BlockingIOError, Timeout: another process has the lock.
    """
    with ExitStack() as stack:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            stack.enter_context(once_per_machine(file).acquire(blocking=False))
        if not os.fstat(descriptor).st_nlink:  # the process that had the lock has just removed the file
            raise BlockingIOError
        try:
            yield
        finally:
            with suppress(OSError):
                file.unlink()  # before the release: afterwards it may be another process's


def once_per_machine(path: Path) -> FileLock:
    """Lock that lets one process of this machine at a time make ``path``; the others wait and find it made.

    The lock file is in the system's folder for temporary files, as ``path`` may be on a file system without locks.
    """
    name = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"moslora-{os.getuid()}-{name}.lock")


def in_use(folder: Path, *, older: Collection[str] = ()) -> list[str]:
    """List the names in ``folder`` that are neither the unfinished content of killed processes nor in ``older``, the
    names of files that may be replaced."""
    real = Path(os.path.realpath(folder))  # a part of the path may be missing, as in run/new/../adapter
    unfinished = {LOCK, *(path.name for path in (*_leftovers(real), *_moved(real)))}
    try:
        return sorted({*os.listdir(real)} - unfinished - {*older})
    except FileNotFoundError:
        return []


def refuse_used(out: Path, *, older: Collection[str] = ()) -> None:
    """Refuse an output folder that has anything but files named in ``older``."""
    names = in_use(out, older=older)
    if names:
        raise UsageError(f"{out}: not empty ({some(names)}); choose another folder with --out, or empty this one")


@contextmanager
def new_folder(out: Path, *, older: Callable[[], Collection[str]] = tuple) -> Iterator[Path]:
    """Give the block a scratch folder, whose content is moved into ``out`` when the block succeeds: all or nothing.

    ``out`` may exist if it has only files that ``older`` names, which the content replaces. It stays the same folder,
    as it may be a mount point or a shell's working folder. It is locked, and checked again before the move, so that
    files of other programs stay.

    Raises:
        UsageError: the folder is in use.
    """
    with locked(out), writing(out):
        replaced = older()
        refuse_used(out, older=replaced)
        with _scratch(out / SCRATCH) as scratch:
            yield scratch
            sync_all(scratch)
            refuse_used(out, older=replaced)
            _move_in(scratch, out, older=replaced)


def _move_in(scratch: Path, out: Path, *, older: Collection[str]) -> None:
    """Move the content of ``scratch`` into ``out``, :data:`MARKS` last, in place of the ``older`` files there.

    Before the first move, a list of the content is written into the lock file. If the list is still there when the
    folder is locked again, the move was not finished, and `_take_back` undoes it.
    """

    def marks_last(name: str) -> tuple[bool, str]:
        return name in MARKS, name

    new = sorted(os.listdir(scratch), key=marks_last)
    inodes = {name: (scratch / name).lstat().st_ino for name in new}
    (out / LOCK).write_text(json.dumps(inodes), encoding="utf-8")
    _sync(out / LOCK)
    for name in sorted(older, key=marks_last):
        (out / name).unlink(missing_ok=True)
    try:
        for name in new:
            os.replace(scratch / name, out / name)
        _sync(out)
    except BaseException:
        _take_back(out)
        raise


def _take_back(folder: Path) -> None:
    """Remove what an unfinished move has put into ``folder``."""
    moved = _moved(folder)
    for path in moved:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if moved:
        os.truncate(folder / LOCK, 0)  # a later file may get one of these inodes


def _moved(folder: Path) -> list[Path]:
    """List the entries that an unfinished move has put into ``folder``: its lock file names them with their inodes."""
    try:
        inodes = json.loads((folder / LOCK).read_bytes())
        names = {*os.listdir(folder)} & inodes.keys()
        return [folder / name for name in names if inodes[name] == (folder / name).lstat().st_ino]
    except (OSError, ValueError, AttributeError):  # no lock file, or one without a list
        return []


def _scratch_of(path: Path) -> Path:
    """Scratch path for ``path``, with this machine's name, as another machine may be writing the same path."""
    return path.with_name(f".{path.name}.{os.uname().nodename}.writing")


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Give the block an empty folder, and remove it afterwards; leftovers of a killed process are removed first."""
    _remove_scratch(folder)
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        _remove_scratch(folder)


def _remove_scratch(folder: Path) -> None:
    """Remove a scratch folder, after moving back a folder in it that was about to be replaced."""
    for old in (folder / _OLD).glob("*"):
        if not os.path.lexists(folder.parent / old.name):
            os.replace(old, folder.parent / old.name)
    shutil.rmtree(folder, ignore_errors=True)


def _leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.glob(LEFTOVER) if path.is_dir() and not path.is_symlink()]


def remove_leftovers(folder: Path, *, shared: Collection[str] = ()) -> None:
    """Remove the scratch folders of killed processes in ``folder``, which must be locked.

    Scratch folders of files named in ``shared`` are removed only if they are this machine's.
    """
    for path in _leftovers(folder):
        if not any(path.name.startswith(f".{name}.") for name in shared):
            _remove_scratch(path)
    for name in shared:
        with once_per_machine(folder / name):
            _remove_scratch(_scratch_of(folder / name))


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a reader finds the old text or the new one, never a part."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Add whole lines to a file, created if absent, and sync them to disk."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def drop_partial_line(path: Path) -> None:
    """Remove the unfinished line that a killed process may have left at the end of a file."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync_all(folder: Path) -> None:
    """Flush everything in ``folder`` to the disk, and give its files the folder's permissions.

    The folder's permissions follow the umask, while safetensors makes its files private.
    """
    mode = folder.stat().st_mode & 0o666
    for path in (*folder.rglob("*"), folder):
        if path.is_file():
            with suppress(OSError):  # a file system without modes
                path.chmod(mode)
        _sync(path)


def _sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def near_folders(path: Path) -> list[str]:
    """List the folders that the user may have meant by ``path``, the closest first, written as ``path`` is.

    They are beside ``path`` and have a name close to its own; files count too if ``path`` has an ending. If the parent
    folder is missing, folders with a name close to the parent's are searched.
    """
    parents = [str(path.parent)] if path.parent.is_dir() else near_folders(path.parent)
    close: list[str] = []
    for parent in parents:
        with suppress(OSError):
            near = [entry for entry in Path(parent).iterdir() if entry.is_dir() or path.suffix]
            names = sorted(entry.name for entry in near if entry.name[0] != ".")
            close += [str(Path(parent, name)) for name in near_words(path.name, names, 3)]
    return close
