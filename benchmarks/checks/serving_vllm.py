"""What vLLM answers on a CPU, with what a run was turned into, against the run itself.

    make serving                                                # after the table of llama.cpp, whose run this takes
    python -m benchmarks.checks.serving_vllm .venv-vllm/bin/vllm --run runs/NAME

`moslora verify` asks each model that it serves: the merged run; the base with the exported adapter, with that of
another training, and alone; and the exported adapter where the server is told to adapt other layers, so that it adapts
none.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.checks.serving import TRAINING, WORK, publish_reports
from benchmarks.commands import command, run_command
from moslora.base.resolve import locate
from moslora.runs.adapter_folder import open_adapter
from moslora.verify.report import Report
from moslora.verify.verification import verify

ADDRESS = "http://127.0.0.1:8123"
SERVE = ["--port", "8123", "--enforce-eager", "--dtype", "float32", "--max-model-len", "2048"]
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
OTHER_LAYERS = "o_proj"
"""Which the run's recipe does not adapt."""

ANOTHER_TRAINING = ["seed=7", "training.max_steps=12", "training.global_batch_size=8"]


@contextmanager
def serving(vllm: Path, words: Sequence[str | Path], log: Path) -> Iterator[None]:
    """A server that is ready, with its output in ``log``.

    Raises:
        RuntimeError: it ended before it was.
    """
    line = [str(word) for word in (vllm, "serve", *words, *SERVE)]
    print("$", *line, flush=True)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(line, env=os.environ | ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)
        try:
            while not is_ready():
                if process.poll() is not None:
                    raise RuntimeError(f"vLLM ended: {log}")
                time.sleep(2)
            yield
        finally:
            process.terminate()
            process.wait()


def is_ready() -> bool:
    try:
        return httpx.get(f"{ADDRESS}/health").is_success
    except httpx.TransportError:
        return False


def servers(run: Path) -> Iterator[tuple[list[str | Path], Mapping[str, str]]]:
    """The words behind `vllm serve`, and of each model that it lists what that is."""
    base = locate(open_adapter(run / "adapter").recipe.model.name)
    merged = WORK / "merged"
    mine = f"mine={WORK / 'peft'}"
    adapters = [base, "--served-model-name", "base", "--enable-lora", "--max-lora-rank", "16", "--lora-modules"]
    yield [merged, "--served-model-name", "merged"], {"merged": "merged"}
    yield (
        [*adapters, mine, f"other={WORK / 'other-peft'}"],
        {"mine": "base, adapter", "base": "base alone", "other": "base, adapter of another training"},
    )
    yield [*adapters, mine, "--lora-target-modules", OTHER_LAYERS], {"mine": f"base, adapter, for {OTHER_LAYERS} alone"}


def verified(vllm: Path, run: Path) -> Iterator[tuple[str, Report, str]]:
    """What is served, what `moslora verify` says of it, and the version of vLLM."""
    for words, models in servers(run):
        with serving(vllm, words, WORK / "vllm.log"):
            version = httpx.get(f"{ADDRESS}/version").json()["version"]
            for model, what in models.items():
                out = WORK / "vllm" / what
                report = verify(run, ADDRESS, model=model, dtype="float32", at_once=1, out=out)
                yield what, report, f"vllm-cpu {version}, float32"


def main(vllm: Path, *, run: Path = WORK / "run", print_only: bool = False) -> None:
    moslora = (sys.executable, "-m", "moslora")
    other = WORK / "other"
    if not (other / "adapter").exists():
        run_command(*moslora, "train", *TRAINING, *ANOTHER_TRAINING, "--out", other)
    made: dict[str, list[str | Path]] = {
        "merged": ["merge", run, "--dtype", "float32"],
        "peft": ["export", run],
        "other-peft": ["export", other],
    }
    for name, how in made.items():
        if not (WORK / name).exists():
            run_command(*moslora, *how, "--out", WORK / name)
    publish_reports("vllm table", "vLLM serves", verified(vllm, run), print_only=print_only)


if __name__ == "__main__":
    command(main)
