"""Numbers against numpy."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from compare_kit import CONDITIONS
from moslora.errors import MosloraError
from moslora.evaluation.display import table
from moslora.runs.answers import TaskAnswers
from moslora.runs.conditions import TaskRecord
from moslora.runs.predictions import Prediction
from moslora.runs.results import summarise
from moslora.runs.scores import average, score_task
from moslora.tasks import Example

SIZES = {"boolq": 90, "siqa": 40, "obqa": 11}
DRIFTS = {"boolq": 0.2, "siqa": 0.3, "obqa": 0.5}
RECORDS = {task: TaskRecord(drift=drift) for task, drift in DRIFTS.items()}


def make_predictions(seed):
    """Scores by the seed; gold labels and characters are the same for all seeds."""
    fixed = np.random.default_rng(0)
    draw = np.random.default_rng(seed)
    predictions = []
    for task, size in SIZES.items():
        for row in range(size):
            gold = int(fixed.integers(3))
            characters = fixed.integers(1, 30, 3)
            scores = -draw.exponential(20, 3)
            predictions.append(
                Prediction(
                    id=f"{task}/test/{row}",
                    task=task,
                    gold=gold,
                    prediction=int(scores.argmax()),
                    scores=tuple(scores.tolist()),
                    characters=tuple(characters.tolist()),
                    truncated=row % 10 == 0,
                )
            )
    return predictions


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_score_that_is_no_number_is_an_error(score):
    example = Example("boolq/test/7", "boolq", "is it?", ("true", "false"), 0)
    with pytest.raises(MosloraError, match=r"boolq/test/7: .*--dtype"):
        Prediction.of(example, (score, -1.0), truncated=False)


def columns(predictions, task):
    rows = [p for p in predictions if p.task == task]
    gold = np.array([p.gold for p in rows])
    scores = np.array([p.scores for p in rows])
    characters = np.array([p.characters for p in rows])
    deciding = scores / characters
    among = deciding - np.log(np.exp(deciding).sum(axis=1, keepdims=True))
    return {
        "gold": gold,
        "accuracy": (scores.argmax(axis=1) == gold).astype(float),
        "accuracy_per_character": (deciding.argmax(axis=1) == gold).astype(float),
        "log_probability": among[np.arange(len(gold)), gold],
        "margin": np.diff(np.sort(deciding, axis=1)[:, -2:], axis=1)[:, 0],
    }


def error(x):
    return float(x.std(ddof=1) / np.sqrt(len(x)))


def test_tasks_and_averages():
    predictions = make_predictions(1)
    results = summarise(CONDITIONS, predictions, RECORDS)
    by_task = {task: columns(predictions, task) for task in SIZES}
    for task, column in by_task.items():
        score = results.tasks[task]
        assert score.n == SIZES[task]
        assert score.accuracy == pytest.approx(column["accuracy"].mean())
        assert score.standard_error == pytest.approx(error(column["accuracy"]))
        assert score.accuracy_per_character == pytest.approx(column["accuracy_per_character"].mean())
        assert score.standard_error_per_character == pytest.approx(error(column["accuracy_per_character"]))
        assert score.log_probability == pytest.approx(column["log_probability"].mean())
        assert score.majority_class == pytest.approx(np.bincount(column["gold"]).max() / len(column["gold"]))
        assert score.close_calls == (column["margin"] < DRIFTS[task]).sum() > 0
        assert score.truncated == -(-SIZES[task] // 10)
    errors = np.array([error(column["accuracy"]) for column in by_task.values()])
    sizes = np.array(list(SIZES.values()))
    assert results.macro.accuracy == pytest.approx(np.mean([c["accuracy"].mean() for c in by_task.values()]))
    assert results.macro.standard_error == pytest.approx(np.sqrt((errors**2).sum()) / 3)
    assert results.micro.accuracy == pytest.approx(np.concatenate([c["accuracy"] for c in by_task.values()]).mean())
    assert results.micro.standard_error == pytest.approx(np.sqrt(((sizes / sizes.sum() * errors) ** 2).sum()))
    assert results.micro.n == results.macro.n == sizes.sum()
    assert results.macro.drift == results.micro.drift == max(DRIFTS.values())
    assert results.macro.close_calls == sum(score.close_calls for score in results.tasks.values())


def test_texts_are_in_no_average():
    """Student's interval by scipy, over the texts; everything else is as without them."""
    predictions = make_predictions(1)
    draw = np.random.default_rng(5)
    nats = draw.uniform(50, 500, 12).round(6)
    sizes = draw.integers(90, 400, 12)
    texts = []
    for n in range(12):
        scores = (-float(nats[n]),)
        texts.append(Prediction(f"mine/{n}", "mine", 0, 0, scores, truncated=n < 2, bytes=int(sizes[n])))
    assert all(Prediction.from_json(text.to_json()) == text for text in texts)
    without = summarise(CONDITIONS, predictions, RECORDS)
    results = summarise(CONDITIONS, [*texts, *predictions], {"mine": TaskRecord(), **RECORDS})
    assert replace(results, texts={}, predictions=()) == replace(without, predictions=())
    score = results.texts["mine"]
    rates = nats / sizes
    assert (score.n, score.truncated) == (12, 2) and score.nats_per_byte == pytest.approx(rates.mean())
    assert score.interval == pytest.approx(stats.t.interval(0.95, 11, rates.mean(), stats.sem(rates)))
    head, *others, last = table(results)
    row = dict(zip(head, last, strict=True))
    assert row["nats per byte"] == f"{rates.mean():.4f}" and row["accuracy"] == row["log p"] == "–"
    assert [row[:-1] for row in (head, *others)] == table(without)
    alone = summarise(CONDITIONS, texts[:1], {"mine": TaskRecord()})
    assert alone.texts["mine"].interval is alone.macro is alone.without_leaks is None and not alone.collapse


def test_one_question_has_no_standard_error():
    tied = Prediction("boolq/test/0", "boolq", gold=1, prediction=0, scores=(-6.0, -3.0), characters=(2, 1))
    results = summarise(CONDITIONS, [tied], {"boolq": TaskRecord()})
    assert results.tasks["boolq"].standard_error is results.macro.standard_error is None
    assert results.macro.accuracy_per_character == 0


def test_intervals_are_those_of_few_questions():
    predictions = make_predictions(1)
    results = summarise(CONDITIONS, predictions, RECORDS)
    shares = []
    ends = []
    for task, score in results.tasks.items():
        right = columns(predictions, task)["accuracy"]
        ends.append(proportion_confint(right.sum(), len(right), method="wilson"))
        shares.append(right.mean())
        assert score.interval == pytest.approx(ends[-1])
    p = np.array(shares)
    low, high = np.array(ends).T
    below = np.sqrt(((p - low) ** 2).sum()) / 3
    above = np.sqrt(((high - p) ** 2).sum()) / 3
    assert results.macro.interval == pytest.approx((p.mean() - below, p.mean() + above))
    # 4 of 4: n / (n + z²) is the lower end
    right = score_task(TaskAnswers.of([labelled(row, gold=0, chosen=0) for row in range(4)]), drift=None)
    assert right.interval == pytest.approx((4 / (4 + 1.959964**2), 1)) and right.standard_error == 0
    assert average([right, right], [0.5, 0.5]).interval[0] == pytest.approx(1 - (1 - right.interval[0]) / 2**0.5)


def labelled(row, *, gold, chosen):
    scores = tuple(float(option == chosen) for option in range(3))
    return Prediction(f"obqa/test/{row}", "obqa", gold, chosen, scores)


@pytest.mark.parametrize(("most", "others", "alarm"), [(6, 2, False), (28, 12, False), (140, 60, True)])
def test_below_the_majority_class_is_tested(most, others, alarm):
    """The model always gives the rarer of two labels; p is McNemar's, one-sided, for either label."""
    golds = [0] * most + [1] * others
    predictions = [labelled(row, gold=gold, chosen=1) for row, gold in enumerate(golds)]
    results = summarise(CONDITIONS, predictions, {"obqa": TaskRecord()})
    expected = mcnemar([[0, others], [most, 0]], exact=True).pvalue  # two-sided = twice the one-sided one
    assert results.tasks["obqa"].below_majority == pytest.approx(expected)
    assert any("below the majority class" in sign for sign in results.collapse) == alarm
