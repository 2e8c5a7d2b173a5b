"""What the system refuses becomes a line with a path, whoever raised it; anything else stays what it is."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
from filelock import FileLock, Timeout

from moslora.disk import DiskFull, disk_fault, held, writing
from moslora.errors import MosloraError, UsageError


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "x"), DiskFull),
        (OSError(errno.EDQUOT, "x"), DiskFull),
        (safetensors.SafetensorError("Error while serializing: I/O error (os error 28)"), DiskFull),
        (caused(RuntimeError("generating failed"), OSError(errno.ENOSPC, "x")), DiskFull),
        (PermissionError(errno.EACCES, "x"), UsageError),
        (OSError(errno.EROFS, "x"), UsageError),
        (OSError(errno.EBUSY, "x"), UsageError),
        (OSError(errno.EXDEV, "x"), UsageError),
        (OSError(errno.EIO, "x"), MosloraError),
    ],
)
def test_refusals_of_the_system(error: Exception, kind: type[MosloraError], tmp_path: Path) -> None:
    found = disk_fault(error, tmp_path / "weights")
    assert type(found) is kind and str(found).startswith(f"{tmp_path / 'weights'}: ") and "\n" not in str(found)
    with pytest.raises(kind), writing(tmp_path):
        raise error


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "x"), ValueError("x"), OSError("no number")])
def test_what_may_be_a_mistake_of_ours_stays_as_it_is(error: Exception, tmp_path: Path) -> None:
    assert disk_fault(error) is None
    with pytest.raises(type(error)), writing(tmp_path):
        raise error


HOLDER = """
import sys, time
from pathlib import Path
from moslora.disk import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_until_it_ends_however_it_does(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match="another process is writing here"), held(folder):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert (folder / ".lock").exists()
    with held(folder):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_folders_made_for_the_lock_alone_are_gone(tmp_path: Path) -> None:
    with held(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / ".lock").exists()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file: a file, not a folder"), held(tmp_path / "file" / "b"):
        pass


def test_a_lock_let_go_of_at_this_moment_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder took the folder with it, too."""
    acquire, refusals = FileLock.acquire, iter([Timeout("x"), None])

    def once_refused(self: FileLock) -> object:
        if refusal := next(refusals):
            shutil.rmtree(tmp_path / "a")
            raise refusal
        return acquire(self)

    monkeypatch.setattr(FileLock, "acquire", once_refused)
    with held(tmp_path / "a"):
        assert (tmp_path / "a" / ".lock").exists()
