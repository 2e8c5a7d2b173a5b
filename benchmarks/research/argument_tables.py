"""The numbers of docs/argument.md, from the mixers of `moslora.adapters` themselves.

The matrices that argument.py draws, and the tables that it writes into the page.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.tables import markdown
from moslora.adapters import MIXERS, AdapterLinear, Mixer, NotMergeable, build_mixer

RANK = 12
"""Rank of the pictures and of the table of halves and thirds: it divides by 2 and by 3."""

PARTS = 3
"""Experts and blocks of the pictures."""

D = 4096
"""Features in and out of the table's layer: LLaMA-3-8B's q_proj."""

TABLE_RANK = 16
"""Rank of the table's layer, as in the recipes."""

TOKENS = 2048
"""Tokens of the pass whose operations are counted."""


def drawn(kind: str, *, rank: int = RANK, in_features: int = 24, **options: Any) -> Mixer:
    """A mixer at its random start; one that starts at zero, after a step."""
    mixer = build_mixer(MIXERS[kind].options_type(**options), rank=rank, in_features=in_features)
    mixer.reset_parameters(torch.Generator().manual_seed(2))
    for weight in mixer.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=1e-3, generator=torch.Generator().manual_seed(2))
    return mixer.eval()


def token(number: int, in_features: int = 24) -> Tensor:
    """A random input, large enough for the gates to differ visibly."""
    return 2 * torch.randn(in_features, generator=torch.Generator().manual_seed(number))


@torch.no_grad()
def matrix_at(mixer: Mixer, x: Tensor) -> Tensor:
    """M, or the M(x) of a gate: what the mixer makes of the unit vectors."""
    return mixer(torch.eye(mixer.rank_in), x.expand(mixer.rank_in, -1)).T


def static(kind: str, **options: Any) -> Tensor:
    """The M of a mixer that has one, at its random start."""
    return drawn(kind, **options).matrix().detach()


def factor_a(kind: str, **options: Any) -> Tensor:
    """The A that a layer multiplies by, at its random start: whole, as it is exported."""
    layer = AdapterLinear(nn.Linear(24, 24), mixer=drawn(kind, **options), scale=1.0)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    return layer.mixer.fold(layer.lora_a, layer.lora_b)[0].detach()


def matrices() -> dict[str, list[Tensor]]:
    """By picture: what it shows."""
    one, other = token(1), token(5)
    dense, sparse = (drawn("token-gate", experts=PARTS, top_k=top_k) for top_k in (None, 2))
    inside = drawn("gate-inside", experts=PARTS)
    found = {
        "lora": [static("identity")],
        "experts": [matrix_at(dense, one), matrix_at(dense, other), matrix_at(sparse, one)],
        "gates-inside": [matrix_at(inside, one), matrix_at(inside, other)],
        "split-r": [static("identity"), factor_a("identity")],
        "split-d": [static("input-split", blocks=PARTS), factor_a("input-split", blocks=PARTS)],
        "crossed": [static("butterfly", blocks=2), static("butterfly", blocks=3)],
        "learned": [static("kronecker", blocks=PARTS), static("dense")],
    }
    first = [found[name][0] for name in ("lora", "experts", "gates-inside", "split-r", "crossed")]
    return found | {"steps": [*first, found["learned"][1]]}


SYSTEMS: dict[str, dict[str, Any]] = {
    "LoRA": {"kind": "identity"},
    "LoRA experts, dense gate": {"kind": "token-gate", "experts": 4},
    "LoRA experts, top-2 gate": {"kind": "token-gate", "experts": 4, "top_k": 2},
    "gates inside": {"kind": "gate-inside", "experts": 4},
    "input split in 4": {"kind": "input-split", "blocks": 4},
    "two-subspace mixing": {"kind": "butterfly", "blocks": 2},
    "Kronecker": {"kind": "kronecker", "blocks": 4},
    "AdaLoRA, before it drops any": {"kind": "diagonal"},
    "FLoRA": {"kind": "dense", "init": "zeros"},
    "MoSLoRA": {"kind": "dense"},
}
"""By name: the mixer, as in a recipe."""


def layer_of(mixer: Mixer) -> AdapterLinear:
    """An adapted D × D layer without numbers."""
    with torch.device("meta"):
        return AdapterLinear(nn.Linear(D, D, bias=False), mixer=mixer.to("meta"), scale=2.0)


def operations(layer: AdapterLinear) -> int:
    """Multiplications, each with the addition after it, of the products for one token of a pass, beside W x."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.empty(TOKENS, D, device="meta"))
    return counter.get_total_flops() // 2 // TOKENS - D * D


def merged_rank(layer: AdapterLinear) -> int | None:
    """The rank of the LoRA pair that the adapter folds into before it is merged; ``None`` if it cannot be."""
    try:
        return len(layer.mixer.fold(layer.lora_a, layer.lora_b)[0])
    except NotMergeable:
        return None


def systems_table() -> str:
    """What each system's M is, holds and costs; LoRA's own numbers, and the others' in addition to them."""
    header = ["", "M depends on x", "experts used for a token", "non-zero entries of M", "parameters"]
    rows = [[*header, "operations in training", "merges", "operations in use"]]
    of_lora = (0, 0)
    for name, options in SYSTEMS.items():
        mixer = drawn(rank=TABLE_RANK, in_features=D, **options)
        m = what_m_is(mixer)  # before its numbers go
        layer = layer_of(mixer)
        counts = (parameters(layer), operations(layer))
        cells = [f"{count - first:+,}".replace("-", "−") for count, first in zip(counts, of_lora, strict=True)]
        if name == "LoRA":
            of_lora = counts
            cells = [f"{count:,}" for count in counts]
        rank = merged_rank(layer)
        merges = ["nothing", f"{counts[1]:,}"] if rank is None else [f"all, as LoRA of rank {rank}", "0"]
        rows.append([name, *m, *cells, *merges])
    return markdown(rows)


def what_m_is(mixer: Mixer) -> list[str]:
    """Whether M depends on x, which of the experts it uses, and how many of its entries are not 0."""
    m = matrix_at(mixer, token(1, D))
    depends = "no" if m.equal(matrix_at(mixer, token(5, D))) else "yes"
    strands = getattr(mixer.options, "blocks", TABLE_RANK)  # each alone, where none are grouped
    experts = getattr(mixer, "experts", strands)
    of_expert = (m != 0).unflatten(1, (experts, -1))  # (r, experts, strands of an expert)
    used = int(of_expert.any(-1).any(0).sum())
    sparsity = "dense" if used == experts else "sparse"
    return [depends, f"{sparsity}, {used} of {experts}", f"{int(m.count_nonzero())} of {m.numel()}"]


def parameters(layer: AdapterLinear) -> int:
    return sum(weight.numel() for weight in layer.parameters() if weight.requires_grad)


def halves_and_thirds_table() -> str:
    """Two and three subspaces at one rank."""
    rows = [["", "entries of M that are not 0", "parameters", "merges as LoRA of rank", "trains as LoRA of rank"]]
    for count in (2, 3):
        mixer = drawn("butterfly", rank=RANK, in_features=D, blocks=count)
        m = mixer.matrix()
        layer = layer_of(mixer)
        trains_as = f"{torch.linalg.matrix_rank(m)}, at {torch.linalg.matrix_norm(m, 2):.0f} × the learning rate"
        filled = f"{int(m.count_nonzero())} of {m.numel()}"
        name = f"r/{count}, `blocks: {count}`"
        rows.append([name, filled, f"{parameters(layer):,}", str(merged_rank(layer)), trains_as])
    return markdown(rows)


TABLES = {"systems": systems_table, "halves and thirds": halves_and_thirds_table}
