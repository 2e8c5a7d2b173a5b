"""An experiment that is looked at while it goes on: decided arms leave, and the comparison knows of the looks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cli_kit import run as run_cli
from compare_kit import drawn, packed
from experiment_kit import FILE, study
from moslora.compare.comparison import Comparison, compare_paths
from moslora.compare.conclusion import lines, tables
from moslora.compare.decisions import decided, members_of
from moslora.compare.index import ExperimentIndex, ExperimentRun, PlannedLooks, read_index
from moslora.compare.law import Law, Part
from moslora.compare.sequential import Look, SequentialLaw
from moslora.compare.statistics import LEVEL, MACRO, effects, holm
from moslora.errors import UsageError
from moslora.experiment.deciding import plan_before, standings_in
from moslora.experiment.file import Planned
from moslora.experiment.keys import ExperimentFile
from moslora.experiment.pilot import Pilot
from moslora.recipe.yaml_text import parse
from moslora.runs.packed import PackedRun, write_packed

SIZES = dict.fromkeys(("boolq", "arc_easy", "obqa"), 900)

LUCK = {"lora": 0.0, "same": 0.0, "far": 0.0, "learned": 0.1}
"""Standard deviation of the luck of a seed."""

GAIN = {"lora": 0.0, "same": 0.0, "far": 0.1, "learned": 0.02}


class DrawnRuns:
    """Starts runs whose answers are drawn; they are packed in the experiment's folder. ``begun`` are their names."""

    def __init__(self, *, stop_after: int | None = None) -> None:
        self.begun: list[str] = []
        self.packed: dict[str, PackedRun] = {}
        self.stop_after = stop_after

    @contextmanager
    def __call__(self, runs: Sequence[Planned], *, out: Path) -> Iterator[list[Callable[[], None]]]:
        drawn_now = runs
        if self.stop_after is not None:
            drawn_now = runs[: self.stop_after - len(self.begun)]
        for planned in drawn_now:
            self.packed[planned.name] = self._draw(planned)
        write_packed(out, self.packed)  # once, as it writes every run anew
        yield [partial(self._begin, planned.name) for planned in runs]

    def _begin(self, name: str) -> None:
        if len(self.begun) == self.stop_after:
            raise RuntimeError("stopped")
        self.begun.append(name)

    def _draw(self, planned: Planned) -> PackedRun:
        seed = planned.recipe.seed
        luck = LUCK[planned.arm] * np.random.default_rng([seed, 5]).standard_normal()
        answers = drawn(seed, gain=GAIN[planned.arm] + luck, sizes=SIZES, arm=planned.arm)
        run = packed(answers, experiment={"state": "scored"})
        return PackedRun(planned.arm, seed, planned.recipe.to_yaml(), run.card, run.settings, run.metrics, run.answers)


@pytest.fixture
def file(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Four arms with looks after four and six seeds, of which ``learned`` has a luck that six seeds do not settle."""
    monkeypatch.chdir(tmp_path)
    text = FILE.format(world=world, rates="[3e-2]", search="until: decided\nlooks: [4]")
    text = text.replace("limit: 6", "limit: 900").replace("seeds: [0, 1]", "seeds: [0, 1, 2, 3, 4, 5]")
    more = "  same: {adapter: {alpha: 9}}\n  far: {adapter: {alpha: 10}}\nlearning_rates:"
    text = text.replace("learning_rates:", more).replace("contrast: [lora, learned]", "against: lora")
    Path("e.yaml").write_text(text, encoding="utf-8")
    return "e.yaml"


def keys(text: str, margin: str) -> ExperimentFile:
    """Those of a file with another margin."""
    return ExperimentFile.model_validate(parse(text.replace("margin: 20%", f"margin: {margin}")))


def names(arms: Sequence[str], seeds: Sequence[int]) -> list[str]:
    return [f"{arm}-0.03-{seed}" for seed in seeds for arm in arms]


def test_decided_arms_take_no_more_seeds(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    runs = DrawnRuns()
    assert study(file, start=runs).run()
    assert runs.begun == names(("lora", "learned", "same", "far"), (0, 1, 2, 3)) + names(("lora", "learned"), (4, 5))
    assert read_index(Path("runs/e")).looks == PlannedLooks((0, 1, 2, 3, 4, 5), (4, 6))
    said = capsys.readouterr().out
    assert "decided after 4 of 6 seeds: same, far\nnot decided: learned\n" in said
    closing = list(study(file).closing())
    assert closing[:2] == ["decided after 4 of 6 seeds: same, far", "not decided: learned"]
    assert "20 of at most 24 runs" in closing[2]
    code, said, errors = run_cli(capsys, "compare", "runs/e")
    assert code == 0, errors
    assert "looks after 4 and 6 seeds" in said and "decided after 4 of 6 seeds: same, far" in said
    code, said, errors = run_cli(capsys, "compare", "runs/e", "--outcome", "accuracy")
    assert code == 0 and "looks after 4 and 6 seeds" in said, errors


def test_runs_that_were_looked_at_serve_as_a_pilot(file: str) -> None:
    """By the variances of each contrast's last look."""
    study(file, start=DrawnRuns()).run()
    components = Pilot(Path("runs/e")).spread("log_probability").components
    laws = [contrast.effects[MACRO].law.looks[-1].law for contrast in compare_paths([Path("runs/e")]).named]
    by_both = [law.interaction * (law.seeds.degrees + 1) for law in laws]
    assert components.both == pytest.approx(np.mean(by_both)) and components.questions == 900


def test_a_stopped_experiment_takes_the_same_runs(file: str) -> None:
    """Also between two looks, where the runs beyond the last one wait."""
    whole = DrawnRuns()
    study(file, start=whole).run()
    before = lines(compare_paths([Path("runs/e")]))
    for count in (2, 16, 17, 18):
        out = Path(f"cut-{count}")
        cut = DrawnRuns(stop_after=count)
        with pytest.raises(RuntimeError):
            study(file, out, start=cut).run()
        again = DrawnRuns()
        again.packed |= cut.packed
        study(file, out, start=again).run()
        assert cut.begun + again.begun == whole.begun
        assert lines(compare_paths([out])) == before


def test_another_plan_is_refused_once_it_was_looked_at(file: str) -> None:
    """Seeds that are added because nothing was decided would be a look whose level is spent."""
    first = DrawnRuns(stop_after=7)
    with pytest.raises(RuntimeError):
        study(file, start=first).run()
    text = Path(file).read_text(encoding="utf-8")
    longer = text.replace("4, 5]", "4, 5, 6]")
    Path(file).write_text(longer, encoding="utf-8")
    runs = DrawnRuns(stop_after=9)
    runs.packed |= first.packed
    with pytest.raises(RuntimeError):  # nothing was looked at so far
        study(file, start=runs).run()
    changed = {
        text: r"seeds: \[0, 1, 2, 3, 4, 5, 6\] with looks after 4, 7 of them",
        longer.replace("until: decided\nlooks: [4]\n", ""): r"seeds: \[0, 1, 2, 3, 4, 5, 6\] with looks after 4, 7",
        longer.replace("outcome: log_probability", "outcome: accuracy"): "outcome: log_probability",
        f"{longer}margin: 0.05\n": "no margin",
        longer.replace(
            "against: lora", "contrasts: [[lora, same], [lora, far]]"
        ): r"contrasts with \[lora, learned\] among",
    }
    for other, was in changed.items():
        Path(file).write_text(other, encoding="utf-8")
        with pytest.raises(UsageError, match=f"the plan was {was}.*restore"):
            study(file, start=DrawnRuns()).run()
    Path(file).write_text(longer, encoding="utf-8")
    again = DrawnRuns()
    again.packed |= runs.packed
    assert study(file, start=again).run()


def test_a_margin_is_part_of_the_plan(file: str) -> None:
    """However it is typed; and contrasts may be added."""
    text = Path(file).read_text(encoding="utf-8") + "margin: 20%\n"
    Path(file).write_text(text.replace("against: lora", "contrast: [lora, same]"), encoding="utf-8")
    study(file, start=DrawnRuns(stop_after=0)).write_index()
    index = read_index(Path("runs/e"))
    said = {margin: plan_before(index, keys(text, margin)) for margin in ("20.0%", "30%", "0.2")}
    assert said == {"20.0%": [], "30%": ["margin: 20%"], "0.2": ["margin: 20%"]}


@pytest.mark.parametrize(("seeds", "looks"), [("[0]", ""), ("[0, 1, 2]", ""), ("[0, 1, 2]", "looks: [3]")])
def test_a_lone_look_is_none(file: str, seeds: str, looks: str) -> None:
    text = Path(file).read_text(encoding="utf-8")
    text = text.replace("seeds: [0, 1, 2, 3, 4, 5]", f"seeds: {seeds}").replace("looks: [4]", looks)
    Path(file).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"until: the only look would be after all"):
        study(file)


def looked_at(folder: Path, diverged: dict[str, list[int]], *, seeds: int = 3) -> Path:
    """Runs of three arms of which these have diverged, looked at after three of six seeds."""
    folder.mkdir()
    index = []
    small_files = {}
    for arm in ("lora", "same", "far"):
        for seed in range(seeds):
            lost = seed in diverged.get(arm, [])
            name = f"{arm}-{seed}"
            index.append(ExperimentRun(arm, seed, 1e-3, f"runs/{name}", lost))
            run = packed(drawn(seed, gain=GAIN[arm], sizes=SIZES, arm=arm), f"adapter.alpha={len(index)}")
            if lost:
                run = replace(run, settings={}, answers={})
            small_files[name] = run
    write_packed(folder, small_files)
    looks = PlannedLooks((0, 1, 2, 3, 4, 5), (3, 6))
    named = (("lora", "same"), ("lora", "far"))
    ExperimentIndex("e", named[0], "log_probability", tuple(index), named[1:], looks=looks).write(folder)
    return folder


def test_arms_whose_runs_diverged_under_other_seeds_stop_nothing(tmp_path: Path) -> None:
    """A contrast without a pair counts in the family, and the others are judged as ever."""
    none = looked_at(tmp_path / "none", {"lora": [0], "same": [1, 2]})
    found = compare_paths([none])
    assert found.count == 2 and found.names == [("lora", "far")]
    assert decided(found) == {("lora", "far"): 3}
    standings = standings_in(none, (("lora", "same"), ("lora", "far")))
    assert standings is not None and standings.seeds_wanted("same") == 6 and standings.seeds_wanted("far") == 3
    alone = looked_at(tmp_path / "alone", {"lora": [0], "same": [1, 2], "far": [1, 2]})
    named = (("lora", "same"), ("lora", "far"))
    standings = standings_in(alone, named)
    assert standings is not None and standings.decided == {}


def test_one_pair_decides_nothing(tmp_path: Path) -> None:
    """Where the other runs diverged, as one seed says nothing of others."""
    folder = looked_at(tmp_path / "e", {"far": [0, 1]})
    found = compare_paths([folder])
    by_arm = {contrast.after: contrast for contrast in found.named}
    assert by_arm["far"].seeds == 1 and abs(by_arm["far"].effects[MACRO].difference) > 0.05
    assert ("lora", "far") not in decided(found)
    alone = compare_paths([folder], contrasts=[("lora", "far")])
    assert decided(alone) == {}


def test_before_the_first_look_nothing_is_concluded(tmp_path: Path) -> None:
    folder = looked_at(tmp_path / "e", {}, seeds=2)
    alone = compare_paths([folder], contrasts=[("lora", "far")])
    told = "\n".join([*lines(alone), *(" ".join(row) for table in tables(alone) for row in table)])
    assert "Conclusion: none before the first look" in told and "inf" not in told


def by_hand(comparison: Comparison, arm: str) -> tuple[list[float], list[float]]:
    """p of no difference, and of one of 0.01 or more, at each look of an arm; from its answers alone."""
    runs = {one.name: one.runs for one in comparison.arms}
    different, equal = [], []
    for count, share in ((4, 2 / 3), (6, 1 / 3)):
        if len(runs[arm]) < count:
            break
        differences = {}
        for task in SIZES:
            of_arm = [runs[arm][seed].tasks[task].outcomes["log_probability"] for seed in range(count)]
            of_lora = [runs["lora"][seed].tasks[task].outcomes["log_probability"] for seed in range(count)]
            differences[task] = np.array(of_arm) - np.array(of_lora)
        law = effects(differences, binary=False)[MACRO].law
        different.append(min(1.0, law.p() / share))
        equal.append(min(1.0, law.beyond(0.01) / share))
    return different, equal


def test_the_comparison_divides_p_by_the_share_of_each_look(file: str) -> None:
    study(file, start=DrawnRuns()).run()
    found = compare_paths([Path("runs/e")])
    arms = [contrast.after for contrast in found.named]
    p = [by_hand(found, arm) for arm in arms]
    different = holm([min(of_looks) for of_looks, _ in p])
    equal = holm([min(of_looks) for _, of_looks in p])
    for (contrast, member), one, other in zip(members_of(found), different, equal, strict=True):
        assert (member.different, member.equal) == (pytest.approx(one), pytest.approx(other))
        own = contrast.effects[MACRO].law.looks[-1].law
        assert member.interval == pytest.approx(own.interval(LEVEL * contrast.looks[-1].share / 3))
    assert {contrast.after: contrast.seeds for contrast in found.named} == {"learned": 6, "same": 4, "far": 4}
    assert decided(found) == {("lora", "same"): 4, ("lora", "far"): 4}


def test_runs_beyond_the_last_look_wait(file: str) -> None:
    """They change nothing until the next look, and an arm before its first look shows nothing."""
    cut = DrawnRuns(stop_after=18)
    with pytest.raises(RuntimeError):
        study(file, Path("cut"), start=cut).run()
    found = compare_paths([Path("cut")])
    assert {contrast.after: contrast.seeds for contrast in found.named} == {"learned": 4, "same": 4, "far": 4}
    early = DrawnRuns(stop_after=13)
    with pytest.raises(RuntimeError):
        study(file, Path("early"), start=early).run()
    found = compare_paths([Path("early")])
    assert decided(found) == {}
    for _, member in members_of(found):
        assert member.interval == (-np.inf, np.inf) and member.different == member.equal == 1.0


def test_a_sequential_law_in_closed_form() -> None:
    """Of normal looks: p is the smallest p_j / w_j, and the interval the last look's at its share."""
    first = Law(0.3, Part(0.0, 0.0), Part(0.04, 1e9))
    second = Law(0.1, Part(0.0, 0.0), Part(0.01, 1e9))
    law = SequentialLaw.of(second, [Look(first, 1 / 3), Look(second, 2 / 3)])
    p = [2 * stats.norm.sf(0.3 / 0.2) * 3, 2 * stats.norm.sf(0.1 / 0.1) * 1.5]
    assert law.p() == pytest.approx(min(1.0, *p), rel=1e-4)
    assert law.above(0.5) == pytest.approx(min(stats.norm.sf(0.2 / 0.2) * 3, stats.norm.sf(0.4 / 0.1) * 1.5), rel=1e-3)
    assert law.beyond(0.5) == law.above(0.5)
    half = stats.norm.isf(0.05 * 2 / 3 / 2) * 0.1
    assert law.interval(0.05) == pytest.approx((0.1 - half, 0.1 + half), rel=1e-4)
    unseen = SequentialLaw.of(second, [])
    assert unseen.p() == unseen.above(0.0) == 1.0 and unseen.interval(0.05) == (-np.inf, np.inf)
