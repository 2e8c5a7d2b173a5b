"""PEFT's methods on a base of ours, against the same under plain transformers; what is refused, and how."""

import re
import sys
from collections.abc import Callable

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor
from torch.nn import functional as F

from moslora.base.adapted import adapter_state, own_parameters, with_adapters
from moslora.base.engine_choice import choose_engine
from moslora.base.engines import Transformers, engine_of
from moslora.base.peft_methods import UNFIT, config_of, merged_by_peft
from moslora.errors import MosloraError, UsageError
from moslora.recipe import load_recipe
from moslora.training.objective import LabelLoss
from moslora.training.prepare import adapt
from recipe_kit import PEFT, PEFT_FILES, ROOT
from reference import as_micro_batch, perturb, tiny_llama, token_batch


def recipe_of(method, *overrides):
    return load_recipe("smollm2-135m", [*PEFT[method], *overrides])


def learned(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", PEFT)
def test_it_is_peft_under_plain_transformers(method):
    """Loss and gradients off the start, by the engine that computes transformers' own forward.
    Then state and merge: another start with that state is the same model to the bit, and a merge computes it too."""
    recipe = recipe_of(method)
    theirs_base = tiny_llama()
    torch.manual_seed(recipe.seed)
    theirs = peft.get_peft_model(theirs_base, config_of(recipe.adapter)).train()
    ours = with_adapters(tiny_llama().eval(), recipe)
    choose_engine(ours)
    ours.train()
    pairs = [(p, learned(theirs)[name]) for name, p in learned(ours).items()]
    assert len(pairs) == len(learned(theirs))
    counted, _ = theirs.get_nb_trainable_parameters()
    assert counted == ours.num_parameters(only_trainable=True) == sum(p.numel() for p, _ in pairs)
    assert {p for p, _ in pairs} <= own_parameters(ours)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=0, atol=0)  # the start
    for parameters in zip(*pairs, strict=True):
        perturb(parameters, size=0.03)
    assert isinstance(engine_of(ours), Transformers)
    ids = token_batch(ours)
    torch.manual_seed(3)  # PVeRA draws noise
    logits = theirs(input_ids=ids).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    loss.backward()
    torch.manual_seed(3)
    found, _ = LabelLoss(ours)(as_micro_batch(ids, engine=Transformers))
    found.backward()
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    for mine, other in pairs:
        assert other.grad is not None and other.grad.any() and mine.grad is not None
        assert (mine.grad - other.grad).norm() <= 1e-5 * other.grad.norm()

    state = {key: value.clone() for key, value in adapter_state(ours).items()}
    again = with_adapters(tiny_llama(), recipe, state=state).eval()
    with torch.no_grad():
        before = ours.eval()(input_ids=ids).logits
        assert again(input_ids=ids).logits.equal(before)
        assert not before.allclose(tiny_llama()(ids).logits, atol=1e-3)
        plain = tiny_llama()
        weights = merged_by_peft(again)
        assert not plain.load_state_dict(weights, strict=False).unexpected_keys
        torch.testing.assert_close(plain(ids).logits, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", PEFT)
def test_adapters_of_a_bfloat16_base_learn_in_float32(method):
    """By an AdamW step of the usual size, which bfloat16 would round away."""
    recipe = recipe_of(method)
    base = tiny_llama(dtype=getattr(torch, recipe.model.dtype))
    assert base.dtype == (torch.float32 if method == "peft/ln-tuning" else torch.bfloat16)
    model = adapt(base, recipe)
    choose_engine(model)
    model.train()
    start = {name: p.detach().clone() for name, p in learned(model).items()}
    optimizer = torch.optim.AdamW(learned(model).values(), lr=3e-4, weight_decay=0.0)
    for _ in range(3):  # a factor before one that starts at zero moves from the second on
        LabelLoss(model)(as_micro_batch(token_batch(model), engine=Transformers))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, p in learned(model).items():
        assert p.dtype == torch.float32 and (p != start[name]).any(), name


def test_weights_in_16_bits_do_not_learn():
    recipe = recipe_of("peft/ln-tuning")
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(UsageError, match=r"model.dtype: float32"):
            adapt(tiny_llama(dtype=dtype), recipe)


@pytest.mark.parametrize("method", ["peft/lora", "peft/shira", "peft/vera"])
def test_a_start_leaves_the_generator_as_it_was(method):
    model = tiny_llama()
    before = torch.get_rng_state()
    with_adapters(model, recipe_of(method))
    assert torch.get_rng_state().equal(before)


def test_a_start_with_a_number_in_its_name_is_pefts():
    """PiSSA by an approximate SVD, whose random numbers also decide what is left of the base: opened again, it is the
    same model."""
    recipe = recipe_of("peft/lora", "adapter.peft.init_lora_weights=pissa_niter_4")
    theirs_base = tiny_llama()
    torch.manual_seed(recipe.seed)
    theirs = peft.get_peft_model(theirs_base, config_of(recipe.adapter)).train()
    ours = with_adapters(tiny_llama(), recipe).train()
    for name, parameter in learned(ours).items():
        assert parameter.any() and parameter.equal(learned(theirs)[name])
    perturb(learned(ours).values(), size=0.03)
    state = {key: value.clone() for key, value in adapter_state(ours).items()}
    ids = token_batch(ours)
    again = with_adapters(tiny_llama(), recipe, state=state).eval()
    with torch.no_grad():
        assert again(input_ids=ids).logits.equal(ours.eval()(input_ids=ids).logits)


OTHERS = {
    "one that in place would change a copy of a weight with gaps": ("[up_proj]", "SUPERTUNING, sparsity: 0.9"),
    "an embedding": ("[embed_tokens]", "TRAINABLE_TOKENS, token_indices: [3, 5]"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_remaining_methods_are_merged(case):
    targets, fields = OTHERS[case]
    settings = (f"adapter.target_modules={targets}", f"adapter.peft={{peft_type: {fields}}}")
    model, ids = with_adapters(tiny_llama(), load_recipe("smollm2-135m", settings)).eval(), torch.arange(3, 14)[None]
    perturb(learned(model).values())
    plain = tiny_llama()
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        plain.load_state_dict(merged_by_peft(model), strict=False)
        torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert not expected.allclose(tiny_llama()(ids).logits, atol=1e-3)


WRONG: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a layer left out": lambda merged, plain: plain,
    "a layer scaled by a hundredth": lambda merged, plain: 1.01 * merged,
    "not a number": lambda merged, plain: merged * torch.nan,
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("method", ["peft/lora", "peft/oft"])
def test_a_wrong_merge_of_a_layer_is_refused(wrong, method, monkeypatch):
    model, name = with_adapters(tiny_llama(), recipe_of(method)).eval(), "model.layers.1.mlp.down_proj"
    perturb(learned(model).values(), size=0.01)
    unload = BaseTuner.merge_and_unload

    def broken(self, *arguments, **options):
        merged = unload(self, *arguments, **options)
        weight = merged.get_submodule(name).weight
        weight.copy_(WRONG[wrong](weight, tiny_llama().get_submodule(name).weight))
        return merged

    monkeypatch.setattr(BaseTuner, "merge_and_unload", broken)
    with pytest.raises(MosloraError, match=name):
        merged_by_peft(model)


REFUSED = {
    "a field it does not have": ("peft/miss", "adapter.peft.rank=4", ("rank", "MissConfig", "mini_r")),
    "a field that is set here": ("peft/lora", "adapter.peft.task_type=SEQ_CLS", ("task_type", "LoraConfig")),
    "a value that its class refuses": ("peft/oft", "adapter.peft.r=4", ("OFTConfig",)),
    "a type that does not exist": ("peft/miss", "adapter.peft.peft_type=MISSS", ("MISSS", "MISS,")),
    "a type in lower case": ("peft/miss", "adapter.peft.peft_type=miss", ("MISS,",)),
    "a prompt method": ("peft/lora", "adapter.peft={peft_type: PREFIX_TUNING}", ("PREFIX_TUNING",)),
    "a start that needs data": ("peft/lora", "adapter.peft.init_lora_weights=eva", ("eva",)),
    **{
        f"{field}, which merge would drop": ("peft/lora", f"adapter.peft.{field}={value}", (field,))
        for field, value in {
            "bias": "lora_only",
            "modules_to_save": "[lm_head]",
            "target_parameters": "[q_proj.weight]",
            "trainable_token_indices": "[3]",
        }.items()
    },
    "a module to import": ("peft/lora", "adapter.peft={peft_type: LORA, megatron_core: os}", ("megatron_core",)),
    "what it is imported for": (
        "peft/lora",
        "adapter.peft={peft_type: LORA, megatron_config: {a: 1}}",
        ("megatron",),
    ),
    "layers that look at the tokens": (
        "peft/lora",
        "adapter.peft.alora_invocation_tokens=[3]",
        ("alora",),
    ),
    **{kind: ("peft/lora", f"adapter.peft={{peft_type: {kind}}}", (kind, "must be one of")) for kind in UNFIT},
}


@pytest.mark.parametrize("case", REFUSED)
def test_unfit_method_is_refused_with_its_reason(case):
    method, override, words = REFUSED[case]
    recipe = recipe_of(method, override)
    with pytest.raises(UsageError) as caught:
        config_of(recipe.adapter)
    line = str(caught.value)
    assert "\n" not in line and "adapter.peft" in line and all(word in line for word in words)


def test_every_type_of_peft_either_fits_or_has_a_reason():
    """A new version's types are looked at: those that change with the batch would be silently wrong."""
    tested = {*re.findall(r"peft_type: (\w+)", str(PEFT))}
    others = {"BEFT", "DEFT", "FROD", "LILY", "OSF", "PEANUT", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA"}
    prompts = {"CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}
    assert {kind.value for kind in peft.PeftType} <= {*tested, *others, *UNFIT, *prompts}


def test_page_lists_every_method_and_its_fields():
    """And the recipes have those of their rows."""
    page = (ROOT / "docs" / "peft.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| `(\{peft_type: [^`]+\})` \|", page, re.M))
    assert len(rows) == len(PEFT)
    types = []
    for name, written in rows.items():
        recipe = load_recipe("smollm2-135m", [f"adapter.peft={written}"])
        types.append(config_of(recipe.adapter).peft_type.value)
        file = f"peft/{name.lower()}"
        if file in PEFT_FILES:
            assert load_recipe("smollm2-135m", [f"extends={file}"]) == recipe
    assert sorted(types) == sorted(re.findall(r"peft_type: (\w+)", str(PEFT)))


@pytest.mark.parametrize(
    ("method", "override", "word"),
    [
        ("peft/lora", "adapter.target_modules=[q_proj, qproj]", "qproj"),
        ("peft/c3a", "adapter.peft.block_size=7", "block size"),
        ("peft/miss", "adapter.peft.r=many", "r many"),
        ("peft/lora", "adapter.peft.init_lora_weights=pissa_niter_few", "pissa_niter_few"),
    ],
)
def test_layers_and_values_that_do_not_fit_are_refused(method, override, word):
    with pytest.raises(ValueError, match=word):
        with_adapters(tiny_llama(), recipe_of(method, override))


def test_a_state_that_does_not_fit_is_refused():
    recipe = recipe_of("peft/lora")
    state = adapter_state(with_adapters(tiny_llama(), recipe))
    key = next(key for key in state if "q_proj.lora_A" in key)
    less = {name: value for name, value in state.items() if name != key}
    for wrong in (less, state | {"more": state[key]}, state | {key: state[key].T}):
        with pytest.raises(ValueError, match=r"lora_A|more"):
            with_adapters(tiny_llama(), recipe, state=wrong)


def test_without_peft_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft.config", None)
    with pytest.raises(UsageError, match=r"pip install .*peft"):
        config_of(recipe_of("peft/lora").adapter)
