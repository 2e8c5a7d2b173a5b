"""`moslora recipes show`: every value, and where it comes from."""

import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from moslora.cli import main
from moslora.recipe import Recipe, load_recipe, trace_recipe
from moslora.recipe.yaml_text import parse


def show(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["moslora", "recipes", "show", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_every_value_names_the_layer_that_gave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The origins against a reading by hand of three layers and the overrides."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("model: {name: x, dtype: float32}\nadapter: {rank: 8, mixer: {init: normal}}")
    Path("middle.yaml").write_text("extends: base.yaml\nadapter: {rank: 4}\ndata: {rows: {boolq: 5}}")
    Path("mine.yaml").write_text("extends: middle.yaml\ntraining: {betas: [0.5, 0.9]}\nmodel: {dtype: float16}")
    rows = trace_recipe("mine.yaml", ["training.learning_rate=1e-4", "data.rows.boolq=7"])
    given = {key: (value, origin) for key, value, origin in rows if origin != "default"}
    assert given == {
        "model.name": ("x", "base.yaml"),
        "model.dtype": ("float16", "mine.yaml"),
        "adapter.rank": ("4", "middle.yaml"),
        "adapter.mixer.init": ("normal", "base.yaml"),
        "data.rows.boolq": ("7", "override"),
        "training.learning_rate": ("0.0001", "override"),
        "training.betas": ("[0.5, 0.9]", "mine.yaml"),
    }


def test_another_mixer_takes_nothing_from_the_one_beneath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("model: {name: x}\nadapter: {mixer: {kind: dense, init: normal}}")
    rows = {key: (value, origin) for key, value, origin in trace_recipe("a.yaml", ["adapter.mixer.kind=butterfly"])}
    assert [key for key in rows if "mixer." in key] == [
        "adapter.mixer.kind",
        "adapter.mixer.blocks",
        "adapter.mixer.normalize",
    ]
    assert rows["adapter.mixer.kind"] == ("butterfly", "override")
    assert rows["adapter.mixer.blocks"] == ("2", "default")


@pytest.mark.parametrize("name", ["llama3-8b", "smollm2-135m"])
def test_values_are_the_recipes_own_in_declared_order(name: str) -> None:
    recipe = load_recipe(name)
    rows = trace_recipe(name)
    for key, value, _ in rows:
        here: object = recipe
        for part in key.split("."):
            here = here[part] if isinstance(here, dict) else getattr(here, part)
        assert parse(value) == (list(here) if isinstance(here, tuple) else here), key

    def declared(model: BaseModel, path: str = "") -> list[str]:
        found = []
        for field in type(model).model_fields:
            value = getattr(model, field)
            if isinstance(value, BaseModel):
                found += declared(value, f"{path}{field}.")
            elif isinstance(value, dict) and value:
                found += [f"{path}{field}.{key}" for key in value]
            else:
                found.append(path + field)
        return found

    assert [key for key, _, _ in rows] == declared(recipe)
    assert {key.partition(".")[0] for key, _, _ in rows} == set(Recipe.model_fields)


def test_command_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = show(capsys, "smollm2-135m", "training.learning_rate=1e-3")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["training.learning_rate"].split() == ["training.learning_rate", "0.001", "override"]
    assert lines["training.eps"].split()[2] == "default"
    assert lines["model.dtype"].split()[2].endswith("recipes/smollm2-135m.yaml")
    short = [line for line in lines.values() if "[" not in line]
    assert len({line.index(line.split()[1]) for line in lines.values()}) == 1
    assert len({line.rindex(line.split()[2]) for line in short}) == 1


def test_run_is_shown_by_its_own_recipe(
    capsys: pytest.CaptureFixture[str], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.parent)
    code, out, _ = show(capsys, "run")
    assert code == 0
    assert {line.split("  ")[-1].strip() for line in out.splitlines()} == {"run/recipe.yaml"}


def test_faults_come_without_any_output(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = show(capsys, "smollm2-135m", "training.learning_rat=1", "seed=-1")
    assert (code, out) == (2, "")
    assert "learning_rate?" in err and "seed = -1" in err


def test_a_method_is_shown_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    """With everything that it has over a recipe that gives one, which is then the only origin besides."""
    code, out, err = show(capsys, "methods/dora")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["model.name"].split(maxsplit=2)[1:] == ["none", "missing: to train, lay it over a recipe with a model"]
    assert [key for key, line in lines.items() if "methods/dora.yaml" in line] == ["adapter.dora", "adapter.mixer.kind"]
