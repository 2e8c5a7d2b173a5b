"""Logs of Inspect, made here by Inspect itself: asked of its mock model, or written from its own classes."""

import random
import re
import sys
from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from cli_kit import run
from message_kit import says
from moslora.compare.arms import load_arms
from moslora.compare.comparison import compare_paths
from moslora.errors import UsageError

pytest.importorskip("inspect_ai", reason="inspect-ai is a development dependency")

from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSample, EvalSpec, read_eval_log, write_eval_log
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, ModelAPI, ModelOutput, get_model
from inspect_ai.scorer import Score, choice, includes, match
from inspect_ai.solver import generate, multiple_choice


def written(
    path,
    values,
    *,
    epochs=1,
    task="sums",
    model="mockllm/model",
    system="Be brief.",
    scorers=("match",),
    **changes,
):
    """A log of samples with these scores, those of a sample one after the other.

    Args:
        changes: values for each sample, or functions of its place.
    """
    samples = []
    for place, value in enumerate(values):
        number, epoch = divmod(place, epochs)
        question = f"What is {number} + {number}?"
        of_scorers = value if isinstance(value, Mapping) else dict.fromkeys(scorers, value)
        fields = {
            "id": number + 1,
            "epoch": epoch + 1,
            "input": [ChatMessageUser(content=question)],
            "target": str(2 * number),
            "messages": [
                ChatMessageSystem(content=system),
                ChatMessageUser(content=question),
                ChatMessageAssistant(content=f"{place}"),
            ],
            "scores": {name: Score(value=one) for name, one in of_scorers.items() if one is not None},
            "metadata": {"page": f"Page {number // 5}"},
        }
        for name, change in changes.items():
            fields[name] = change(number) if callable(change) else change
        samples.append(EvalSample(**fields))
    ids = [*dict.fromkeys(sample.id for sample in samples)]
    spec = EvalSpec(
        created="2026-01-31T10:00:00+00:00",
        task=task,
        dataset=EvalDataset(samples=len(ids), sample_ids=ids),
        model=model,
        config=EvalConfig(epochs=epochs),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_eval_log(EvalLog(eval=spec, status="success", samples=samples), str(path))
    return path


def letters(seed, share, n=60):
    return ["CI"[int(draw > share)] for draw in np.random.default_rng(seed).uniform(size=n)]


def dated(task, id="a1B2", suffix="eval"):
    return f"2026-01-31T10-00-00-00-00_{task}_{id}.{suffix}"


def answering(share):
    """Return Inspect's mock model, which answers this share of sums right."""
    draw = random.Random(3)

    def answer(messages, *_):
        asked = messages[-1].text
        one, other = map(int, re.findall(r"(\d+) \+ (\d+)", asked)[0])
        said = str(one + other)
        if "ANSWER" in asked:
            said = "ANSWER: " + re.findall(rf"([A-D])\) {said}$", asked, re.M)[0]
        return ModelOutput.from_content("mockllm/model", said if draw.random() < share else "ANSWER: A")

    return get_model("mockllm/model", custom_outputs=answer, memoize=False)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["eval", "json"])
def test_logs_that_inspect_writes_are_compared(tmp_path, monkeypatch, suffix):
    """The expected numbers are Inspect's own accuracies, over three epochs and of two scorers."""

    async def words(_, text):
        return len(text.split())

    monkeypatch.setattr(ModelAPI, "count_text_tokens", words)  # the tokenizer of Inspect's own is downloaded
    draw = random.Random(0)
    choices = []
    texts = []
    for _ in range(12):
        one, other = draw.randint(1, 99), draw.randint(1, 99)
        options = [str(one + other + wrong) for wrong in (1, 2, 3, 4)]
        right = draw.randrange(1, 4)
        options[right] = str(one + other)
        question = f"What is {one} + {other}?"
        choices.append(Sample(input=question, choices=options, target="ABCD"[right]))
        texts.append(Sample(input=question, target=str(one + other)))
    for side, share in (("before", 0.3), ("after", 0.8)):
        options = Task(dataset=MemoryDataset(choices), solver=multiple_choice(), scorer=choice(), epochs=3, name="abcd")
        words_task = Task(dataset=MemoryDataset(texts), solver=generate(), scorer=[match(), includes()], name="words")
        folder = str(tmp_path / side)
        eval([options, words_task], model=answering(share), log_dir=folder, log_format=suffix, display="none")
    sides = [tmp_path / "before", tmp_path / "after"]
    for task, metric, scorer in (
        ("abcd", None, "choice"),
        ("words", "match", "match"),
        ("words", "includes", "includes"),
    ):
        found = compare_paths(sides, tasks=task, outcome=metric).main
        assert found is not None and found.outcome.binary and (found.before, found.after) == ("before", "after")
        for side, mean in zip(sides, found.means[task], strict=True):
            log = read_eval_log(next(side.glob(f"*_{task}_*.{suffix}")))
            assert log.status == "success" and log.results is not None
            (theirs,) = (each.metrics["accuracy"].value for each in log.results.scores if each.name == scorer)
            assert mean == pytest.approx(theirs)
        assert found.independent_questions[task] == 12


def test_epochs_are_repetitions_of_a_question(tmp_path):
    """The interval is Student's over the questions' means, and the epochs of a question are a cluster: whether all
    questions read alike or not."""
    draws = np.random.default_rng(0).normal([[2], [3]], 1, (2, 60)).round(3).tolist()
    for name, changes in {"unlike": {}, "alike": {"input": "Solve the task.", "messages": []}}.items():
        one, other = (written(tmp_path / name / f"{n}.eval", y, epochs=4, **changes) for n, y in enumerate(draws))
        found = compare_paths([one, other]).main
        effect = found.effects["sums"]
        of_means = stats.ttest_1samp(np.subtract(draws[1], draws[0]).reshape(-1, 4).mean(axis=1), 0)
        assert effect.interval == pytest.approx(of_means.confidence_interval())
        assert effect.p == pytest.approx(of_means.pvalue)
        assert found.questions() == 60 and found.independent_questions == {"sums": 15}
    alone = [written(tmp_path / f"alone{n}.eval", y[:8], epochs=8) for n, y in enumerate(draws)]
    with pytest.raises(UsageError, match=r"sums: .*one cluster"):
        compare_paths(alone)


def test_scores_are_letters_numbers_and_tables(tmp_path):
    """Grades count as in Inspect. Several scorers are named."""

    def read(values):
        logs = [written(tmp_path / f"{name}.eval", values) for name in "ab"]
        return load_arms(logs)[0].runs[None].tasks["sums"].outcomes

    assert read(["C", "P", "I", "N", True, False]) == {"score": (1, 0.5, 0, 0, 1, 0)}
    assert read([2, 0.25, -1]) == {"score": (2, 0.25, -1)}
    several = {"match": "C", "length": 4, "why": "so", "all": [1, 2]}
    assert read([several] * 2) == {"match": (1, 1), "length": (4, 4)}
    assert read([{"graded": {"tone": "P", "facts": 3}}] * 2) == {"graded.tone": (0.5, 0.5), "graded.facts": (3, 3)}
    assert read([{"match": "C", "length": 4}, {"match": "I"}]) == {"match": (1, 0)}
    with pytest.raises(UsageError, match=r"--outcome NAME: must be one of match, includes"):
        compare_paths([written(tmp_path / f"{n}.eval", letters(n, 0.5), scorers=("match", "includes")) for n in (0, 1)])


def test_evaluation_is_a_model_in_a_folder_or_a_named_file(tmp_path):
    y = {name: letters(seed, 0.5) for seed, name in enumerate(("a", "b"))}
    for name, scores in y.items():
        for task in ("sums", "words"):
            written(tmp_path / name / dated(task), scores, task=task)
            written(tmp_path / "both" / dated(task, id=name), scores, task=task, model=f"hf/org/{name}")
            written(tmp_path / "json" / name / dated(task, suffix="json"), scores, task=task)
        written(tmp_path / f"{name}.eval", scores)
    folders = [tmp_path / "a", tmp_path / "b"]
    for paths, tasks in (
        (folders, ["sums", "words"]),
        ([tmp_path / "both"], ["sums", "words"]),
        ([tmp_path / "json"], ["sums", "words"]),
        ([tmp_path / "both" / dated("sums", id=name) for name in y], ["sums"]),
        ([tmp_path / f"{name}.eval" for name in y], ["sums"]),
        ([folder / dated("sums") for folder in folders], ["sums"]),  # their folders, as the model is the same
    ):
        arms = load_arms(paths)
        assert [arm.name for arm in arms] == ["a", "b"], paths
        for arm, scores in zip(arms, y.values(), strict=True):
            found = arm.runs[None].tasks
            assert [*found] == tasks
            right = [score == "C" for _, score in sorted(enumerate(scores, start=1), key=lambda pair: str(pair[0]))]
            assert all([*answers.outcomes["score"]] == right for answers in found.values())
    for seed in (1, 2):
        for arm in y:
            written(tmp_path / "seeds" / f"{arm}-seed{seed}.eval", letters(seed, 0.5))
    assert {arm.name: sorted(arm.runs) for arm in load_arms([tmp_path / "seeds"])} == {"a": [1, 2], "b": [1, 2]}
    written(tmp_path / "a" / dated("sums", id="again"), y["a"])
    with pytest.raises(UsageError, match="question 1 of sums appears twice"):
        load_arms(folders)


def test_metadata_groups_questions(tmp_path):
    logs = [written(tmp_path / f"{n}.eval", letters(n, 0.5)) for n in (0, 1)]
    assert not compare_paths(logs).main.clusters
    found = compare_paths(logs, cluster="metadata.page").main
    assert np.bincount(found.clusters["sums"]).tolist() == [5] * 12


def test_samples_without_a_score_are_counted(tmp_path, capsys):
    y = [None, float("nan"), "unclear", *letters(0, 0.5, 57)]
    logs = [written(tmp_path / "some.eval", y), written(tmp_path / "all.eval", letters(1, 0.5))]
    code, said, notes = run(capsys, "compare", *logs)
    assert code == 0 and says(notes + said, "some.eval", "3 samples", "success") and says(said, "left out: 3 of sums")
    code, _, error = run(capsys, "compare", logs[1], written(tmp_path / "none.eval", [None] * 3))
    assert code == 2 and says(error, "none.eval", "no questions")


def test_files_that_are_no_inspect_logs_are_refused(tmp_path, monkeypatch, capsys):
    good = written(tmp_path / "good.eval", letters(0, 0.5))
    for name, content in (("cut.eval", good.read_bytes()[:900]), ("text.json", b"hello"), ("rows.json", b'{"id": 1}')):
        (tmp_path / name).write_bytes(content)
        code, _, error = run(capsys, "compare", tmp_path / name, good)
        assert code == 2 and says(error, name, "not a log of Inspect") and error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    code, _, error = run(capsys, "compare", good, tmp_path / "cut.eval")
    assert code == 2 and says(error, "pip install", "inspect_ai") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "allowed", "changes"),
    [
        ("doc", 2, {"input": lambda number: f"{number // 3}?"}),
        ("target", 2, {"target": "4"}),
        ("prompt", 0, {"system": "Think first."}),
    ],
)
def test_other_questions_and_prompts_are_refused(tmp_path, capsys, name, allowed, changes):
    """Ids of messages, which are new in each log, are no difference."""
    y = letters(0, 0.5, 12)
    one, same = (written(tmp_path / f"{name}.eval", y) for name in ("one", "same"))
    assert compare_paths([one, same]).main
    other = written(tmp_path / "other.eval", y, **changes)
    code, _, error = run(capsys, "compare", one, other)
    assert code == 2 and says(error, f"{name}_hash", "question") and error.count("\n") == 1
    assert run(capsys, "compare", one, other, "--allow", f"{name}_hash")[0] == allowed
