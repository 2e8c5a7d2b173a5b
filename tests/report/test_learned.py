"""M and its start, read from the adapter's file alone, against the layers themselves."""

import numpy as np
import pytest

from importing_kit import OFFICIAL, official_model, write_source
from moslora.adapters import named_adapters
from moslora.base.adapted import with_adapters
from moslora.base.load import load_base
from moslora.convert.importing import import_adapter
from moslora.report.canvas import Canvas
from moslora.report.figures.mixers import draw_mixers, mapped
from moslora.report.learned import learned_layers
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.training import train_recipe

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
def test_layers_are_those_of_the_model(recipe, tmp_path, method):
    made = recipe(*SHORT, *METHODS[method])
    train_recipe(made, out=tmp_path / "run")
    folder = open_adapter(tmp_path / "run" / "adapter")
    found = {layer.name: layer for layer in learned_layers(folder)}
    begun = load_base(made.model)
    with_adapters(begun, made)
    start = dict(named_adapters(begun))
    layers = dict(named_adapters(load_adapted(folder)))
    with_weights = [name for name, layer in layers.items() if any(True for _ in layer.mixer.parameters())]
    assert [*found] == with_weights
    for name in with_weights:
        assert np.array_equal(found[name].mixer, layers[name].mixer.matrix().detach().double().numpy())
        assert np.array_equal(found[name].start, start[name].mixer.matrix().detach().double().numpy())
        assert not np.array_equal(found[name].mixer, found[name].start)


def test_the_start_of_an_imported_mixer_is_not_known(world, tmp_path):
    """The recipe's seed would draw another start than the one that was trained from."""
    _, state = official_model(world)
    source = write_source(tmp_path / "source", OFFICIAL, state)
    import_adapter(source, out=tmp_path / "run", base=str(world / "model"), dtype="float32")
    layers = learned_layers(open_adapter(tmp_path / "run" / "adapter"))
    assert len(layers) == 6
    for layer in layers:
        mixer = state[f"base_model.model.{layer.name}.lora_AB.weight"].double().numpy()
        assert np.array_equal(layer.mixer, mixer) and layer.start is None
    assert draw_mixers(Canvas(tmp_path, ["run"]), "mixers", mapped(layers))


def test_a_gate_has_no_single_matrix(recipe, tmp_path):
    train_recipe(recipe(*SHORT, "adapter.mixer={kind: token-gate}"), out=tmp_path / "run")
    assert learned_layers(open_adapter(tmp_path / "run" / "adapter")) == []
