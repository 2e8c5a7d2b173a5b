"""What another value of each recipe field means: for a resumption, for the arms of a comparison, for the processes that
train together, and for an experiment."""

from collections.abc import Mapping

import pytest

from moslora.compare.find import ARM_CHANGES
from moslora.experiment.file import PlannedRun, not_comparable
from moslora.experiment.keys import ExperimentFile
from moslora.experiment.provenance import changes
from moslora.recipe import KEPT, Changes, Recipe
from moslora.recipe.changes import models_in
from moslora.recipe.recipe import fields_that_change, flat
from moslora.training.session import agreed_by_processes

TABLE = """
name                               resume   -     -        group   shared   -
seed                               resume   -     remade   group   shared   -
model.name                         resume   -     -        -       shared   -
model.revision                     resume   -     -        group   shared   -
model.dtype                        resume   arm   remade   group   shared   -
model.quantization                 resume   arm   remade   group   shared   -
model.double_quantization          resume   arm   remade   group   shared   -
model.engine                       -        -     -        -       shared   -
model.gradient_checkpointing       -        -     -        -       shared   -
model.trust_remote_code            -        -     -        -       shared   -
adapter.rank                       resume   arm   remade   group   -        -
adapter.rank_out                   resume   arm   remade   group   -        -
adapter.alpha                      resume   arm   remade   group   -        -
adapter.scaling                    resume   arm   remade   group   -        -
adapter.dropout                    resume   arm   remade   group   -        -
adapter.target_modules             resume   arm   remade   group   -        -
adapter.start                      resume   arm   remade   group   -        -
adapter.trains                     resume   arm   remade   group   -        -
adapter.dora                       resume   arm   remade   group   -        -
adapter.continue_from              resume   -     remade   -          -        -
adapter.mixer.kind                 resume   arm   remade   group   -        -
adapter.mixer.experts              resume   arm   remade   group   -        -
adapter.mixer.top_k                resume   arm   remade   group   -        -
adapter.mixer.orthogonality        resume   arm   remade   group   -        -
adapter.mixer.balance              resume   arm   remade   group   -        -
adapter.peft.peft_type             resume   arm   remade   group   -        -
adapter.peft.r                     resume   arm   remade   group   -        -
data.source                        -        -     -        -       shared   -
data.tasks                         resume   arm   remade   group   shared   paired
data.format                        resume   arm   remade   group   shared   paired
data.max_length                    resume   arm   remade   group   shared   paired
data.rows                          resume   arm   remade   group   shared   paired
data.rows.mine                     resume   arm   remade   group   shared   paired
data.validation_rows               resume   arm   remade   group   shared   paired
data.bad_rows                      resume   -     remade   group   shared   -
data.loss_on                       resume   arm   remade   group   shared   paired
data.replay                        resume   arm   remade   group   -        -
training.epochs                    resume   arm   remade   group   shared   -
training.max_steps                 resume   arm   remade   group   shared   -
training.global_batch_size         resume   arm   remade   group   shared   paired
training.micro_batch_tokens        -        -     -        group   shared   -
training.strategy                  -        -     -        group   -        -
training.learning_rate             resume   arm   remade   group   shared   -
training.lora_plus_ratio           resume   arm   remade   group   -        -
training.mixer_rate_ratio          resume   arm   remade   group   -        -
training.schedule                  resume   arm   remade   group   -        -
training.warmup_steps              resume   arm   remade   group   -        -
training.weight_decay              resume   arm   remade   group   -        -
training.max_grad_norm             resume   arm   remade   group   -        -
training.betas                     resume   arm   remade   group   -        -
training.eps                       resume   arm   remade   group   -        -
training.rank_budget               resume   arm   remade   group   -        -
training.rank_budget.target_rank   resume   arm   remade   group   -        -
training.rank_budget.warmup_share  resume   arm   remade   group   -        -
training.rank_budget.final_share   resume   arm   remade   group   -        -
training.checkpoint_every          -        -     -        -       -        -
training.keep_checkpoints          -        -     -        -       -        -
training.validate_every            -        -     -        group   -        -
training.validation_questions      -        -     -        group   -        -
training.samples                   -        -     -        -       -        -
training.result                    resume   arm   remade   group   shared   -
training.best_by                   resume   arm   remade   group   shared   -
training.patience                  resume   arm   remade   group   shared   -
training.log_every                 -        -     -        -       -        -
evaluation.tasks                   -        -     scored   -       shared   -
evaluation.protocol                -        -     scored   group   shared   -
evaluation.limit                   -        -     scored   -       shared   -
evaluation.skip                    -        -     scored   -       shared   -
evaluation.batch_tokens            -        -     scored   -       shared   -
evaluation.beams                   -        -     scored   group   shared   -
evaluation.max_length              -        -     scored   group   shared   -
evaluation.source                  -        -     -        -       shared   -
tracking.to                        -        -     -        -       shared   -
tracking.project                   -        -     -        -       shared   -
tasks.mine.train                   -        -     -        -       -        -
tasks.mine.test                    -        -     -        -       -        -
tasks.mine.texts                   -        -     -        -       -        -
tasks.mine.held_out                resume   -     remade   group   -        -
tasks.mine.hub                     resume   -     remade   group   -        -
tasks.mine.hub.path                resume   -     remade   group   -        -
tasks.mine.hub.config              resume   -     remade   group   -        -
tasks.mine.hub.revision            resume   -     remade   group   -        -
tasks.mine.wheel                   resume   -     remade   group   -        -
tasks.mine.question                resume   -     remade   group   -        -
tasks.mine.options                 resume   -     remade   group   -        -
tasks.mine.answer                  resume   -     remade   group   -        -
tasks.mine.match                   resume   -     remade   group   -        -
tasks.mine.ignore                  resume   -     remade   group   -        -
tasks.mine.response                resume   -     remade   group   -        -
tasks.mine.max_new_tokens          resume   -     remade   group   -        -
tasks.mine.stop                    resume   -     remade   group   -        -
tasks.mine.context                 resume   -     remade   group   -        -
tasks.mine.cluster                  -        -     -        -       -        -
tasks.mine.instruction             resume   -     remade   group   -        -
tasks.mine.label                   resume   -     remade   group   -        -
tasks.mine.cloze                   resume   -     remade   group   -        -
"""
"""For each key, who refuses another value, or tells runs apart by it: a run that is resumed; an arm of a comparison; an
experiment whose run was made with another one (``scored``: only where the run was scored); the group of processes; the
arms of one experiment, which share it; two arms that are paired, whose steps have the same rows."""

DECISIONS = {line.split()[0]: line.split()[1:] for line in TABLE.strip().splitlines()}

MODEL = {"name": "x", "quantization": "nf4"}
HUB = {"train": "train", "hub": {"path": "a/b"}}
RECIPES = [
    Recipe.model_validate({"name": "recipe", "model": MODEL, **sections})
    for sections in (
        {
            "data": {"tasks": ["mine"], "rows": {"mine": 5}},
            "tasks": {"mine": HUB},
            "training": {"rank_budget": {"target_rank": 2}},
            "adapter": {"mixer": {"kind": "diagonal"}},
        },
        {"adapter": {"mixer": {"kind": "token-gate"}}, "tasks": {"mine": {"train": "a.jsonl"}}},
        {"adapter": {"peft": {"peft_type": "MISS", "r": 8}}},
    )
]
"""Recipes that have all the keys between them."""


def keys(recipe):
    return {*flat(recipe.model_dump(mode="json"))}


def other(recipe, key):
    """``recipe`` with another value at ``key``."""
    first, _, rest = key.partition(".")
    if isinstance(recipe, Mapping):
        inner = recipe[first]
        return {**recipe, first: other(inner, rest) if rest else inner + 1}
    inner = getattr(recipe, first)
    return recipe.model_copy(update={first: other(inner, rest) if rest else another(inner)})


def another(value):
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}-2"
        case tuple():
            return value[1:] or ("another",)
        case None:
            return 7
    raise AssertionError(value)


def shared_by_arms(before, after):
    file = ExperimentFile.model_validate(
        {"recipe": {}, "arms": {"a": {}}, "learning_rates": {"a": [1.0]}, "seeds": [1], "outcome": "accuracy"}
    )
    return any("which all arms share" in line for line in not_comparable(file, before, {"a": after}))


def unmarked(model, path=""):
    """The fields that do not say what they change, and in which no section does."""
    for name, field in model.model_fields.items():
        if not any(isinstance(mark, Changes) for mark in field.metadata):
            sections = [*models_in(field.annotation)]
            if not sections and getattr(model, "changes", None) is None:
                yield f"{path}{name}"
            for section in sections:
                yield from unmarked(section, f"{path}{name}.")


def test_every_field_says_what_another_value_changes():
    assert [*unmarked(Recipe)] == []


def test_every_key_of_every_recipe_is_in_the_table():
    assert set.union(*map(keys, RECIPES)) <= DECISIONS.keys()


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("key", DECISIONS)
def test_marks_decide_as_the_table_says(key):
    resume, arm, remade, group, shared, paired = DECISIONS[key]
    before = next(recipe for recipe in RECIPES if key in keys(recipe))
    after = other(before, key)
    assert bool(after.differences(before, *KEPT)) == (resume == "resume")
    assert (before.values_changing(*ARM_CHANGES) != after.values_changing(*ARM_CHANGES)) == (arm == "arm")
    for scored in (False, True):
        found = changes(PlannedRun("arm", after, scored), before, {}, any_code=True, fetching=False)
        assert bool(found) == (remade == "remade" or (scored and remade == "scored"))
    of_the_group = agreed_by_processes(before, None)
    assert (key in of_the_group) == (group == "group")
    assert shared_by_arms(before, after) == (shared == "shared")
    paired_by = (key, key.removesuffix(".mine"))
    assert any(field in paired_by for field in fields_that_change(Changes.ROWS)) == (paired == "paired")


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_under_a_balance_the_micro_batch_counts():
    """Each pass takes it over its own rows."""
    gated = next(recipe for recipe in RECIPES if "adapter.mixer.balance" in keys(recipe))
    before = other(gated, "adapter.mixer.balance")
    after = other(before, "training.micro_batch_tokens")
    assert after.differences(before, *KEPT)
    assert before.values_changing(*ARM_CHANGES) != after.values_changing(*ARM_CHANGES)
    assert changes(PlannedRun("arm", after, False), before, {}, any_code=True, fetching=False)


OF_VALIDATIONS = ["training.validate_every"]
OF_QUESTIONS = [
    "training.validation_questions",
    "evaluation.protocol",
    "evaluation.beams",
    "evaluation.max_length",
]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("key", OF_VALIDATIONS + OF_QUESTIONS)
@pytest.mark.parametrize("best_by", ["loss", "accuracy"])
@pytest.mark.parametrize("chosen", [{"result": "best"}, {"patience": 3}, {}])
def test_where_validations_decide_how_they_are_made_counts(chosen, best_by, key):
    plain = RECIPES[1]
    settings = {**chosen, "best_by": best_by}
    before = plain.model_copy(update={"training": plain.training.model_copy(update=settings)})
    after = other(before, key)
    counts = bool(chosen) and (key in OF_VALIDATIONS or best_by == "accuracy")
    assert bool(after.differences(before, *KEPT)) == counts
    assert (before.values_changing(*ARM_CHANGES) != after.values_changing(*ARM_CHANGES)) == counts
    assert bool(changes(PlannedRun("arm", after, False), before, {}, any_code=True, fetching=False)) == counts
