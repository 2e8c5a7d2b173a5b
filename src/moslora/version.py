"""The version of this package, its folder, and the source files of its parts."""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

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
