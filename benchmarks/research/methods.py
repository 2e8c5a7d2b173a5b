"""Every method recipe on one real model: trained, resumed, reloaded, evaluated, merged and exported.

    python -m benchmarks.research.methods    # all of them
    python -m benchmarks.research.methods --methods lora moslora --print-only

A method has two processes of its own: the first trains by ``moslora train`` and has nothing else in its peak memory;
the second, method_checks.py, does the rest, and times the method's training step and LoRA's in turns, on the same rows.
What was found is kept, method by method, so the command goes on after Ctrl-C, and can be given some methods at a time;
the page gets its table once all are measured by the same code on one machine.
"""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import DOCS, ROOT
from benchmarks.commands import command, in_process, run_command
from benchmarks.research.method_checks import BASE, METHODS, PAIRS, ROWS, STEPS, examine, recipe_text
from benchmarks.tables import machine, markdown, publish, ratios, spread
from moslora.experiment.provenance import code
from moslora.files import write_json
from moslora.recipe import load_recipe
from moslora.runs.run import Run

WORK = ROOT / "runs" / "benchmarks" / "methods"
KEPT = "measured.json"
"""In a method's folder: what was found."""

Found = dict[str, Any]
"""What was found of a method, and what it was made with; JSON."""


def folder_of(method: str) -> Path:
    return WORK / method.replace("/", "-")


def made_with(folder: Path) -> Found:
    """All that a result depends on, as far as a program can tell."""
    recipe = load_recipe(folder / "recipe.yaml").to_yaml()
    return {"recipe": recipe, "pairs": PAIRS, "code": code(), "machine": machine()}


def kept(method: str) -> Found | None:
    """What was found of it before with the same recipe and code on this machine."""
    file = folder_of(method) / KEPT
    if not file.is_file():
        return None
    found: Found = json.loads(file.read_text(encoding="utf-8"))
    return found if found["made_with"] == made_with(file.parent) else None


def measure(method: str) -> Found:
    """Everything about one method."""
    began = time.monotonic()
    folder = folder_of(method)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe_text(method, steps=STEPS), encoding="utf-8")
    peaks = []
    for name in ("run", "repeated") if method == "lora" else ("run",):  # LoRA's difference is the noise
        run_command(sys.executable, "-m", "moslora", "train", recipe, "--out", folder / name)
        metrics = Run(folder / name).metrics
        peaks.append(max(float(row["peak_memory_gb"]) for row in metrics if "peak_memory_gb" in row))
    found: Found = in_process(examine, method, folder)
    found |= {"peak_memory_gb": peaks, "made_with": made_with(folder)}
    write_json(folder / KEPT, found)
    print(f"{method}: {time.monotonic() - began:.0f} s", flush=True)
    return found


def table(results: dict[str, Found]) -> str:
    """The results as Markdown, by recipe; LoRA's among them."""
    header = ["recipe `methods/…`", "mixer", "trainable parameters besides LoRA's", "step time / LoRA's"]
    rows = [[*header, "peak memory / LoRA's", "merges / exports"]]
    lora = results["lora"]
    baseline = lora["peak_memory_gb"][0]
    difference = max(found["resumed_difference"] for found in results.values())
    rows += [row_of(method, results[method], baseline=baseline) for method in METHODS if method in results]
    notes = (
        f"`{BASE}`, dropout {lora['dropout']:g}; LoRA has {lora['parameters']['lora']:,} trainable parameters in all"
        " layers. Step time: the method's over LoRA's, median (quartiles) of"
        f" {PAIRS} pairs of steps of {ROWS} rows, in turns, on the same rows;"
        " LoRA's own line is LoRA against LoRA: the noise."
        f" Peak memory: of a process that only trains, over LoRA's {baseline:.2f} GB, the base and the libraries"
        " included; LoRA's own line is its second run. Each run, resumed from the checkpoint at its half, has the"
        f" uninterrupted run's adapter{f' within {difference:.1g}' if difference else ', bit for bit'}. {machine()}."
    )
    return f"{markdown(rows)}\n\n{notes}"


def row_of(method: str, found: Found, *, baseline: float) -> list[str]:
    """A method's row; ``baseline`` is LoRA's peak of memory, in GB."""
    added = f"{found['parameters']['added']:+,}".replace("-", "−").replace("+0", "0")
    of_lora, own = found["seconds"]
    return [
        f"`{method}`",
        found["mixer"],
        added,
        spread(ratios(own, of_lora)),
        f"{found['peak_memory_gb'][-1] / baseline:.2f}",
        " / ".join(dict.fromkeys([found["merge"], found["export"]])),
    ]


def main(*, methods: tuple[str, ...] = METHODS, print_only: bool = False) -> None:
    results = {}
    for method in METHODS:
        found = kept(method)
        if found is None and method in (*methods, "lora"):
            found = measure(method)
        if found:
            results[method] = found
    missing = [name for name in METHODS if name not in results]
    publish(table(results), DOCS / "methods.md", "methods table", print_only=print_only or bool(missing))
    if missing:
        print(f"not measured, so the page keeps its table: {', '.join(missing)}")


if __name__ == "__main__":
    command(main, methods=METHODS)
