"""The built-in experiments say what they claim to."""

import re
from itertools import pairwise

import pytest

from moslora.experiment.file import load_experiment
from moslora.recipe import Changes, list_recipes
from recipe_kit import METHODS, ROOT


@pytest.mark.parametrize("name", [name for name, _ in list_recipes("experiment")])
def test_experiment_loads_and_holds_rows_out(name):
    experiment = load_experiment(name)
    assert experiment.name == name and len(experiment.file.seeds) >= 4
    assert all(recipe.data.validation_rows > 0 for recipe in experiment.recipes.values())


def test_the_files_in_the_document_are_experiments(tmp_path):
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text("extends: smollm2-135m\n", encoding="utf-8")
    arms = []
    for number, text in enumerate(re.findall(r"```yaml\n(.*?)```", page, re.S)):
        (tmp_path / f"{number}.yaml").write_text(text, encoding="utf-8")
        arms.append(load_experiment(str(tmp_path / f"{number}.yaml")).chosen_arms(()))
    assert arms == [("mine",), ("lora", "moslora")]


def test_the_article_compares_every_mixer_with_lora():
    experiment = load_experiment("article")
    kinds = {recipe.adapter.mixer.kind for recipe in experiment.recipes.values()}
    assert kinds | {"hadamard"} == {mixer.kind for mixer, _ in METHODS.values()}
    lora, *others = experiment.recipes
    assert experiment.file.named == tuple((lora, other) for other in others) and len(others) == 11
    for arm in experiment.recipes:
        rates = experiment.file.rates(arm)
        assert len(rates) >= 3 and all(high == 2 * low for low, high in pairwise(rates))
    assert len(experiment.rate_runs(experiment.chosen_arms(()))) == 43


def test_the_ablations_controls_differ_in_one_thing_each():
    experiment = load_experiment("mixer-ablation")
    first = experiment.chosen_arms(())
    assert first == ("lora", "lora-scaled", "init-only", "learned-kaiming")
    assert len(experiment.rate_runs(first)) + len(first) * len(experiment.file.seeds) == 40
    assert experiment.file.named == (("init-only", "learned-kaiming"),)
    learned = experiment.recipes["learned-kaiming"]
    for arm, expected in (
        ("init-only", "adapter.mixer.train was learned, is folded"),
        ("fixed", "adapter.mixer.train was learned, is frozen"),
        ("learned-orthogonal", "adapter.mixer.init was kaiming, is orthogonal"),
        ("learned-identity", "adapter.mixer.init was kaiming, is identity"),
    ):
        assert experiment.recipes[arm].differences(learned, *Changes) == [expected]
    fast = experiment.recipes["learned-kaiming-fast"].training
    assert fast.mixer_rate_ratio == (576 / learned.adapter.rank) ** 0.5
    scaled, plain = (experiment.recipes[name].adapter for name in ("lora-scaled", "lora"))
    assert scaled.alpha * 3**0.5 == pytest.approx(plain.alpha, rel=1e-4)
    assert scaled.model_copy(update={"alpha": plain.alpha}) == plain
