"""Every method recipe on one real model: trained, resumed, reloaded, evaluated, merged and exported.

    python -m benchmarks.article.methods    # all of them
    python -m benchmarks.article.methods --methods lora moslora --print-only

A method has two processes of its own: the first trains by ``moslora train`` and has nothing else in its peak memory;
the second, method_checks.py, does the rest, and times the method's training step and LoRA's in turns, on the same rows.
What was found is kept, method by method, so the command goes on after Ctrl-C, and can be given some methods at a time;
the page gets its table once all are measured by the same code on one machine.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import DOCS, ROOT
from benchmarks.article.method_checks import METHODS, Method, Settings, recipe_text
from benchmarks.tables import machine, markdown, publish, spread
from moslora.experiment.provenance import code
from moslora.files import write_json
from moslora.recipe import load_recipe
from moslora.runs.run import Run

TABLE = "methods table"

KEPT = "measured.json"
"""In a method's folder: what was found, and what it was made with."""


def folder_of(method: Method, work: Path) -> Path:
    return work / method.recipe.replace("/", "-")


def kept(method: Method, work: Path, settings: Settings) -> dict[str, Any] | None:
    """What was found of it before with the same settings, recipe and code on this machine."""
    file = folder_of(method, work) / KEPT
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if found["made_with"] != made_with(file.parent, settings):
        return None
    return found


def made_with(folder: Path, settings: Settings) -> dict[str, Any]:
    """All that a result depends on, as far as a program can tell; JSON."""
    recipe = load_recipe(folder / "recipe.yaml").to_yaml()
    return {"settings": asdict(settings), "recipe": recipe, "code": code(), "machine": machine()}


def measure(method: Method, work: Path, settings: Settings) -> dict[str, Any]:
    """Everything about one method.

    Raises:
        RuntimeError: a process failed; its log is named.
    """
    print(f"{method.recipe} ...", flush=True)
    began = time.monotonic()
    folder = folder_of(method, work)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe_text(method.recipe, settings, steps=settings.steps), encoding="utf-8")
    # LoRA twice: the difference between its two runs is the noise.
    runs = ["run"]
    if method.recipe == "lora":
        runs.append("repeated")
    for run in runs:
        _process(["-m", "moslora", "train", str(recipe), "--out", str(folder / run)], folder / f"{run}.log")
    peaks = [_peak_memory(folder / run) for run in runs]
    examine = ["-m", "benchmarks.article.method_checks", method.recipe, str(folder), json.dumps(asdict(settings))]
    _process(examine, folder / "examine.log")
    found: dict[str, Any] = json.loads((folder / "examined.json").read_text(encoding="utf-8"))
    counted = found["parameters"]["counted"]
    said = trainable_parameters(folder / "run.log")
    if said is None or int(said.replace(",", "")) != counted:
        raise RuntimeError(f"{method.recipe}: the run says {said} trainable parameters, not {counted:,}")
    found["peak_memory_gb"] = peaks
    found["made_with"] = made_with(folder, settings)
    write_json(folder / KEPT, found)
    print(f"{method.recipe}: {time.monotonic() - began:.0f} s", flush=True)
    return found


def trainable_parameters(log: Path) -> str | None:
    """Their number as a run has printed it; ``None`` if it has not."""
    printed = re.search(r"([\d,]+) trainable parameters", log.read_text(encoding="utf-8"))
    if printed is None:
        return None
    return printed[1]


def table(results: dict[str, dict[str, Any]], settings: Settings) -> str:
    """The results as Markdown.

    Args:
        results: by recipe; LoRA's among them.
    """
    header = ["recipe `methods/…`", "mixer", "trainable parameters besides LoRA's", "step time / LoRA's"]
    header += ["peak memory / LoRA's", "merges", "exports", "resumed"]
    rows = [header]
    baseline = results["lora"]["peak_memory_gb"][0]
    for method in METHODS:
        if method.recipe not in results:
            continue
        rows.append(row_of(method, results[method.recipe], baseline=baseline))
    lora = results["lora"]["parameters"]["lora"]
    notes = (
        f"`{settings.base}`, dropout {results['lora']['dropout']:g}, {lora:,} trainable parameters with LoRA; counted"
        " in the model and equal to the formula, summed over the layers. Step time: median (quartiles) of"
        f" {settings.pairs} pairs of steps of {settings.rows} rows, the method's and LoRA's in turns, on the same rows;"
        " LoRA's own line is LoRA against LoRA: the noise."
        f" Peak memory: of a process that only trains ({baseline:.2f} GB with LoRA, the base and the libraries"
        " included); LoRA's own line is its second run. Resumed: the adapter of a run resumed from the"
        f" checkpoint at its half, compared with that of the uninterrupted run. {machine()}."
    )
    return f"{markdown(rows)}\n\n{notes}"


def row_of(method: Method, found: dict[str, Any], *, baseline: float) -> list[str]:
    """A method's row; ``baseline`` is LoRA's peak of memory, in GB."""
    added = f"{found['parameters']['added']:+,}".replace("-", "−").replace("+0", "0")
    if method.formula != "0":
        added = f"{method.formula} = {added}"
    ratios = [own / lora for lora, own in zip(*found["seconds"], strict=True)]
    difference = found["resumed_difference"]
    resumed = "same bits"
    if difference != 0:
        resumed = f"within {difference:.1g}"
    return [
        f"`{method.recipe}`",
        found["mixer"],
        added,
        spread(ratios),
        f"{found['peak_memory_gb'][-1] / baseline:.2f}",
        found["becomes"]["merge"],
        found["becomes"]["export"],
        resumed,
    ]


def _peak_memory(run: Path) -> float:
    return max(float(row["peak_memory_gb"]) for row in Run(run).metrics if "peak_memory_gb" in row)


def _process(arguments: Sequence[str], log: Path) -> None:
    with log.open("w", encoding="utf-8") as file:
        ran = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False)
    if ran.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-3:])
        raise RuntimeError(f"exit code {ran.returncode}, see {log}:\n{tail}")


def options(names: Sequence[str]) -> argparse.Namespace:
    """Those of the command line; ``names`` are all the methods."""
    parser = argparse.ArgumentParser(description="Train, examine and time every method recipe on one model.")
    parser.add_argument("--base", default="smollm2-135m", help="recipe with the model (%(default)s)")
    parser.add_argument("--methods", nargs="+", default=names, choices=names, metavar="METHOD", help="LoRA always is")
    parser.add_argument("--again", action="store_true", help="measure also what was measured by the same code")
    parser.add_argument("--steps", type=int, default=6, help="steps of each run (%(default)s)")
    parser.add_argument("--pairs", type=int, default=12, help="timed steps (%(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step (%(default)s)")
    parser.add_argument("--questions", type=int, default=8, help="scored questions per task (%(default)s)")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "benchmarks" / "methods", help="the results' folder"
    )
    parser.add_argument("--docs", type=Path, default=DOCS / "methods.md", help="where the table is written")
    parser.add_argument("--print-only", action="store_true", help="leave the document as it is")
    return parser.parse_args()


def main() -> int:
    names = [method.recipe for method in METHODS]
    given = options(names)
    base = given.base
    if Path(base).is_file():  # relative to here, not to the folder of the recipes that extend it
        base = str(Path(base).resolve())
    settings = Settings(base=base, steps=given.steps, pairs=given.pairs, rows=given.rows, questions=given.questions)
    results = {}
    faults = 0
    for method in METHODS:
        asked_for = method.recipe in given.methods
        found = None
        if not (given.again and asked_for):
            found = kept(method, given.work, settings)
        if found is None and (asked_for or method.recipe == "lora"):
            try:
                found = measure(method, given.work, settings)
            except RuntimeError as error:
                print(f"error: {method.recipe}: {error}", file=sys.stderr)
                faults += 1
        if found:
            results[method.recipe] = found
    if "lora" not in results:
        return 1
    missing = [name for name in names if name not in results]
    publish(table(results, settings), given.docs, TABLE, print_only=given.print_only or bool(missing))
    if missing:
        print(f"not measured, so {given.docs} keeps its table: {', '.join(missing)}", file=sys.stderr)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
