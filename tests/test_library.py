"""The names of `moslora`: adapters of a program's own training go to the commands and back."""

import ast
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import moslora
from cli_kit import run
from evaluation_kit import make_model
from moslora.adapters import MIXERS
from moslora.adapters.mixers.fixed import IdentityMixer
from moslora.errors import UsageError
from moslora.mixer_options import Options
from moslora.runs.adapter_folder import open_adapter
from reference import perturb

METHODS: dict[str, dict[str, Any]] = {
    "dense": {"mixer": {"kind": "dense"}, "dropout": 0.1, "scaling": "rslora", "seed": 3},
    "rectangular": {
        "mixer": {"kind": "dense"},
        "rank_out": np.int64(2),
        "alpha": np.float32(6),
        "target_modules": r".*layers\.1.*_proj",
    },
    "folded": {"mixer": {"kind": "dense", "train": "folded"}},
    "pissa-dora": {"mixer": {"kind": "dense", "init": "orthogonal"}, "start": "pissa", "dora": True},
    "lora-xs": {"mixer": {"kind": "dense", "init": "near-zero"}, "start": "svd", "trains": "mixer"},
    "top-k": {"mixer": {"kind": "token-gate", "top_k": 2, "balance": 0.1}},
    "task-gate": {"mixer": {"kind": "task-gate", "tasks": ("boolq", "obqa"), "embedding_size": 5}},
}


def adapted(source, **options):
    """The model in ``source`` with adapters off their start."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
    moslora.inject(model, **{"rank": 4, "alpha": 6, "target_modules": ["q_proj", "down_proj"]} | options)
    perturb((p for p in model.parameters() if p.requires_grad), size=0.3)
    return model.eval()


@torch.inference_mode()
def logits(model):
    moslora.describe_batch(model, tasks=torch.tensor([1]))
    return model(input_ids=torch.arange(3, 23)[None]).logits


def test_every_name_is_the_one_that_type_checkers_see():
    tree = ast.parse(Path(str(moslora.__file__)).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {name.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert sorted(seen) == sorted(moslora.__all__)
    for name, module in seen.items():
        assert getattr(moslora, name) is getattr(importlib.import_module(str(module)), name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = moslora.nothing


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_model_is_loaded_in_one_line(method, world, tmp_path):
    """Every adapter to the bit; the base's own products are added in another order."""
    model = adapted(world / "model", **METHODS[method])
    moslora.save(model, tmp_path / "mine")
    again, tokenizer = moslora.load(tmp_path / "mine")
    ours, theirs = moslora.adapter_state_dict(model), moslora.adapter_state_dict(again)
    assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-4)
    assert not again.training and tokenizer("a red fox")["input_ids"]
    moslora.save(again, tmp_path / "again" / "mine")
    assert (tmp_path / "again" / "mine" / "adapter.safetensors").read_bytes() == (
        tmp_path / "mine" / "adapter.safetensors"
    ).read_bytes()


def test_what_load_takes(trained, world, tmp_path, monkeypatch):
    step = str(trained / "checkpoints" / "step-21")
    models = [moslora.load(path)[0] for path in (trained, trained / "adapter", step)]
    assert len({logits(model).sum().item() for model in models}) == 1
    plain, _ = moslora.load(world / "model", dtype="float32")
    torch.testing.assert_close(logits(plain), logits(make_model()), rtol=0, atol=1e-4)
    assert moslora.load(trained, dtype="bfloat16")[0].dtype == torch.bfloat16
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no such run"):
        moslora.load("runs/gone")


def test_the_commands_take_a_saved_folder(world, tmp_path, capsys):
    """Merged, it computes the same; it is scored, asked and exported like a run."""
    model, folder = adapted(world / "model", mixer={"kind": "dense"}), tmp_path / "v1.5"
    moslora.save(model, folder)
    assert run(capsys, "merge", folder)[0] == 0
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype="float32")
    torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=1e-4)
    for words in (("export", folder), ("ask", folder, "--question", "why", "--option", "a", "--option", "b")):
        assert run(capsys, *words)[0] == 0
    code, out, _ = run(capsys, "eval", folder, "--source", world / "data", "--tasks", "obqa", "--limit", "2")
    assert code == 0 and (folder / "eval" / "choice-label-float32" / "results.json").is_file(), out
    with pytest.raises(UsageError, match="not empty") as refused:
        moslora.save(model, folder)
    assert "--" not in str(refused.value)


def test_the_recipe_says_how_the_base_was_loaded(world, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(
        world / "model", dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    moslora.inject(model, rank=4, alpha=8, mixer={"kind": "identity"}, target_modules="all-linear")
    model.config._commit_hash = "a" * 40
    moslora.save(model, tmp_path / "mine")
    found = open_adapter(tmp_path / "mine").recipe.model
    assert (found.name, found.revision) == (str(world / "model"), "a" * 40)
    assert (found.dtype, found.quantization) == ("bfloat16", "int8")
    moslora.save(model, tmp_path / "mine", base=str(world / "model"))  # replaces it
    assert open_adapter(tmp_path / "mine").recipe.model.revision is None
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(UsageError, match="another method than bitsandbytes"):
        moslora.save(model, tmp_path / "mine")


class OwnOptions(Options):
    kind: str = "mine"


class OwnMixer(IdentityMixer):
    options_type = OwnOptions


def test_what_cannot_be_saved_is_refused_and_nothing_is_written(world, tmp_path, monkeypatch):
    monkeypatch.setitem(MIXERS, "mine", OwnMixer)
    nameless = make_model()
    moslora.inject(nameless, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules=["q_proj"])
    for said, model in (
        ("adapters of moslora", make_model()),
        ("base=", nameless),
        ("mixer.kind = 'mine'", adapted(world / "model", mixer={"kind": "mine"})),
        ("data.tasks.*other", adapted(world / "model", mixer={"kind": "task-gate", "tasks": ["other"]})),
        ("output layer", adapted(world / "model", mixer={"kind": "dense"}, target_modules=["lm_head"])),
    ):
        with pytest.raises(UsageError, match=said):
            moslora.save(model, tmp_path / "mine")
    assert not [*tmp_path.iterdir()]
    moslora.save(nameless, tmp_path / "mine", base=str(world / "model"))
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"notes\.txt"):
        moslora.save(nameless, tmp_path / "mine", base=str(world / "model"))
