"""The trackers of a run, offline: what their files hold."""

import json
import struct
from importlib.util import find_spec
from unittest.mock import Mock

import pytest
from accelerate.utils import LoggerType

from cli_kit import run as cli
from evaluation_kit import read_results
from moslora.errors import MosloraError, UsageError
from moslora.progress import Line
from moslora.runs.run import Run
from moslora.runs.trackers import KINDS, record
from moslora.training import train_recipe
from moslora.training.samples import Samples
from moslora.training.tracking import MEASURED, Tracker
from training_kit import cut_after

pytest.importorskip("wandb", reason="wandb is an extra")
import wandb
from wandb.proto.wandb_internal_pb2 import Record

needs_both = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is an extra")
BOTH = "tracking.to=[wandb,tensorboard]"
SIX = (
    "training.max_steps=6",
    "training.checkpoint_every=4",
    "training.log_every=1",
    "training.validation_questions=6",
    "training.samples=2",
)
VALIDATED = ("validation_loss", "validation_accuracy", "validation_questions")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


def pieces(content):
    """The records of a file in LevelDB's log format: blocks of 32 KiB, records cut at their ends."""
    place, whole = 7, b""  # after the file's own header
    while place < len(content):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def records(folder):
    """The id of an offline run, its steps with a loss, and its summary."""
    (path,) = folder.glob("run-*.wandb")
    found = {"id": "", "steps": [], "summary": {}}
    for piece in pieces(path.read_bytes()):
        record = Record.FromString(piece)
        if record.run.run_id:
            found["id"] = record.run.run_id
        row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        if "train/loss" in row:
            found["steps"].append(json.loads(row["_step"]))
        for item in record.summary.update:
            found["summary"][item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return found


def points(run):
    """What TensorBoard draws: the values of each scalar by step, of which none may be there twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    drawn = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert all(len(found) == len(dict(found)) for found in drawn.values())
    return {tag: dict(found) for tag, found in drawn.items()}


@pytest.mark.slow
@needs_both
def test_a_resumed_run_and_its_evaluations_share_a_record(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    train_recipe(recipe(BOTH, *SIX), out=run)
    cut_after(4, run)
    train_recipe(recipe(BOTH, *SIX), out=run, resuming=True)
    for which in ((), ("--base",)):
        code, _, errors = cli(capsys, "eval", run, "--limit", 4, *which)
        assert code == 0, errors
    wandb.teardown()  # waits for the process that writes the files; `finish` may return before its last block is there
    first, second, third, last = (records(path) for path in sorted((run / "wandb").glob("offline-run-*")))
    assert first["id"] == second["id"] == third["id"] == last["id"] == Run(run).facts["wandb_id"]
    assert first["steps"] == [1, 2, 3, 4, 5, 6] and second["steps"] == [5, 6]
    results = read_results(run / "eval" / "choice-label-float32")
    assert third["summary"]["eval/choice-label-float32/boolq"] == results.tasks["boolq"].accuracy
    assert third["summary"]["eval/choice-label-float32/macro"] == results.macro.accuracy

    drawn, rows = points(run), Run(run).metrics
    assert rows[-1]["step"] == 6 and any("validation_loss" in row for row in rows)
    names = {"train": ("loss", "grad_norm", "learning_rate"), "validation": VALIDATED}
    names["speed"] = (*MEASURED, "sample_seconds")
    for group, metrics in names.items():
        for metric in metrics:
            logged = {row["step"]: pytest.approx(row[metric]) for row in rows if metric in row}
            assert drawn.pop(f"{group}/{metric.removeprefix('validation_')}") == logged, metric
    assert drawn["eval/choice-label-float32/boolq"] == {6: pytest.approx(results.tasks["boolq"].accuracy)}
    assert drawn["eval/choice-label-float32-base/macro"].keys() == {0}
    assert all(tag.startswith("eval/choice-label-float32") for tag in drawn)


@needs_both
def test_values_before_the_first_step_are_logged_once(recipe, tmp_path, monkeypatch):
    """It was killed before it had a checkpoint."""
    own = recipe("tracking.to=[tensorboard]", *SIX)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("moslora.training.loop.accumulate", Mock(side_effect=KeyboardInterrupt))
        train_recipe(own, out=tmp_path)
    assert points(tmp_path)["validation/accuracy"].keys() == {0}
    train_recipe(own, out=tmp_path, resuming=True)
    drawn = points(tmp_path)
    logged = [row for row in Run(tmp_path).metrics if "validation_loss" in row]
    assert [row["step"] for row in logged] == [0, 5, 6]
    for name in VALIDATED:
        expected = {row["step"]: pytest.approx(row[name]) for row in logged}
        assert drawn[f"validation/{name.removeprefix('validation_')}"] == expected


def test_parameters_are_logged_once(recipe, tmp_path, monkeypatch):
    """MLflow refuses other values of a record's parameters: a run that was killed before it had a checkpoint may be
    resumed with another `validate_every`."""
    known = {}

    def describe(_, own):
        every = own.training.validate_every
        if known.setdefault("training.validate_every", every) != every:
            raise ValueError("changing param values is not allowed")

    strict = KINDS["mlflow"]._replace(tracker=Mock(), reached=lambda _: ("id", 0), describe=describe)
    monkeypatch.setitem(KINDS, "mlflow", strict)
    run = Run(tmp_path / "run")
    for every in (5, 3):
        with record("mlflow", recipe(f"training.validate_every={every}"), run, after=0):
            pass
    assert known == {"training.validate_every": 5}


@needs_both
def test_scores_stay_where_a_tracker_fails(recipe, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    train_recipe(recipe(BOTH, "training.max_steps=3"), out=run)
    monkeypatch.setattr(wandb, "init", Mock(side_effect=wandb.errors.CommError("no route to host")))
    code, said, errors = cli(capsys, "eval", run, "--limit", 2)
    assert code == 0 and "no route to host" in said, errors
    assert read_results(run / "eval" / "choice-label-float32").macro.n == 6
    assert "eval/choice-label-float32/macro" in points(run)  # in the other one
    with pytest.raises(MosloraError, match="wandb does not start"):
        train_recipe(recipe(BOTH), out=tmp_path / "another")


def test_a_training_outlives_a_tracker(tmp_path, capsys):
    given = {"broken": [], "sound": []}

    class Given:
        def __init__(self, name):
            self.name = name

        def log(self, values, step):
            given[self.name].append(step)
            if (self.name, step) == ("broken", 2):
                raise ConnectionError("the server is gone")

    with Line(4, "") as line:
        records = [(Given("broken"), 0), (Given("sound"), 3)]  # which has the first two steps already
        metrics = Tracker(Run(tmp_path), line, first_step=0, total_steps=4, records=records)
        for step in range(1, 5):
            metrics.record({"step": step, "loss": 1.0})
    assert given == {"broken": [1, 2], "sound": [3, 4]}
    assert capsys.readouterr().out.count("the server is gone") == 1
    assert [row["step"] for row in Run(tmp_path).metrics] == [1, 2, 3, 4]


def test_samples_reach_trackers_as_text_and_their_time_is_not_in_the_speed(tmp_path, monkeypatch):
    """8 tokens in 10 seconds, of which 6 were the samples'."""
    tracker = Mock()
    monkeypatch.setattr("moslora.training.tracking.time", Mock(perf_counter=Mock(side_effect=[0.0, 10.0])))
    samples = Samples([{"id": "boolq/1", "wanted": "true", "written": "false"}], 6.0)
    with Line(2, "") as line:
        metrics = Tracker(Run(tmp_path), line, first_step=0, total_steps=2, records=[(tracker, 0)])
        metrics.record({"step": 0, "validation_loss": 1.0}, samples)
        metrics.log_step(1, tokens=8, examples=4, loss=1.0)
    validated, trained = Run(tmp_path).metrics
    assert validated["samples"] == samples.samples and validated["sample_seconds"] == 6
    assert (trained["tokens_per_second"], trained["examples_per_second"], trained["seconds"]) == (2, 1, 10)
    (logged,) = tracker.log.call_args_list[0].args
    assert logged["speed/sample_seconds"] == 6 and "'false', wanted 'true'" in logged["validation/samples"]


@needs_both
def test_a_tracker_that_cannot_be_closed_leaves_the_training_its_result(recipe, tmp_path, monkeypatch, capsys):
    closed = Mock(side_effect=ConnectionError("the server is gone"))
    monkeypatch.setattr("moslora.runs.trackers.TensorBoardTracker.finish", closed)
    train_recipe(recipe("tracking.to=[tensorboard]", "training.max_steps=2"), out=tmp_path / "run")
    assert Run(tmp_path / "run").finished and "the server is gone" in capsys.readouterr().out and closed.called


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("moslora.runs.trackers.get_available_trackers", lambda: [LoggerType.WANDB])
    with pytest.raises(UsageError, match="tensorboard not installed; pip install tensorboard"):
        train_recipe(recipe(BOTH), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())
