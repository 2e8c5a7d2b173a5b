"""Combinations that cannot work."""

import pytest
from pydantic import ValidationError

from moslora.adapters.mixers import MIXERS
from moslora.recipe import ModelSection, Recipe, load_recipe
from moslora.recipe.mixers import DenseOptions
from moslora.recipe.rules import AT_ZERO, GATES, INVERTIBLE, WELL_CONDITIONED
from moslora.recipe.sections import AdapterSection
from recipe_kit import BUDGET, faults


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter.mixer.train=folded", "adapter.rank_out=8"], "adapter.rank_out = 8: "),
        (["adapter.mixer={kind: butterfly, blocks: 3}"], "adapter.mixer.blocks = 3: "),
        (["adapter.mixer.kind=token-gate", "adapter.mixer.top_k=1"], "adapter.mixer.top_k = 1: "),
        (["adapter.mixer={kind: dense, init: zeros, train: frozen}"], "adapter.mixer.init = 'zeros': "),
        (["adapter.mixer={kind: dense, init: zeros, train: folded}"], "adapter.mixer.init = 'zeros': "),
        (["data.rows={bolq: 3}"], "data.rows = {'bolq': 3}: "),
        (["data.rows={commonsense: 3}"], "data.rows = {'commonsense': 3}: "),
        (["data.source=commonsense_170k", "data.tasks=boolq"], "data.tasks = 'boolq': "),
        (["data.source=commonsense_170k", "data.rows=100"], "data.rows = 100: "),
        (["data.source=commonsense_170k", "data.format=cloze", "evaluation.protocol=cloze"], "data.format = 'cloze': "),
        (["data.source=commonsense_170k", "adapter.mixer.kind=task-gate"], "data.source = 'commonsense_170k': "),
        (["training.epochs=null"], "training.epochs = None: "),
        (["data.format=cloze"], "data.format = 'cloze': "),
        (["data.format=cloze-passage", "evaluation.protocol=generate"], "evaluation.protocol = 'generate': "),
        (["evaluation.protocol=cloze"], "evaluation.protocol = 'cloze': "),
        (["data.format=llm-adapters", "evaluation.protocol=cloze"], "evaluation.protocol = 'cloze': "),
        (["evaluation.beams=4"], "evaluation.beams = 4: "),
        (["adapter.trains=b", "training.lora_plus_ratio=16"], "training.lora_plus_ratio = 16: "),
        (["model.double_quantization=false"], "model.double_quantization = False: "),
        (["training.strategy=fsdp", "model.quantization=int8"], "training.strategy = 'fsdp': "),
        (["adapter.mixer={kind: kronecker, blocks: 5}"], "adapter.mixer.blocks = 5: "),
        (["adapter.mixer={kind: input-split, blocks: 3}"], "adapter.mixer.blocks = 3: "),
        *(([f"adapter.mixer={{kind: {kind}, experts: 3}}"], "adapter.mixer.experts = 3: ") for kind in GATES),
        *(
            ([f"adapter.mixer.kind={kind}", "adapter.rank_out=8"], "adapter.rank_out = 8: ")
            for kind in MIXERS
            if kind != "dense"
        ),
        (["adapter.mixer={kind: token-gate, experts: 4, top_k: 4}"], "adapter.mixer.top_k = 4: "),
        *((["adapter.dora=true", f"adapter.mixer.kind={kind}"], "adapter.dora = True: ") for kind in GATES),
        *(
            (["adapter.start=pissa", f"adapter.mixer={mixer}"], "adapter.start = 'pissa': ")
            for mixer in (f"{{kind: {kind}}}" for kind in MIXERS if kind not in INVERTIBLE)
        ),
        (["adapter.start=pissa", "adapter.rank_out=8"], "adapter.start = 'pissa': "),
        (["adapter.start=pissa", "adapter.trains=mixer", "adapter.mixer.init=near-zero"], "adapter.start = 'pissa': "),
        (["adapter.mixer={kind: dense, init: near-zero, train: frozen}"], "adapter.mixer.init = 'near-zero': "),
        *(
            ([f"adapter.{part}", f"adapter.mixer={mixer}"], f"adapter.{field} = '{value}': ")
            for part in ("trains=mixer", "start=svd")
            for field, value in [part.split("=")]
            for mixer in ("{kind: dense}", *(f"{{kind: {kind}}}" for kind in MIXERS))
        ),
        *(
            (["adapter.trains=b", f"adapter.mixer={mixer}"], "adapter.trains = 'b': ")
            for mixer in (
                *(f"{{kind: dense, init: {init}}}" for init in AT_ZERO),
                *(f"{{kind: {kind}}}" for kind in ("diagonal", *GATES)),
            )
        ),
        *(
            (["adapter.start=pissa", f"adapter.mixer={{kind: dense, {option}}}"], "adapter.start = 'pissa': ")
            for option in ("train: folded", *(f"init: {init}" for init in ("kaiming", "xavier", "normal", "zeros")))
        ),
        *(
            ([BUDGET, f"adapter.mixer.kind={kind}"], "training.rank_budget = {'target_rank': 4}: ")
            for kind in MIXERS
            if kind != "diagonal"
        ),
        ([BUDGET, "adapter.mixer.kind=diagonal", "adapter.rank=3"], "training.rank_budget.target_rank = 4: "),
    ],
)
def test_impossible_combination(write, overrides, message):
    (line,) = faults(write(a="model: {name: x}"), *overrides)
    assert line.startswith(f"override: {message}")


@pytest.mark.parametrize(
    "overrides",
    [
        ["adapter.rank_out=8"],
        ["data.tasks=boolq", "data.rows={boolq: 5, piqa: 3}"],
        ["adapter.rank_out=16", "adapter.mixer.train=folded"],
        ["adapter.mixer.kind=identity", "adapter.rank_out=16"],
        ["adapter.mixer.init=zeros"],
        ["training.epochs=null", "training.max_steps=5"],
        ["training.epochs=0.5", "training.micro_batch_tokens=64"],
        ["evaluation.beams=4", "evaluation.protocol=generate"],
        ["data.source=commonsense_170k", "data.format=llm-adapters"],
        *([f"data.source={source}", "adapter.mixer.kind=task-gate"] for source in ("hub", "wheel", "rows.json")),
        ["model.quantization=nf4", "model.double_quantization=false"],
        [BUDGET, "adapter.mixer.kind=diagonal"],
        [BUDGET, "adapter.mixer.kind=diagonal", "adapter.rank=4", "adapter.dora=true"],
        ["adapter.mixer={kind: token-gate, experts: 4, top_k: 3, balance: 0.1}"],
        ["adapter.mixer={kind: hadamard, blocks: 16}"],
        *(["adapter.start=pissa", f"adapter.mixer.kind={kind}"] for kind in INVERTIBLE if kind != "dense"),
        *(["adapter.start=pissa", f"adapter.mixer={{kind: dense, init: {init}}}"] for init in WELL_CONDITIONED),
        ["adapter.start=pissa", "adapter.dora=true", "adapter.mixer={kind: dense, init: orthogonal, train: folded}"],
        ["adapter.start=pissa", "adapter.dora=true", "adapter.trains=b", "adapter.mixer.kind=identity"],
        *([f"adapter.{part}", "adapter.mixer.init=near-zero"] for part in ("start=svd", "trains=mixer")),
        ["adapter.start=svd", "adapter.trains=mixer", "adapter.dora=true", "adapter.mixer.init=zeros"],
        *(["adapter.trains=b", f"adapter.mixer.kind={kind}"] for kind in MIXERS if kind not in ("diagonal", *GATES)),
        *(["adapter.dora=true", f"adapter.mixer.kind={kind}"] for kind in MIXERS if kind not in GATES),
    ],
)
def test_possible_combination(write, overrides):
    load_recipe(write(a="model: {name: x}"), overrides)


def test_combinations_are_reported_beside_wrong_fields_unless_they_share_one(write):
    path = write(
        a="""
            model: {name: 3, double_quantization: false}
            adapter: {rank: 9, target_modules: [1], mixer: {kind: butterfly, blocks: two}}
            training: {epochs: null, eps: small}
        """
    )
    places = [
        "model.name = 3: ",
        "adapter.target_modules.0 = 1: ",
        "adapter.mixer.blocks = 'two': ",
        "training.eps = 'small': ",
        "model.double_quantization = False: ",
        "training.epochs = None: ",
    ]
    assert all(line.startswith(f"a.yaml: {place}") for line, place in zip(faults(path), places, strict=True))


def test_conflict_blames_the_file_nearest_to_the_user(write):
    path = write(base="model: {name: x}\nevaluation: {protocol: rank}", top="extends: base.yaml\ndata: {format: cloze}")
    (line,) = faults(path)
    assert line.startswith("top.yaml: data.format = 'cloze': ")
    (line,) = faults(path, "evaluation.protocol=generate")
    assert line.startswith("override: evaluation.protocol = 'generate': ")


def test_recipe_built_in_python_obeys_the_same_rules():
    with pytest.raises(ValidationError, match=r"adapter\.rank_out: "):
        Recipe(
            name="a",
            model=ModelSection(name="x"),
            adapter=AdapterSection(rank_out=3, mixer=DenseOptions(train="folded")),
        )
