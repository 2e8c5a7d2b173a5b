"""PEFT's methods on a base of ours, against the same under plain transformers; what is refused, and how."""

import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moslora.base.adapted import (
    UNFIT,
    adapter_state,
    config_of,
    merged_by_peft,
    own_parameters,
    with_adapters,
)
from moslora.base.load import use_own_modules
from moslora.errors import UsageError
from moslora.recipe import PeftSection, Recipe, load_recipe
from moslora.training.objective import LabelLoss
from recipe_kit import PEFT
from reference import as_micro_batch, perturb, tiny_llama, token_batch


def recipe_of(method: str, folder: Path, *overrides: str) -> Recipe:
    file = folder / "any.yaml"
    file.write_text(f"extends: [smollm2-135m, {method}]\n")
    return load_recipe(file, [*(f"adapter.peft.{field}" for field in PEFT[method]), *overrides])


def base() -> Any:
    model = tiny_llama()
    use_own_modules(model)
    return model


def learned(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", PEFT)
def test_it_is_peft_under_plain_transformers(method: str, tmp_path: Path) -> None:
    """On rows that begin alike, laid end to end, whose beginning is computed once: loss and gradients off the start.
    Then state and merge: another start with that state is the same model to the bit, and a merge computes it too."""
    recipe = recipe_of(method, tmp_path)
    theirs_base = tiny_llama()
    torch.manual_seed(recipe.seed)
    theirs = peft.get_peft_model(theirs_base, config_of(recipe.adapter)).train()  # type: ignore[arg-type]
    ours = with_adapters(base(), recipe).train()
    pairs = [(p, learned(theirs)[name]) for name, p in learned(ours).items()]
    assert len(pairs) == len(learned(theirs))
    counted, _ = theirs.get_nb_trainable_parameters()
    assert counted == ours.num_parameters(only_trainable=True) == sum(p.numel() for p, _ in pairs)
    assert {p for p, _ in pairs} <= own_parameters(ours)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=0, atol=0)  # the start
    for parameters in zip(*pairs, strict=True):
        perturb(parameters, size=0.03)
    ids = token_batch(ours)
    ids[:, :4] = ids[0, :4]
    logits = theirs(input_ids=ids).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    loss.backward()
    batch = as_micro_batch(ids, share=True)
    assert any(before is not None for before in batch.rows.continues)
    found, _ = LabelLoss(ours)(batch)
    found.backward()
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    for mine, other in pairs:
        assert other.grad is not None and other.grad.any() and mine.grad is not None
        assert (mine.grad - other.grad).norm() <= 1e-5 * other.grad.norm()

    state = {key: value.clone() for key, value in adapter_state(ours).items()}
    again = with_adapters(base(), recipe, state=state).eval()
    with torch.no_grad():
        before = ours.eval()(input_ids=ids).logits
        assert again(input_ids=ids).logits.equal(before)
        assert not before.allclose(tiny_llama()(ids).logits, atol=1e-3)
        plain = tiny_llama()
        weights = merged_by_peft(again)
        assert not plain.load_state_dict(weights, strict=False).unexpected_keys
        torch.testing.assert_close(plain(ids).logits, before, rtol=1e-4, atol=1e-4)


def test_a_bias_of_the_base_that_learns_has_its_gradient() -> None:
    """``bias: lora_only``: the one case in which weights of the base learn."""
    recipe = PeftSection.model_validate(
        {"target_modules": ["0", "2"], "peft": {"peft_type": "LORA", "bias": "lora_only"}}
    )
    gradients = []
    for own in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 5))
        if own:
            use_own_modules(net)  # type: ignore[arg-type]
        config = config_of(recipe)
        config.task_type = None
        model = peft.get_peft_model(net, config)
        model(torch.ones(3, 12)).sum().backward()
        assert own_parameters(model) >= {*learned(model).values()}
        gradients.append({name: p.grad for name, p in learned(model).items()})
    biases = [name for name in gradients[0] if name.endswith("bias")]
    assert len(biases) == 2
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


REFUSED = {
    "a field it does not have": ("peft/miss", "adapter.peft.rank=4", ("rank", "MissConfig", "mini_r")),
    "a field of the wrong type": ("peft/miss", "adapter.peft.r=many", ("adapter.peft.r", "integer")),
    "a field that is set here": ("peft/lora", "adapter.peft.task_type=SEQ_CLS", ("task_type", "LoraConfig")),
    "a value that its class refuses": ("peft/oft", "adapter.peft.r=4", ("OFTConfig",)),
    "a type that does not exist": ("peft/miss", "adapter.peft.peft_type=MISSS", ("MISSS", "MISS,")),
    "a type in lower case": ("peft/miss", "adapter.peft.peft_type=miss", ("MISS,",)),
    "a prompt method": ("peft/lora", "adapter.peft={peft_type: PREFIX_TUNING}", ("PREFIX_TUNING", "tokens")),
    "a start that needs data": ("peft/lora", "adapter.peft.init_lora_weights=eva", ("eva", "data")),
    "layers that look at the tokens": ("peft/lora", "adapter.peft.alora_invocation_tokens=[3]", ("tokens",)),
    **{kind: ("peft/lora", f"adapter.peft={{peft_type: {kind}}}", (kind, "must be one of")) for kind in UNFIT},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_line_with_its_reason(case: str, tmp_path: Path) -> None:
    method, override, words = REFUSED[case]
    recipe = recipe_of(method, tmp_path, override)
    with pytest.raises(UsageError) as caught:
        config_of(recipe.adapter)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line and "adapter.peft" in line and all(word in line for word in words)


def test_every_type_of_peft_either_fits_or_has_a_reason() -> None:
    """A new version's types are looked at: those that change with the batch would be silently wrong."""
    known = {
        *("BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GRALORA", "HIRA", "HRA", "IA3", "LILY"),
        *("LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "RANDLORA", "ROAD", "SHIRA"),
        *("SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT"),
        *UNFIT,
    }
    prompts = {"CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}
    assert {kind.value for kind in peft.PeftType} <= known | prompts


@pytest.mark.parametrize(
    ("method", "override", "word"),
    [
        ("peft/lora", "adapter.target_modules=[q_proj, qproj]", "qproj"),
        ("peft/lora", "adapter.target_modules=[nothing]", "nothing"),
        ("peft/c3a", "adapter.peft.block_size=7", "block size"),
    ],
)
def test_layers_that_do_not_fit_are_refused(method: str, override: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=word):
        with_adapters(base(), recipe_of(method, tmp_path, override))


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of("peft/lora", tmp_path)
    state = adapter_state(with_adapters(base(), recipe))
    key = next(key for key in state if "q_proj.lora_A" in key)
    less = {name: value for name, value in state.items() if name != key}
    for wrong in (less, state | {"more": state[key]}, state | {key: state[key].T}):
        with pytest.raises(ValueError, match=r"lora_A|more"):
            with_adapters(base(), recipe, state=wrong)


def test_without_peft_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft.config", None)
    with pytest.raises(UsageError, match=r"pip install .?peft"):
        config_of(recipe_of("peft/lora", tmp_path).adapter)  # type: ignore[arg-type]
