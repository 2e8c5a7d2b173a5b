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
    "peft/boft": (),
    "peft/c3a": ("block_size=8",),
    "peft/delora": ("r=4",),
    "peft/dora": ("r=4",),
    "peft/fourierft": ("n_frequency=50",),
    "peft/gralora": ("r=4",),
    "peft/hira": ("r=4",),
    "peft/hra": ("r=4",),
    "peft/ia3": (),
    "peft/ln-tuning": (),
    "peft/loha": ("r=4",),
    "peft/lokr": ("r=4",),
    "peft/lora": ("r=4",),
    "peft/miss": ("r=4",),
    "peft/oft": ("oft_block_size=16",),
    "peft/psoft": ("r=8",),
    "peft/randlora": ("r=8", "randlora_alpha=16"),
    "peft/road": ("group_size=8",),
    "peft/shira": ("r=4",),
    "peft/vblora": ("vector_length=8", "num_vectors=16"),
    "peft/vera": ("r=32",),
    "peft/waveft": ("n_frequency=50",),
}
"""Method of PEFT -> fields of it that fit a tiny model."""


def faults(source: str | Path, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load_recipe(source, overrides)
    return str(caught.value).splitlines()
