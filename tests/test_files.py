"""Files and folders are written whole or not at all, by one process at a time; what the disk refuses is one line."""

import errno
import fcntl
import itertools
import json
import os
import resource
import signal
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
    discard,
    disk_fault,
    in_use,
    locked,
    new_folder,
    refuse_used,
    replacing,
    write_text,
    writing,
)


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "x"), MosloraError),
        (safetensors.SafetensorError("Error while serializing: I/O error (os error 28)"), MosloraError),
        (caused(RuntimeError("generating failed"), OSError(errno.ENOSPC, "x")), MosloraError),
        (PermissionError(errno.EACCES, "x", "weights"), UsageError),
        (caused(ValueError("no model"), OSError(errno.EROFS, "x", "weights")), UsageError),
        (ValueError("x"), None),
        (ConnectionResetError(errno.ECONNRESET, "x"), None),
        (caused(ValueError("offline"), OSError(errno.ENETUNREACH, "x")), None),
    ],
)
def test_disk_errors_are_one_line_with_the_path(error, kind):
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


def test_folder_is_locked_until_its_process_ends(tmp_path):
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


def test_folder_made_for_the_lock_is_removed(tmp_path):
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


def test_killed_writer_leaves_the_old_or_the_new_file(tmp_path):
    file = tmp_path / "file"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(file), "a"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"begun\n"
        for _ in range(200):
            assert file.read_text() == "a" * 50_000
        writer.kill()
    assert file.read_text() == "a" * 50_000
    write_text(file, "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and file.read_text() == "b"


def test_on_a_full_disk_the_old_file_and_the_old_folder_stay(tmp_path):
    write_text(tmp_path / "file", "old")
    with replacing(tmp_path / "folder") as scratch:
        scratch.mkdir()
        (scratch / "old").touch()
    before = sorted(tmp_path.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(MosloraError, match="file: "):
            write_text(tmp_path / "file", "new" * 1_000)
        with pytest.raises(MosloraError, match="folder: "), replacing(tmp_path / "folder") as scratch:
            scratch.mkdir()
            save_file({"x": torch.ones(1_000)}, scratch / "a.safetensors")
        with pytest.raises(MosloraError, match="new: "), new_folder(tmp_path / "new") as scratch:
            (scratch / "a").write_bytes(bytes(2_000))
        with pytest.raises(MosloraError, match="new: "), new_folder(tmp_path / "new") as scratch:
            for number in range(60):  # small files, of which the list does not fit
                (scratch / f"a_rather_long_name_{number}").touch()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "file").read_text() == "old"


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
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


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_file_modes_follow_the_umask(tmp_path, umask, mode):
    """Files of every writer; safetensors' own are private."""
    before = os.umask(umask)
    try:
        for write in (new_folder, replacing):
            with write(tmp_path / write.__name__) as scratch:
                (scratch / "sub").mkdir(parents=True)
                save_file({"x": torch.ones(1)}, scratch / "sub" / "a.safetensors")
                (scratch / "b.json").touch()
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4 and {path.stat().st_mode & 0o777 for path in files} == {mode}


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_files_of_others_in_a_new_folder_stay(tmp_path, there):
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
def test_existing_folder_keeps_its_inode(tmp_path, monkeypatch, name):
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


def test_folder_in_use_is_refused_under_any_path(tmp_path):
    """`run/nope/../adapter`, without `nope`, is where a new folder would go."""
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "adapter" / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="not empty"), new_folder(tmp_path / "run" / "nope" / ".." / "adapter"):
        pytest.fail("the work was begun")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt")] == ["run/adapter/mine.txt"]
    assert not (tmp_path / "run" / "nope").exists()


def test_a_link_to_a_folder_to_come_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "far" / "out")
    with new_folder(tmp_path / "link") as scratch:
        (scratch / "a").touch()
    assert (tmp_path / "link").is_symlink() and [path.name for path in (tmp_path / "far" / "out").iterdir()] == ["a"]
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(UsageError, match="round: "), new_folder(tmp_path / "round"):
        pass


def killed(act, *, at):
    """Whether ``act``, in a forked process, was killed before its ``at``-th change of a name."""
    if process := os.fork():
        return os.WIFSIGNALED(os.waitpid(process, 0)[1])
    changes = itertools.count(1)

    def note(event, arguments):
        if event in ("os.rename", "os.remove", "os.rmdir") and next(changes) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(note)
        act()
    finally:
        os._exit(0)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_unfinished_move_is_undone_by_the_next_command(tmp_path):
    """A killed one's files went into place one by one; whether the rest was lost or not, they are a part."""
    out = tmp_path / "out"

    def write(text):
        with new_folder(out) as scratch:
            for name in ("a", "b", "config.json"):
                (scratch / name).write_text(text)
            (scratch / "adapter").mkdir()
            (scratch / "adapter" / "c").write_text(text)

    kills = 0
    while killed(lambda: write("killed"), at=kills + 1):
        kills += 1
        assert not in_use(out), "so that the same command goes on"
        refuse_used(out)
        with locked(out):
            assert names(out) == [LOCK], "and so does any other that writes there"
    assert kills >= 6
    assert names(out) == ["a", "adapter", "adapter/c", "b", "config.json"]
    assert {path.read_text() for path in out.rglob("*") if path.is_file()} == {"killed"}


def test_only_moved_files_are_removed(tmp_path):
    """Not a file of that name that someone has put there since, nor one elsewhere."""
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "elsewhere").write_text("precious")
    (out / "ours").touch()
    (out / "theirs").write_text("precious")
    inodes = {"ours": (out / "ours").stat().st_ino, "theirs": 1, "../elsewhere": (tmp_path / "elsewhere").stat().st_ino}
    for content in (json.dumps(inodes), json.dumps(inodes)[:-1], "[]", "\xff"):  # the others list nothing
        (out / LOCK).write_text(content)
        assert in_use(out) == (["theirs"] if content.endswith("}") else ["ours", "theirs"])
    (out / LOCK).write_text(json.dumps(inodes))
    with pytest.raises(UsageError, match=r"not empty \(theirs\)"), new_folder(out):
        pytest.fail("never begins")
    assert names(tmp_path) == ["elsewhere", "out", "out/theirs"]
    (out / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=LOCK), new_folder(out):
        pytest.fail("the list would be written there")
    assert (tmp_path / "elsewhere").read_text() == "precious"


def test_replacing_a_report_resumes_after_any_kill(tmp_path):
    """Its page lists its figures, by which the next report replaces them. No part of the new one is there alone."""
    out, old, new = tmp_path / "out", ["1.png", "2.png", "report.html"], ["2.png", "3.png", "report.html"]
    page = out / "report.html"

    def older():
        return json.loads(page.read_text()) if page.exists() else []

    def write(names):
        with new_folder(out, older=older) as scratch:
            for name in names:
                (scratch / name).write_text(json.dumps(names))

    kills = 0
    while True:
        write(old)
        if not killed(lambda: write(new), at=kills + 1):
            break
        kills += 1
        assert not in_use(out, older=older()), "so that the same command goes on"
        with locked(out):
            there = [(out / name).read_text() for name in names(out) if name != LOCK]
            assert {*there} <= {json.dumps(old)}
        write(new)
        assert names(out) == new
    assert kills >= 8


def test_leftovers_are_removed_by_the_next_lock(tmp_path):
    for machine in (os.uname().nodename, "another.machine"):
        (tmp_path / f".settings.json.{machine}.writing").mkdir()
        (tmp_path / f".settings.json.{machine}.writing" / "settings.json").touch()
        (tmp_path / f".run.json.{machine}.writing").mkdir()
    (tmp_path / ".notes.writing").write_text("a file of the user's")
    assert in_use(tmp_path) == [".notes.writing"]
    with locked(tmp_path, shared=("run.json",)):
        assert len(in_use(tmp_path)) == 1
    assert names(tmp_path) == [".notes.writing", ".run.json.another.machine.writing"], "which may be writing it now"


def test_a_folder_that_was_being_replaced_comes_back(tmp_path):
    folder = tmp_path / "folder"

    def write(text):
        with replacing(folder) as scratch:
            scratch.mkdir()
            (scratch / "a").write_text(text)

    write("old")
    kills = 0
    while killed(lambda: write("new"), at=kills + 1):
        kills += 1
        with pytest.raises(RuntimeError), replacing(folder):
            assert (folder / "a").read_text() in ("old", "new")
            raise RuntimeError
        assert names(tmp_path) == ["folder", "folder/a"]
        write("old")
    assert kills >= 2 and (folder / "a").read_text() == "new"


def test_discarding_is_atomic(tmp_path):
    folder, kills = tmp_path / "step-2", 0
    while True:
        folder.mkdir(exist_ok=True)
        for name in ("a", "b"):
            (folder / name).touch()
        if not killed(lambda: discard(folder), at=kills + 1):
            break
        kills += 1
        assert not folder.exists() or names(folder) == ["a", "b"]
        discard(folder)
        assert not names(tmp_path)
    assert kills == 4
    discard(folder)


def test_a_disk_without_locks_has_those_of_this_machine(tmp_path, monkeypatch):
    real, out = fcntl.flock, tmp_path / "out"

    def flock(descriptor, operation):
        there = out / LOCK
        if there.exists() and os.path.samestat(os.fstat(descriptor), there.stat()):
            raise OSError(errno.ENOSYS, "Function not implemented")
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with new_folder(out) as scratch:
        with pytest.raises(UsageError, match="another process"), locked(out):
            pytest.fail("never begins")
        (scratch / "a").touch()
    assert names(out) == ["a"]
