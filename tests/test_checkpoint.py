"""The adapter folder: whole or absent, checked on every opening, found from wherever a user points."""

import hashlib
import json
import os
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moslora.adapters import adapter_state_dict
from moslora.checkpoint import load_adapted, open_adapter, stored_recipe
from moslora.data.fetch import sha256
from moslora.disk import LOCK, held
from moslora.errors import MosloraError, UsageError
from moslora.locate import fingerprint
from moslora.manifest import OWN_HASH, with_own_hash
from moslora.output import SCRATCH, new_folder, refuse_used, replacing
from moslora.recipe import load_recipe
from moslora.runs import locate_adapter, newest_run, run_folder
from test_cli import run as cli


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs" / "one"))


def test_loading_gives_back_every_bit(run: Path) -> None:
    folder = open_adapter(run / "adapter")
    loaded = adapter_state_dict(load_adapted(folder))
    assert loaded.keys() == folder.weights().keys() and len(loaded) == 18
    assert all(value.equal(loaded[key]) for key, value in folder.weights().items())


@pytest.mark.parametrize("file", ["adapter.safetensors", "recipe.yaml"])
def test_one_changed_byte_is_noticed(run: Path, file: str) -> None:
    path = run / "adapter" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(MosloraError, match=f"{file}: altered or truncated"):
        open_adapter(run / "adapter")
    path.unlink()
    with pytest.raises(MosloraError, match=f"{file}: missing"):
        open_adapter(run / "adapter")


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (("adapter.start=pissa", "adapter.mixer.init=kaiming"), "a PiSSA start divides by M, and one from kaiming"),
        (
            ("adapter.mixer.kind=task-gate", "data.source=commonsense_170k", "data.tasks=commonsense"),
            "a task gate learns an embedding for each task",
        ),
    ],
)
def test_an_adapter_from_before_a_rule_of_beginning_opens_and_no_other_begins(
    world: Path, run: Path, capsys: pytest.CaptureFixture[str], choice: tuple[str, ...], told: str
) -> None:
    """Its recipe is under its hash, and so beyond all mending."""
    with pytest.raises(UsageError, match=told):
        load_recipe(world / "recipe.yaml", choice)
    folder = run / "adapter"
    for place in (run, folder):
        (place / "recipe.yaml").write_text(load_recipe(world / "recipe.yaml", choice, written=True).to_yaml())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["recipe.yaml"] = sha256(folder / "recipe.yaml")
    del manifest[OWN_HASH]
    (folder / "manifest.json").write_text(json.dumps(with_own_hash(manifest)))
    opened = open_adapter(folder).recipe
    assert opened == stored_recipe(run) and opened.adapter.mixer.kind == ("dense" if "PiSSA" in told else "task-gate")
    code, _, errors = cli(capsys, "train", folder / "recipe.yaml", "--out", run.parent / "two")
    assert code == 2 and told in errors and not (run.parent / "two").exists()
    with pytest.raises(UsageError, match="wants 'lora' or 'pissa'"):
        stored_recipe(run, ["adapter.start=svd"])


@pytest.mark.parametrize(
    ("manifest", "message"),
    [("{", "not a manifest"), ("[]", "not a manifest"), ('{"format": 9, "sha256": {}}', "written in format 9")],
)
def test_manifests_that_are_none_or_newer_are_refused(run: Path, manifest: str, message: str) -> None:
    (run / "adapter" / "manifest.json").write_text(manifest)
    with pytest.raises(MosloraError, match=message):
        open_adapter(run / "adapter")


def test_every_value_of_the_manifest_is_under_its_hash(run: Path) -> None:
    path = run / "adapter" / "manifest.json"
    good = json.loads(path.read_text())
    canonical = json.dumps({k: v for k, v in good.items() if k != "manifest_sha256"}, sort_keys=True, separators=",:")
    assert good["manifest_sha256"] == hashlib.sha256(canonical.encode()).hexdigest()
    assert good.keys() >= {"format", "moslora", "base", "data", "trained_rows", "processes", "step", "sha256"}
    for key, value in good.items():
        changed = {**value, "more": 1} if isinstance(value, dict) else f"{value}0"
        path.write_text(json.dumps({**good, key: int(changed) if isinstance(value, int) else changed}))
        with pytest.raises(MosloraError, match="altered" if key != "format" else "upgrade moslora"):
            open_adapter(run / "adapter")
    path.write_text(json.dumps(dict(reversed(good.items()))))
    open_adapter(run / "adapter")  # the order of keys and the white space are not under it


def test_a_run_is_found_from_its_folder_its_adapter_and_its_checkpoints(run: Path) -> None:
    assert locate_adapter(run) == locate_adapter(run / "adapter") == run / "adapter"
    step = run / "checkpoints" / "step-20"
    assert locate_adapter(step) == step
    assert run_folder(step) == run_folder(run / "adapter") == run
    shutil.rmtree(run / "adapter")
    assert locate_adapter(run).name == "step-21", "an unfinished run is its newest checkpoint"
    with pytest.raises(UsageError, match=r"two: no such run; runs here: .*one$"):
        locate_adapter(run.parent / "two")
    with pytest.raises(UsageError, match="not a run or an adapter folder"):
        locate_adapter(run.parent)
    for number in range(12):
        (run.parent / f"sweep-{number:02}").mkdir()
        (run.parent / f"sweep-{number:02}" / "run.json").write_text("{}")
    with pytest.raises(UsageError, match=r"no such run; runs here: .*one, .*sweep-08, … and 3 more$"):
        locate_adapter(run.parent / "two")


def test_the_newest_run(run: Path, trained: Path) -> None:
    other = run.parent / "two"
    shutil.copytree(trained, other)
    manifest = other / "adapter" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text())))
    assert newest_run(run.parent) == other
    with pytest.raises(UsageError, match="no finished run here"):
        newest_run(run)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with replacing(folder) as scratch:
        (scratch / "a").write_text("first")
        assert not folder.exists()
    with pytest.raises(RuntimeError), replacing(folder) as scratch:
        (scratch / "a").write_text("second")
        raise RuntimeError
    assert (folder / "a").read_text() == "first"
    with replacing(folder) as scratch:
        (scratch / "b").write_text("third")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "b"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_run_opens_in_every_dtype_whatever_the_base_is_stored_in(run: Path, dtype: str) -> None:
    assert load_adapted(open_adapter(run / "adapter"), dtype=dtype).dtype == getattr(torch, dtype)


@pytest.mark.parametrize("changed", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
def test_one_changed_tensor_makes_another_base(world: Path, tmp_path: Path, changed: str) -> None:
    """As a fine-tune or a merge under the same name would."""
    one, other = (Path(shutil.copytree(world / "model", tmp_path / name)) for name in ("one", "other"))
    assert fingerprint(str(one)) == fingerprint(str(other)) == fingerprint(str(world / "model"))
    fingerprint.cache_clear()
    weights = load_file(other / "model.safetensors")
    weights[changed].view(-1)[0] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(str(one)) != fingerprint(str(other))


def test_what_a_kill_left_behind_is_cleared_or_put_back(tmp_path: Path) -> None:
    (tmp_path / ".folder.writing").mkdir()
    (tmp_path / ".folder.writing" / "half").write_text("x")
    (tmp_path / ".folder.old").mkdir()
    (tmp_path / ".folder.old" / "good").write_text("x")
    with pytest.raises(RuntimeError), replacing(tmp_path / "folder") as scratch:
        assert not list(scratch.iterdir())
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "good"]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with pytest.raises(RuntimeError), new_folder(out) as scratch:
        (scratch / "a").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with new_folder(out) as scratch:
        (scratch / "a").write_text("whole")
        assert [path.name for path in out.iterdir()] == [".lock"]
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "out", "a"]
    with pytest.raises(UsageError, match="out: not empty"), new_folder(out):
        pytest.fail("never begins")
    assert (out / "a").read_text() == "whole"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_are_as_open_to_others_as_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    """Of every writer; safetensors' own are private."""
    before = os.umask(umask)
    try:
        for write in (new_folder, replacing):
            with write(tmp_path / write.__name__) as scratch:
                (scratch / "sub").mkdir()
                save_file({"x": torch.ones(1)}, scratch / "sub" / "a.safetensors")
                (scratch / "b.json").touch()
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4 and {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_what_a_killed_write_left_in_a_folder_is_no_use_of_it(tmp_path: Path) -> None:
    (tmp_path / SCRATCH).mkdir()
    (tmp_path / SCRATCH / "half").touch()
    (tmp_path / LOCK).touch()
    refuse_used(tmp_path)
    with new_folder(tmp_path) as scratch:
        (scratch / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["whole"]
    with pytest.raises(UsageError, match="not empty"):
        refuse_used(tmp_path)


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_what_others_put_into_a_new_folder_meanwhile_stays(tmp_path: Path, there: bool) -> None:
    """At any time, by a program that knows of no locks; and the two kinds of locks keep ours from it."""
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with pytest.raises(UsageError, match="out: not empty"), new_folder(out) as scratch:
        with pytest.raises(UsageError, match="another process is writing here"), held(out):
            pytest.fail("as training and evaluation do")
        with pytest.raises(UsageError, match="another process is writing here"), new_folder(out):
            pytest.fail("as another merge does")
        (scratch / "ours").touch()
        (out / "theirs").write_text("precious")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]
    assert (out / "theirs").read_text() == "precious"


def test_what_comes_in_the_very_last_moment_stays_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def late(source: Path, target: Path) -> None:
        target.mkdir(exist_ok=True)
        (target / "theirs").touch()
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    with pytest.raises(UsageError, match="out: another process wrote here meanwhile"), new_folder(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


@pytest.mark.parametrize("name", ["out", ".", "link"])
def test_a_folder_that_is_there_stays_the_same_one(tmp_path: Path, name: str) -> None:
    """A mount point cannot be replaced at all, and a shell in the folder would stand in one that is gone."""
    here = tmp_path / "out"
    here.mkdir()
    (tmp_path / "link").symlink_to(here)
    before = here.stat().st_ino
    with chdir(here if name == "." else tmp_path), new_folder(Path(name)) as scratch:
        (scratch / "config.json").touch()
        (scratch / "sub").mkdir()
        (scratch / "sub" / "a").touch()
        assert scratch.parent == here, "on the same file system"
    assert here.stat().st_ino == before and (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in here.rglob("*")) == ["a", "config.json", "sub"]


def test_a_link_to_a_folder_to_come_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "far" / "out")
    with new_folder(tmp_path / "link") as scratch:
        (scratch / "a").touch()
    assert (tmp_path / "link").is_symlink() and [path.name for path in (tmp_path / "far" / "out").iterdir()] == ["a"]
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(UsageError, match="Too many levels of symbolic links; name"), new_folder(tmp_path / "round"):
        pass


def test_what_a_killed_writer_of_a_new_folder_left_is_cleared(tmp_path: Path) -> None:
    for name in (".new.writing", "new", "there/.moslora.writing"):
        (tmp_path / name).mkdir(parents=True)
    for name in (".new.writing/half", "new/.lock", ".new.lock", "there/.moslora.writing/half", "there/.lock"):
        (tmp_path / name).touch()
    for name in ("new", "there"):
        with new_folder(tmp_path / name) as scratch:
            (scratch / "a").touch()
        assert [path.name for path in (tmp_path / name).iterdir()] == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "there"]
