"""Adapters of the MoSLoRA repository, as it would write them, and what may be wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from reference import OfficialLayer, perturb

RANK = 4
ALPHA = 6
TARGETS = ["q_proj", "v_proj", "down_proj"]

OFFICIAL = {
    "base_model_name_or_path": None,
    "bias": "none",
    "enable_lora": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_alpha": ALPHA,
    "lora_dropout": 0.05,
    "lora_use_mixer": True,
    "merge_weights": False,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": RANK,
    "target_modules": TARGETS,
    "task_type": "CAUSAL_LM",
}
"""Every setting of the repository's LoraConfig (``commonsense_reasoning/peft/src/peft/tuners/lora.py``)."""


Altered = Callable[[dict[str, Any], dict[str, Tensor]], object]


def official_model(world: Path) -> tuple[LlamaForCausalLM, dict[str, Tensor]]:
    """The base with the repository's layers in it, M far from symmetric, and the weights as its PEFT names them."""
    model = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, base in list(model.named_modules()):
        if not name.endswith(tuple(TARGETS)):
            continue
        assert isinstance(base, nn.Linear)
        shapes = {"a": (RANK, base.in_features), "m": (RANK, RANK), "b": (base.out_features, RANK)}
        factors = {key: torch.randn(shape, generator=generator) / shape[1] ** 0.5 for key, shape in shapes.items()}
        layer = OfficialLayer(base, **factors, scaling=ALPHA / RANK)
        perturb([layer.lora_A.weight, layer.lora_AB.weight, layer.lora_B.weight])
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
        for part in ("lora_A", "lora_AB", "lora_B"):
            weight = layer.get_submodule(part).weight
            state[f"base_model.model.{name}.{part}.weight"] = weight.detach().clone()
    assert len(state) == 18
    return model, state


def write_source(
    folder: Path, config: dict[str, Any], state: dict[str, Tensor], *, file: str = "adapter_model.bin"
) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save = save_file if file.endswith(".safetensors") else torch.save
    save(state, folder / file)
    return folder


PEFT = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "longer names": {"target_modules": ["layers.1.self_attn.k_proj", "mlp.up_proj", "not_there"]},
    "a pattern": {"target_modules": r".*layers\.1\.self_attn\.(q|k)_proj"},
    "settings of other layers": {
        "exclude_modules": ["lm_head", "o_proj"],
        "rank_pattern": {"o_proj": 8, "q_proj": 3},
        "alpha_pattern": {r"layers\.7\..*": 9},
    },
}


LAYER = "base_model.model.model.layers.1.self_attn.q_proj"


def setting(**values: object) -> Altered:
    return lambda config, state: config.update(values)


def without(*parts: str) -> Altered:
    def alter(config: dict[str, Any], state: dict[str, Tensor]) -> None:
        for part in parts:
            del state[f"{LAYER}.{part}.weight"]

    return alter


def weight(part: str, change: Callable[[Tensor], Tensor]) -> Altered:
    name = f"{LAYER}.{part}.weight"

    def alter(config: dict[str, Any], state: dict[str, Tensor]) -> None:
        state[name] = change(state[name])

    return alter


def altered_source(folder: Path, world: Path, alter: Altered) -> Path:
    """A checkpoint of the repository's in ``folder``, over the small model, with something changed."""
    config = {**OFFICIAL, "base_model_name_or_path": str(world / "model")}
    _, state = official_model(world)
    alter(config, state)
    return write_source(folder, config, state)


REFUSED: dict[str, tuple[Altered, str]] = {
    "bias": (setting(bias="lora_only"), "bias = 'lora_only': not supported"),
    "dora": (setting(use_dora=True), "use_dora = True: not supported"),
    "rank_pattern": (setting(rank_pattern={"q_proj": 8}), "rank_pattern in adapter_config.json gives 8 to"),
    "alpha_pattern": (setting(alpha_pattern={r"1\..*proj": 9}), "alpha_pattern in adapter_config.json gives 9"),
    "excluded": (setting(exclude_modules=["v_proj"]), "self_attn.v_proj, which exclude_modules in"),
    "a layer that is no default": (setting(layers_to_transform=0), "layers_to_transform = 0: not supported"),
    "no bias that is known": (setting(bias=0), "bias = 0: not supported"),
    "pissa": (setting(init_lora_weights="pissa"), "init_lora_weights = 'pissa': not supported"),
    "another pattern": (setting(target_modules=r".*\.q_proj"), "self_attn.v_proj, model.layers"),
    "a pattern that is none": (setting(target_modules="(q_proj"), "'(q_proj' is no regular expression"),
    "what is not known": (setting(use_magic=1), "use_magic = 1: not supported"),
    "another kind": (setting(peft_type="LOHA"), "peft_type = 'LOHA': "),
    "no rank": (setting(r=None), "r = None: "),
    "no alpha": (setting(lora_alpha=0), "lora_alpha = 0: "),
    "another rank": (setting(r=5), "q_proj.lora_a: shape (4, 48), the model has (5, 48)"),
    "fewer targets": (setting(target_modules=["q_proj", "v_proj"]), "mlp.down_proj, which target_modules in"),
    "a mixer that is not said": (setting(lora_use_mixer=False), "q_proj.mixer.weight: unexpected"),
    "a mixer that is not there": (without("lora_AB"), "q_proj.mixer.weight: missing"),
    "A without B": (without("lora_B"), "model.layers.1.self_attn.q_proj.lora_b: missing"),
    "a layer without weights": (without("lora_A", "lora_AB", "lora_B"), "1.self_attn.q_proj.lora_a: missing"),
    "a surplus key": (
        lambda config, state: state.update({"model.norm.weight": torch.ones(3)}),
        "model.norm.weight: unexpected",
    ),
    "an empty adapter": (lambda config, state: state.clear(), "contains no LoRA weights"),
    "no base": (setting(base_model_name_or_path=None), "names no base model"),
    "a base that is gone": (setting(base_model_name_or_path="/gone"), "/gone: no such folder"),
}
"""What is not understood, and so refused: see `wrong_turns.test_imports`."""
