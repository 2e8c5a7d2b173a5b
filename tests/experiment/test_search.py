"""The search for learning rates: which runs it makes, and which rate it chooses."""

import json
import math
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from experiment_kit import FILE, study
from moslora.experiment.one_run import planned_run
from moslora.experiment.tables import Curve
from moslora.files import append_text

LOSSES = {
    ("lora", 1e-3): 3.2,
    ("lora", 2e-3): 3.0,
    ("lora", 4e-3): 3.1,
    ("learned", 1e-3): 3.1,
    ("learned", 2e-3): 3.002,
    ("learned", 4e-3): 3.003,  # the worst under seed 7, and the best on average
}


def loss_of(arm, rate, seed):
    if (arm, rate) == ("learned", 4e-3):
        return LOSSES[arm, rate] + {7: 0.2, 8: -0.204}.get(seed, 0.0)
    return LOSSES[arm, rate]


class PretendedRuns:
    """Starts runs that are not trained: each has at once the validation loss that a function of arm, rate and seed
    says. ``begun`` are their names, in order."""

    def __init__(self, loss):
        self.loss = loss
        self.begun = []

    @contextmanager
    def __call__(self, runs, *, out):
        yield [partial(self._write, planned, out) for planned in runs]

    def _write(self, planned, out):
        self.begun.append(planned.name)
        run = planned_run(out, planned)
        row = {
            "step": 4,
            "validation_loss": self.loss(planned.arm, planned.recipe.training.learning_rate, planned.recipe.seed),
        }
        run.add_facts(experiment={"state": "scored" if planned.scored else "trained"}, steps=4)
        append_text(run.path / "metrics.jsonl", json.dumps(row) + "\n")


@pytest.fixture
def write(world, tmp_path, monkeypatch):
    """Return a function that writes an experiment file whose search has seeds 7 and 8."""
    monkeypatch.chdir(tmp_path)

    def file(rates="[1e-3, 2e-3, 4e-3]"):
        Path("e.yaml").write_text(FILE.format(world=world, rates=rates, search="rate_seeds: [7, 8]"), encoding="utf-8")
        return "e.yaml"

    return file


EVERY = [f"{arm}-{rate}-{seed}" for seed in (7, 8) for arm in ("lora", "learned") for rate in (0.001, 0.002, 0.004)]
"""The runs of the search, seed by seed."""


def test_every_rate_gets_every_seed_and_the_lowest_mean_is_scored(write):
    runs = PretendedRuns(loss_of)
    found = study(write(), start=runs)
    assert not found.run(), "learned waits for a rate beyond"
    scored = ["lora-0.002-0", "lora-0.002-1"]
    assert runs.begun == EVERY + scored
    assert [curve.best for curve in found.curves()] == [2e-3, 4e-3]
    _, lora, learned = next(found.tables())
    assert lora == ["lora", "3.2000 ± 0.0000", "3.0000 ± 0.0000 *", "3.1000 ± 0.0000"]
    assert learned[3] == "3.0010 ± 0.2020 *"
    keys = ["name", "contrast", "outcome", "runs", "others", "file"]
    assert list(json.loads(Path("runs/e/experiment.json").read_text())) == keys


def test_a_search_that_was_stopped_goes_on_with_the_same_runs(write):
    """A search stopped after any number of runs writes the same file as an uninterrupted one."""
    whole = PretendedRuns(loss_of)
    file = write()
    study(file, Path("whole"), start=whole, any_rate=True).run()
    assert len(whole.begun) == len(EVERY) + 4
    before = (Path("whole") / "experiment.json").read_bytes()
    for count in range(len(whole.begun)):
        out = Path(f"cut-{count}")
        begun = []

        def stopping(arm, rate, seed, begun=begun, count=count):
            begun.append(arm)
            if len(begun) == count + 1:
                raise RuntimeError("stopped")
            return loss_of(arm, rate, seed)

        cut = PretendedRuns(stopping)
        with pytest.raises(RuntimeError):
            study(file, out, start=cut, any_rate=True).run()
        again = PretendedRuns(loss_of)
        study(file, out, start=again, any_rate=True).run()
        assert cut.begun[:-1] + again.begun == whole.begun
        assert (out / "experiment.json").read_bytes() == before


def test_a_rate_that_diverges_under_one_seed_is_not_chosen():
    curve = Curve("a", 2, {1e-3: [3.0, 3.1], 2e-3: [2.0, math.inf], 4e-3: [math.inf, math.inf]})
    assert curve.complete and curve.best == 1e-3
    lost = Curve("a", 2, {1e-3: [math.inf] * 2, 2e-3: [math.inf] * 2})
    assert lost.complete and lost.best is None and "finite" in lost.remark
    missing = Curve("a", 2, {1e-3: [3.0, 3.1], 2e-3: [3.2]})
    assert not missing.complete and missing.best is None and not missing.remark
