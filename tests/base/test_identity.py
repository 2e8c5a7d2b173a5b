"""What is the same base, and who notices that it is another: resumption, scoring, merging, one folder of answers."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from changes_kit import edit_json
from moslora.base import identity
from moslora.base.identity import fingerprint, weight_hash
from moslora.convert.merge import merge
from moslora.errors import UsageError
from moslora.evaluation.ask import ask
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.files import sha256
from moslora.runs import adapter_folder
from moslora.runs.manifest import read_manifest
from moslora.training import train_recipe
from training_kit import adapter, cut_after, same_bits, sign


@pytest.fixture(autouse=True)
def forget():
    fingerprint.cache_clear()
    yield
    fingerprint.cache_clear()


@pytest.fixture
def model(world, tmp_path):
    """Copy of the world's base, to be changed."""
    return Path(shutil.copytree(world / "model", tmp_path / "model"))


def now(folder):
    """Fingerprint in a new process."""
    fingerprint.cache_clear()
    return fingerprint(str(folder))


def change_weights(folder):
    """Change all rows of every tensor but the first, as a fine-tune might leave the embedding of the first token."""
    tensors = load_file(folder / "model.safetensors")
    for tensor in tensors.values():
        tensor[1:] *= 1.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder):
    edit_json(folder / "config.json", rms_norm_eps=1.0)


def change_tokenizer(folder):
    """Remove merges, so that the same text has more tokens."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-40]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("change", [change_weights, change_config])
def test_changed_weights_or_config_change_the_fingerprint(model, change):
    before = now(model)
    change(model)
    assert now(model) != before


def test_a_nested_config_and_the_models_own_code_count(model):
    edit_json(model / "config.json", text_config={"final_logit_softcapping": 30.0}, auto_map={"AutoModel": "m.M"})
    (model / "m.py").write_text("one = 1\n")
    before = now(model)
    (model / "m.py").write_text("one = 2\n")
    assert now(model) != before
    (model / "m.py").write_text("one = 1\n")
    assert now(model) == before
    edit_json(model / "config.json", text_config={"final_logit_softcapping": 50.0})
    assert now(model) != before


def test_fingerprint_ignores_what_changes_no_number(model, tmp_path):
    before = now(model)
    edit_json(model / "config.json", transformers_version="0", dtype="bfloat16", use_cache=False, _name_or_path="x")
    (model / "generation_config.json").write_text('{"repetition_penalty": 1.3}')  # which is not used here
    moved = model.rename(tmp_path / "moved")
    assert now(moved) == before


def test_large_file_is_hashed_by_size_header_and_samples(tmp_path, monkeypatch):
    """The expected hash is computed here from its definition."""
    monkeypatch.setattr(identity, "HASHED_WHOLE", 1000)
    monkeypatch.setattr(identity, "STRIDE", 400)
    monkeypatch.setattr(identity, "SAMPLE", 32)
    file = tmp_path / "large.safetensors"
    weights = {"w": torch.arange(500, dtype=torch.float32)}
    save_file(weights, file)
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    parts = [str(len(content)).encode(), content[:header]]
    parts += [content[start : start + 32] for start in range(0, len(content), 400)] + [content[-32:]]
    assert weight_hash(file) == hashlib.sha256(b"".join(parts)).hexdigest()
    for other in ({"w": weights["w"] * 1.001}, {"v": weights["w"]}, {"w": weights["w"].view(torch.int32)}):
        save_file(other, file)
        assert weight_hash(file) != hashlib.sha256(b"".join(parts)).hexdigest()
    file.write_bytes(content[:-1] + b"\xff")
    assert weight_hash(file) != hashlib.sha256(b"".join(parts)).hexdigest()


def test_hash_is_cached_until_the_file_changes(model, tmp_path, monkeypatch):
    monkeypatch.setenv("MOSLORA_HOME", str(tmp_path / "home"))
    hashed = []

    def counted(path):
        hashed.append(path.name)
        return sha256(path)

    monkeypatch.setattr(identity, "sha256", counted)
    before = now(model)
    assert now(model) == before and hashed == ["model.safetensors"]
    file = model / "model.safetensors"
    found = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))  # as a copy that keeps the time would
    assert now(model) != before and len(hashed) == 2
    (note,) = (tmp_path / "home" / "hashes").iterdir()
    note.write_text('{"written": ')
    assert now(model) != before and len(hashed) == 3


@pytest.mark.parametrize("change", [change_weights, change_config, change_tokenizer])
def test_resume_refuses_another_base_or_tokenizer(recipe, model, tmp_path, change):
    out = tmp_path / "run"
    loaded = recipe(f"model.name={model}", "training.max_steps=8")
    train_recipe(loaded, out=out)
    whole = adapter(out)
    cut_after(4, out)
    kept = Path(shutil.copytree(model, tmp_path / "kept"))
    change(model)
    fingerprint.cache_clear()
    with pytest.raises(UsageError) as refused:
        train_recipe(loaded, out=out, resuming=True)
    word = "tokenizer" if change is change_tokenizer else "config.json"
    assert word in str(refused.value)
    shutil.rmtree(model)
    kept.rename(model)
    fingerprint.cache_clear()
    train_recipe(loaded, out=out, resuming=True)
    assert same_bits(adapter(out), whole)


@pytest.fixture
def run(trained, model, tmp_path):
    """Copy of the finished run, over the copy of the base."""
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    old = read_manifest(copy / "adapter")["base"]["name"]
    shutil.rmtree(copy / "checkpoints")
    recipe_text = (copy / "adapter" / "recipe.yaml").read_text().replace(old, str(model))
    (copy / "adapter" / "recipe.yaml").write_text(recipe_text)
    sign(copy / "adapter")
    return copy


def test_eval_ask_and_merge_refuse_another_tokenizer(run, model, tmp_path, monkeypatch, capsys):
    uses = [
        lambda: evaluate_target(open_target(str(run)), limit=3),
        lambda: evaluate_target(open_target(str(run), base=True), limit=3),
        lambda: ask(open_target(str(run)), question="Is it?", options=("yes", "no")),
        lambda: merge(run / "adapter", out=tmp_path / "merged"),
    ]
    change_tokenizer(model)
    for use in uses:
        with pytest.raises(UsageError, match="tokenizer"):
            use()
    assert not (run / "eval").exists()
    assert not list(tmp_path.glob("merged/*"))
    # Another version of the library may only write the same tokenizer differently.
    monkeypatch.setattr(adapter_folder, "version", lambda name: f"{name} of another version")
    uses[0]()
    assert "tokenizers" in capsys.readouterr().out


def test_one_folder_never_holds_answers_of_two_bases(model, tmp_path, world):
    def score():
        fingerprint.cache_clear()
        target = open_target(str(model))
        evaluate_target(target, tasks="obqa", out=tmp_path / "out", limit=3, source=str(world / "data"))

    score()
    answers = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    for change in (change_weights, change_config):
        change(model)
        with pytest.raises(UsageError, match="fingerprint"):
            score()
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == answers
