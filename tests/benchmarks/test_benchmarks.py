"""The benchmarks: what they say of the methods is so, and they run."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.research import method_checks, methods
from benchmarks.research.method_checks import METHODS, becomes, examine, parameters, recipe_text
from moslora.adapters import describe_batch
from moslora.adapters.injection import adapt_layers
from moslora.convert.merge import merge
from moslora.recipe import list_recipes, load_recipe
from moslora.training import train_recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_every_shipped_method_is_measured_and_described():
    shipped = {name.removeprefix("methods/") for name, _ in list_recipes() if name.startswith("methods/")}
    assert {*METHODS} == shipped
    described, _, _ = PAGE.partition("<!-- methods table -->")
    assert [name for name in shipped if not re.search(rf"`(methods/)?{name}`", described)] == []


def formulas() -> dict[str, str]:
    """What a method trains per layer besides LoRA's r · (d_in + d_out), by the page; nothing where it says nothing."""
    found = dict.fromkeys(METHODS, "0") | {"dora": "d_out"}
    for names, formula in re.findall(r"^\| \[(`.*`)\]\(#[\w-]+\) \| .* \| ([^|]+) \| [^|]+ \|$", PAGE, re.M):
        found |= dict.fromkeys(re.findall(r"`([\w-]+)`", names), formula)
    return found


def evaluated(formula: str, **sizes: int) -> float:
    """Each factor of a formula is a number or a name."""
    signs = {"·": "*", "−": "-", "²": "**2", "₀": "0", "2k": "2*k"}
    for sign, operator in signs.items():
        formula = formula.replace(sign, operator)
    return eval(formula, {}, sizes)


@pytest.mark.parametrize("method", METHODS)
def test_formula_gives_the_number_of_parameters(method, tmp_path, monkeypatch):
    """On the shapes of a model with grouped-query attention."""
    monkeypatch.setattr(method_checks, "BASE", "llama3-8b")
    (tmp_path / "recipe.yaml").write_text(recipe_text(method, steps=4), encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml", ["data.source=wheel", "data.format=label"])
    adapter = recipe.adapter
    blocks = getattr(adapter.mixer, "blocks", 1)
    sizes = {"r": 16, "r0": adapter.rank, "k": getattr(adapter.mixer, "experts", blocks), "t": len(recipe.data.tasks)}
    sizes["d_e"] = getattr(adapter.mixer, "embedding_size", 0)
    shapes = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 14336), (14336, 4096)]
    added = sum(evaluated(formulas()[method], d_in=d_in, d_out=d_out, **sizes) for d_in, d_out in shapes)
    assert parameters(recipe, rank=16) == {"lora": 28_311_552, "added": 32 * added}


def first_step(method: str, folder: Path) -> float:
    """How far one step of AdamW takes the output of a layer with the recipe's adapter, in the norm over 512 tokens."""
    (folder / "recipe.yaml").write_text(f"extends: [smollm2-135m, {method}]", encoding="utf-8")
    recipe = load_recipe(folder / "recipe.yaml", ["adapter.target_modules=[q_proj]"])
    torch.manual_seed(0)
    model = nn.ModuleDict({"q_proj": nn.Linear(576, 576, bias=False)})
    x, goal = torch.randn(8, 64, 576), torch.randn(576, 3) @ torch.randn(3, 576) / 24
    adapt_layers(model, recipe.adapter, seed=0, tasks=recipe.data.tasks)
    describe_batch(model, tasks=torch.arange(8))
    layer = model["q_proj"]
    before = layer(x)
    (before - layer.base(x) - x @ goal.T).square().mean().backward()
    torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=1e-3, weight_decay=0).step()
    return (layer(x) - before).norm().item()


def test_gates_begin_with_smaller_steps_than_lora(tmp_path):
    """A quarter, a third, a fifth, a twentieth: the shares of the page, on random rows; and what has LoRA's gain."""
    shares = {
        "lora-moe-dense": 1 / 4,
        "lora-moe-topk": 1 / 3,
        "gate-inside": 1 / 5,
        "moelora": 1 / 20,
        "controls/lora-scaled": 3**-0.5,
        "input-split": 1,
        "kronecker": 1,
    }
    lora = first_step("methods/lora", tmp_path)
    found = {name: first_step(f"methods/{name}", tmp_path) / lora for name in shares}
    assert found == pytest.approx(shares, rel=0.4)
    assert found["lora-moe-topk"] > 1.15 * found["lora-moe-dense"]
    assert first_step("methods/moslora", tmp_path) == first_step("methods/controls/moslora-folded", tmp_path)


@pytest.mark.slow
def test_a_method_is_examined_and_has_its_row(world, trained, tmp_path, monkeypatch):
    """One that does not merge; and one that does."""
    for name, value in {"BASE": str(world / "recipe.yaml"), "STEPS": 4, "PAIRS": 1, "ROWS": 4, "QUESTIONS": 3}.items():
        monkeypatch.setattr(method_checks, name, value)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text("lora-moe-topk", steps=4), encoding="utf-8")
    train_recipe(load_recipe(recipe), out=tmp_path / "run")
    found = examine("lora-moe-topk", tmp_path)
    measured = found | {"seconds": ([1, 2], [2, 4]), "peak_memory_gb": [3.0]}
    row = methods.row_of("lora-moe-topk", measured, baseline=2.0)
    added = f"+{4 * 2 * (48 + 48 + 80):,}"
    assert row == ["`lora-moe-topk`", "token-gate", added, "2.00 (2.00–2.00)", "1.50", "no"]
    table = methods.table({"lora": measured, "lora-moe-topk": measured})
    assert table.count("| `lora") == 2 and "uninterrupted run's adapter, bit for bit" in table
    assert becomes(merge, trained, tmp_path / "merged") == "yes"


def test_every_table_of_a_document_is_measured():
    """Between its markers each has a header, a row and the machine it is from."""
    found = {}
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        found |= dict(re.findall(r"<!-- ([\w-]+) table -->(.*?)<!-- /\1 table -->", text, re.S))
    assert "ESTIMATE" in found.pop("roofline")
    measured = ["methods", "latency", "training", "evaluation", "generation", "busy"]
    assert found.keys() == {*measured, "steps", "loading", "merging", "serving", "vllm"}
    for name, table in found.items():
        assert len(re.findall(r"^\| .* \|$", table, re.M)) > 1 and re.search(r"; torch\s\d", table), name
