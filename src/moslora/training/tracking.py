"""Progress of a run: a line on the screen, a line in ``metrics.jsonl``, and Weights & Biases if configured."""

import json
import math
import resource
import sys
import time
from typing import Any

from moslora.console import is_main_process, say
from moslora.files import write_text, writing
from moslora.processes.devices import gpu_module, gpus
from moslora.runs.run import METRICS, Run

MEASURED = ("tokens_per_second", "examples_per_second", "seconds", "peak_memory_gb")
"""Metrics that differ between equal runs."""


class Tracker:
    """Writes metrics, on the main process. Speed and time left count from the start of this process, not of the run."""

    def __init__(self, run: Run, *, first_step: int, total_steps: int, wandb: Any = None) -> None:
        self._active = is_main_process()
        self._path = run.path / METRICS
        self._first, self._total = first_step, total_steps
        self._began = self._last = time.perf_counter()
        self._tokens = self._examples = 0
        self._wandb = wandb
        self._before = 0.0
        if self._active and self._path.exists():
            # What a killed run logged after its last checkpoint is dropped: those steps are repeated.
            kept = [row for row in run.metrics if row["step"] <= first_step]
            self._before = max((row["seconds"] for row in kept if "seconds" in row), default=0.0)
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))

    def count(self, *, tokens: int, examples: int) -> None:
        """Adds one step's work: real tokens, no padding."""
        self._tokens += tokens
        self._examples += examples

    def log(self, step: int, **values: float) -> None:
        """Records ``values`` after ``step`` updates: with the speed since the last call, the seconds of training so
        far, interruptions left out, and the peak memory of this process."""
        if not self._active:
            return
        now = time.perf_counter()
        seconds = now - self._last
        left = (now - self._began) / (step - self._first) * (self._total - step)
        row = {
            "step": step,
            **values,
            "tokens_per_second": self._tokens / seconds,
            "examples_per_second": self._examples / seconds,
            "seconds": round(self._before + now - self._began, 3),
            "peak_memory_gb": peak_memory_gb(),
        }
        self._last, self._tokens, self._examples = now, 0, 0
        shown = "  ".join(
            f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}" for name, value in values.items()
        )
        self.record(row)
        say(
            f"step {step}/{self._total}  {shown}  {row['tokens_per_second']:.0f} tokens/s"
            f"  {row['examples_per_second']:.1f} examples/s  peak {row['peak_memory_gb']:.1f} GB"
            f"  {left / 60:.1f} min left"
        )

    def record(self, row: dict[str, Any]) -> None:
        """Writes one line of ``metrics.jsonl`` and prints nothing."""
        if not self._active:
            return
        # A step that the float16 scaler skips has an infinite norm, which JSON cannot hold.
        row = {key: value if isinstance(value, str) or math.isfinite(value) else None for key, value in row.items()}
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._wandb is not None:
            self._wandb.log(row, step=row["step"])


def peak_memory_gb() -> float:
    """Peak memory so far in GB: the GPU's if there is one, otherwise this process's."""
    if gpus():
        return float(gpu_module().max_memory_allocated()) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
