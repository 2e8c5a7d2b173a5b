"""Runs of the small world: started, read, compared."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.distributed.elastic.utils.distributed import get_free_port

from forked_kit import Forked, python
from moslora.files import sha256
from moslora.recipe import Recipe
from moslora.runs.manifest import MANIFEST, read_manifest, with_own_hash
from moslora.runs.run import Run
from moslora.training.tracking import MEASURED

MakeRecipe = Callable[..., Recipe]

RISES = (
    "training.epochs=null",
    "training.max_steps=6",
    "training.learning_rate=3",
    "training.warmup_steps=14",
    "training.validate_every=1",
    "training.checkpoint_every=2",
    "training.log_every=1",
)
"""A learning rate that rises until the loss does, too: the best step is in the middle."""

BEST = (*RISES, "training.result=best")
PATIENT = (*BEST, "training.patience=2", "training.max_steps=9")
"""The best step is the third, and patience ends the run after the fifth."""


def steps_logged(run: Path) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl``, without what differs from run to run."""
    rows = []
    for row in Run(run).metrics:
        rows.append({key: value for key, value in row.items() if key not in MEASURED})
    return rows


def losses_logged(run: Path) -> list[dict[str, float]]:
    """Those of them that have a training loss, and not a validation's."""
    return [row for row in steps_logged(run) if "loss" in row]


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter.safetensors")


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model's files."""
    found = {}
    for path in model.glob("*.safetensors"):
        found |= load_file(path)
    return found


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(value.equal(other[key]) for key, value in one.items())


def same_files(one: Path, other: Path) -> bool:
    """Whether both runs have the same weights, moments and scores, in the result and in each checkpoint."""
    found = []
    for run in (one, other):
        files = [*run.glob("adapter/*.safetensors"), *run.glob("checkpoints/step-*/*.safetensors")]
        found.append({path.relative_to(run): path.read_bytes() for path in files})
    return len(found[0]) > 2 and found[0] == found[1]


def steps_kept(run: Run) -> list[int]:
    """The steps of its checkpoints, the oldest first."""
    return [int(checkpoint.name.removeprefix("step-")) for checkpoint in run.checkpoints]


def cut_after(step: int, run: Path) -> Path:
    """Takes away the result and all later checkpoints, as if the run had been killed soon after that step."""
    shutil.rmtree(run / "adapter")
    for kept in steps_kept(Run(run)):
        if kept > step:
            shutil.rmtree(Run(run).checkpoint(kept))
    return run


def sign(folder: Path, **values: Any) -> None:
    """Changes values of an adapter folder's manifest, and has its hashes fit the files."""
    manifest = read_manifest(folder) | values
    manifest["sha256"] = {name: sha256(folder / name) for name in manifest["sha256"]}
    (folder / MANIFEST).write_text(json.dumps(with_own_hash(manifest)))


def moslora(*arguments: object, **options: Any) -> Forked | subprocess.Popen[str]:
    """The command, on the CPU unless ``options`` have another environment."""
    on_the_cpu = {"env": os.environ | {"CUDA_VISIBLE_DEVICES": ""}}
    return python("-m", "moslora", *arguments, **(on_the_cpu | options))


def importing_tests() -> dict[str, str]:
    """The environment of a child that imports modules of the tests."""
    kits = Path(__file__).parent
    paths = [str(kits.parents[1]), str(kits)]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


ON_A_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def in_processes(*program: object, processes: int = 2) -> str:
    """Runs ``program``, a script or "-m" and a module, with its arguments, over gloo; what it wrote to its output.

    The variables are torchrun's, which itself costs three starts of the interpreter.
    """
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(get_free_port()),
    }
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        environment = importing_tests() | ON_A_CPU | shared | own
        started.append(python(*program, env=environment))
    said = [process.communicate(timeout=240) for process in started]
    assert not any(process.returncode for process in started), "\n".join(errors[-3000:] for _, errors in said)
    return "".join(output for output, _ in said)
