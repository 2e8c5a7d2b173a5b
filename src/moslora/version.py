"""The version of this package, its folder, and the source files of its parts."""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

__version__ = "0.1.1"
PACKAGE = Path(__file__).parent


def source_files(modules: Iterable[ModuleType]) -> list[Path]:
    """The source files of ``modules``, of a package all that are in it; for a hash of code.

    Imported modules, not names: one that is renamed cannot silently drop out of the hash.
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
