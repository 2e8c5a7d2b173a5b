"""What a disk refuses, as one line with the path; and a folder that one process at a time writes into."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from moslora.errors import MosloraError, UsageError

LOCK = ".lock"
"""Name of the file that says who writes into a folder. A killed process leaves it, without the lock on it."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EBUSY,
    errno.EXDEV,
)
FAILING = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENXIO, errno.ESTALE)


class DiskFull(MosloraError):
    """No room to write.

    Args:
        path: what could not be written.
        reason: the system's words.
        then: what to do once there is room.
    """

    def __init__(self, path: Path | str, reason: str, *, then: str = "give the same command again") -> None:
        super().__init__(f"{path}: {reason}; free some space there, then {then}")
        self.path = path
        self.reason = reason


def disk_fault(error: BaseException, path: Path | None = None) -> MosloraError | None:
    """The line for what the system refused; ``None`` for any other error, which may be a mistake of ours.

    Args:
        error: as raised, or with the system's error as its cause. Libraries written in Rust raise types of their own
            that only quote it: "No space left on device (os error 28)".
        path: what was being read or written; by default the file that the error names, if any.
    """
    found: BaseException | None = error
    while found is not None and (number := _error_number(found)) is None:
        found = found.__cause__
    if found is None or number is None:
        return None
    place = path or getattr(found, "filename", None) or "the output"
    reason = os.strerror(number)
    if number in FULL:
        return DiskFull(place, reason)
    if number in FORBIDDEN:
        return UsageError(f"{place}: {reason}; name a path that can be read and written here")
    return MosloraError(f"{place}: {reason}") if number in FAILING else None


def _error_number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    return int(quoted[1]) if quoted else None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names ``path`` in the line for whatever the disk refuses inside the block.

    Raises:
        DiskFull: no room.
        UsageError: not a place to write to.
    """
    try:
        yield
    except MosloraError:
        raise
    except Exception as error:
        if (fault := disk_fault(error, path)) is None:
            raise
        raise fault from None


def resolved(path: Path) -> Path:
    """Where ``path`` leads: absolute, and without symbolic links.

    Raises:
        OSError: they lead in a circle.
    """
    try:
        return path.resolve()
    except RuntimeError:  # of Python before 3.13, which then leaves such a path as it is
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


def refuse_file(folder: Path) -> None:
    """Refuses what cannot be a folder.

    Raises:
        UsageError: it, or one that it lies in, is a file.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"{there}: a file, not a folder; choose another with --out")


@contextmanager
def held(folder: Path, *, lock: Path | None = None) -> Iterator[None]:
    """Holds ``folder`` for this process while the block runs; the system lets go of it whenever the process ends.

    Folders made for the lock are gone afterwards if nothing else was put into them.

    Args:
        folder: what is written.
        lock: the lock's file, if not :data:`LOCK` inside the folder.

    Raises:
        UsageError: another process holds it, or it cannot be a folder here.
    """
    refuse_file(folder)
    lock = lock or folder / LOCK
    made = [parent for parent in lock.parents if not parent.exists()]
    with writing(folder):
        holder = FileLock(lock, blocking=False)
        # Twice: where no lock is there now, another process may have just let go of it, with the folder made for it.
        for first in (True, False):
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                holder.acquire()
                break
            except (FileNotFoundError, Timeout):
                if lock.exists():
                    raise UsageError(
                        f"{folder}: another process is writing here; wait for it to end, or choose another folder with"
                        " --out"
                    ) from None
                if not first:  # a place such as /proc, where the system makes nothing
                    raise UsageError(f"{folder}: nothing can be made here; choose another folder with --out") from None
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # before it is let go of: afterwards the file may be another's
        holder.release()
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
