"""The pieces of the engine, each beside its formula in a few lines, or beside torch's or transformers' function."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from moslora.adapters import MIXERS, AdapterLinear, Families, describe_batch, inject, named_adapters
from moslora.check.piece import Draw, Pair, Piece
from moslora.kernels import vocabulary
from moslora.kernels.attention import attend, plain_attention
from moslora.kernels.dropout import Dropout, without
from moslora.kernels.loss import log_probabilities, plain_log_probabilities, plain_loss, sum_of_losses
from moslora.kernels.mlp import GatedMLP
from moslora.kernels.norm import RMSNorm
from moslora.kernels.recompute import project
from moslora.kernels.rotary import Turned
from moslora.kernels.rows import send
from moslora.recipe import TrainingSection
from moslora.training.optimizer import build_optimizer, update

RANK = 16
EPSILON = 1e-5
DROPPED = 0.05
DRAWN = 2**20
"""Entries over which the share that is dropped is taken."""

UPDATES = 3
VOCABULARY_ON_CPU = 9_000
"""The most that is compared there: three pieces of a vocabulary, which are alike in a larger one."""


def norm(draw: Draw) -> Pair:
    x = draw.states()
    a = draw(RANK, draw.config.hidden_size)
    module = RMSNorm(draw.weight(draw.config.hidden_size), EPSILON)

    def plain() -> list[Tensor]:
        y = module.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
        return [F.linear(y, a), y]

    return lambda: project(module(x), a, None), plain


def rope(draw: Draw) -> Pair:
    q = draw(1, draw.tokens, draw.config.num_attention_heads, draw.config.head_dim)
    k = draw(1, draw.tokens, draw.config.num_key_value_heads, draw.config.head_dim)
    speeds = send(torch.logspace(0, -4, draw.config.head_dim // 2), draw.device)
    angles = (draw.rows.positions[..., None] * speeds).repeat(1, 1, 2)
    cos = angles.cos().to(draw.dtype)
    sin = angles.sin().to(draw.dtype)
    return (
        lambda: Turned.apply(q.clone(), k.clone(), cos, sin),  # copies, which may be overwritten
        lambda: apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2),
    )


def mlp(draw: Draw) -> Pair:
    """With an adapter that computes y again."""
    sizes = (draw.config.hidden_size, draw.config.intermediate_size)
    x = draw.states()
    gate = draw.linear(*sizes)
    up = draw.linear(*sizes)
    module = GatedMLP(gate, up, draw.linear(*sizes[::-1]))
    inject(module, rank=RANK, alpha=RANK, mixer={"kind": "identity"}, target_modules=["down_proj"])
    draw.move(module)
    ((_, down),) = named_adapters(module)
    return (
        lambda: [module(x)],
        lambda: [plain_adapter(down, F.silu(F.linear(x, gate.weight)) * F.linear(x, up.weight))],
    )


def linear(draw: Draw) -> Pair:
    """After W has changed: a copy of it must have changed, too."""
    x = draw.states()
    layer = draw.linear(draw.config.hidden_size, draw.config.intermediate_size)
    layer(x)
    layer.weight.neg_()
    return lambda: [layer(x)], lambda: [F.linear(x, layer.weight)]


def attention(draw: Draw, *, window: int | None) -> Pair:
    key_heads = draw.config.num_key_value_heads
    counts = (draw.config.num_attention_heads, key_heads, key_heads)
    # As projections make them:
    q, k, v = (draw(draw.tokens, heads, draw.config.head_dim).transpose(0, 1) for heads in counts)
    given = (q, k, v, draw.rows, draw.config.head_dim**-0.5, window)
    return lambda: [attend(*given)], lambda: [plain_attention(*given)]


def dropout(draw: Draw) -> Pair:
    """The entries that a pass drops, its backward pass, and one that checkpointing repeats."""
    x = draw.states()
    a = draw(RANK, draw.config.hidden_size)
    layer = Dropout(DROPPED)

    def ours() -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        found: tuple[Tensor, Tensor] = checkpoint(lambda x: project(x, a, layer.draw(x)), x, use_reentrant=False)
        return found

    def plain() -> list[Tensor]:
        torch.manual_seed(0)
        return [F.linear(x * without(torch.ones_like(x), layer.draw(x)), a), x]

    return ours, plain


def dropped_share(draw: Draw) -> Pair:
    ones = torch.ones(DRAWN, device=draw.device)
    layer = Dropout(DROPPED)
    return lambda: [1 - without(ones, layer.draw(ones)).mean()], lambda: [ones[0] * DROPPED]


def adapters(draw: Draw, *, kind: str) -> Pair:
    """Three layers that read the same x, folded together, beside each by itself."""
    x = draw(1, draw.tokens, draw.config.hidden_size)
    keys = draw.config.head_dim * draw.config.num_key_value_heads
    outputs = {"q_proj": 2 * keys, "k_proj": keys, "v_proj": keys}
    model = nn.ModuleDict({name: draw.linear(x.shape[-1], width) for name, width in outputs.items()})
    tasks = {"tasks": ["this", "that"]} if kind == "task-gate" else {}
    inject(model, rank=RANK, alpha=RANK, mixer={"kind": kind, **tasks}, target_modules=[*outputs])
    draw.move(model)
    describe_batch(model, tasks=send([1], draw.device))
    families = Families(model)
    layers = [layer for _, layer in named_adapters(model)]

    def ours() -> list[Tensor]:
        with families.folded(draw.dtype):
            return [layer(x) for layer in layers]

    return ours, lambda: [plain_adapter(layer, x) for layer in layers]


def plain_adapter(layer: AdapterLinear, x: Tensor) -> Tensor:
    """y of one layer, x Wᵀ + s · M(A x) Bᵀ; where M does not route, it is multiplied into A."""
    base: Any = layer.base
    if layer.folds:
        a, b = layer.mixer.fold(layer.lora_a, layer.lora_b)
        u = F.linear(x, a.to(x.dtype))
    else:
        b = layer.lora_b
        u = layer.mixer(F.linear(x, layer.lora_a.to(x.dtype)), x)
    return F.linear(x, base.weight) + layer.scale * F.linear(u, b.to(x.dtype))


def loss(draw: Draw, *, learns: bool) -> Pair:
    """Over several pieces of the vocabulary on a CPU, and elsewhere several pieces of the positions."""
    tokens = min(draw.config.vocab_size, VOCABULARY_ON_CPU)
    count = draw.tokens
    if draw.device.type != "cpu":
        tokens = draw.config.vocab_size
        count = vocabulary.LOGITS_AT_ONCE // tokens + RANK
    states = draw(count, draw.config.hidden_size)
    weight = draw.weight(tokens, draw.config.hidden_size)
    labels = torch.randint(tokens, (count,))
    if learns:
        given = (states, weight, send(labels, draw.device))
        return lambda: [sum_of_losses(*given)], lambda: [plain_loss(*given)]
    asked = (draw.learned.pop().detach(), weight, range(count), labels.tolist())
    return lambda: log_probabilities(*asked)[:1], lambda: plain_log_probabilities(*asked)[:1]


def optimizer(draw: Draw) -> Pair:
    """How far a weight comes, with its gradient's norm clipped, beside torch's AdamW without a kernel of its own."""
    weight, *gradients = (draw.weight(RANK, draw.config.hidden_size) for _ in range(1 + UPDATES))
    settings = TrainingSection(learning_rate=0.1, weight_decay=0.1)
    scaler = torch.amp.GradScaler(draw.device.type, enabled=False)

    def moved(*, fused: bool) -> list[Tensor]:
        learned = nn.Parameter(weight.clone())
        adamw = build_optimizer(nn.ParameterList([learned]), settings)
        for options in (adamw.defaults, *adamw.param_groups):
            options["fused"] = fused
        for gradient in gradients:
            learned.grad = gradient.clone()
            update(adamw, scaler, max_norm=1.0)
        return [learned.detach() - weight]

    return partial(moved, fused=True), partial(moved, fused=False)


PIECES = (
    Piece("norm", "norm", norm),
    Piece("RoPE", "rope", rope),
    Piece("MLP", "mlp", mlp),
    Piece("linear", "linear", linear),
    Piece("attention", "attention", partial(attention, window=None)),
    Piece("attention, sliding window", "attention", partial(attention, window=8)),
    Piece("dropout", "dropout", dropout),
    Piece("dropout, share", "dropout", dropped_share, {torch.float32: 5e-2}),
    *(Piece(f"adapters, {kind}", "adapters", partial(adapters, kind=kind)) for kind in MIXERS),
    Piece("loss", "loss", partial(loss, learns=True)),
    Piece("log-probabilities", "loss", partial(loss, learns=False)),
    Piece("optimizer", "optimizer", optimizer, {torch.float32: 1e-4}),
)
