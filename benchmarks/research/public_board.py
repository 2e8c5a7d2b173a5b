"""What one run per method can say: PEFT's public MetaMathQA results, each compared with LoRA of rank 32.

    git clone https://github.com/huggingface/peft && git -C peft checkout 5d602fd
    python -m benchmarks.research.public_board peft/method_comparison/MetaMathQA/results

Every result is one run of Llama-3.2-3B with seed 0, scored on GSM8K's 1,319 test questions. The answers to the single
questions are not published, so two results are compared as independent proportions: with p₁ and p₂ correct of n each,

    z = (p₁ − p₂) / √(2 p (1 − p) / n),   p = (p₁ + p₂) / 2
"""

import json
from pathlib import Path

from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportions_ztest

from benchmarks.commands import command

QUESTIONS = 1_319
REFERENCE = "lora/llama-3.2-3B-rank32"
LEVEL = 0.05
DEFAULT_RATE = 1e-4
"""The learning rate of PEFT's `default_training_params.json`."""


def main(results: Path) -> None:
    runs = [json.loads(file.read_bytes()) for file in results.glob("*.json")]
    accuracy = {run["run_info"]["experiment_name"]: run["train_info"]["metrics"][-1]["test accuracy"] for run in runs}
    seeds = {run["run_info"]["train_config"]["seed"] for run in runs}
    rates = [run["run_info"]["train_config"]["optimizer_kwargs"]["lr"] for run in runs]
    print(f"{len(runs)} results of the seeds {seeds}; {rates.count(DEFAULT_RATE)} at the rate {DEFAULT_RATE}")

    others = {name: share for name, share in accuracy.items() if name != REFERENCE}
    correct = round(accuracy[REFERENCE] * QUESTIONS)
    print(f"{REFERENCE}: {correct} of {QUESTIONS:,} correct, {100 * accuracy[REFERENCE]:.1f} %")
    p_values = [proportions_ztest([round(share * QUESTIONS), correct], QUESTIONS)[1] for share in others.values()]
    corrected = multipletests(p_values, alpha=LEVEL, method="holm")[0]
    for how, differs in (("uncorrected", [p <= LEVEL for p in p_values]), ("by Holm", corrected)):
        shown = [share for share, different in zip(others.values(), differs, strict=True) if different]
        better = sum(share > accuracy[REFERENCE] for share in shown)
        print(f"{how}: {len(shown)} of {len(others)} differ, {better} of them better")


if __name__ == "__main__":
    command(main)
