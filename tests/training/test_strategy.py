"""A sharded base: it is really sharded, and nothing else changes."""

import json
import shutil

import pytest
import torch

from moslora.base import sharded
from moslora.base.load import load_base
from moslora.recipe import ModelSection
from moslora.runs.run import Run
from moslora.training import train_recipe
from training_kit import cut_after, in_processes, same_files, steps_kept, steps_logged

SHARDED = "training.strategy=fsdp"
TRACED = ("training.log_every=1", "training.keep_checkpoints=9")
CHANGES = ("adapter.dropout=0", SHARDED, "training.max_steps=12", *TRACED)

CHECKED = """
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor, Shard
from moslora import cli
from moslora.base.load import load_base
from moslora.training import session
prepare = session.prepare

def checked(accelerator, recipe, *others, **options):
    accelerator.state._shared_state["distributed_type"] = DistributedType.MULTI_GPU  # which refuses sharded weights
    parts, data = prepare(accelerator, recipe, *others, **options)
    held = {name.replace(".base.", "."): p for name, p in parts.model.named_parameters() if not p.requires_grad}
    for name, whole in load_base(recipe.model).named_parameters():
        mine = held.pop(name)
        if ".layers." not in name:
            assert not isinstance(mine, DTensor) and mine.equal(whole), name
            continue
        assert isinstance(mine, DTensor) and mine.placements == (Shard(0),), name
        share = whole.chunk(2)[accelerator.process_index]
        assert mine.to_local().equal(share) and mine.to_local().untyped_storage().nbytes() == share.nbytes, name
    assert not held
    assert not any(isinstance(p, DTensor) for p in parts.model.parameters() if p.requires_grad)
    print("checked", flush=True)
    return parts, data

session.prepare = checked
cli.main()
"""


DIFFERS = """
import os
import torch
from accelerate import Accelerator
from moslora.adapters import named_adapters, start
from moslora.processes.group import all_gather, process_group
from moslora.recipe import load_recipe
from moslora.training.prepare import prepare

triplets = start.largest_triplets
start.largest_triplets = lambda *given: tuple(x * (1 + int(os.environ["RANK"])) for x in triplets(*given))
with process_group({}, then=""):
    import sys
    parts, _ = prepare(Accelerator(cpu=True), load_recipe(sys.argv[1], sys.argv[2:]))
    sums = [[float(w.detach().sum()) for w in (l.lora_a, l.lora_b)] for _, l in named_adapters(parts.model)]
    assert all_gather(sums)[0] == all_gather(sums)[1]
    if os.environ["RANK"] == "0":
        print("the same", len(sums))
    del parts
"""


@pytest.mark.parametrize(
    ("model", "device", "memory", "on_host"),
    [
        ({"dtype": "float16"}, "cuda", 80e9, False),
        ({"dtype": "float16"}, "cuda", 32e9, True),
        ({"dtype": "float32"}, "cuda", 80e9, False),
        ({"dtype": "float32"}, "cuda", 60e9, True),
        ({"quantization": "nf4"}, "cuda", 8e9, False),
        ({"dtype": "float16"}, "cpu", 80e9, True),
    ],
)
def test_base_below_half_a_gpu_skips_the_host(monkeypatch, model, device, memory, on_host):
    """LLaMA-3-8B has 8.03 billion parameters. An unsharded base is read where it is computed."""
    section = ModelSection(name="meta-llama/Meta-Llama-3-8B", **model)
    monkeypatch.setattr(sharded, "group_size", lambda: 8)
    monkeypatch.setattr(sharded, "total_memory", lambda device: int(memory))
    assert sharded.read_on_host("fsdp", section, torch.device(device)) == on_host
    assert not sharded.read_on_host("ddp", section, torch.device(device))


@pytest.mark.slow
def test_frozen_factors_are_equal_in_all_processes(world, tmp_path):
    """LoRA-XS takes A and B from a decomposition, here another decomposition in each process."""
    script = tmp_path / "differs.py"
    script.write_text(DIFFERS)
    changes = ("adapter.start=svd", "adapter.trains=mixer", "adapter.mixer.init=near-zero")
    assert "the same 6" in in_processes(script, world / "recipe.yaml", *changes)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["own", "transformers"])
def test_sharded_base_trains_and_resumes_like_a_whole_one(recipe, world, tmp_path, engine):
    """Two processes against one: losses 1e-4. A checkpoint resumes on two to the bit, on one to rounding."""
    two, script = tmp_path / "two", tmp_path / "checked.py"
    script.write_text(CHECKED)
    changes = (*CHANGES, f"model.engine={engine}")
    said = in_processes(script, "train", world / "recipe.yaml", *changes, "--out", two)
    assert said.count("checked") == 2 and said.count("adapter saved in") == 1
    ran = json.loads((two / "run.json").read_text())
    sizes = {name: weight.numel() for name, weight in load_base(recipe().model).named_parameters()}
    outside = sum(size for name, size in sizes.items() if ".layers." not in name)
    share = (outside / sum(sizes.values()) + 1) / 2
    assert (ran["processes"], ran["strategy"], ran["frozen_share"]) == (2, "fsdp", round(share, 4))

    cut = cut_after(8, shutil.copytree(two, tmp_path / "cut"))
    alone = shutil.copytree(cut, tmp_path / "alone")
    assert "resuming after step 8" in in_processes("-m", "moslora", "train", cut, "--resume")
    assert same_files(two, cut)

    train_recipe(recipe(*changes), out=alone, resuming=True)
    train_recipe(recipe(*changes), out=tmp_path / "one")
    for run in (alone, tmp_path / "one"):
        ran = json.loads((run / "run.json").read_text())
        assert (ran["processes"], ran["strategy"], ran["frozen_share"]) == (1, None, 1)
        for kind in ("loss", "validation_loss"):
            losses = [[row[kind] for row in steps_logged(one) if kind in row] for one in (run, two)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-4), (run, kind)


AHEAD = """
import os
import signal
import sys
from contextlib import nullcontext
from moslora import cli
from moslora.training import train
from moslora.training.loop import TrainState

TrainState.looks_ahead = True
if sys.argv.pop(1) == "stopped":
    train.stop_requests = lambda: nullcontext([signal.SIGTERM])
    leave = os._exit
    os._exit = lambda code: leave(code - 143)
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_steps_of_two_processes_may_overlap(world, tmp_path, strategy):
    """A stopped run, which discards a forward pass as on GPUs, resumes to the bits of a plain run."""
    plain, ahead, script = tmp_path / "plain", tmp_path / "ahead", tmp_path / "ahead.py"
    script.write_text(AHEAD)
    short = ("training.epochs=null", "training.max_steps=6", f"training.strategy={strategy}", *TRACED)
    words = ("train", world / "recipe.yaml", *short, "--out")
    in_processes("-m", "moslora", *words, plain)
    in_processes(script, "stopped", *words, ahead)
    assert steps_kept(Run(ahead)) == [1]
    in_processes(script, "on", "train", ahead, "--resume")
    shutil.rmtree(Run(ahead).checkpoint(1))
    assert same_files(plain, ahead) and steps_logged(plain) == steps_logged(ahead)
