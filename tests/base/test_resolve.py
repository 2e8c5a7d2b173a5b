"""Which files are a model's weights: those that transformers loads, wherever the model lies, and no stray ones."""

import fnmatch
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from evaluation_kit import make_model
from moslora.base import resolve
from moslora.base.identity import fingerprint
from moslora.base.load import load_base, load_tokenizer
from moslora.base.resolve import commit_of, weight_files
from moslora.base.shapes import meta_model
from moslora.errors import UsageError
from moslora.recipe import ModelSection


@pytest.fixture(autouse=True)
def forget():
    fingerprint.cache_clear()
    yield
    fingerprint.cache_clear()


def stray(folder):
    """Meta's own file, as some repositories have it beside the shards; here with a tensor that is no model's."""
    save_file({"tok_embeddings.weight": torch.ones(3, 3)}, folder / "consolidated.safetensors")


@pytest.fixture
def sharded(tmp_path):
    make_model().save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    return tmp_path / "sharded"


def test_stray_weight_files_are_ignored(world, sharded, tmp_path):
    whole = Path(shutil.copytree(world / "model", tmp_path / "whole"))
    for folder in (whole, sharded):
        before, loaded = fingerprint(str(folder)), sorted(folder.glob("*.safetensors"))
        fingerprint.cache_clear()
        stray(folder)
        assert weight_files(str(folder)) == tuple(loaded)
        assert fingerprint(str(folder)) == before
    assert len(loaded) > 1


def test_single_file_is_preferred_to_an_index(sharded, world):
    shutil.copy(world / "model" / "model.safetensors", sharded)
    assert weight_files(str(sharded)) == (sharded / "model.safetensors",)


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_only_loaded_files_are_downloaded(world, sharded, tmp_path, monkeypatch, kind):
    hub = world / "model" if kind == "whole" else sharded
    there = {path.name for path in hub.iterdir()} | {"consolidated.safetensors", "model.fp32.safetensors"}
    cache = tmp_path / "cache"
    cache.mkdir()

    def download(name, *, revision, allow_patterns):
        for file in sorted(there):
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                shutil.copy(hub / file, cache / file)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(resolve, "locate", lambda name, revision=None: name)
    found = weight_files("some/model")
    assert [file.name for file in found] == sorted(path.name for path in hub.glob("*.safetensors"))
    assert {file.name for file in cache.glob("*.safetensors")} == {file.name for file in found}


def test_commit_is_that_of_the_snapshot_in_the_cache(world, tmp_path, monkeypatch):
    """As the hub's libraries lay it out."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(world / "model", tmp_path / "models--me--tiny" / "snapshots" / commit)
    (tmp_path / "models--me--tiny" / "refs").mkdir()
    (tmp_path / "models--me--tiny" / "refs" / "main").write_text("b" * 40)
    assert commit_of("me/tiny") == "b" * 40 == huggingface_hub.try_to_load_from_cache("me/tiny", "config.json")[-52:-12]
    assert commit_of("me/tiny", revision="a" * 40) == "a" * 40
    assert commit_of("me/other") == commit_of(str(world / "model")) == ""


def test_pickled_weights_alone_are_refused(world, tmp_path):
    model = Path(shutil.copytree(world / "model", tmp_path / "model"))
    (model / "model.safetensors").rename(model / "consolidated.safetensors")
    with pytest.raises(UsageError, match="no safetensors weights"):
        weight_files(str(model))


def test_a_base_with_an_adapter_beside_it_is_refused(world, tmp_path):
    """transformers would load both, under the fingerprint of the base alone."""
    peft = pytest.importorskip("peft")
    base = tmp_path / "base"
    shutil.copytree(world / "model", base)
    model = AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(base)
    assert (base / "adapter_config.json").is_file()
    section = ModelSection(name=str(base), dtype="float32")
    for use in (load_base, load_tokenizer, meta_model, lambda section: fingerprint(section.name)):
        with pytest.raises(UsageError, match="moslora import"):
            use(section)
    (base / "config.json").unlink()
    with pytest.raises(UsageError, match="moslora import"):
        load_base(section)
