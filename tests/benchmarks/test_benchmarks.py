"""The benchmarks: what they say of the methods is so, and they run."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.article import methods
from benchmarks.article.method_checks import METHODS, Settings, parameters, recipe_text
from benchmarks.tables import spread, write_between
from benchmarks.timing import alternate
from moslora.adapters import MIXERS, describe_batch, inject
from moslora.errors import UsageError
from moslora.recipe import list_recipes, load_recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_every_shipped_method_is_measured_and_described() -> None:
    shipped = {name.removeprefix("methods/") for name, _ in list_recipes() if name.startswith("methods/")}
    assert {method.recipe for method in METHODS} == shipped and len(METHODS) == len(shipped)
    assert [name for name in shipped if f"`methods/{name}`" not in PAGE] == []


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.recipe)
def test_formula_gives_the_number_of_parameters(method, tmp_path: Path) -> None:
    """On the shapes of a model with grouped-query attention; `parameters` raises where formula and count differ."""
    settings = Settings(base="llama3-8b", steps=4, pairs=2, rows=2, questions=2)
    text = recipe_text(method.recipe, settings, steps=4)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml", ["data.source=wheel", "data.format=label"])
    found = parameters(method, recipe, rank=16)
    assert found["lora"] == 28_311_552
    if method.recipe == "moslora":
        assert found["added"] == 40_960


def test_what_goes_with_what_is_what_the_rules_say(tmp_path: Path) -> None:
    """Every cell of the page's table that says yes or no, against the recipes that load."""
    (tmp_path / "recipe.yaml").write_text("model: {name: x}", encoding="utf-8")
    header = re.search(r"^\| `adapter.mixer.kind` \| (.*) \|$", PAGE, re.M)
    assert header
    values = {
        "adapter.scaling: rslora": "adapter.scaling=rslora",
        "training.lora_plus_ratio": "training.lora_plus_ratio=4",
        "training.mixer_rate_ratio": "training.mixer_rate_ratio=6",
        "adapter.start: pissa": "adapter.start=pissa",
        "adapter.dora": "adapter.dora=true",
        "training.rank_budget": "training.rank_budget={target_rank: 8}",
        "adapter.trains: b": "adapter.trains=b",
        "adapter.trains: mixer": "adapter.trains=mixer",
    }
    parts = [values[part.strip("`")] for part in header[1].split(" | ")]
    rows = re.findall(r"^\| `([\w-]+)` \| ((?:yes|no)[^|]*(?: \| (?:yes|no)[^|]*){7}) \|$", PAGE, re.M)
    assert [kind for kind, _ in rows] == list(MIXERS)
    for kind, cells in rows:
        for part, cell in zip(parts, cells.split(" | "), strict=True):
            # A dense mixer from a start with which the part goes.
            init = ", init: near-zero" if part == "adapter.trains=mixer" else ", init: orthogonal"
            overrides = [f"adapter.mixer={{kind: {kind}{init if kind == 'dense' else ''}}}", part]
            if cell.startswith("yes") or cell == "no effect":
                load_recipe(tmp_path / "recipe.yaml", overrides)
            else:
                with pytest.raises(UsageError):
                    load_recipe(tmp_path / "recipe.yaml", overrides)


def first_step(method: str, folder: Path) -> float:
    """How far one step of AdamW takes the output of a layer with the recipe's adapter, in the norm over 512 tokens."""
    (folder / "recipe.yaml").write_text(f"extends: [smollm2-135m, {method}]", encoding="utf-8")
    recipe = load_recipe(folder / "recipe.yaml", ["adapter.target_modules=[q_proj]"])
    torch.manual_seed(0)
    model = nn.ModuleDict({"q_proj": nn.Linear(576, 576, bias=False)})
    x, goal = torch.randn(8, 64, 576), torch.randn(576, 3) @ torch.randn(3, 576) / 24
    inject(model, **recipe.adapter_options(), seed=0)
    describe_batch(model, tasks=torch.arange(8))
    layer = model["q_proj"]
    before = layer(x)
    (before - layer.base(x) - x @ goal.T).square().mean().backward()
    torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=1e-3, weight_decay=0).step()
    return (layer(x) - before).norm().item()


def test_gates_begin_with_smaller_steps_than_lora(tmp_path: Path) -> None:
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


class CountedLinear(nn.Linear):
    """Notes the shapes that it multiplies."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = [*getattr(self, "seen", []), tuple(x.shape)]
        return super().forward(x)


@pytest.mark.parametrize(("dropout", "training"), [(0.1, True), (0.1, False), (0.0, True)])
def test_dora_multiplies_by_the_base_as_often_as_the_page_says(dropout: float, training: bool) -> None:
    model = nn.ModuleDict({"q_proj": CountedLinear(24, 40)})
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules=["q_proj"], dropout=dropout, dora=True)
    base = model.train(training)["q_proj"].base
    base.seen = []
    model["q_proj"](torch.randn(3, 5, 24))
    assert sorted(base.seen) == sorted([(3, 5, 24), (4, 24), *[(3, 5, 24)] * (dropout > 0 and training)])


def test_pairs_are_timed_in_turns() -> None:
    calls: list[str] = []
    one, other = alternate(lambda: calls.append("a"), lambda: calls.append("b"), repetitions=3, warmup=1)
    assert "".join(calls) == "baabbaab" and len(one) == len(other) == 3
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.50–2.50)"


def test_table_goes_between_its_markers_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("a\n<!-- x -->old<!-- /x -->\nb\n", encoding="utf-8")
    write_between(path, "x", "new")
    write_between(path, "x", "newer")
    assert path.read_text(encoding="utf-8") == "a\n<!-- x -->\n\nnewer\n\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="<!-- y -->"):
        write_between(path, "y", "new")


@pytest.mark.slow
def test_methods_are_measured_and_written_down(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two methods on the small model through all of it, one that merges and one that does not: in two pieces, of which
    the second measures only what the first has left, and the page has its table at the end."""
    page = tmp_path / "page.md"
    page.write_text("<!-- methods table -->\n<!-- /methods table -->\n", encoding="utf-8")
    arguments = ["--base", str(world / "recipe.yaml"), "--steps", "4", "--pairs", "2", "--rows", "4"]
    arguments += ["--questions", "3", "--work", str(tmp_path / "work"), "--docs", str(page)]
    monkeypatch.setattr(methods, "METHODS", [m for m in METHODS if m.recipe in ("lora", "lora-moe-topk")])

    def measured(*more: str) -> list[str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["methods.py", *arguments, *more])
        assert methods.main() == 0
        return re.findall(r"^(\S+) \.\.\.$", capsys.readouterr().out, re.M)

    assert measured("--methods", "lora") == ["lora"]
    assert "lora" not in page.read_text(encoding="utf-8")
    assert measured() == ["lora-moe-topk"] and measured() == []
    rows = [line.split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == ["| `lora`", "| `lora-moe-topk`"]
    assert [row[5:] for row in rows] == [["yes", "yes", "same bits |"], ["no", "no", "same bits |"]]
    assert rows[1][2] == f"k · d_in = +{4 * 2 * (48 + 48 + 80):,}"
    assert f"`{world / 'recipe.yaml'}`, dropout 0.1, " in page.read_text(encoding="utf-8")
    monkeypatch.setattr(methods, "code", lambda: "another")
    settings = Settings(base=str(world / "recipe.yaml"), steps=4, pairs=2, rows=4, questions=3)
    assert [methods.kept(method, tmp_path / "work", settings) for method in methods.METHODS] == [None, None]


PLACES = re.compile(r"<!-- ([\w-]+ table) -->(.*?)<!-- /\1 -->", re.S)


def test_every_table_of_a_document_is_measured() -> None:
    """Between its markers each has a header, a row and the machine it is from, and no word that stands in for them."""
    found = {}
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        found |= dict(PLACES.findall(page.read_text(encoding="utf-8")))
    measured = ["methods", "latency", "step", "training", "evaluation", "steps", "loading", "merging", "busy"]
    measured += ["serving", "vllm", "generation"]
    assert "ESTIMATE" in found.pop("roofline table")
    assert found.keys() == {f"{name} table" for name in measured}
    for name, text in found.items():
        assert "not measured yet" not in text, name
        assert len(re.findall(r"^\| .* \|$", text, re.M)) > 2 and "torch " in text, name
