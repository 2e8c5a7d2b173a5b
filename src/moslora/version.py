"""The version of this package, its commit, its folder, and the files of its parts."""

import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

__version__ = "0.1.1"
PACKAGE = Path(__file__).parent


def source_files(modules: Iterable[ModuleType]) -> list[Path]:
    """List the source files of ``modules``, and all files of a package, for a hash of code.

    ``modules`` are imported modules, not names, so that a renamed one cannot silently drop out of the hash.
    """
    files: set[Path] = set()
    for module in modules:
        assert module.__file__
        file = Path(module.__file__)
        if file.name == "__init__.py":
            files.update(file.parent.rglob("*.py"))
        else:
            files.add(file)
    return sorted(files)


def carried(name: str) -> Path:
    """Path of a file or folder of the clone's root that a wheel carries inside the package."""
    inside = PACKAGE / name
    return inside if inside.exists() else PACKAGE.parents[1] / name


def git_state() -> dict[str, Any] | None:
    """Commit of this code, and whether the code differs from it; ``None`` outside a checkout."""

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", "-C", PACKAGE, *arguments], capture_output=True, encoding="utf-8", check=True)
        return result.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # fails for a copy in the environment of another checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None
