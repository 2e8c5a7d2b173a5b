"""The pictures of the experiment mixer-ablation in docs/experiments.md.

    python -m benchmarks.pictures --only ablation    # draws both, from docs/experiments/mixer-ablation
    python -m benchmarks.research.ablation            # first trains the run again whose M is shown, in some minutes

The tables of an experiment keep no adapters. The matrices of one run are beside this file, as float32: M at the end and
M₀ at the start, of six layers.
"""

import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks import DOCS
from benchmarks.commands import command
from benchmarks.research.results import draw_forest, load
from benchmarks.svg import canvas_of, from_report, write_pictures
from moslora.experiment.file import load_experiment
from moslora.report.figures.mixers import draw_mixers, mapped
from moslora.report.learned import LearnedLayer, learned_layers
from moslora.runs.adapter_folder import open_adapter
from moslora.training import train_recipe

EXPERIMENT = DOCS / "experiments" / "mixer-ablation"
RUN = ("learned-kaiming", 0.004, 0)
"""Arm, learning rate and seed."""

OUTCOMES = ("log_probability", "accuracy")
MIXERS = Path(__file__).with_name("mixers.safetensors")
START = "start."
"""What the name of M₀ begins with."""


def train_again() -> None:
    """Trains the run, and writes the matrices of the layers that are shown."""
    arm, rate, seed = RUN
    runs = load_experiment("mixer-ablation").planned([(arm, rate)], scored=True)
    planned = next(one for one in runs if one.recipe.seed == seed)
    with tempfile.TemporaryDirectory() as folder:
        trained = train_recipe(planned.recipe, out=Path(folder) / planned.name)
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
    with canvas_of(found.names) as canvas:
        figures = {
            "differences": draw_forest(
                canvas, found, "differences", arms=found.names[1:], outcomes=OUTCOMES, width=6.6
            ),
            "mixers": draw_mixers(canvas, "mixers", mapped(kept_layers())),
        }
    return {f"mixer-ablation/{name}.svg": from_report(figure) for name, figure in figures.items()}


def main() -> None:
    train_again()
    write_pictures(pictures())


if __name__ == "__main__":
    command(main)
