"""Results as printed text: a heading, a table, and remarks below it."""

from collections import Counter
from collections.abc import Iterator, Sequence

from moslora.errors import counted, some
from moslora.recipe.builtin import printable
from moslora.runs.answers import by_task
from moslora.runs.confusion import NO_ANSWER, confusion, shared_options
from moslora.runs.intervals import FEWEST_FOR_PERCENT, NO_VALUE, percent, percent_range, wilson
from moslora.runs.results import Results, WithoutLeaks
from moslora.runs.scores import MACRO, MICRO, Score
from moslora.tasks import Task


def heading(results: Results) -> str:
    """Line above the table: protocol, format and model."""
    conditions = results.conditions
    protocol = f"protocol {conditions.protocol}"
    in_words = [task for task, score in results.tasks.items() if score.is_in_words]
    if in_words:
        protocol += f" ({', '.join(in_words)}: answers in words)"
    return f"{protocol}, format {conditions.format}, {printable(str(conditions.answered_by))}; shares in percent"


def table(results: Results) -> list[list[str]]:
    """Table with a header, a row per task, the averages of several tasks, and the sets of texts. Shares are in percent;
    the interval belongs to the main metric. A column appears if a row has a value for it."""
    rows = {name: _of_questions(score) for name, score in results.tasks.items()}
    if results.macro and results.micro and len(rows) > 1:
        rows[MACRO] = _of_questions(results.macro)
        rows[MICRO] = _of_questions(results.micro)
    for name, measured in results.texts.items():
        rows[name] = {"n": f"{measured.n:,}", "nats per byte": f"{measured.nats_per_byte:.4f}"}
        if measured.interval is not None:
            rows[name]["95 % interval"] = "{:.4f} to {:.4f}".format(*measured.interval)
    for name, count in results.unanswered.items():
        rows.setdefault(name, {})["not answered"] = f"{count:,}"
    titles = dict.fromkeys(title for row in rows.values() for title in row)
    return [["task", *titles], *([name, *(row.get(title, NO_VALUE) for title in titles)] for name, row in rows.items())]


def _of_questions(score: Score) -> dict[str, str]:
    """Title -> cell, for each value that a score has."""
    cells = {
        "n": f"{score.n:,}",
        "majority class": percent(score.majority_class),
        "accuracy": percent(score.accuracy),
        "per character": percent(score.accuracy_per_character),
        "95 % interval": percent_range(score.main.interval),
        "log p": NO_VALUE if score.log_probability is None else f"{score.log_probability:.3f}",
        "parsed": percent(score.parse_rate),
        "close calls": NO_VALUE if score.close_calls is None else str(score.close_calls),
    }
    return {title: cell for title, cell in cells.items() if cell != NO_VALUE}


def tables_by_option(results: Results, tasks: Sequence[Task]) -> Iterator[list[list[str]]]:
    """Yield a table for each task whose questions all have the same options: recall and precision of each option in
    percent with Wilson's interval, and the most frequent wrong answer."""
    answers = by_task(results.predictions)
    for task in tasks:
        options = shared_options(task)
        if not options or task.name not in answers:
            continue
        matrix = confusion(answers[task.name], options=len(options))
        chosen = [sum(column) for column in zip(*matrix, strict=True)]
        rows = [[f"{task.name}: option", "n", "recall", "precision", "most often taken for"]]
        for place, (option, row) in enumerate(zip(options, matrix, strict=True)):
            right = row[place]
            wrong = Counter(dict(zip((*options, NO_ANSWER), row, strict=True))) - Counter({option: right})
            taken_for = "".join(f"{name} ({count:,})" for name, count in wrong.most_common(1)) or NO_VALUE
            n = sum(row)
            rows.append([option, f"{n:,}", _share(right, n), _share(right, chosen[place]), taken_for])
        yield rows


def _share(right: int, n: int) -> str:
    """Share ``right / n`` in percent with its interval; for ``n`` below ten, the text "``right`` of ``n``"."""
    if n < FEWEST_FOR_PERCENT:
        return f"{right} of {n}" if n else NO_VALUE
    return f"{percent(right / n)} ({percent_range(wilson(right / n, n))})"


def remarks(results: Results) -> list[str]:
    """Lines below the table: signs of a collapse, refused and truncated questions, clusters, leaks, close calls."""
    lines = [f"collapse: {sign}" for sign in results.collapse]
    reasons = {prediction.refused: None for prediction in results.predictions if prediction.refused}
    if reasons:
        count = sum(results.unanswered.values())
        lines.append(f"{counted(count, 'question')} not answered, and in no average: {some(reasons, most=2)}")
    truncated = sum(score.truncated for score in results.scores.values())
    if truncated:
        longest = f"evaluation.max_length = {results.conditions.max_length} tokens"
        lines.append(f"{truncated:,} longer than {longest}: questions without the start, texts without the end")
    counts = [f"{name} {score.n:,} in {score.clusters:,}" for name, score in results.scores.items() if score.clusters]
    if counts:
        together = "equal questions, and those that share a text or a source, count together"
        lines.append(f"clusters: {', '.join(counts)}; {together}")
    if results.without_leaks and any(results.without_leaks.leaks.values()):
        lines.append(_on_leaks(results.without_leaks, results.metric))
    if results.macro and results.macro.close_calls:
        close = counted(results.macro.close_calls, "answer")
        noise = f"the rounding noise ({results.macro.drift:.2g})"
        lines.append(f"{close} closer than {noise}; --dtype float32 decides")
    return lines


def _on_leaks(without: WithoutLeaks, metric: str) -> str:
    """Line on the number of leaks of each task, and the main metric without them in percent."""
    counts = {task: count for task, count in without.leaks.items() if count}
    scores = {**without.tasks, MACRO: without.macro}
    values = []
    for name in (*counts, MACRO) if len(without.leaks) > 1 else counts:
        score = scores.get(name)
        values.append(f"{name} {score.main if score else f'{NO_VALUE} ({NO_VALUE})'}")
    questions = ", ".join(f"{task} {count}" for task, count in counts.items())
    return f"questions among {without.compared_with}: {questions}; {metric} without them: {', '.join(values)}"
