"""Files and folders are written whole or not at all, by one process at a time; what the disk refuses is one line."""

import errno
import os
import resource
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from unittest.mock import Mock

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from moslora.errors import MosloraError, UsageError
from moslora.files import (
    LOCK,
    SCRATCH,
    disk_fault,
    locked,
    new_folder,
    placed,
    refuse_used,
    write_text,
    writing,
)


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "x"), MosloraError),
        (OSError(errno.EDQUOT, "x"), MosloraError),
        (safetensors.SafetensorError("Error while serializing: I/O error (os error 28)"), MosloraError),
        (caused(RuntimeError("generating failed"), OSError(errno.ENOSPC, "x")), MosloraError),
        (PermissionError(errno.EACCES, "x", "weights"), UsageError),
        (caused(ValueError("no model"), OSError(errno.EROFS, "x", "weights")), UsageError),
        (OSError(errno.EIO, "x"), UsageError),
        (ValueError("x"), None),
        (OSError("no number"), None),
        (ConnectionResetError(errno.ECONNRESET, "x"), None),
        (RuntimeError("download failed: Connection reset by peer (os error 104)"), None),
        (caused(ValueError("offline"), OSError(errno.ENETUNREACH, "x")), None),
    ],
)
def test_an_error_of_the_disk_and_no_other_is_one_line_with_the_path(
    error: Exception, kind: type[MosloraError] | None
) -> None:
    found = disk_fault(error, Path("weights"))
    assert type(found) is (kind or type(None))
    assert kind is None or (str(found).startswith("weights: ") and "\n" not in str(found))
    with pytest.raises(kind or type(error)), writing(Path("weights")):
        raise error


HOLDER = """
import sys, time
from pathlib import Path
from moslora.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_until_it_ends_however_it_does(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match="another process"), locked(folder):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert (folder / ".lock").exists()
    with locked(folder):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_folder_made_for_the_lock_alone_is_gone(tmp_path: Path) -> None:
    with locked(tmp_path / "out"):
        assert (tmp_path / "out" / LOCK).exists()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UsageError, match="file"), locked(out):
            pytest.fail("never begins")
        with pytest.raises(UsageError, match="file"), new_folder(out):
            pytest.fail("never begins")


WRITER = """
import sys
from pathlib import Path
from moslora.files import write_text
for number in range(100_000):
    write_text(Path(sys.argv[1]), sys.argv[2] * 50_000)
    if number == 0:
        print("begun", flush=True)
"""


def test_a_file_is_the_old_or_the_new_one_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(file), "a"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"begun\n"
        for _ in range(200):
            assert file.read_text() == "a" * 50_000
        writer.kill()
    assert file.read_text() == "a" * 50_000
    write_text(file, "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and file.read_text() == "b"


def test_on_a_full_disk_the_old_file_and_the_old_folder_stay(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with placed(tmp_path / "folder") as scratch:
        scratch.mkdir()
        (scratch / "old").touch()
    before = sorted(tmp_path.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(MosloraError, match="file: "):
            write_text(tmp_path / "file", "new" * 1_000)
        with pytest.raises(MosloraError, match="folder: "), placed(tmp_path / "folder") as scratch:
            scratch.mkdir()
            save_file({"x": torch.ones(1_000)}, scratch / "a.safetensors")
        with pytest.raises(MosloraError, match="new: "), new_folder(tmp_path / "new") as scratch:
            (scratch / "a").write_bytes(bytes(2_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "file").read_text() == "old"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    for left in ("folder/half", "old/half"):  # by a process that was killed
        (tmp_path / f".folder.{os.uname().nodename}.writing" / left).mkdir(parents=True)
    folder = tmp_path / "folder"
    with placed(folder) as scratch:
        scratch.mkdir()
        (scratch / "a").touch()
    with pytest.raises(RuntimeError), placed(folder) as scratch:
        scratch.mkdir()
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "a"]
    with placed(folder) as scratch:
        scratch.mkdir()
        (scratch / "b").touch()
        assert [path.name for path in folder.iterdir()] == ["a"]
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "b"]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with pytest.raises(RuntimeError), new_folder(out) as scratch:
        (scratch / "a").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.rglob("out"))
    (out / SCRATCH).mkdir(parents=True)  # as a killed process leaves it
    (out / SCRATCH / "half").touch()
    (out / LOCK).touch()
    refuse_used(out)
    with new_folder(out) as scratch:
        (scratch / "a").write_text("whole")
        assert sorted(path.name for path in out.iterdir()) == sorted([LOCK, SCRATCH])
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "out", "a"]
    with pytest.raises(UsageError, match="out: not empty"), new_folder(out):
        pytest.fail("never begins")
    assert (out / "a").read_text() == "whole"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_are_as_open_to_others_as_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    """Files of every writer; safetensors' own are private."""
    before = os.umask(umask)
    try:
        for write in (new_folder, placed):
            with write(tmp_path / write.__name__) as scratch:
                (scratch / "sub").mkdir(parents=True)
                save_file({"x": torch.ones(1)}, scratch / "sub" / "a.safetensors")
                (scratch / "b.json").touch()
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4 and {path.stat().st_mode & 0o777 for path in files} == {mode}


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_what_others_put_into_a_new_folder_meanwhile_stays(tmp_path: Path, there: bool) -> None:
    """At any time, by a program that knows of no locks; the lock keeps ours from it."""
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with pytest.raises(UsageError, match="out: not empty"), new_folder(out) as scratch:
        with pytest.raises(UsageError, match="another process"), locked(out):
            pytest.fail("as training and evaluation do")
        with pytest.raises(UsageError, match="another process"), new_folder(out):
            pytest.fail("as another merge does")
        (scratch / "ours").touch()
        (out / "theirs").write_text("precious")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]
    assert (out / "theirs").read_text() == "precious"


@pytest.mark.parametrize("name", ["out", ".", "link"])
def test_a_folder_that_is_there_stays_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A mount point cannot be replaced at all, and a shell in the folder would stand in one that is gone.

    The file by which readers know a model comes last: a process killed before it leaves none.
    """
    monkeypatch.setattr(os, "replace", moved := Mock(side_effect=os.replace))
    here = tmp_path / "out"
    here.mkdir()
    (tmp_path / "link").symlink_to(here)
    before = here.stat().st_ino
    with chdir(here if name == "." else tmp_path), new_folder(Path(name)) as scratch:
        (scratch / "config.json").touch()
        (scratch / "sub").mkdir()
        (scratch / "sub" / "a").touch()
        assert scratch.resolve().parent == here, "on the same file system"
    assert here.stat().st_ino == before and (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in here.rglob("*")) == ["a", "config.json", "sub"]
    assert [call.args[1].name for call in moved.call_args_list] == ["sub", "config.json"]


def test_a_folder_in_use_is_refused_however_its_path_is_written(tmp_path: Path) -> None:
    """`run/nope/../adapter`, without `nope`, is where a new folder would go."""
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "adapter" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="not empty"), new_folder(tmp_path / "run" / "nope" / ".." / "adapter"):
        pytest.fail("the work was begun")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt")] == ["run/adapter/mine.txt"]
    assert not (tmp_path / "run" / "nope").exists()


def test_a_link_to_a_folder_to_come_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "far" / "out")
    with new_folder(tmp_path / "link") as scratch:
        (scratch / "a").touch()
    assert (tmp_path / "link").is_symlink() and [path.name for path in (tmp_path / "far" / "out").iterdir()] == ["a"]
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(UsageError, match="round: "), new_folder(tmp_path / "round"):
        pass
