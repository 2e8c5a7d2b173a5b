"""Training step of two processes, with a whole base in each (``ddp``) or a sharded base (``fsdp``), against one
process.

    python -m moslora.selfcheck.processes FOLDER    # what each of the two processes runs
"""

import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from moslora.choices import Strategy
from moslora.data.steps import collate, label_count
from moslora.errors import MosloraError
from moslora.process_rank import is_main_process
from moslora.processes.devices import device, gpus
from moslora.processes.group import process_group, take_gpu
from moslora.processes.launch import launch
from moslora.selfcheck.piece import Draw, Finding, distance
from moslora.selfcheck.steps import ROWS, SMALL_LLAMA, small_model, train_state
from moslora.training.loop import accumulate
from moslora.training.objective import LabelLoss

STRATEGIES: dict[Strategy, str] = {"ddp": "--processes 1", "fsdp": "training.strategy=ddp"}
"""Strategy -> setting with which a run works without it."""

TOLERANCE = 1e-3


def two_processes() -> list[Finding]:
    """Compare in float32 on two GPUs, or on a CPU; with a single GPU nothing is compared."""
    if gpus() == 1:
        return []
    fault = "the lines above say why"
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", __name__, folder]
        try:
            launch(command, processes=2, then="moslora check", restarts=0)
        except MosloraError as error:
            fault = str(error)
        for strategy, part in STRATEGIES.items():
            about = (f"a step of two processes, {strategy}", part, "float32", TOLERANCE)
            findings.append(Finding(*about, fault=fault))
            file = Path(folder) / strategy
            if file.exists():
                findings[-1] = Finding(*about, float(file.read_text("utf-8")))
    return findings


def main(folder: str) -> None:
    """Compare a training step of two processes with that of one. This process is one of the two; the first writes the
    distances into ``folder``."""
    with redirect_stdout(sys.stderr):  # the standard output belongs to the check
        take_gpu()
        with process_group({}, then="moslora check"):
            for strategy in STRATEGIES:
                off = _off(strategy)
                if is_main_process():
                    Path(folder, strategy).write_text(str(off), "utf-8")


def _off(strategy: Strategy) -> float:
    """Largest distance of the gradients of two processes' step from those of one process."""
    draw = Draw(None, device(), torch.float32)
    model = small_model(draw, SMALL_LLAMA)
    loss, _ = LabelLoss(model).train()(collate(ROWS, device=draw.device))
    expected = torch.autograd.grad(loss / label_count(ROWS), draw.learned)
    accumulate(train_state(draw, model, strategy), ROWS)
    gradients: Any = [weight.grad for weight in draw.learned]
    return max(map(distance, gradients, expected))


if __name__ == "__main__":
    main(*sys.argv[1:])
