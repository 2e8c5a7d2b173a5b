"""A base that is read on one device and computed on another, one that cannot be shared out, and the bar of a load."""

import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from moslora.base import load
from moslora.base.failures import fitting, loading
from moslora.base.load import load_base
from moslora.base.sharded import shard_base
from moslora.console import note_once
from moslora.errors import MosloraError, UsageError
from moslora.recipe import ModelSection
from reference import tiny_llama

CPU = torch.device("cpu")


@pytest.fixture
def base(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    note_once.cache_clear()
    return str(tmp_path)


@pytest.mark.parametrize(("computed_here", "noted"), [(True, 1), (False, 0)])
def test_slow_dtype_is_noted_for_the_computing_device(
    base,
    monkeypatch,
    capsys,
    computed_here,
    noted,
):
    """A base to be shared out over GPUs is read by the host, which need not multiply it well."""
    monkeypatch.setattr(load, "own_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(load, "multiplies_bfloat16", lambda device: device.type == "cuda")
    load_base(ModelSection(name=base, dtype="bfloat16"), computed_here=computed_here)
    assert capsys.readouterr().out.count("slow here, as this processor has no bfloat16") == noted


def test_only_the_first_load_shows_progress(base, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    enable_progress_bar()
    try:
        with loading(base, "tokenizer"):  # which is read before the base
            pass
        load_base(ModelSection(name=base, dtype="float32"))
        assert "Loading weights" in capsys.readouterr().err
        load_base(ModelSection(name=base, dtype="float32"))
        assert capsys.readouterr().err == ""
    finally:
        disable_progress_bar()


def test_missing_gpu_dtype_is_refused_before_reading(base, monkeypatch):
    monkeypatch.setattr(load, "own_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(load, "multiplies_bfloat16", lambda device: device.type == "cpu")
    section = ModelSection(name=base, dtype="bfloat16")
    load_base(section)
    with pytest.raises(UsageError, match="this GPU has no bfloat16"):
        load_base(section, computed_here=False)


def test_unknown_layer_names_are_not_sharded():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32))
    with pytest.raises(UsageError, match=r"fsdp: GPT2LMHeadModel .* use ddp"):
        shard_base(model, device=CPU)


@pytest.mark.parametrize(("quantization", "named"), [(None, True), ("int8", False)])
def test_sharding_is_suggested_unless_the_base_is_int8(quantization, named):
    section = ModelSection(name="base", quantization=quantization)
    with (
        pytest.raises(MosloraError, match="does not fit into the GPU's memory") as refusal,
        fitting(section, sharding="fsdp, "),
    ):
        raise torch.OutOfMemoryError
    assert ("fsdp" in str(refusal.value)) == named
