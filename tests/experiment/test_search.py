"""The search for learning rates that takes more seeds where two rates are close."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cli_kit import run as run_cli
from experiment_kit import FILE, PretendedRuns, study, train
from moslora.compare.index import RateNoise, read_index
from moslora.errors import UsageError
from moslora.experiment import one_run
from moslora.experiment.curve import Curve, noise_of
from moslora.experiment.file import load_experiment
from moslora.experiment.reproduce import first_difference
from moslora.recipe import load_recipe
from moslora.runs.run import Run
from moslora.training import train_run
from training_kit import adapter, same_bits

SEEDS = "rate_seeds: {every_rate: [7, 8], close_rates: [9, 10, 11]}"

RATES = (0.0001, 0.001, 0.03)

OF_SEED = {0: 0.0, 1: 0.0, 7: 0.0, 8: 0.11, 9: -0.05, 10: 0.2, 11: 0.03}
"""What a seed adds to every loss: other rows validate."""

ODD = {0: 0.0, 1: 0.0, 7: 0.0, 8: 0.004, 9: 0.001, 10: 0.003, 11: 0.002}
"""What it adds to those of one rate alone."""

LOSSES = {
    ("lora", 1e-3): 3.2,
    ("lora", 2e-3): 3.0,  # far below the others
    ("lora", 4e-3): 3.1,
    ("learned", 1e-3): 3.2,
    ("learned", 2e-3): 3.0,
    ("learned", 4e-3): 3.001,  # close
}


def loss_of(arm: str, rate: float, seed: int) -> float:
    loss = LOSSES[arm, rate] + OF_SEED[seed]
    if rate == 4e-3:
        loss += ODD[seed]
    return loss


@pytest.fixture
def write(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes an experiment file with these seeds of the search."""
    monkeypatch.chdir(tmp_path)

    def file(search: str) -> str:
        text = FILE.format(world=world, rates="[1e-3, 2e-3, 4e-3]", search=search)
        Path("e.yaml").write_text(text, encoding="utf-8")
        return "e.yaml"

    return file


def search_runs(runs: PretendedRuns) -> list[str]:
    """Those of the search: the scored seeds are 0 and 1."""
    return [name for name in runs.begun if not name.endswith(("-0", "-1"))]


EVERY = dict.fromkeys(("lora", "learned"), (0.001, 0.002, 0.004))
"""The rates of each arm."""


def names(rates: Mapping[str, Sequence[float]], *, seeds: Sequence[int]) -> list[str]:
    """The runs of these arms and rates, seed by seed."""
    found = []
    for seed in seeds:
        for arm, of_arm in rates.items():
            found += [f"{arm}-{rate}-{seed}" for rate in of_arm]
    return found


def test_close_rates_alone_get_another_seed(write: Callable[[str], str]) -> None:
    runs = PretendedRuns(loss_of)
    found = study(write(SEEDS), start=runs)
    assert found.run()
    begun = search_runs(runs)
    assert begun[:12] == names(EVERY, seeds=(7, 8))
    # lora's gap is 0.1 at a noise of 0.003; learned's 0.003 at first, and by then 0.0027, 0.003, 0.003.
    assert begun[12:] == names({"learned": (0.002, 0.004)}, seeds=(9, 10, 11))
    assert [curve.best for curve in found.curves()] == [2e-3, 2e-3]
    index = read_index(Path("runs/e"))
    assert index.rate_noise.degrees == 2
    assert index.rate_noise.deviation == pytest.approx(np.std([0, 0.004], ddof=1), rel=1e-9)
    _, lora, learned = next(found.tables())
    assert lora[2] == "3.0550 ± 0.0550 *" and learned[1] == "3.2550 ± 0.0550"
    over_all = 3.001 + np.mean([OF_SEED[seed] + ODD[seed] for seed in (7, 8, 9, 10, 11)])
    assert learned[3] == f"3.0580 ± 0.0570, {over_all:.4f} of 5 seeds"


def test_a_search_that_was_stopped_goes_on_with_the_same_runs(write: Callable[[str], str]) -> None:
    """After every number of runs; the file is the one that an uninterrupted search writes."""
    whole = PretendedRuns(loss_of)
    file = write(SEEDS)
    study(file, Path("whole"), start=whole).run()
    before = (Path("whole") / "experiment.json").read_bytes()
    for count in range(len(whole.begun)):
        out = Path(f"cut-{count}")
        begun: list[str] = []

        def stopping(arm: str, rate: float, seed: int, begun: list[str] = begun, count: int = count) -> float:
            begun.append(arm)
            if len(begun) == count + 1:
                raise RuntimeError("stopped")
            return loss_of(arm, rate, seed)

        cut = PretendedRuns(stopping)
        with pytest.raises(RuntimeError):
            study(file, out, start=cut).run()
        again = PretendedRuns(loss_of)
        study(file, out, start=again).run()
        assert cut.begun[:-1] + again.begun == whole.begun
        assert (out / "experiment.json").read_bytes() == before


def test_the_noise_stays_what_the_first_arms_had(write: Callable[[str], str]) -> None:
    """An arm that is searched later changes no choice of theirs."""
    loaded = load_experiment(write(SEEDS))
    runs = PretendedRuns(loss_of)
    one = study("e.yaml", start=runs)
    for arms in (("learned",), ("lora", "learned")):
        assert type(one)(loaded, one.out, arms, start=runs).run()
    noise = read_index(one.out).rate_noise
    assert noise.degrees == 1, "of learned alone"
    assert len(search_runs(runs)) == len(set(search_runs(runs)))


def test_a_second_arm_of_one_rate_is_scored_without_a_search(write: Callable[[str], str]) -> None:
    """Also if it has the recipe of an arm whose rate is searched."""
    path = Path(write(SEEDS))
    text = path.read_text().replace("learned: {adapter: {mixer: {init: orthogonal}}}", "learned: methods/lora")
    path.write_text(text.replace("[1e-3, 2e-3, 4e-3]", "{lora: [1e-3, 2e-3, 4e-3], learned: [4e-3]}"))
    runs = PretendedRuns(loss_of)
    assert study(str(path), start=runs).run()
    assert not [name for name in search_runs(runs) if name.startswith("learned")]
    assert {(run.arm, run.learning_rate, run.seed) for run in read_index(Path("runs/e")).runs} == {
        ("lora", 2e-3, 0),
        ("lora", 2e-3, 1),
        ("learned", 4e-3, 0),
        ("learned", 4e-3, 1),
    }


def test_a_list_of_seeds_is_every_rates_and_writes_what_it_wrote(write: Callable[[str], str]) -> None:
    runs = PretendedRuns(loss_of)
    study(write("rate_seeds: [7, 8]"), start=runs).run()
    assert len(search_runs(runs)) == 2 * 3 * 2
    keys = ["name", "contrast", "outcome", "runs", "others", "file"]
    assert list(json.loads(Path("runs/e/experiment.json").read_text())) == keys


def test_which_rates_are_close() -> None:
    """By the equation, in numpy."""
    random = np.random.default_rng(3)
    for _ in range(200):
        losses = {rate: list(random.normal(3, 0.02, 3)) for rate in (1e-3, 2e-3, 4e-3, 8e-3)}
        noise = RateNoise(float(random.uniform(0.001, 0.05)), int(random.integers(1, 9)))
        standing = Curve("a", 3, losses, more=1, noise=noise).standing
        means = {rate: np.mean(values) for rate, values in losses.items()}
        widest = stats.t.ppf(0.95, noise.degrees) * noise.deviation / 3**0.5
        close = {rate for rate in losses if means[rate] - min(means.values()) <= widest}
        assert set(standing.rates) == close and standing.complete == (len(close) == 1)
        assert standing.rates[0] == min(means, key=lambda rate: means[rate])


def test_the_noise_is_that_of_the_best_two_rates_by_seed() -> None:
    random = np.random.default_rng(4)
    curves = []
    squares = []
    for arm in range(5):
        seeds = random.normal(0, 1, 3)  # of all rates alike, and so without effect
        losses = {1e-3: 3 + seeds, 2e-3: 3.1 + seeds + random.normal(0, 0.01, 3), 8e-3: 9 + random.normal(0, 1, 3)}
        difference = losses[2e-3] - losses[1e-3]
        squares += list((difference - difference.mean()) ** 2)
        curves.append(Curve(str(arm), 3, {rate: list(values) for rate, values in losses.items()}, more=1))
    noise = noise_of(curves)
    assert noise.degrees == 10 and noise.deviation == pytest.approx((sum(squares) / 10) ** 0.5, rel=1e-9)


def test_a_rate_that_diverges_is_never_close() -> None:
    noise = RateNoise(1.0, 4)
    losses = {1e-3: [3.0, 3.1], 2e-3: [3.0, math.inf], 4e-3: [math.inf, math.inf]}
    curve = Curve("a", 2, losses, more=3, noise=noise)
    assert curve.complete and curve.best == 1e-3
    assert noise_of([curve]) is None
    lost = Curve("a", 2, {1e-3: [math.inf] * 2, 2e-3: [math.inf] * 2}, more=3, noise=noise)
    assert lost.complete and lost.best is None and "finite" in lost.remark


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("rate_seeds: {every_rate: [7], close_rates: [8]}", "rate_seeds.every_rate: must have at least two seeds"),
        ("rate_seeds: {every_rate: [7, 8], close_rates: [8]}", "rate_seeds: 8 is in every_rate and in close_rates"),
        ("rate_seeds: {every_rate: [7, 8], close_rates: [1]}", "rate_seeds: 1 is also among the seeds"),
        (
            "rate_seeds: {every_rate: [7], close: [8]}",
            "rate_seeds.close: unknown key; must be one of every_rate",
        ),
        ("rate_seeds: 7", "rate_seeds: must be a list of seeds, or a mapping of every_rate"),
    ],
)
def test_seeds_that_cannot_choose_are_refused(write: Callable[[str], str], search: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_experiment(write(search))


LEFT = {"lora": (0.001, 0.002), "learned": (0.002, 0.004)}
"""The rates that a quarter of the steps leaves of each arm."""

HALVED = "rate_seeds: {every_rate: [7, 8], halve_at: [0.25, 0.5]}"


def early_loss(arm: str, rate: float, seed: int, share: float) -> float:
    """At a quarter the lowest rate of lora is ahead; in the end it is not."""
    if (arm, rate) == ("lora", 1e-3) and share < 0.5:
        return 2.5 + OF_SEED[seed]
    return loss_of(arm, rate, seed) + 1 - share


def test_half_of_the_rates_go_on(write: Callable[[str], str]) -> None:
    runs = PretendedRuns(loss_of, early=early_loss)
    found = study(write(HALVED), start=runs)
    assert found.run()
    begun = search_runs(runs)
    assert begun[:12] == names(EVERY, seeds=(7, 8)), "to a quarter"
    assert begun[12:] == names(LEFT, seeds=(7, 8))
    assert [curve.best for curve in found.curves()] == [2e-3, 2e-3], "the better of the two left"
    _, lora, learned = next(found.tables())
    assert lora[1:] == ["3.7550 ± 0.0550 at 50 %", "3.5550 ± 0.0550 at 50 % *", "3.9070 ± 0.0570 at 25 %"]
    assert learned[1].endswith("at 25 %") and read_index(Path("runs/e")).rate_noise is None


def test_the_rates_that_halving_leaves_race_on(write: Callable[[str], str]) -> None:
    runs = PretendedRuns(loss_of, early=early_loss)
    file = write("rate_seeds: {every_rate: [7, 8], close_rates: [9, 10, 11], halve_at: [0.25]}")
    found = study(file, start=runs)
    assert found.run()
    ends = search_runs(runs)[12:]
    assert ends[:8] == names(LEFT, seeds=(7, 8))
    assert ends[8:] == names({"learned": (0.002, 0.004)}, seeds=(9, 10))


def test_a_run_that_was_stopped_at_a_share_goes_on_to_the_same_bytes(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, as an experiment starts it; the step is the first validation after the share."""
    options = ["training.max_steps=10", "training.validate_every=3", "training.checkpoint_every=100", "name=x"]
    options += ["data.validation_rows=4", "training.warmup_steps=2"]
    recipe = load_recipe(world / "recipe.yaml", options)
    whole = Run(tmp_path / "whole")
    train_run(recipe, whole)
    halved = Run(tmp_path / "halved")
    for share, step in ((0.25, 3), (0.25, 3), (0.5, 6)):
        checkpoint = train_run(recipe, halved, resuming=halved.exists, stop_at=share)
        assert checkpoint == halved.checkpoint(step) and not halved.finished
        assert halved.metrics[-1]["step"] == step and "validation_loss" in halved.metrics[-1]
    said = capsys.readouterr().out
    assert "stopped after step 6 of 10, as asked" in said, said[-900:]
    train_run(recipe, halved, resuming=True)
    assert same_bits(adapter(whole.path), adapter(halved.path))
    assert first_difference(whole, halved) is None and first_difference(halved, whole) is None


@pytest.mark.slow
def test_an_experiment_that_halves_trains_and_packs(
    write: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(one_run, "train_in_processes", train)
    file = write("rate_seeds: {every_rate: [7, 8], halve_at: [0.5]}")
    text = Path(file).read_text().replace("[1e-3, 2e-3, 4e-3]", "{lora: [1e-4, 1e-3, 3e-2], others: [1e-3]}")
    Path(file).write_text(text.replace("checkpoint_every: 1", "checkpoint_every: 9, validate_every: 1"))
    code, said, errors = run_cli(capsys, "experiment", file, "--any-rate")
    assert code == 0, errors
    runs = {path.name: Run(path) for path in Path("runs/e/runs").iterdir()}
    ahead = {}
    for rate in RATES:
        losses = [one_run.loss_at(runs[f"lora-{rate}-{seed}"], 0.5) for seed in (7, 8)]
        ahead[rate] = np.mean(losses)
    dropped = max(ahead, key=lambda rate: ahead[rate])
    for rate in RATES:
        assert runs[f"lora-{rate}-7"].finished == (rate != dropped)
    stopped = runs[f"lora-{dropped}-7"]
    assert stopped.steps_done == 2 and max(row["step"] for row in stopped.metrics) == 2
    assert f"{ahead[dropped]:.4f}" in said and "at 50 %" in said
    code, packed, errors = run_cli(capsys, "experiment", file, "--pack", "packed")
    assert code == 0 and f"{len(runs)} runs" in packed, errors
    assert list(study(file, Path("packed")).tables()) == list(study(file).tables())
