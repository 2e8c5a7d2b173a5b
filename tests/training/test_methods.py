"""Every built-in method on the small world: it trains, stops and goes on, saves, reloads and is scored."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from evaluation_kit import log_probability, make_examples, make_model, tokenizer
from moslora.adapters import adapter_state_dict, describe_batch, describe_task, inject, task_names
from moslora.base.load import load_base
from moslora.base.shapes import meta_model
from moslora.data.encode import IGNORE_INDEX, Encoded, Encoder
from moslora.data.sources import load_examples
from moslora.data.steps import StepPlan, collate
from moslora.evaluation import Request, evaluate
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.prompts.formats import FORMATS
from moslora.recipe import Recipe, list_recipes, load_recipe
from moslora.runs.adapter_folder import load_adapted, open_adapter
from moslora.tasks import COMMONSENSE, TASKS
from moslora.training import train as train_module
from moslora.training import train_recipe
from moslora.training.objective import LabelLoss
from moslora.training.prepare import adapt
from moslora.training.run_card import describe
from reference import perturb

METHODS = [name for name, _ in list_recipes() if name.startswith("methods/")]
SMALL = {
    "methods/adalora": ("training.rank_budget.target_rank=4", "training.rank_budget.warmup_share=0.2"),
    "methods/flora": ("adapter.rank_out=4",),
}
"""Method -> what has to shrink with the rank of 8; FLoRA's core is rectangular, its recipe's option."""

FIXED = {
    "methods/controls/moslora-frozen": ("mixer.weight",),
    "methods/lora-fa": ("lora_a",),
    "methods/lora-xs": ("lora_a", "lora_b"),
    "methods/pissa": ("start_a", "start_b"),
}
"""Method -> what its adapters keep and training leaves alone."""

PENALTY = ("methods/adalora", "methods/lora-moe-topk")
IDS = torch.arange(3, 27).view(2, 12)


@dataclass(frozen=True)
class Done:
    """A finished run, and what its model said at the end, before it was saved."""

    out: Path
    recipe: Recipe
    logits: Tensor


def logits_of(model: nn.Module, tasks: tuple[str, ...] = ("boolq", "obqa")) -> Tensor:
    was_training = model.training
    names = task_names(model)
    describe_batch(model.eval(), tasks=torch.tensor([names.index(task) if names else 0 for task in tasks]))
    with torch.no_grad():
        logits: Tensor = model(IDS).logits
    model.train(was_training)
    return logits


def recipe_of(method: str, world: Path, folder: Path, *overrides: str) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(f"extends: [{world / 'recipe.yaml'}, {method}]\n")
    few = ("training.epochs=null", "training.max_steps=8", "training.checkpoint_every=3", "training.log_every=1")
    return load_recipe(file, ("adapter.rank=8", *few, *SMALL.get(method, ()), *overrides))


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Done]]:
    """The run of a method over the small world, made once: 8 updates, checkpoints after 3, 6 and 8."""
    found: dict[str, Done] = {}

    def make(method: str) -> Done:
        if method not in found:
            folder = tmp_path_factory.mktemp("method")
            recipe = recipe_of(method, world, folder, "training.keep_checkpoints=99")
            said: list[Tensor] = []
            save = train_module.save_adapter

            def listening(path: Path, model: nn.Module, *arguments: object, **options: object) -> None:
                said.append(logits_of(model))
                save(path, model, *arguments, **options)  # type: ignore[arg-type]

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(train_module, "save_adapter", listening)
                train_recipe(recipe, out=folder / "run")
            found[method] = Done(folder / "run", recipe, said[0])
        return found[method]

    yield make


def metrics(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_every_weight_that_it_has(finished: Callable[[str], Done], method: str) -> None:
    """The loss starts at the base's (but for dropout) and falls; against the start, drawn anew, exactly the weights
    that are to be fixed have not moved."""
    done = finished(method)
    rows = metrics(done.out)
    assert rows[0]["loss"] == pytest.approx(metrics(finished("methods/lora").out)[0]["loss"], abs=0.03)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert sum(row["loss"] for row in rows[-3:]) < sum(row["loss"] for row in rows[:3])
    fresh = load_base(done.recipe.model)
    inject(fresh, **done.recipe.adapter_options(), seed=done.recipe.seed)
    start, end = adapter_state_dict(fresh), load_file(done.out / "adapter" / "adapter.safetensors")
    assert start.keys() == end.keys()
    rests = {key for key, value in end.items() if value.equal(start[key])}
    assert rests == {key for key in end if key.endswith(FIXED.get(method, ("nothing",)))}
    assert all(value.isfinite().all() for value in end.values())


@pytest.mark.parametrize("method", METHODS)
def test_it_logs_its_penalty_and_its_budget_where_it_has_them(finished: Callable[[str], Done], method: str) -> None:
    rows = metrics(finished(method).out)
    for row in rows:
        assert ("penalty" in row) == (method in PENALTY)
        assert ("rank_budget" in row) == (method == "methods/adalora")
        assert 0 < row.get("penalty", 1) < float("inf")
    if method == "methods/adalora":
        assert rows[0]["rank_budget"] == 48 and rows[-1]["rank_budget"] == 24


RESTS = ("lora", "dora", "lora-fa", "lora-plus", "pissa", "rslora", "input-split", "two-subspace")
"""Methods in whose mixer nothing is learned; all controls are such."""


@pytest.mark.parametrize("method", METHODS)
def test_it_says_the_rates_that_it_trains_by(finished: Callable[[str], Done], method: str) -> None:
    """Against what the run moved: a mixer's own rate and decay are told where one has weights that training changes."""
    done = finished(method)
    end = load_file(done.out / "adapter" / "adapter.safetensors")
    learns = any(".mixer." in key and not key.endswith(FIXED.get(method, ("nothing",))) for key in end)
    name = method.removeprefix("methods/")
    assert learns == (name not in RESTS and not name.startswith("controls/"))

    def said(**changes: float) -> list[str]:
        training = done.recipe.training.model_copy(update=changes)
        base, section = done.recipe.model, done.recipe.adapter
        model = adapt(meta_model(base), done.recipe)
        plan = StepPlan.of(training, rows=84, seed=0)
        return describe(model, plan, base=base, adapter=section, training=training)

    plus = ", B × 16" if method == "methods/lora-plus" else ""
    mixer = ", M × 6" if learns else ""
    assert len(said()) == 3 and f"learning rate 0.03{plus}, linear" in said()[2]
    assert f"learning rate 0.03{plus}{mixer}, linear" in said(mixer_rate_ratio=6.0)[2]


@pytest.mark.parametrize("method", METHODS)
def test_it_reloads_to_the_same_logits(finished: Callable[[str], Done], method: str) -> None:
    done = finished(method)
    model = load_adapted(open_adapter(done.out / "adapter"))
    base = load_base(done.recipe.model)
    assert logits_of(model).equal(done.logits)
    assert (logits_of(base) - done.logits).abs().max() > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_it_is_scored_as_the_whole_model_says(finished: Callable[[str], Done], method: str) -> None:
    """Protocol rank over three tasks, against Σ log p of every label's tokens, one sequence at a time."""
    target = open_target(str(finished(method).out))
    _, out = evaluate_target(target, limit=2)
    model = load_adapted(open_adapter(finished(method).out / "adapter"))
    encoder, form = Encoder(tokenizer(), max_length=128), FORMATS["label"]
    scores = {p["id"]: p["scores"] for p in map(json.loads, (out / "predictions.jsonl").read_text().splitlines())}
    assert len(scores) == 6
    for task in ("boolq", "arc_easy", "obqa"):
        describe_task(model, task)
        for example in load_examples(TASKS[task], "test", source=target.request.source):
            if example.id in scores:
                pairs = [(option.prompt, option.answer) for option in form.options(example)]
                texts = encoder.encode_all(pairs, joint=form.joint, eos=False)
                sums = [log_probability(model, t.ids[: t.answer_start], t.ids[t.answer_start :]) for t in texts]
                expected = torch.log_softmax(torch.tensor(sums, dtype=torch.float64), 0)
                found = torch.tensor(scores.pop(example.id), dtype=torch.float64)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not scores


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_it_resumes_to_the_same_bits(finished: Callable[[str], Done], tmp_path: Path, method: str, step: int) -> None:
    """Adapter and optimizer, from the checkpoints that the straight run left."""
    done = finished(method)
    run = Path(shutil.copytree(done.out, tmp_path / "run"))
    shutil.rmtree(run / "adapter")
    for later in (number for number in (3, 6, 8) if number > step):
        shutil.rmtree(run / "checkpoints" / f"step-{later}")
    train_recipe(done.recipe, out=run, resuming=True)
    for name in ("adapter/adapter", "checkpoints/step-8/adapter", "checkpoints/step-8/optimizer"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (done.out, run))
        assert one.keys() == other.keys() and all(value.equal(other[key]) for key, value in one.items())
    assert [row["loss"] for row in metrics(run)] == [row["loss"] for row in metrics(done.out)]


def test_a_part_taken_out_of_a_rounded_base_leaves_it_the_same_again(world: Path, tmp_path: Path) -> None:
    """PiSSA under DoRA in bfloat16, where the residual is rounded: resumed bit for bit, and reloaded."""
    parts = ("adapter.dora=true", "model.dtype=bfloat16", "training.keep_checkpoints=9")
    recipe = recipe_of("methods/pissa", world, tmp_path, *parts)
    train_recipe(recipe, out=tmp_path / "run")
    again = Path(shutil.copytree(tmp_path / "run", tmp_path / "again"))
    for later in ("adapter", "checkpoints/step-6", "checkpoints/step-8"):
        shutil.rmtree(again / later)
    train_recipe(recipe, out=again, resuming=True)
    one, other = (load_file(run / "adapter" / "adapter.safetensors") for run in (tmp_path / "run", again))
    assert all(value.equal(other[key]) for key, value in one.items())
    models = [load_adapted(open_adapter(run / "adapter")) for run in (tmp_path / "run", again)]
    assert logits_of(models[0]).equal(logits_of(models[1]))


# The task gate


def test_training_moves_the_embeddings_of_the_tasks_it_sees_and_no_other(finished: Callable[[str], Done]) -> None:
    done = finished("methods/moelora")
    fresh = load_base(done.recipe.model)
    inject(fresh, **done.recipe.adapter_options(), seed=done.recipe.seed)
    end = load_file(done.out / "adapter" / "adapter.safetensors")
    seen = list(range(len(done.recipe.data.tasks)))
    for key, value in adapter_state_dict(fresh).items():
        if key.endswith("embedding"):
            assert (value != end[key]).any(1).nonzero().flatten().tolist() == seen


@pytest.mark.parametrize(
    ("tasks", "rows"), [(("boolq",), [0]), (("obqa", "piqa"), [7]), (("piqa", "obqa"), [1]), (("instruction",), [8])]
)
def test_the_gradient_reaches_the_embeddings_of_the_rows_tasks(tasks: tuple[str, ...], rows: list[int]) -> None:
    """Through the batch as training collates it, only the first row labelled; a row of no set takes the last one."""
    model = make_model()
    inject(
        model,
        rank=8,
        alpha=8,
        mixer={"kind": "task-gate", "tasks": COMMONSENSE},
        target_modules=["q_proj", "down_proj"],
    )
    perturb((p for p in model.parameters() if p.requires_grad), size=0.1)
    drawn = [
        Encoded(
            task, task, list(range(5, 12)), [IGNORE_INDEX] * 4 + ([9, 10, 11] if n == 0 else [IGNORE_INDEX] * 3), False
        )
        for n, task in enumerate(tasks)
    ]
    loss, _ = LabelLoss(model)(collate(drawn, device=torch.device("cpu"), tasks=COMMONSENSE))
    loss.backward()
    for name, parameter in model.named_parameters():
        if name.endswith("embedding"):
            assert parameter.grad is not None
            assert parameter.grad.any(1).nonzero().flatten().tolist() == rows, name


def test_rows_of_a_mixed_batch_go_each_by_their_own_task(finished: Callable[[str], Done]) -> None:
    model = load_adapted(open_adapter(finished("methods/moelora").out / "adapter"))
    mixed = logits_of(model, ("boolq", "obqa"))
    one, other = logits_of(model, ("boolq",)), logits_of(model, ("obqa",))
    torch.testing.assert_close(mixed[0], one[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[1], other[1], rtol=1e-5, atol=1e-5)
    swapped = logits_of(model, ("obqa", "boolq"))
    assert (swapped - mixed).abs().amax((1, 2)).min() > 1e-3


@pytest.mark.parametrize(("protocol", "format"), [("choice", "label"), ("cloze", "cloze")])
def test_a_question_is_scored_by_its_own_task(finished: Callable[[str], Done], protocol: str, format: str) -> None:
    """Spoiling the embedding of one task changes the scores of its questions and of no others."""
    folder = open_adapter(finished("methods/moelora").out / "adapter")
    examples = {task: make_examples(task, 3) for task in ("obqa", "boolq", "arc_easy")}

    def scored(spoiled: str | None) -> dict[str, list[tuple[float, ...]]]:
        model = load_adapted(folder)
        for name, parameter in model.named_parameters():
            if spoiled and name.endswith("embedding"):
                parameter.data[folder.recipe.data.tasks.index(spoiled)] *= -3
        path = folder.path.parent / f"eval-{protocol}-{spoiled}"
        evaluate(model, tokenizer(), examples, Request(protocol=protocol, format=format), out=path)
        lines = map(json.loads, (path / "predictions.jsonl").read_text().splitlines())
        found: dict[str, list[tuple[float, ...]]] = {task: [] for task in examples}
        for line in lines:
            found[line["id"].partition("/")[0]].append(line["scores"])
        return found

    before = scored(None)
    for task in examples:
        after = scored(task)
        assert {name for name in examples if after[name] != before[name]} == {task}
