"""Adapters of others as runs of ours: computed as by their own equations and libraries, or refused whole."""

import json
import pickle
import shutil
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli_kit import run as cli
from importing_kit import (
    ALPHA,
    LAYER,
    OFFICIAL,
    PEFT,
    RANK,
    TARGETS,
    official_model,
    write_source,
)
from moslora.base import shapes
from moslora.base.resolve import BUILTIN
from moslora.cli.completion import runs
from moslora.convert import importing
from moslora.convert.export import export_peft
from moslora.convert.importing import import_adapter
from moslora.errors import MosloraError, UsageError
from moslora.recipe import load_recipe
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.peft_adapter import read_settings
from moslora.runs.run import locate_adapter, newest_run
from moslora.training import train_recipe
from reference import perturb, token_batch
from world_kit import loads_of_models


def fresh(world):
    return AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32).eval()


@torch.inference_mode()
def logits(model):
    return model(token_batch(model)).logits


def close(one, other):
    return float((one - other).abs().max() / other.abs().max()) <= 1e-5


@pytest.mark.parametrize("file", ["adapter_model.bin", "adapter_model.safetensors", "pytorch_model.bin"])
def test_an_official_checkpoint_computes_what_its_layers_do(world, tmp_path, monkeypatch, file):
    """Also with the adapter's name in the keys, as later versions of PEFT write them. Its base is loaded once."""
    model, state = official_model(world)
    if file == "adapter_model.safetensors":
        state = {key.replace(".weight", ".default.weight"): value for key, value in state.items()}
    source = write_source(tmp_path / "source", OFFICIAL, state, file=file)
    if file == "pytorch_model.bin":  # a trainer's checkpoint: its settings lie in the folder above
        (source / "checkpoint-200").mkdir()
        shutil.move(source / file, source / "checkpoint-200")
        source = source / "checkpoint-200"
    run = tmp_path / "run"
    loaded = loads_of_models(monkeypatch)
    assert import_adapter(source, out=run, base=str(world / "model")).startswith("6 layers imported")
    assert loaded == [str(world / "model")]
    folder = open_adapter(locate_adapter(run))
    expected = logits(model)
    assert close(logits(load_adapted(folder, dtype="float32")), expected)
    assert not close(logits(fresh(world)), expected)
    recipe = folder.recipe
    assert (recipe.name, recipe.data.format, recipe.evaluation.protocol) == (source.name, "llm-adapters", "choice")
    assert recipe.questions.source == "wheel", "the command that comes next needs no hub"
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.dropout) == (RANK, ALPHA, 0.05)
    assert recipe.adapter.mixer.kind == "dense" and set(recipe.adapter.target_modules) == set(TARGETS)


def test_an_import_is_a_run(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = {key: value.half() for key, value in official_model(world)[1].items()}
    source = write_source(tmp_path / "theirs", OFFICIAL, state)
    assert cli(capsys, "import", source, "--base", world / "model", "--dtype", "float32")[0] == 0
    assert [name for name, _ in runs()] == ["runs/theirs"] and newest_run(Path("runs")).path == Path("runs/theirs")
    m = open_adapter(Path("runs/theirs/adapter")).weights()[f"{LAYER.removeprefix('base_model.model.')}.mixer.weight"]
    assert m.dtype == torch.float32 and m.equal(state[f"{LAYER}.lora_AB.weight"].float()), "kept to the bit"


@pytest.mark.parametrize("kind", PEFT)
def test_a_stock_peft_adapter_computes_what_peft_does(world, tmp_path, kind):
    config = peft.LoraConfig(
        **{"target_modules": TARGETS, **PEFT[kind]}, r=3, lora_alpha=5, lora_dropout=0.1, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(fresh(world), config)
    perturb(p for name, p in theirs.named_parameters() if "lora_" in name)
    theirs.save_pretrained(tmp_path / "source")
    said = import_adapter(tmp_path / "source", out=tmp_path / "run")
    assert "prompt that it was trained with is not known" in said and "--protocol cloze" in said
    folder = open_adapter(tmp_path / "run" / "adapter")
    expected = logits(theirs.eval())
    assert close(logits(load_adapted(folder, dtype="float32")), expected)
    assert not close(logits(fresh(world)), expected)
    assert folder.recipe.adapter.mixer.kind == "identity" and folder.recipe.data.format == "label"


def test_a_setting_is_off_where_it_has_pefts_default(tmp_path):
    defaults = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM").to_dict()
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**defaults, "target_modules": ["q_proj"]}))
    assert read_settings(path).r == defaults["r"]


def test_the_output_layer_is_refused(world, tmp_path):
    theirs = peft.get_peft_model(fresh(world), peft.LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))
    theirs.save_pretrained(tmp_path / "source", save_embedding_layers=False)
    with pytest.raises(UsageError, match="adapts the output layer"):
        import_adapter(tmp_path / "source", out=tmp_path / "run")


class Trap:
    """A pickle that writes a file when it is opened by a reader that runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "run")


def test_code_in_a_pickle_is_not_run(world, tmp_path):
    ran = tmp_path / "ran"
    state = {**official_model(world)[1], "trap": Trap(ran)}
    config = {**OFFICIAL, "base_model_name_or_path": str(world / "model")}
    source = write_source(tmp_path / "source", config, state)
    with pytest.raises(MosloraError, match=r"adapter_model\.bin: .*no code") as refused:
        import_adapter(source, out=tmp_path / "run")
    assert refused.value.exit_code == 1 and len(str(refused.value).splitlines()) == 1
    for content in (b"", b"PK\x03\x04 cut off", *map(pickle.dumps, (Trap(ran), [1, 2]))):
        (source / "adapter_model.bin").write_bytes(content)
        with pytest.raises(MosloraError, match=r"adapter_model\.bin: .*no code"):
            import_adapter(source, out=tmp_path / "run")
    assert not ran.exists() and not (tmp_path / "run").exists()
    torch.load(write_source(tmp_path / "other", config, state) / "adapter_model.bin", weights_only=False)
    assert ran.read_text() == "run", "the trap works"


def test_a_wrong_import_is_refused_and_leaves_nothing(world, tmp_path, monkeypatch):
    """M read as its transpose, which has the right shape: the proof sees it."""
    source = write_source(tmp_path / "source", OFFICIAL, official_model(world)[1])
    state = importing.own_state

    def transposed(layers):
        return {name: tensor.T.contiguous() if "mixer" in name else tensor for name, tensor in state(layers).items()}

    monkeypatch.setattr(importing, "own_state", transposed)
    with pytest.raises(MosloraError, match=f"{importing.TOLERANCE:g}"):
        import_adapter(source, out=tmp_path / "run", base=str(world / "model"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.fixture
def built_in(world, tmp_path, monkeypatch):
    """The small model in the place of the built-in one, and an export of a run on it."""
    monkeypatch.setenv("MOSLORA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delitem(shapes.SHAPES, BUILTIN)
    shutil.copytree(world / "model", tmp_path / "home" / "models" / BUILTIN)
    train_recipe(
        load_recipe(world / "recipe.yaml", [f"model.name={BUILTIN}", "training.max_steps=4"]), out=tmp_path / "run"
    )
    return export_peft(tmp_path / "run" / "adapter", out=tmp_path / "peft")


def test_an_export_over_the_built_in_base_is_imported_over_it(built_in, tmp_path):
    """Although its settings name the original on the hub, whose weights are others."""
    import_adapter(built_in, out=tmp_path / "again", dtype="float32")
    again, run = (open_adapter(tmp_path / name / "adapter") for name in ("again", "run"))
    assert again.recipe.model.name == BUILTIN
    assert close(logits(load_adapted(again)), logits(load_adapted(run)))


def test_a_base_other_than_the_exports_is_noted(trained, world, tmp_path, capsys):
    export_peft(trained / "adapter", out=tmp_path / "peft")
    import_adapter(tmp_path / "peft", out=tmp_path / "same")
    assert "note" not in capsys.readouterr().out
    other = fresh(world)
    perturb([other.model.norm.weight])
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(world / "model").save_pretrained(tmp_path / "other")
    import_adapter(tmp_path / "peft", out=tmp_path / "run", base=str(tmp_path / "other"))
    assert f"{tmp_path / 'other'} has other weights" in capsys.readouterr().out
