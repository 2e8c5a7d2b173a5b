"""The search before the experiment `forgetting`: the share of replay, and whether 0.8 is a fixed strength to study.

    python -m benchmarks.research.forgetting_texts
    python -m benchmarks.research.forgetting_search                 # twelve runs of three minutes; goes on where it was
    python -m benchmarks.research.forgetting_search --table         # what is known so far
    python -m benchmarks.research.forgetting_search --write FILE    # the same as JSON, to be committed

LoRA at its rate and the same with each share of replay, under the seeds that choose rates, as in the experiment.
Nothing is scored: what counts is the loss of the held-out rows after the last step.

* The share of replay is the one with the lowest mean.
* The fixed strength is 0.8 if LoRA's runs keep there, on average, 90 % of what they gain in that loss; else 0.9.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

from benchmarks.commands import command
from moslora.download.wheels import home
from moslora.runs.run import Run

SEEDS = (100, 101, 102)
SHARES = (0.0, 0.05, 0.1, 0.2)

TRAINING = (
    "extends=methods/lora",
    "data.validation_rows=240",
    "training.learning_rate=2e-3",
    "training.checkpoint_every=40",
    "training.keep_checkpoints=1",
    "training.validate_every=23",
    "training.validation_questions=0",
)


def name_of(share: float, seed: int) -> str:
    return f"replay-{share:g}-{seed}" if share else f"lora-{seed}"


def train(run: Run, share: float, seed: int) -> None:
    """Trains, or goes on training."""
    words = [str(run.path), "--resume"]
    if not run.exists:
        words = ["smollm2-135m", "--out", str(run.path), *TRAINING, f"name={name_of(share, seed)}", f"seed={seed}"]
        if share:
            words.append(f"tasks={{mmlu_law: {{texts: {home() / 'texts' / 'mmlu-law.jsonl'}}}}}")
            words.append(f"data.replay={{texts: mmlu_law, share: {share}}}")
    subprocess.run([sys.executable, "-m", "moslora", "train", *words], check=True)


def losses(folder: Path) -> dict[str, dict[str, float]]:
    """Share of replay -> the loss under each seed whose run is done."""
    found: dict[str, dict[str, float]] = {}
    for share in SHARES:
        runs = {seed: Run(folder / name_of(share, seed)) for seed in SEEDS}
        done = {str(seed): run.validation_loss for seed, run in runs.items() if run.finished}
        found[f"{share:g}"] = {seed: loss for seed, loss in done.items() if loss is not None}
    return found


def main(*, out: Path = Path("runs/forgetting-search"), table: bool = False, write: Path | None = None) -> None:
    for seed in SEEDS:
        for share in SHARES:
            run = Run(out / name_of(share, seed))
            if not (table or write or run.finished):
                train(run, share, seed)
    found = losses(out)
    print(f"{'share':6}  {'  '.join(f'{seed:6}' for seed in SEEDS)}    mean")
    for name, of_seeds in found.items():
        cells = [f"{of_seeds[str(seed)]:.4f}" if str(seed) in of_seeds else f"{'–':>6}" for seed in SEEDS]
        print(f"{name:6}  {'  '.join(cells)}  {fmean(of_seeds.values()):.4f}" if of_seeds else name)
    if write:
        write.write_text(json.dumps({"validation_loss": found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command(main)
