"""The built-in recipes, and the lines of a recipe's faults."""

from pathlib import Path

import pytest

from moslora.errors import UsageError
from moslora.mixer_options import (
    ButterflyOptions,
    DenseOptions,
    DiagonalOptions,
    GateInsideOptions,
    HadamardOptions,
    IdentityOptions,
    InputSplitOptions,
    KroneckerOptions,
    TaskGateOptions,
    TokenGateOptions,
)
from moslora.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
MODELS = [
    "llama3-70b-nf4",
    "llama3-8b",
    "llama3-8b-nf4",
    "llama3-8b-released",
    "llama3.1-8b",
    "llama3.2-1b",
    "llama3.2-3b",
    "mistral-7b",
    "qwen2.5-7b",
    "qwen3-8b",
    "smollm2-135m",
]
TASK_FILES = [f"tasks/{name}" for name in ("arithmetic", "commonsense_qa", "copa", "gsm8k", "sciq", "triviaqa")]
METHODS = {
    "methods/adalora": (
        DiagonalOptions(),
        {
            "adapter": {"rank": 24},
            "training": {"rank_budget": {"target_rank": 16, "warmup_share": 0.1, "final_share": 0.3}},
        },
    ),
    "methods/dora": (IdentityOptions(), {"adapter": {"dora": True}}),
    "methods/flora": (DenseOptions(init="zeros"), {}),
    "methods/gate-inside": (GateInsideOptions(experts=4), {}),
    "methods/input-split": (InputSplitOptions(blocks=2), {}),
    "methods/kronecker": (KroneckerOptions(blocks=4), {}),
    "methods/lora": (IdentityOptions(), {}),
    "methods/lora-fa": (IdentityOptions(), {"adapter": {"trains": "b"}}),
    "methods/lora-moe-dense": (TokenGateOptions(experts=4, balance=0), {}),
    "methods/lora-moe-topk": (TokenGateOptions(experts=4, top_k=2, balance=0.01), {}),
    "methods/lora-plus": (IdentityOptions(), {"training": {"lora_plus_ratio": 16}}),
    "methods/lora-xs": (DenseOptions(init="near-zero"), {"adapter": {"start": "svd", "trains": "mixer"}}),
    "methods/moelora": (TaskGateOptions(experts=8, embedding_size=64), {}),
    "methods/moslora": (DenseOptions(init="kaiming", train="learned"), {}),
    "methods/pissa": (IdentityOptions(), {"adapter": {"start": "pissa"}}),
    "methods/rslora": (IdentityOptions(), {"adapter": {"scaling": "rslora"}}),
    "methods/two-subspace": (ButterflyOptions(blocks=2), {}),
    "methods/controls/lora-scaled": (IdentityOptions(), {"adapter": {"alpha": 18.475}}),
    "methods/controls/moslora-folded": (DenseOptions(init="kaiming", train="folded"), {}),
    "methods/controls/moslora-frozen": (DenseOptions(init="kaiming", train="frozen"), {}),
    "methods/controls/two-subspace-hadamard": (HadamardOptions(blocks=2), {}),
    "methods/controls/two-subspace-normalized": (ButterflyOptions(blocks=2, normalize=True), {}),
}
"""Method -> its mixer, and whatever else it changes."""

PEFT: dict[str, tuple[str, ...]] = {
    "peft/boft": ("adapter.peft={peft_type: BOFT, boft_block_size: 4, boft_n_butterfly_factor: 1}",),
    "peft/c3a": ("adapter.peft={peft_type: C3A, block_size: 8}",),
    "peft/delora": ("adapter.peft={peft_type: DELORA, r: 4, delora_lambda: 15}",),
    "peft/dora": ("adapter.peft={peft_type: LORA, r: 4, lora_alpha: 32, use_dora: true}",),
    "peft/fourierft": ("adapter.peft={peft_type: FOURIERFT, n_frequency: 50}",),
    "peft/glora": ("adapter.peft={peft_type: GLORA, r: 4}",),
    "peft/gralora": ("adapter.peft={peft_type: GRALORA, r: 4, gralora_k: 2, alpha: 32}",),
    "peft/hira": ("adapter.peft={peft_type: HIRA, r: 4}",),
    "peft/hra": ("adapter.peft={peft_type: HRA, r: 4}",),
    "peft/ia3": (
        "adapter.peft={peft_type: IA3, feedforward_modules: [down_proj]}",
        "adapter.target_modules=[k_proj, v_proj, down_proj]",
    ),
    "peft/ln-tuning": (
        "adapter.peft={peft_type: LN_TUNING}",
        "adapter.target_modules=[input_layernorm, post_attention_layernorm]",
        "model.dtype=float32",
    ),
    "peft/loha": ("adapter.peft={peft_type: LOHA, r: 4, alpha: 32}",),
    "peft/lokr": ("adapter.peft={peft_type: LOKR, r: 4, alpha: 32}",),
    "peft/lora": ("adapter.peft={peft_type: LORA, r: 4, lora_alpha: 32}",),
    "peft/miss": ("adapter.peft={peft_type: MISS, r: 4}",),
    "peft/oft": ("adapter.peft={peft_type: OFT, oft_block_size: 16}",),
    "peft/psoft": ("adapter.peft={peft_type: PSOFT, r: 8, psoft_alpha: 32}",),
    "peft/pvera": ("adapter.peft={peft_type: PVERA, r: 32}",),
    "peft/randlora": ("adapter.peft={peft_type: RANDLORA, r: 8, randlora_alpha: 16}",),
    "peft/road": ("adapter.peft={peft_type: ROAD, group_size: 8}",),
    "peft/shira": ("adapter.peft={peft_type: SHIRA, r: 4, random_seed: 0}",),
    "peft/vblora": ("adapter.peft={peft_type: VBLORA, r: 4, vector_length: 8, num_vectors: 16}",),
    "peft/vera": ("adapter.peft={peft_type: VERA, r: 32}",),
    "peft/waveft": ("adapter.peft={peft_type: WAVEFT, n_frequency: 50}",),
}
"""Method of PEFT -> the overrides that choose it, with fields that fit a tiny model."""

PEFT_FILES = ["peft/lora", "peft/oft", "peft/vera"]
"""Those with a recipe."""


def faults(source: str | Path, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load_recipe(source, overrides)
    return str(caught.value).splitlines()
