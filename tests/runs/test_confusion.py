"""Recall, precision and confusion by option, counted by hand."""

from compare_kit import CONDITIONS
from moslora.evaluation.display import tables_by_option
from moslora.recipe.tasks import TaskSection
from moslora.report.canvas import Canvas
from moslora.report.figures.confusion import confusion_matrix
from moslora.runs.answers import by_task
from moslora.runs.conditions import TaskRecord
from moslora.runs.confusion import confusion
from moslora.runs.predictions import Prediction
from moslora.runs.results import summarise

OPTIONS = ("billing", "technical", "account")
COUNTS = ((9, 2, 1, 0), (0, 10, 0, 0), (3, 0, 1, 1))
"""Questions by right option and by chosen one, or none."""


def test_recall_and_precision_equal_counts_by_hand(tmp_path):
    predictions = []
    for gold, row in enumerate(COUNTS):
        for chosen, count in zip((0, 1, 2, None), row, strict=True):
            for _ in range(count):
                name = f"queue/test/{len(predictions)}"
                predictions.append(
                    Prediction(name, "queue", gold, chosen, text="x", answer="" if chosen is None else "x")
                )
    answers = by_task(predictions)["queue"]
    assert confusion(answers, options=3) == [list(row) for row in COUNTS]
    results = summarise(CONDITIONS, predictions, {"queue": TaskRecord()})
    of_rows = TaskSection(train="x", options="choices").task("other")
    task = TaskSection(train="x", options=list(OPTIONS)).task("queue")
    (table,) = tables_by_option(results, [of_rows, task])
    assert table[1:] == [
        ["billing", "12", "75.0 (46.8 to 91.1)", "75.0 (46.8 to 91.1)", "technical (2)"],
        ["technical", "10", "100.0 (72.2 to 100.0)", "83.3 (55.2 to 95.3)", "–"],
        ["account", "5", "1 of 5", "1 of 2", "billing (3)"],
    ]
    figure = confusion_matrix(Canvas(tmp_path, ["a"]), "c", "queue", COUNTS, OPTIONS)
    assert all(f">{text}<" in figure for text in (*OPTIONS, "no answer", "10", "9"))
