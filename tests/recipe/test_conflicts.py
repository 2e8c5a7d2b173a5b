"""Combinations that cannot work. Which mixer goes with what is the table of docs/methods.md."""

import json
import re
from contextlib import nullcontext
from typing import get_args

import pytest
from pydantic import ValidationError

from moslora.adapters.mixers import MIXERS
from moslora.errors import UsageError
from moslora.evaluation.request import Request
from moslora.mixer_options import AT_ZERO, WELL_CONDITIONED, DenseOptions, MixerOptions
from moslora.recipe import ModelSection, Recipe, load_recipe
from moslora.recipe.adapter import AdapterSection
from recipe_kit import ROOT, faults

GATES = tuple(options.model_fields["kind"].default for options in get_args(MixerOptions) if options.routes)
MIXER, PISSA, MIX = "adapter.mixer.kind=", "adapter.start=pissa", "data.source=commonsense_170k"
FIRST = "adapter.continue_from=runs/first"
BUDGET = 'training.rank_budget={"target_rank":4}'
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
IMPOSSIBLE = [
    "adapter.rank_out=8 adapter.mixer.train=folded",
    *(f"adapter.rank_out=8 {MIXER}{kind}" for kind in MIXERS if kind != "dense"),
    *(f"adapter.mixer.blocks=3 {MIXER}{kind}" for kind in ("butterfly", "hadamard", "kronecker", "input-split")),
    *(f"adapter.mixer.experts=3 {MIXER}{kind}" for kind in GATES),
    *(f"adapter.mixer.top_k={count} {MIXER}token-gate" for count in (1, 4)),
    *(f"adapter.mixer.init={init} adapter.mixer.train={train}" for init in AT_ZERO for train in ("frozen", "folded")),
    f"adapter.dora=true {MIXER}token-gate",
    f"{PISSA} {MIXER}butterfly",
    *(f"{PISSA} adapter.mixer.init={init}" for init in ("kaiming", "xavier", "normal", "zeros")),
    f"{PISSA} adapter.mixer.train=folded",
    f"{PISSA} adapter.rank_out=8",
    f"{PISSA} adapter.trains=mixer adapter.mixer.init=near-zero",
    *(f"{part} {MIXER}dense" for part in ("adapter.trains=mixer", "adapter.start=svd")),
    *(f"adapter.trains=b adapter.mixer.init={init}" for init in AT_ZERO),
    f"adapter.trains=b {MIXER}diagonal",
    *(f"adapter.trains=mixer {FIRST} {MIXER}{kind}" for kind in MIXERS if kind != "dense"),
    *(f"adapter.trains=mixer {FIRST} adapter.mixer.train={train}" for train in ("frozen", "folded")),
    f"{BUDGET} {MIXER}dense",
    f"training.rank_budget.target_rank=4 {MIXER}diagonal adapter.rank=3",
    "training.epochs=null",
    "training.strategy=fsdp model.quantization=int8",
    'data.rows={"bolq":3}',
    "data.replay.texts=boolq",
    "data.replay.texts=passages evaluation.tasks=[boolq,passages]",
    'data.rows={"commonsense":3}',
    f"data.tasks=boolq {MIX}",
    f"data.rows=100 {MIX}",
    f"data.format=cloze evaluation.protocol=cloze {MIX}",
    f"{MIX} {MIXER}task-gate",
    "data.format=cloze",
    "evaluation.protocol=generate data.format=cloze-passage",
    "evaluation.protocol=cloze",
    "evaluation.beams=4",
    "tracking.project=mine",
    "training.result=best data.validation_rows=0",
    "training.patience=3 data.validation_rows=0",
    "training.samples=2 training.strategy=fsdp",
    "training.samples=2 data.loss_on=all",
    "training.best_by=accuracy training.result=best training.validation_questions=0",
]
POSSIBLE = [
    "tracking.project=mine tracking.to=[]",
    "tracking.project=mine tracking.to=[wandb]",
    "adapter.rank_out=8",
    "adapter.rank_out=16 adapter.mixer.train=folded",
    "adapter.mixer.init=zeros",
    f"{MIXER}token-gate adapter.mixer.experts=4 adapter.mixer.top_k=3 adapter.mixer.balance=0.1",
    *(f"{PISSA} adapter.mixer.init={init}" for init in WELL_CONDITIONED),
    f"{PISSA} adapter.dora=true adapter.mixer.init=orthogonal adapter.mixer.train=folded",
    f"{PISSA} adapter.dora=true adapter.trains=b {MIXER}identity",
    *(f"adapter.{part} adapter.mixer.init=near-zero" for part in ("start=svd", "trains=mixer")),
    "adapter.start=svd adapter.trains=mixer adapter.dora=true adapter.mixer.init=zeros",
    *(f"adapter.trains=b {FIRST} {MIXER}{kind}" for kind in ("diagonal", *GATES)),
    f"adapter.trains=b {FIRST} adapter.mixer.init=near-zero",
    f"adapter.trains=mixer {FIRST}",
    f"{BUDGET} {MIXER}diagonal adapter.rank=4 adapter.dora=true",
    "training.epochs=null training.max_steps=5",
    "model.quantization=nf4 model.double_quantization=false",
    'data.tasks=boolq data.rows={"boolq":5,"piqa":3}',
    "data.replay.texts=passages",
    f"{MIX} data.format=llm-adapters",
    *(f"data.source={source} {MIXER}task-gate" for source in ("hub", "wheel", "rows.json")),
    "evaluation.beams=4 evaluation.protocol=generate",
]


@pytest.mark.parametrize("overrides", IMPOSSIBLE)
def test_impossible_combination_is_reported_once(write, overrides):
    """Which is the first of each line above."""
    (line,) = faults(write(a="model: {name: x}"), *overrides.split())
    assert line.startswith(f"override: {overrides.partition('=')[0]} = ")


def test_which_mixer_goes_with_what(write):
    """Every cell of the page's table that says yes or no, against the recipes that load."""
    path = write(a="model: {name: x}")
    (header,) = re.findall(r"^\| `adapter.mixer.kind` \| (.*) \|$", PAGE, re.M)
    values = {"training.lora_plus_ratio": "4", "training.mixer_rate_ratio": "6", "adapter.dora": "true"}
    values["training.rank_budget"] = "{target_rank: 8}"
    parts = []
    for part in header.replace("`", "").split(" | "):
        key, _, value = part.partition(": ")
        parts.append(f"{key}={value or values[key]}")
    rows = re.findall(r"^\| `([\w-]+)` \| ((?:yes|no)[^|]*(?: \| (?:yes|no)[^|]*){7}) \|$", PAGE, re.M)
    assert [kind for kind, _ in rows] == list(MIXERS)
    for kind, cells in rows:
        for part, cell in zip(parts, cells.split(" | "), strict=True):
            init = {"kind": kind}
            if kind == "dense":  # from a start with which the part goes
                init["init"] = "near-zero" if part == "adapter.trains=mixer" else "orthogonal"
            refused = nullcontext() if cell.startswith("yes") or cell == "no effect" else pytest.raises(UsageError)
            with refused:
                load_recipe(path, [f"adapter.mixer={json.dumps(init)}", part])


@pytest.mark.parametrize("overrides", POSSIBLE)
def test_possible_combination(write, overrides):
    load_recipe(write(a="model: {name: x}"), overrides.split())


def test_combinations_are_reported_once_every_field_is_right(write):
    path = write(
        a="""
            model: {name: 3, quantization: int8}
            adapter: {rank: 9, target_modules: [1], mixer: {kind: butterfly, blocks: two}}
            training: {epochs: null, eps: small, strategy: fsdp}
        """
    )
    wrong = [
        "model.name = 3: ",
        "adapter.target_modules.0 = 1: ",
        "adapter.mixer.blocks = 'two': ",
        "training.eps = 'small': ",
    ]
    assert all(line.startswith(f"a.yaml: {place}") for line, place in zip(faults(path), wrong, strict=True))
    right = ("model.name=x", "adapter.target_modules=[q_proj]", "adapter.mixer.blocks=2", "training.eps=1e-8")
    broken = [
        "a.yaml: training.strategy = 'fsdp': ",
        "a.yaml: training.epochs = None: ",
        "override: adapter.mixer.blocks = 2: ",
    ]
    found = faults(path, *right)
    assert all(line.startswith(place) for line, place in zip(found, broken, strict=True)), found


def test_conflict_blames_the_file_that_sets_the_first_key(write):
    path = write(
        base="model: {name: x}\nevaluation: {protocol: choice}", top="extends: base.yaml\ndata: {format: cloze}"
    )
    (line,) = faults(path)
    assert line.startswith("base.yaml: evaluation.protocol = 'choice': ")
    (line,) = faults(path, "evaluation.protocol=generate")
    assert line.startswith("override: evaluation.protocol = 'generate': ")


def test_recipe_built_in_python_obeys_the_same_rules():
    with pytest.raises(ValidationError, match=r"adapter\.rank_out: "):
        Recipe(
            name="a",
            model=ModelSection(name="x"),
            adapter=AdapterSection(rank_out=3, mixer=DenseOptions(train="folded")),
        )


def test_rows_that_nothing_scores_need_no_protocol():
    talks = ["data.source=./talks.jsonl", "data.format=chat"]
    assert Request.of(load_recipe("models/smollm2-135m", talks)).protocol == "choice"
    (fault,) = faults("models/smollm2-135m", *talks, "evaluation.tasks=boolq")
    assert "cloze cannot read the answers of format chat" in fault
