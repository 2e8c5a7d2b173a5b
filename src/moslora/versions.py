"""Versions of the packages that moslora needs: installed here, and the oldest and newest that were tested.

The oldest are the floors of ``pyproject.toml``, which the installed package has as metadata. The newest are in
``constraints.txt``.
"""

import shlex
import sys
import traceback
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from types import ModuleType

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from moslora.errors import MosloraError, first_line
from moslora.version import carried

COMPUTING = ("torch", "transformers", "accelerate", "bitsandbytes", "peft")
"""Packages that compute a model or its adapters."""


@dataclass(frozen=True)
class Package:
    """An installed package, with the oldest and the newest version that was tested."""

    name: str
    installed: str
    lowest: str
    newest: str

    @property
    def outside(self) -> bool:
        """Whether the installed version is older or newer than all tested ones. ``2.13.0+cpu`` counts as 2.13.0."""
        tested = SpecifierSet(f">={self.lowest},<={self.newest}")
        return not tested.contains(self.installed, prereleases=True)

    def __str__(self) -> str:
        if not self.outside:
            return self.installed
        return f"{self.installed} (tested: {self.lowest} to {self.newest})"


@cache
def tested() -> list[Package]:
    """Installed packages among those that moslora needs or can use; none if moslora itself is not installed.

    An extra that ``constraints.txt`` lacks may be of any version from its floor on.
    """
    try:
        ours = metadata.metadata("moslora")
    except metadata.PackageNotFoundError:
        return []
    packages = {}
    for requirement in map(Requirement, ours.get_all("Requires-Dist", [])):
        name = canonicalize_name(requirement.name)
        if 'extra == "dev"' in str(requirement.marker):
            continue
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        lowest = next(floor.version for floor in requirement.specifier if floor.operator == ">=")
        newest = _newest().get(name, max(Version(installed), Version(lowest)).public)
        packages[name] = Package(name, installed, lowest, newest)
    return [packages[name] for name in sorted(packages)]


@cache
def _newest() -> dict[str, str]:
    """Versions in ``constraints.txt`` that apply to this Python and this machine, by the package's name."""
    pins = map(Requirement, carried("constraints.txt").read_text("utf-8").splitlines()[1:])  # below its header
    return {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }


def untested() -> str | None:
    """Warning about packages that compute and are outside their tested versions; ``None`` if there are none."""
    packages = [f"{package.name} {package}" for package in tested() if package.outside and package.name in COMPUTING]
    if not packages:
        return None
    return f"moslora was not tested with {', '.join(packages)}; moslora check compares what they compute here"


def repair() -> str:
    """Command that installs the newest tested versions of the packages that compute, of those outside if there are."""
    packages = [package for package in tested() if package.name in COMPUTING]
    outside = [package for package in packages if package.outside]
    pins = [f"{package.name}=={package.newest}" for package in outside or packages]
    return shlex.join([sys.executable, "-m", "pip", "install", *pins])


def import_fault(error: BaseException) -> MosloraError | None:
    """Turn an error about a package that cannot be imported, or lacks a name, into a line that installs it again.

    Files of two versions, as a broken upgrade leaves them, cause such an error, and so do untested versions.

    Returns:
        ``None`` for any other error, also of a model's own Python code.
    """
    if error.__cause__:  # what transformers could not import on demand
        return import_fault(error.__cause__)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [frame.f_globals.get("__name__", "") for frame in frames if frame.f_code.co_name == "<module>"]
    if isinstance(error, ImportError) and error.name:
        modules.append(error.name)
    elif isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        modules.append(error.obj.__name__)
    roots = [module.partition(".")[0] for module in modules]
    if not roots or "transformers_modules" in roots or roots[-1] in {"moslora", *sys.stdlib_module_names}:
        return None
    package = metadata.packages_distributions().get(roots[-1], roots)[-1]
    newest = _newest().get(canonicalize_name(package))
    version = f"=={newest}" if newest else ""
    command = shlex.join([sys.executable, "-m", "pip", "install", "--force-reinstall", package + version])
    return MosloraError(f"{package} cannot be used: {first_line(error)}; {command}")
