"""Metrics of a run: on the screen, in ``metrics.jsonl``, and in the trackers of its recipe."""

import json
import math
import resource
import sys
import time
from typing import Any

from moslora.console import note, say
from moslora.errors import first_line
from moslora.files import write_text, writing
from moslora.process_rank import is_main_process
from moslora.processes.devices import gpu_module, gpus
from moslora.progress import Line
from moslora.runs.run import METRICS, Run
from moslora.runs.trackers import Records
from moslora.training.samples import NO_SAMPLES, Samples

MEASURED = ("tokens_per_second", "examples_per_second", "seconds", "peak_memory_gb")
"""Metrics that differ between equal runs."""

GROUPED = {
    "validation_loss": "validation/loss",
    "validation_accuracy": "validation/accuracy",
    "validation_questions": "validation/questions",
    "validation_effective_questions": "validation/effective_questions",
    **{name: f"speed/{name}" for name in (*MEASURED, "sample_seconds")},
}
"""Names in trackers, which group metrics by the part before the slash. All other names start with `train/`."""


class Tracker:
    """Writer of metrics, on the main process. Speed and remaining time are measured from this process's first step, not
    the run's."""

    def __init__(
        self, run: Run, line: Line, *, first_step: int, total_steps: int, log_every: int = 1, records: Records = ()
    ) -> None:
        self._active = is_main_process()
        self._line = line
        self._log_every = log_every
        self._path = run.path / METRICS
        self._first = first_step
        self._total = total_steps
        self._began = time.perf_counter()
        self._steps_began = self._began
        self._last_record = self._began
        self._tokens = 0  # since the last record
        self._examples = 0
        self._records = list(records)
        self._seconds_before = 0.0  # of the processes before this one
        if self._active and self._path.exists():
            # What a killed run logged after its last checkpoint is dropped: those steps are repeated, and without a
            # checkpoint the validation before the first one is, too.
            kept = [row for row in run.metrics if 0 < first_step >= row["step"]]
            self._seconds_before = max((row["seconds"] for row in kept if "seconds" in row), default=0.0)
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))

    def begin_steps(self) -> None:
        """Measure speed and remaining time from now on; the time before counts only in the metric ``seconds``."""
        self._steps_began = time.perf_counter()
        self._last_record = self._steps_began

    def log_step(self, step: int, *, tokens: int, examples: int, **values: float) -> None:
        """Show ``values`` of update number ``step``, and record them at the first step, every ``log_every``-th and the
        last.

        A record also has the speed since the last record, the seconds of training without interruptions, and the peak
        memory of this process. The first step of this process is also printed, as it shows how long a run will take.
        """
        if not self._active:
            return
        self._tokens += tokens
        self._examples += examples
        now = time.perf_counter()
        seconds = now - self._last_record
        row = {
            "step": step,
            **values,
            "tokens_per_second": self._tokens / seconds,
            "examples_per_second": self._examples / seconds,
            "seconds": round(self._seconds_before + now - self._began, 3),
            "peak_memory_gb": peak_memory_gb(),
        }
        loss, *others = [
            f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}" for name, value in values.items()
        ]
        tokens_s = f"{row['tokens_per_second']:.0f} tokens/s"
        examples_s = f"{row['examples_per_second']:.1f} examples/s"
        at = f"step {step}/{self._total}"
        peak = f"peak {row['peak_memory_gb']:.1f} GB"
        done_here = step - self._first
        self._line.show(done_here, at, loss, examples_s, *others, tokens_s, peak)
        recorded = step % self._log_every == 0 or step in (1, self._total)
        if recorded:
            self._last_record = now
            self._tokens = 0
            self._examples = 0
            self.record(row)
        if self._line.disable and (recorded or done_here == 1):
            left = (now - self._steps_began) / done_here * (self._total - step)
            say("  ".join([at, loss, *others, tokens_s, examples_s, peak, f"{left / 60:.1f} min left"]))

    def record(self, row: dict[str, Any], samples: Samples = NO_SAMPLES) -> None:
        """Write one line of ``metrics.jsonl`` and log it to the trackers. The time of ``samples`` does not count in the
        speed of the next steps."""
        if not self._active:
            return
        texts = {}
        if samples.samples:
            row = {**row, "sample_seconds": round(samples.seconds, 3)}
            texts["samples"] = samples.samples
            self._last_record += samples.seconds
        # JSON holds no infinity, such as the norm of a step that the float16 scaler skips.
        logged = {key: value if math.isfinite(value) else None for key, value in row.items()}
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(logged | texts) + "\n")
        step = row["step"]
        del logged["step"]
        values = {GROUPED.get(key, f"train/{key}"): value for key, value in logged.items() if value is not None}
        if texts:
            values["validation/samples"] = "\n".join(samples.lines())
        for tracker, next_step in [*self._records]:
            try:
                if step >= next_step:  # a killed run logged the steps before
                    tracker.log(values, step=step)
            except Exception as error:  # of whatever kind: the training goes on
                note(f"{tracker.name} gets no more metrics: {first_line(error)}")
                self._records.remove((tracker, next_step))


def peak_memory_gb() -> float:
    """Peak memory so far in GB: the GPU's if there is one, otherwise this process's."""
    if gpus():
        return float(gpu_module().max_memory_allocated()) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
