"""Every wrong turn of the table through the real command line: one clear line, an exit code, nothing lost or half done.

``python tests/test_wrong_turns.py`` prints the table as Markdown, with the lines as they were printed.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import wrong_turns
from moslora import cli
from moslora.base.resolve import _ask_hub, fingerprint
from moslora.download.hub import prefer_cache_if_unreachable
from moslora.evaluation.target import evaluate_target, open_target
from moslora.recipe import load_recipe
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.run import Run
from moslora.training import train_recipe
from wrong_turns import TABLE, Scene, Turn

PRINTED: dict[tuple[str, str], tuple[str, int]] = {}
"""What each turn printed, and its exit code."""


@pytest.fixture
def scene(tmp_path: Path, world: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """An empty working folder; whatever a maker changed outside of it is undone."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.chdir(tmp_path)
    for remembered in (fingerprint, _ask_hub, prefer_cache_if_unreachable):
        remembered.cache_clear()
    yield Scene(here=tmp_path, world=world, run=trained, patch=monkeypatch)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    wrong_turns.release()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in TABLE for name in TABLE[group]])
def test_one_clear_line_and_nothing_lost(
    group: str, name: str, scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    turn = TABLE[group][name]
    turn.make(scene)
    before, run_before = files(scene.here), files(scene.run)
    code, said = take(turn, scene, capsys)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    shown = said.replace(str(scene.world), "WORLD").replace(str(scene.run), "RUN").replace(f"{scene.here}/", "")
    PRINTED[group, name] = (shown, code)
    assert (code, turn.says in said) == (turn.code, True), said
    assert "Traceback" not in said
    after = files(scene.here)
    assert {path: after.get(path) for path in before} == before, "nothing of the user's is touched"
    assert files(scene.run) == run_before
    new = after.keys() - before.keys()
    assert turn.leaves or not new
    assert not [path for path in new if ".writing" in path or ".lock" in path or ".download" in path], new


def take(turn: Turn, scene: Scene, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and the lines of the fault, of one command in this process."""
    words = turn.command.split(" ")
    arguments = [word.format(world=scene.world, run=scene.run) for word in words]
    scene.patch.setattr(sys, "argv", ["moslora", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    errors = capsys.readouterr().err.splitlines()
    # Beside the fault there may be news on the error stream, of pip or of a progress bar.
    said = [line for line in errors if line.lower().startswith("error: ")] or errors
    return int(ended.value.code or 0), "\n".join(said)


def test_after_a_full_disk_the_last_checkpoint_is_sound_and_the_run_goes_on_to_the_same_bits(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    turn = TABLE["Output folders and disks"]["disk full in a checkpoint"]
    turn.make(scene)
    assert take(turn, scene, capsys)[0] == 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-4"]
    assert open_adapter(Path("run/checkpoints/step-4")).manifest["step"] == 4
    scene.patch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(scene.here)
        train_recipe(load_recipe("run/recipe.yaml"), out=Path("run"), resuming=True)
    name = "adapter/adapter.safetensors"
    assert (scene.here / "run" / name).read_bytes() == (scene.run / name).read_bytes()


def test_a_lock_without_a_process_is_not_in_the_way(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """As kill -9 leaves them, in a folder that had nothing else yet."""
    for path in ("run/.lock", "m/.lock", "e/.lock"):
        scene.write(path, "")
    for command in ("train {world}/recipe.yaml --out run training.max_steps=3", "merge run --out m"):
        assert take(Turn(command, 0, ""), scene, capsys)[0] == 0
    assert Path("run/adapter/manifest.json").exists() and Path("m/config.json").exists()
    evaluate_target(open_target("run"), tasks=("obqa",), limit=2, out=Path("e"))
    assert not list(scene.here.rglob("*.lock"))


def test_tensors_that_are_missing_are_told_once(scene: Scene) -> None:
    """In a process of its own, where transformers would print a table of them as well."""
    turn = TABLE["Base models"]["missing tensors"]
    turn.make(scene)
    command = [sys.executable, "-m", "moslora", *turn.command.format(world=scene.world).split(" ")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (1, 1) and turn.says in ran.stderr, ran.stderr


@pytest.mark.parametrize(("command", "code"), [("recipes", 141), ("--help", 1)])
def test_a_reader_that_went_away_sees_no_traceback(command: str, code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [sys.executable, "-m", "moslora", command], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (code, "")


def test_training_outlives_its_reader(scene: Scene) -> None:
    """`moslora train … | head -1`: the lines have no reader, the run has its result."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "moslora", "train", str(scene.world / "recipe.yaml"), "--out", "run"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(writing)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr and Path("run/adapter/manifest.json").exists()


QUICKSTART = """
from moslora import cli, quickstart
from moslora.training import launch
quickstart.RECIPE = "long.yaml"
launch.worker_processes = lambda: 2
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_of_the_quickstart_reaches_its_workers(scene: Scene, number: int, code: int) -> None:
    """The real command and two real workers, on the small world."""
    long = load_recipe(scene.world / "recipe.yaml", ["training.epochs=400", "training.log_every=1"])
    scene.write("long.yaml", long.to_yaml())
    command = [sys.executable, "-c", QUICKSTART, "quickstart", "--out", "q"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while not Path("q/metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)  # which also waits for the workers to close these pipes
    assert process.returncode == code, errors
    assert "Traceback" not in errors and "error: stopped; " in errors
    (step,) = Run(Path("q")).checkpoints
    lines = Path("q/metrics.jsonl").read_text().splitlines()
    assert open_adapter(step).manifest["step"] == max(json.loads(line)["step"] for line in lines)
    assert not Path("q/.lock").exists()


def markdown() -> str:
    lines = []
    for group, turns in TABLE.items():
        lines += [f"## {group}", "", "| situation | command | printed | exit code |", "|---|---|---|---|"]
        for name, turn in turns.items():
            said, code = PRINTED[group, name]
            command = turn.command.format(world="WORLD", run="RUN") if "{" in turn.command else turn.command
            cell = said.replace("|", "\\|").replace("\n", "<br>")
            lines.append(f"| {name} | `moslora {command}` | {cell} | {code} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        failed = pytest.main([__file__, "-q", "-k", "one_clear_line"])
    if not failed:
        print(sys.modules["test_wrong_turns"].markdown())
    sys.exit(failed)
