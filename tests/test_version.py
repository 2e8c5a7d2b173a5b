"""The version of the package: the commit of its code."""

import subprocess

import moslora.version
from moslora.version import git_state


def test_commit_is_recorded_only_in_a_checkout(tmp_path, monkeypatch):
    def git(*arguments):
        own = ["-c", "user.name=x", "-c", "user.email=x@x"]
        asked = subprocess.run(["git", "-C", tmp_path, *own, *arguments], check=True, capture_output=True, text=True)  # type: ignore[list-item]
        return asked.stdout.strip()

    package = tmp_path / "src" / "moslora"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(moslora.version, "PACKAGE", package)
    assert git_state() is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "x")
    assert git_state() is None  # as in the environment of another checkout
    git("add", ".")
    git("commit", "-q", "-m", "x")
    assert git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "new.py").touch()
    (tmp_path / "notes.md").touch()
    assert git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": True}
