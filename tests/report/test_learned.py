"""M, its start and the spectrum of ΔW, read from the adapter's file alone, against the layers themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch

from importing_kit import OFFICIAL, official_model, write_source
from moslora.adapters import inject, named_adapters
from moslora.base.load import load_base
from moslora.convert.importing import import_adapter
from moslora.report.canvas import Canvas
from moslora.report.figures.weights import by_layer, heat_maps
from moslora.report.learned import LearnedLayer, learned_layers
from moslora.report.runs import ReportedRun
from moslora.runs.adapter_folder import load_adapted, open_adapter
from moslora.runs.run import Run
from moslora.training import train_recipe
from training_kit import MakeRecipe

SHORT = ("training.max_steps=3", "training.warmup_steps=0", "data.validation_rows=0")
METHODS = {
    "dense": ("adapter.mixer={kind: dense}",),
    "rectangular, at zero": ("adapter.rank_out=6", "adapter.mixer={kind: dense, init: zeros}"),
    "folded": ("adapter.mixer={kind: dense, train: folded}",),
    "lora, rslora": ("adapter.mixer={kind: identity}", "adapter.scaling=rslora"),
    "butterfly": ("adapter.mixer={kind: butterfly}",),
    "input-split": ("adapter.mixer={kind: input-split}",),
    "diagonal": ("adapter.mixer={kind: diagonal}",),
    "kronecker": ("adapter.mixer={kind: kronecker}",),
    "pissa": ("adapter.mixer={kind: dense, init: orthogonal}", "adapter.start=pissa"),
}


@pytest.mark.parametrize("method", METHODS)
def test_layers_are_those_of_the_model(recipe: MakeRecipe, tmp_path: Path, method: str) -> None:
    made = recipe(*SHORT, *METHODS[method])
    train_recipe(made, out=tmp_path / "run")
    folder = open_adapter(tmp_path / "run" / "adapter")
    found = {layer.name: layer for layer in learned_layers(folder)}
    begun = load_base(made.model)
    inject(begun, **made.adapter_options(), seed=made.seed)
    start = dict(named_adapters(begun))
    layers = dict(named_adapters(load_adapted(folder)))
    assert found.keys() == layers.keys()
    for name, layer in layers.items():
        whole = torch.linalg.svdvals(layer.delta_weight().double()).detach().numpy()
        ours = found[name].spectrum
        assert np.allclose(ours, whole[: len(ours)], rtol=1e-3, atol=1e-6 * whole[0]) and whole[0] > 0
        assert not whole[len(ours) :].size or whole[len(ours) :].max() < 1e-5 * whole[0]
        if any(True for _ in layer.mixer.parameters()):
            assert np.array_equal(found[name].mixer, layer.mixer.matrix().detach().double().numpy())
            assert np.array_equal(found[name].start, start[name].mixer.matrix().detach().double().numpy())
            assert found[name].distance > 0
        else:
            assert found[name].mixer is None and found[name].distance is None


def test_the_start_of_an_imported_mixer_is_not_known(world: Path, tmp_path: Path) -> None:
    """Our seed would draw another one, and the distance from that says nothing of what was learned."""
    _, state = official_model(world)
    source = write_source(tmp_path / "source", OFFICIAL, state)
    import_adapter(source, out=tmp_path / "run", base=str(world / "model"), dtype="float32")
    layers = learned_layers(open_adapter(tmp_path / "run" / "adapter"))
    assert len(layers) == 6
    for layer in layers:
        mixer = state[f"base_model.model.{layer.name}.lora_AB.weight"].double().numpy()
        assert np.array_equal(layer.mixer, mixer) and layer.start is None and layer.distance is None
    run = ReportedRun(Run(tmp_path / "run"), "run", "run")
    canvas = Canvas(tmp_path, ["run"])
    assert heat_maps(canvas, run) is not None
    assert by_layer(canvas, [run], "distance", "distance", "") is None


def test_a_gate_has_no_single_matrix(recipe: MakeRecipe, tmp_path: Path) -> None:
    train_recipe(recipe(*SHORT, "adapter.mixer={kind: token-gate}"), out=tmp_path / "run")
    assert learned_layers(open_adapter(tmp_path / "run" / "adapter")) == []


def test_effective_rank() -> None:
    def of(*spectrum: float) -> float:
        return LearnedLayer("x", None, None, np.array(spectrum)).effective_rank

    assert of(3, 3, 3, 3) == pytest.approx(4) and of(5, 0, 0) == pytest.approx(1) and of(0, 0) == 0
    assert of(2, 1, 1) == pytest.approx(2**1.5)  # entropy ½ log 2 + ½ log 4


def test_the_distance_of_a_mixer() -> None:
    start, end = np.array([[3.0, 0.0], [0.0, 4.0]]), np.array([[3.0, 1.0], [0.0, 4.0]])
    assert LearnedLayer("x", end, start, np.ones(2)).distance == pytest.approx(0.2)
    assert LearnedLayer("x", end, 0 * start, np.ones(2)).distance == pytest.approx(26**0.5)
