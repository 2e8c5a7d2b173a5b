"""What is required of a comparison: concluded as the interval says, and told by the exit code and as JSON."""

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cli_kit import run
from message_kit import says
from moslora.compare.contrast import Contrast
from moslora.compare.equality import p_worse
from moslora.compare.margin import Margin
from moslora.runs.outcomes import OUTCOMES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """``logs(name=scores, …)`` writes a table of scores into the working folder for each."""
    monkeypatch.chdir(tmp_path)

    def write(**scores):
        for name, column in scores.items():
            rows = "".join(f"{id},{score}\n" for id, score in enumerate(column))
            (tmp_path / f"{name}.csv").write_text(f"id,score\n{rows}", encoding="utf-8")

    return write


def contrast(before, after, outcome, base=None):
    return Contrast(
        before="a",
        after="b",
        outcome=OUTCOMES[outcome],
        seeds=1,
        y={"obqa": (before[None], after[None])},
        majority={},
        clusters={},
        base={} if base is None else {"obqa": base},
    )


@pytest.mark.parametrize(("outcome", "better"), [("log_probability", 1), ("brier", -1), ("nats_per_byte", -1)])
def test_p_of_a_loss_is_that_of_a_one_sided_paired_t_test(outcome, better):
    """The margin is a number, or a share of a gain that every question has. For texts a gain is a rise."""
    draw = np.random.default_rng(0)
    before, d = draw.normal(0, 1, 400), better * draw.normal(-0.01, 0.3, 400)
    found = contrast(before, before + d, outcome)
    expected = stats.ttest_1samp(better * d, -0.03, alternative="greater").pvalue
    assert p_worse(found, Margin(0.03)) == pytest.approx(expected, rel=0.01) and 0.01 < expected < 0.2
    gain = 0.15 * (1 if outcome == "nats_per_byte" else better)
    with_base = replace(found, base={"obqa": before - gain})
    assert p_worse(with_base, Margin(0.2, of_gain=True)) == pytest.approx(p_worse(found, Margin(0.03)), rel=1e-9)
    assert p_worse(found, Margin(0.2, of_gain=True)) == 1, "the gain is not known"


def test_exit_code_says_whether_the_requirement_is_concluded(logs, capsys):
    """`not-worse` holds for margins that the 95 % interval excludes."""
    draw = np.random.default_rng(1)
    a = (draw.uniform(size=400) < 0.7).astype(int)
    eighth = np.arange(400) % 8 == 0
    swapped = a.copy()
    for value in (0, 1):
        swapped[np.flatnonzero(a == value)[:20]] = 1 - value
    logs(a=a, better=np.where(eighth, 1, a), worse=np.where(eighth, 0, a), swapped=swapped, few=a[:9])
    found = {}
    for name in ("better", "worse", "swapped", "few"):
        code, out, _ = run(capsys, "compare", "a.csv", f"{name}.csv", "--json", "--margin", "9")
        found[name] = json.loads(out)
        assert code == 0
    low = -found["worse"]["interval"][0]
    for name, required, margin, code in (
        ("better", "better", 9, 0),
        ("worse", "better", 9, 4),
        ("swapped", "better", 9, 4),
        ("better", "not-worse", 0.5, 0),
        ("worse", "not-worse", 1.01 * low, 0),
        ("worse", "not-worse", 0.99 * low, 4),
        ("swapped", "equal", 9, 0),
        ("swapped", "equal", 0.5, 4),
        ("few", "equal", 90, 4),
        ("few", "not-worse", 90, 4),
    ):
        command = ("compare", "a.csv", f"{name}.csv", "--require", required, "--margin", margin, "--min-share", "0")
        ended, said, _ = run(capsys, *command)
        assert ended == code, (name, required, margin)
        assert says(said.splitlines()[-1], required, "concluded") and ("NOT" in said.splitlines()[-1]) == bool(code)
        ended, out, _ = run(capsys, *command, "--json")
        assert ended == code and json.loads(out)["concluded"] == (code == 0)
    assert [each["verdict"] for each in found.values()] == ["better", "worse", "equal", "too few"]
    d = (np.where(eighth, 0, a) - a) * 100
    assert found["worse"]["difference"] == pytest.approx(d.mean())
    assert found["worse"]["n"] == 400 and found["worse"]["outcome"] == "score" and found["worse"]["p"] < 0.001


def test_too_few_shared_questions_are_refused(logs, capsys):
    scores = np.arange(400) % 2
    logs(a=scores, short=scores[:10], most=scores[:361])
    compare = ("compare", "a.csv")
    for other, options, code, *named in (
        ("short.csv", ("--require", "equal", "--margin", "9"), 2, "390", "2.5 %", "90 %", "--min-share"),
        ("most.csv", ("--require", "equal", "--margin", "9"), 0),
        ("most.csv", ("--require", "equal", "--margin", "9", "--min-share", "0.95"), 2, "90.2 %", "95 %"),
        ("short.csv", (), 0),
        ("short.csv", ("--min-questions", "11"), 2, "10", "11"),
        ("short.csv", ("--min-questions", "10"), 0),
    ):
        ended, said, error = run(capsys, *compare, other, *options)
        assert ended == code and says(said + error, *named), (other, options)


def test_a_gate_needs_one_contrast_a_direction_and_a_margin(logs, capsys):
    loss = np.random.default_rng(2).uniform(size=60)
    logs(a=loss, b=loss - 0.1, c=loss + 0.1)
    for arguments, code, *named in (
        (("a.csv", "b.csv", "--require", "better"), 2, "score", "--better"),
        (("a.csv", "b.csv", "--require", "better", "--better", "lower"), 0),
        (("a.csv", "b.csv", "--require", "better", "--better", "higher"), 4),
        (("a.csv", "c.csv", "--require", "not-worse", "--better", "lower"), 2, "--margin"),
        (("a.csv", "c.csv", "--require", "not-worse", "--better", "higher", "--margin", "0.01"), 0),
        (("a.csv", "b.csv", "c.csv", "--require", "better", "--better", "lower"), 2, "--contrast", "a, b, c"),
        (("a.csv", "b.csv", "c.csv", "--json"), 2, "--contrast"),
        (("a.csv", "b.csv", "c.csv", "--contrast", "a,b", "--require", "better", "--better", "lower"), 0),
    ):
        ended, said, error = run(capsys, "compare", *arguments)
        assert ended == code and says(said + error, *named), arguments
    logs(a=loss > 0.5, b=loss > 0.4)
    code, _, error = run(capsys, "compare", "a.csv", "b.csv", "--better", "lower")
    assert code == 2 and says(error, "--better", "score")


def test_ci_step_of_the_page_installs_what_it_needs(logs):
    """All other dependencies are hidden."""
    (line,) = re.findall(r"pip install (filelock .*?) +#", (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8"))
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    names = {re.match(r"[\w-]+", each)[0] for each in declared}
    assert {*line.split()} < names
    hidden = sorted(names - {*line.split()} - {"rich"})  # which Typer installs
    logs(a=np.arange(40) % 2, b=np.ones(40, int))
    program = f"import sys; sys.modules.update(dict.fromkeys({hidden}, None)); from moslora.cli import main; main()"
    command = [sys.executable, "-c", program, "compare", "a.csv", "b.csv", "--require", "better"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and says(done.stdout, "better", "concluded"), done.stderr
