"""docs/argument.md: its matrices and figures, derived again from the definitions; and what is timed for it."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.research.argument_tables import SYSTEMS, TABLES
from benchmarks.research.trajectories import ROUNDING, Start, distance, draw_a, folded, train
from benchmarks.research.update_rules import ADAM, SGD
from benchmarks.speed.latency import IN_PARTS, ONE_BY_ONE, contestants, put
from evaluation_kit import make_model
from moslora.adapters import build_mixer
from moslora.mixer_options import ButterflyOptions
from moslora.recipe import AdapterSection

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "argument.md").read_text(encoding="utf-8")


def page_table(name: str) -> list[list[str]]:
    """The rows of a table of the page."""
    lines = PAGE.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip().splitlines()
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def test_the_table_of_systems_is_what_the_formulas_give():
    """d × d, rank r, k experts: what methods.md says of each."""
    d = 4096
    r = 16
    k = 4
    tokens = 2048
    lora = 2 * r * d
    # gate, experts, entries, parameters, operations, rank
    by_formula: dict[str, tuple[str, str, int, int, int, int | None]] = {
        "LoRA": ("no", "dense, 16 of 16", r, lora, lora, r),
        "LoRA experts, dense gate": ("yes", "dense, 4 of 4", r, k * d, k * d, None),
        "LoRA experts, top-2 gate": ("yes", "sparse, 2 of 4", 2 * r // k, k * d, k * d, None),
        "gates inside": ("yes", "dense, 4 of 4", r * k, 2 * k * d, 2 * k * d + r, None),
        "input split in 4": ("no", "dense, 4 of 4", r, -r * d * (k - 1) // k, 0, r),
        "two-subspace mixing": ("no", "dense, 2 of 2", 2 * r, 0, -lora // 2, r // 2),
        "Kronecker": ("no", "dense, 4 of 4", r * k, k * k, r * r * d // tokens, r),
        "AdaLoRA, before it drops any": ("no", "dense, 16 of 16", r, r, r * r * d // tokens, r),
        "FLoRA": ("no", "dense, 16 of 16", r * r, r * r, r * r * d // tokens, r),
        "MoSLoRA": ("no", "dense, 16 of 16", r * r, r * r, r * r * d // tokens, r),
    }
    rows = page_table("systems")
    assert [row[0] for row in rows] == list(by_formula) == list(SYSTEMS)
    for name, gate, experts, filled, parameters, operations, merges, in_use in rows:
        kind, used, entries, more, work, rank = by_formula[name]
        numbers = [int(cell.replace(",", "").replace("−", "-")) for cell in (parameters, operations, in_use)]
        assert (gate, experts, filled) == (kind, used, f"{entries} of {r * r}")
        assert merges == (f"all, as LoRA of rank {rank}" if rank else "nothing")
        assert numbers == [more, work, 0 if rank else lora + work]


def test_the_table_of_halves_and_thirds_is_what_the_formulas_give():
    by_formula = []
    for k in (2, 3):
        merged = [f"{12 // k}", f"{12 // k}, at {k} × the learning rate"]
        by_formula.append([f"r/{k}, `blocks: {k}`", f"{12 * k} of 144", f"{12 * 2 * 4096:,}", *merged])
    assert page_table("halves and thirds") == by_formula


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_what_the_command_computes(name):
    assert TABLES[name]() == PAGE.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()


@pytest.mark.parametrize("rule", [SGD, ADAM], ids=lambda rule: rule.name)
def test_three_subspaces_train_as_lora_of_a_third_of_the_rank_at_three_times_the_rate(rule):
    start = Start(draw_a(12), tuple(build_mixer(ButterflyOptions(blocks=3), rank=12) for _ in range(2)))
    twin = folded(start)
    assert [len(factor) for factor in twin.a] == [4, 4]
    mixed = train(start, rule)
    assert distance(mixed, train(twin, replace(rule, lr=3 * rule.lr))).max() <= ROUNDING
    assert distance(mixed, train(twin, rule)).max() > 1e-2


ADAPTER = AdapterSection.model_validate({"rank": 4, "alpha": 8, "target_modules": ["q_proj", "down_proj"]})
IDS = torch.randint(2, 300, (1, 9), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_what_latency_times_computes_the_same():
    """Merged as unmerged, one by one as at once, and at the end the base as it was; no two others are equal."""
    model = make_model()
    before = model(IDS).logits
    outputs = {}
    for name, layers in contestants(model, ADAPTER).items():
        put(model, layers)
        outputs[name] = model(IDS).logits
    assert outputs["base"].equal(before)
    same = {"merged": "LoRA", **{name + ONE_BY_ONE: name for name in IN_PARTS}}
    for one, other in same.items():
        torch.testing.assert_close(outputs.pop(one), outputs[other], rtol=1e-4, atol=1e-5)
    assert len(outputs) == 2 + len(IN_PARTS) + 1
    for first, second in itertools.combinations(outputs.values(), 2):
        assert (first - second).abs().max() > 1e-3
