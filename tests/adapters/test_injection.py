"""Injection: what is chosen, what is frozen, what is drawn, and what is said when nothing fits."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from moslora.adapters import (
    MIXERS,
    adapter_state_dict,
    context_of,
    describe_batch,
    inject,
    named_adapters,
    shares_beginnings,
    task_names,
)
from reference import PROJECTIONS, adapted_llama, perturb, tiny_llama, token_batch

DENSE = {"kind": "dense"}


def test_all_linear_is_every_layer_but_the_output():
    """PEFT's word, and PEFT's choice."""
    ours, theirs = tiny_llama(), tiny_llama()
    chosen = inject(ours, rank=4, alpha=8, mixer=DENSE, target_modules="all-linear")
    peft = get_peft_model(theirs, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert chosen == peft.base_model.targeted_module_names and len(chosen) == 14
    assert inject(nn.Sequential(nn.Linear(4, 4)), rank=2, alpha=2, mixer=DENSE, target_modules="all-linear") == ["0"]


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"target_modules": ["q_proj", "qq_proj"]}, "qq_proj; this model has down_proj, gate_proj, k_proj, lm_head"),
    ({"target_modules": r".*\.nothing"}, "nothing.*this model has down_proj"),
    ({"target_modules": []}, "target_modules = "),
    ({"rank": "16", "rank_out": -2, "alpha": float("nan")}, "(?s)rank = '16'.*rank_out = -2.*alpha = nan"),
    ({"trains": "A", "scaling": "rs", "start": None}, "(?s)'rs'.*start = None.*'A'"),
    ({"mixer": "dense"}, "mixer = 'dense'.*{'kind': 'dense'}"),
    ({"mixer": {"kind": "denes"}}, "'denes'.*must be one of identity"),
    ({"mixer": {"kind": "dense", "train": "frozn"}}, "train = 'frozn'.*frozen"),
    ({"mixer": {"kind": "dense", "inits": "zeros"}}, "inits"),
    ({"mixer": {"kind": "gate-inside"}, "dora": True}, "dora: DoRA"),
    ({"trains": "mixer"}, "trains: .*M must start at zero"),
    ({"start": "pissa", "rank": 49, "mixer": {"kind": "identity"}}, "rank 49 exceeds the sides of a 48 × 48 weight"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=str)
def test_refused_options_are_named_and_change_nothing(options, said):
    """Some would otherwise be another method: a `scaling` that is not `lora` is α/√r."""
    model = tiny_llama()
    with pytest.raises(ValueError, match=said):
        inject(model, **{"rank": 4, "alpha": 8, "mixer": DENSE, "target_modules": ["q_proj"], **options})
    assert not [*named_adapters(model)] and all(weight.requires_grad for weight in model.parameters())
    assert all(value.equal(model.state_dict()[key]) for key, value in tiny_llama().state_dict().items())


def test_layers_that_cannot_be_adapted_are_refused():
    """An adapter of a layer in two places would be in one of them only."""

    class Packed(nn.Module):  # its numbers are no parameters, as in GPTQ's and AWQ's layers
        in_features = out_features = 8

    shared = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "block": nn.ModuleDict({"v_proj": nn.Linear(8, 8)})})
    shared["block"]["q_proj"] = shared["q_proj"]
    for model, said in (
        (nn.ModuleDict({"q_proj": Packed()}), "q_proj: Packed has no weight"),
        (adapted_llama(DENSE), "adapters already"),
        (shared, r"q_proj and block\.q_proj .* shared"),
    ):
        with pytest.raises(ValueError, match=said):
            inject(model, rank=4, alpha=8, mixer=DENSE, target_modules=["q_proj"])
    assert inject(shared, rank=4, alpha=8, mixer=DENSE, target_modules=["v_proj"]) == ["block.v_proj"]


@pytest.mark.parametrize("kind", MIXERS)
def test_adapters_are_float32_whatever_the_default(kind):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        net = nn.Sequential(nn.Linear(8, 8))
        inject(
            net, rank=4, alpha=8, mixer={"kind": kind}, target_modules=["0"], dora=not MIXERS[kind].options_type.routes
        )
    finally:
        torch.set_default_dtype(before)
    assert net[0].base.weight.dtype == torch.bfloat16
    assert {value.dtype for value in adapter_state_dict(net).values()} == {torch.float32}


def test_a_depends_on_the_seed_and_not_on_the_mixer():
    """Controls share A: all kinds but those whose method prescribes another draw or another shape. Another seed or
    layer has another."""

    def first_a(mixer, **options):
        model = adapted_llama(mixer, **{"target_modules": ["up_proj"], "seed": 5, **options})
        first, second = (layer.lora_a.detach() for _, layer in named_adapters(model) if layer.out_features == 80)
        assert not first.equal(second)
        return first

    lora = first_a({"kind": "identity"})
    assert first_a(DENSE, target_modules=["q_proj", "up_proj"]).equal(lora)
    assert not first_a(DENSE, seed=6).equal(lora)
    others = {kind for kind, mixer in MIXERS.items() if mixer.factor_std is not None} | {"input-split"}
    assert others == {"diagonal", "task-gate", "input-split"}
    for kind in MIXERS.keys() - others:
        assert first_a({"kind": kind}).equal(lora), kind
    assert first_a({"kind": "dense", "init": "zeros"}).equal(lora)
    assert first_a({"kind": "dense", "train": "frozen"}).equal(lora)
    assert first_a(DENSE, dora=True).equal(lora) and first_a(DENSE, scaling="rslora").equal(lora)
    assert first_a({"kind": "token-gate", "top_k": 2}).equal(lora)
    for kind in others:
        assert not first_a({"kind": kind})[:, :8].equal(lora[:, :8]), kind


def test_spread_of_the_draws_where_the_mixer_starts_at_zero():
    """FLoRA: B ~ U(±1/√r) as A ~ U(±1/√in); AdaLoRA: both N(0, 0.02²)."""
    drawn = {}
    for name, mixer in {"flora": {"kind": "dense", "init": "zeros"}, "adalora": {"kind": "diagonal"}}.items():
        _, layer = next(named_adapters(adapted_llama(mixer, target_modules=["up_proj"])))
        drawn[name] = layer.lora_a.detach(), layer.lora_b.detach()
    for factor, limit in zip(drawn["flora"], (48**-0.5, 4**-0.5), strict=True):
        assert factor.abs().max() <= limit and factor.std().item() == pytest.approx(limit / 3**0.5, rel=0.1)
    for factor in drawn["adalora"]:
        assert factor.std().item() == pytest.approx(0.02, rel=0.15) and factor.abs().max() > 0.04


def test_folded_at_init_starts_from_the_same_function_as_learned():
    models = {}
    for train in ("learned", "folded"):
        models[train] = adapted_llama({"kind": "dense", "train": train})
        perturb((layer.lora_b for _, layer in named_adapters(models[train])), size=1)
    ids = token_batch(models["learned"])
    torch.testing.assert_close(models["learned"](ids).logits, models["folded"](ids).logits, rtol=1e-5, atol=1e-5)
    assert not any("mixer" in key for key in adapter_state_dict(models["folded"]))


def test_loading_is_strict_and_lists_every_fault():
    state = {key: value.clone() + 1 for key, value in adapter_state_dict(adapted_llama(DENSE)).items()}
    loaded = adapted_llama(DENSE, state=state)
    assert all(value.equal(state[key]) for key, value in adapter_state_dict(loaded).items())

    first = "model.layers.0.self_attn.q_proj"
    del state[f"{first}.mixer.weight"]
    state[f"{first}.lora_a"] = state[f"{first}.lora_a"][:2]
    state["model.layers.9.lora_a"] = torch.zeros(1)
    untouched = tiny_llama()
    with pytest.raises(ValueError) as caught:
        inject(untouched, rank=4, alpha=8, mixer=DENSE, target_modules=["q_proj"], state=state)
    shape, missing, unexpected = str(caught.value).splitlines()
    assert shape.startswith(f"{first}.lora_a: ") and "(2, 48)" in shape and "(4, 48)" in shape
    assert missing == f"{first}.mixer.weight: missing"
    assert unexpected.startswith("model.layers.9.lora_a: unexpected")
    assert not any(True for _ in named_adapters(untouched))


def test_beginnings_are_shared_without_dropout_and_gates():
    models = [adapted_llama(DENSE), adapted_llama(DENSE, dropout=0.1), adapted_llama({"kind": "token-gate"})]
    for training, expected in ((True, [True, False, False]), (False, [True, True, False])):
        assert [shares_beginnings(model, training=training) for model in models] == expected


def test_describe_batch_reaches_all_layers_of_one_model():
    """A copy computes for another task; neither is in what is saved."""
    mixer = {"kind": "task-gate", "tasks": ["one", "two"]}
    model = adapted_llama(mixer, target_modules=PROJECTIONS, moved=0.3).eval()
    other = copy.deepcopy(model)
    ids = token_batch(model)
    describe_batch(model, tasks=torch.tensor([0]))
    first = model(ids).logits
    describe_batch(other, tasks=torch.tensor([1]))
    assert not other(ids).logits.allclose(first, atol=1e-3)
    assert model(ids).logits.equal(first)
    for adapted, task in ((model, 0), (other, 1)):
        named = [layer.mixer.context.tasks.item() for _, layer in named_adapters(adapted)]
        assert {*named} == {task}
    assert not any("context" in key for key in model.state_dict())
    options = context_of(model).options
    assert options is not None and options.mixer.kind == "task-gate" and task_names(other) == ("one", "two")
    assert context_of(other).options == options
