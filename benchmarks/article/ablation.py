"""The pictures of the experiment mixer-ablation in docs/experiments.md.

    python -m benchmarks.pictures ablation    # draws both, from docs/experiments/mixer-ablation
    python -m benchmarks.article.ablation     # first trains the run again whose M is shown, in some minutes

A packed experiment keeps no adapters. The matrices of one run are beside it, as float32: M at the end and M₀ at the
start, of six layers.
"""

import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks import DOCS
from benchmarks.article.results import draw_forest, load
from benchmarks.svg import from_report, write_pictures
from moslora.report.canvas import Canvas
from moslora.report.figures.mixers import draw_mixers, mapped
from moslora.report.learned import LearnedLayer, learned_layers
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.run import Run
from moslora.training import train_recipe

EXPERIMENT = DOCS / "experiments" / "mixer-ablation"
RUN = "learned-kaiming-0.004-0"
OUTCOMES = ("log_probability", "accuracy")
MIXERS = EXPERIMENT / "mixers.safetensors"
START = "start."
"""What the name of M₀ begins with."""


def train_again() -> None:
    """Trains the run, and writes the matrices of the layers that are shown."""
    recipe = Run(EXPERIMENT / "runs" / RUN).recipe
    with tempfile.TemporaryDirectory() as folder:
        trained = train_recipe(recipe, out=Path(folder) / RUN)
        shown = mapped(learned_layers(open_adapter(trained)))
    matrices = {}
    for layer in shown:
        matrices[layer.name] = np.asarray(layer.mixer, np.float32)
        matrices[START + layer.name] = np.asarray(layer.start, np.float32)
    save_file(matrices, MIXERS)
    print(f"written: {MIXERS}")


def kept_layers() -> list[LearnedLayer]:
    """The layers whose matrices were written."""
    matrices = load_file(MIXERS)
    names = [name for name in matrices if not name.startswith(START)]
    return [LearnedLayer(name, matrices[name], matrices[START + name]) for name in names]


def pictures() -> dict[str, str]:
    """Path in docs/ -> SVG."""
    found = load(EXPERIMENT)
    with tempfile.TemporaryDirectory() as folder:
        canvas = Canvas(Path(folder), found.names)
        differences = draw_forest(canvas, found, "differences", arms=found.names[1:], outcomes=OUTCOMES, width=6.6)
        mixers = draw_mixers(canvas, "mixers", mapped(kept_layers()))
    return {
        "mixer-ablation/differences.svg": from_report(differences),
        "mixer-ablation/mixers.svg": from_report(mixers),
    }


def main() -> None:
    train_again()
    write_pictures(pictures())


if __name__ == "__main__":
    main()
