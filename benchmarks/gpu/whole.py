"""Commands on a model of random weights on disk: it is trained, killed, resumed and scored."""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.race import Record, random_model
from benchmarks.timing import seconds
from moslora.runs.run import Run

STEPS = ("training.epochs=null", "training.max_steps=8", "training.checkpoint_every=2", "training.warmup_steps=0")
WAY = {"bfloat16": ("model.dtype=bfloat16",), "NF4": ("model.dtype=bfloat16", "model.quantization=nf4")}
PROTOCOLS = {"choice": "label", "generate": "label", "cloze": "cloze"}


def command(record: Record) -> None:
    """Train in bfloat16 and in NF4; kill each after its first checkpoint, resume it, and score it by all protocols."""
    with tempfile.TemporaryDirectory(prefix="moslora-whole-") as folder:
        root = Path(folder)
        record(writing_seconds=seconds(lambda: write_world(root)))
        for name, settings in WAY.items():
            if name == "NF4" and find_spec("bitsandbytes") is None:
                record(**{name: "skipped: bitsandbytes is not there"})
                continue
            run = root / name
            train = ("train", f"{root}/recipe.yaml", *settings, *STEPS, "--out", str(run))
            found: dict[str, float] = {"until_killed": killed_after_checkpoint(train, run)}
            record(**{name: found})
            found["resumed"] = finished("train", str(run), "--resume")
            record(**{name: found})
            for protocol, format in PROTOCOLS.items():
                options = ("--protocol", protocol, "--format", format, "--limit", "8")
                found[protocol] = finished("eval", str(run), *options)
                record(**{name: found})


def write_world(root: Path) -> None:
    """Write the tests' data and recipe, and a bfloat16 model with the shapes of the other parts."""
    from evaluation_kit import tokenizer
    from world_kit import make_world

    make_world(root)
    shutil.rmtree(root / "model")
    random_model().save_pretrained(root / "model")
    tokenizer().save_pretrained(root / "model")


def started(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "moslora", *words])


def killed_after_checkpoint(words: tuple[str, ...], run: Path) -> float:
    """Start a training, kill it at its first checkpoint, and return the seconds until then."""
    began = time.perf_counter()
    training = started(*words)
    while not Run(run).checkpoints:
        if training.poll() is not None:
            raise RuntimeError(f"it ended before it had a checkpoint, with exit code {training.returncode}")
        time.sleep(0.02)
    training.send_signal(signal.SIGKILL)
    training.wait()
    return time.perf_counter() - began


def finished(*words: str) -> float:
    """Run a command that must succeed, and return its seconds."""
    began = time.perf_counter()
    code = started(*words).wait()
    if code:
        raise RuntimeError(f"moslora {' '.join(words)}: exit code {code}")
    return time.perf_counter() - began
