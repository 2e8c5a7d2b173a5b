"""The adapter folder: whole or absent, checked on every opening, found from wherever a user points."""

import hashlib
import json
import shutil

import pytest

from moslora.adapters import adapter_state_dict
from moslora.errors import MosloraError, UsageError
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.manifest import with_own_hash
from moslora.runs.run import Run, locate_adapter, newest_run, run_of


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "runs" / "one")


def test_loading_gives_back_every_bit(run):
    folder = open_adapter(run / "adapter")
    loaded = adapter_state_dict(load_adapted(folder))
    assert loaded.keys() == folder.weights().keys() and len(loaded) == 18
    assert all(value.equal(loaded[key]) for key, value in folder.weights().items())


@pytest.mark.parametrize("file", ["adapter.safetensors", "recipe.yaml"])
def test_one_changed_byte_is_noticed(run, file):
    path = run / "adapter" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(MosloraError, match=f"{file}: .*altered"):
        open_adapter(run / "adapter")
    path.unlink()
    with pytest.raises(MosloraError, match=f"{file}: missing"):
        open_adapter(run / "adapter")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "not a manifest"),
        ("[]", "not a manifest"),
        ('{"format": 2, "sha256": {}}', "not a manifest"),
        (json.dumps(with_own_hash({"format": 9})), "written in format 9.*upgrade moslora"),
    ],
)
def test_invalid_and_newer_manifests_are_refused(run, manifest, message):
    (run / "adapter" / "manifest.json").write_text(manifest)
    with pytest.raises(MosloraError, match=message):
        open_adapter(run / "adapter")


def test_the_hash_covers_every_value_of_the_manifest(run):
    path = run / "adapter" / "manifest.json"
    good = json.loads(path.read_text())
    canonical = json.dumps({k: v for k, v in good.items() if k != "manifest_sha256"}, sort_keys=True, separators=",:")
    assert good["manifest_sha256"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert good.keys() >= {"format", "moslora", "base", "data", "trained_rows", "processes", "step", "sha256"}
    for key, value in good.items():
        changed = {**value, "more": 1} if isinstance(value, dict) else f"{value}0"
        path.write_text(json.dumps({**good, key: value + 1 if isinstance(value, int) else changed}))
        with pytest.raises(MosloraError, match="altered"):
            open_adapter(run / "adapter")
    path.write_text(json.dumps(dict(reversed(good.items()))))
    open_adapter(run / "adapter")  # the order of keys and the white space are not under it


def test_a_run_is_found_from_its_folder_its_adapter_and_its_checkpoints(run):
    assert locate_adapter(run) == locate_adapter(run / "adapter") == run / "adapter"
    step = run / "checkpoints" / "step-20"
    assert locate_adapter(step) == step
    assert run_of(step) == run_of(run / "adapter") == Run(run)
    shutil.rmtree(run / "adapter")
    assert locate_adapter(run).name == "step-21", "an unfinished run is its newest checkpoint"
    with pytest.raises(UsageError, match="two: no such run"):
        locate_adapter(run.parent / "two")
    with pytest.raises(UsageError, match="not a run or an adapter folder"):
        locate_adapter(run.parent)


def test_the_newest_run(run, trained):
    other = run.parent / "two"
    shutil.copytree(trained, other)
    manifest = other / "adapter" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text())))
    assert newest_run(run.parent).path == other
    with pytest.raises(UsageError, match="no finished run"):
        newest_run(run)
