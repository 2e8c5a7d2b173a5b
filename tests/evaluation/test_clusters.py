"""Questions in clusters: errors and intervals against statsmodels and loops, and what an evaluation records."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

import compare_kit
from evaluation_kit import make_examples, make_model, tokenizer
from message_kit import says
from moslora.evaluation import Request, evaluate
from moslora.evaluation.display import remarks
from moslora.runs.answers import TaskAnswers
from moslora.runs.conditions import TaskRecord
from moslora.runs.evaluation import read_evaluation
from moslora.runs.intervals import mean_of, wilson
from moslora.runs.predictions import Prediction
from moslora.runs.results import summarise
from moslora.runs.scores import score_task, score_texts
from moslora.tasks import Numbered

CLOZE: dict[str, Any] = {"protocol": "cloze", "format": "cloze"}


def drawn(seed, n=200, count=60):
    """Shares that are alike within a cluster, of questions in clusters of several sizes, of which some are alone."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, count, n)
    easy = random.uniform(size=count)
    values = (random.uniform(size=n) < easy[codes]).astype(float)
    return values.tolist(), [f"c{code}" for code in codes]


def of_statsmodels(values, clusters):
    """The cluster-robust standard error of a regression on nothing."""
    _, codes = np.unique(clusters, return_inverse=True)
    fitted = sm.OLS(np.array(values), np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": codes})
    return float(fitted.bse[0])


@pytest.mark.parametrize("seed", range(2))
def test_clustered_error_is_statsmodels(seed):
    """That many independent questions have the same error."""
    values, clusters = drawn(seed)
    found = mean_of(values, clusters)
    assert found.error == pytest.approx(of_statsmodels(values, clusters), rel=1e-12)
    assert found.value == np.mean(values) and found.clusters == len(set(clusters))
    n = found.effective_n
    share = found.value
    assert 1 < n < len(values) and share * (1 - share) / (n - 1) == pytest.approx(found.error**2, rel=1e-12)
    expected = proportion_confint(share * n, n, method="wilson")
    assert found.interval_of_share == pytest.approx(expected, rel=1e-12)
    assert np.ptp(found.interval_of_share) > np.ptp(wilson(share, len(values)))
    alone = mean_of(values, [str(n) for n in range(len(values))])
    assert alone == mean_of(values), "bit for bit"
    assert alone.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), rel=1e-12)


def test_opposite_answers_in_clusters_narrow_no_interval():
    """As of a model that gives WinoGrande's twins the same option, and so has one of two right."""
    values = [1.0, 0.0] * 30
    found = mean_of(values, [str(n // 2) for n in range(60)])
    assert found.error == 0 and found.effective_n == 60
    assert found.interval_of_share == wilson(0.5, 60)


def test_one_cluster_has_no_error():
    found = mean_of([1.0, 0.0, 1.0], ["a", "a", "a"])
    assert found.error is None and found.interval_of_share == wilson(2 / 3, 1)


def answers(seed=0, copies=1, *, grouped=True):
    """Of cloze, to 40 questions, each ``copies`` times."""
    random = np.random.default_rng(seed)
    predictions = []
    rows = [(int(random.integers(3)), -random.exponential(5, 3), random.integers(1, 30, 3)) for _ in range(40)]
    for copy in range(copies):
        for row, (gold, scores, characters) in enumerate(rows):
            best = int(scores.argmax())
            its = tuple(characters.tolist())
            predictions.append(Prediction(f"t/{copy}-{row}", "t", gold, best, tuple(scores.tolist()), its))
    found = TaskAnswers.of(predictions)
    if grouped:
        return found.grouped({f"t/{copy}-{row}": f"t/0-{row}" for copy in range(1, copies) for row in range(40)})
    return found


def test_every_number_of_a_score_counts_clusters():
    once = score_task(answers(), drift=None)
    thrice = score_task(answers(copies=3), drift=None)
    for name in ("interval", "interval_per_character", "standard_error", "standard_error_per_character"):
        assert getattr(thrice, name) == pytest.approx(getattr(once, name), abs=1e-12), name
    assert (once.n, once.clusters, thrice.n, thrice.clusters) == (40, None, 120, 40)
    ignoring = score_task(answers(copies=3, grouped=False), drift=None)
    assert np.ptp(ignoring.interval) < 0.62 * np.ptp(once.interval)


def test_texts_of_one_article_count_together():
    random = np.random.default_rng(0)
    nats, sizes = random.exponential(100, 12), np.arange(100, 112)
    predictions = []
    for copy in range(2):
        for row in range(12):
            predictions.append(Prediction(f"w/{copy}-{row}", "w", 0, 0, (-float(nats[row]),), bytes=int(sizes[row])))
    once = score_texts(TaskAnswers.of(predictions[:12]))
    twice = score_texts(TaskAnswers.of(predictions).grouped({f"w/1-{row}": f"w/0-{row}" for row in range(12)}))
    assert twice.interval == pytest.approx(once.interval, abs=1e-12)
    assert (twice.n, twice.clusters, once.clusters) == (24, 12, None)
    rates = nats / sizes
    assert twice.interval == pytest.approx(stats.t.interval(0.95, 11, rates.mean(), stats.sem(rates)), rel=1e-9)


def test_remark_names_tasks_with_clusters():
    predictions = []
    for row in range(20):
        predictions += [Prediction(f"{task}/{row}", task, row % 2, 0, (-1.0, -2.0)) for task in "tu"]
    clusters = {f"t/{row}": f"t/{row - row % 2}" for row in range(20)}
    found = summarise(compare_kit.CONDITIONS, predictions, {"t": TaskRecord(clusters=clusters), "u": TaskRecord()})
    lines = "\n".join(remarks(found))
    assert says(lines, "clusters", "t 20 in 10") and "u 20" not in lines


def own_examples(count, cluster=True):
    """Questions of a user's task; every two after another are about the same page."""
    wording = Numbered("", "answer", shown="{context} {question}", cloze="{question}")
    found = []
    for row, example in enumerate(make_examples("piqa", count)):
        text = f"page {row // 2}" if cluster else ""
        found.append(replace(example, id=f"mine/test/{row}", task="mine", wording=wording, cluster=text))
    return found


def test_evaluation_records_clusters(tmp_path):
    """Under a limit the same as without; a task that gets or loses its clusters is not scored again."""
    model, out = make_model(), tmp_path / "out"
    every = {f"mine/test/{row}": f"mine/test/{row - 1}" for row in range(1, 40, 2)}

    def asked(limit, *, cluster=True):
        questions = {"mine": own_examples(40, cluster)}
        return evaluate(model, tokenizer(), questions, Request(limit=limit, **CLOZE), out=out)

    def recorded():
        return json.loads((out / "settings.json").read_text("utf-8"))["tasks"]["mine"].get("clusters", {})

    some = asked(12)
    ids = {prediction.id for prediction in some.predictions}
    assert len(ids) == 12 and recorded() == {id: first for id, first in every.items() if id in ids}
    written = (out / "predictions.jsonl").read_bytes()
    assert asked(12, cluster=False).tasks["mine"].clusters is None and recorded() == {}
    assert (out / "predictions.jsonl").read_bytes() == written
    whole = asked(None)
    assert recorded() == every and whole.tasks["mine"].clusters == 20
    asked(12)
    assert recorded() == every, "of all answers that are there"
    read = read_evaluation(out).tasks["mine"]
    assert len(set(read.clusters)) == 20
    assert score_task(read, drift=None).interval == whole.tasks["mine"].interval


def test_evaluation_without_record_gets_stored_clusters(tmp_path, monkeypatch):
    """As those of earlier versions."""
    questions = {"mine": own_examples(10, cluster=False)}
    found = evaluate(make_model(), tokenizer(), questions, Request(**CLOZE), out=tmp_path)
    data = found.conditions.data["mine"]
    clusters = {"mine/test/3": "mine/test/2", "mine/test/7": "mine/test/2"}
    monkeypatch.setattr("moslora.runs.conditions.known_clusters", lambda: {data: clusters})
    read = read_evaluation(tmp_path).tasks["mine"]
    assert read.cluster_count == 8 and read.clusters == tuple(clusters.get(id, id) for id in read.ids)
    other = replace(found.conditions, data={"mine": "other"})
    assert summarise(other, found.predictions, {"mine": TaskRecord()}).tasks["mine"].clusters is None
