"""Pieces of the engine, each with its formula in a few lines, or with torch's or transformers' function.

Products with frozen weights in 4 and 8 bits are compared with products by the decoded weights.
"""

import math
from collections import deque
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from moslora.adapters import MIXERS, SharedInputLayers, describe_batch, named_adapters
from moslora.base.quantized import PACKED_ROWS, fix_layers
from moslora.kernels import vocabulary
from moslora.kernels.attention import attend, plain_attention
from moslora.kernels.cache import CachedPass, KeyValueCache
from moslora.kernels.dropout import Dropout, zero_dropped
from moslora.kernels.loss import log_probabilities, plain_log_probabilities, plain_loss, sum_of_losses
from moslora.kernels.mlp import GatedMLP
from moslora.kernels.norm import RMSNorm
from moslora.kernels.recompute import project
from moslora.kernels.rotary import RotaryEmbedding
from moslora.kernels.rows import Rows, send
from moslora.processes.devices import unused_memory
from moslora.recipe import TrainingSection
from moslora.selfcheck.piece import PLAIN_STEP, RANK, TOLERANCES, Draw, Piece
from moslora.training.optimizer import build_optimizer, update

UNEVEN = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Tolerances of results weighted by a softmax, whose rows differ much in size."""

EPSILON = 1e-5
DROPPED = 0.05
DRAWN = (2**10, 2**10)
"""Shape of the tensor on which the share of dropped entries is measured."""

BEGINNING, WRITTEN, PROMPT = 20, (14, 9, 11), 5
"""Numbers of tokens of decoded rows: their common beginning, those of each row after it, and those that enter
together."""

WIDE, ODD_RANK = 14_336, 48
"""Number of inputs of LLaMA-3-8B's widest layer, and a rank that is no power of two."""

UPDATES = 3
VOCABULARY_ON_CPU = 9_000
"""Maximum vocabulary on a CPU: three pieces, which are similar in a larger one."""

BYTES_OF_A_WEIGHT = 32
"""Free memory needed for each weight of the output layer, which is drawn in float32 and widened to float64."""

PLAIN_POSITIONS = 128
"""Number of positions whose logits the plain formula computes at once."""


def norm(draw: Draw) -> Sequence[Tensor]:
    """RMSNorm, then an adapter's product whose backward pass computes the norm again."""
    x = draw.states()
    a = draw(RANK, draw.config.hidden_size)
    weight = draw.weight(draw.config.hidden_size)
    if draw.plain:
        y = weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
        return [F.linear(y, a), y]
    return project(RMSNorm(weight, EPSILON)(x), a, None)


def rope(draw: Draw) -> Sequence[Tensor]:
    """q and k with rotary positions, beside transformers' function."""
    q = draw(1, draw.tokens, draw.config.num_attention_heads, draw.config.head_dim)
    k = draw(1, draw.tokens, draw.config.num_key_value_heads, draw.config.head_dim)
    angles = LlamaRotaryEmbedding(LlamaConfig(head_dim=draw.config.head_dim)).to(draw.device)
    cos, sin = angles(q, draw.rows.positions)
    if draw.plain:
        return apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    turned: tuple[Tensor, Tensor] = RotaryEmbedding.apply(
        q.clone(), k.clone(), cos, sin
    )  # copies, which may be overwritten
    return turned


def mlp(draw: Draw) -> Sequence[Tensor]:
    """Gated MLP with an adapter of its down projection, which recomputes the activation."""
    sizes = (draw.config.hidden_size, draw.config.intermediate_size)
    x = draw.states()
    module = GatedMLP(draw.linear(*sizes), draw.linear(*sizes), draw.linear(*sizes[::-1]))
    draw.adapt(module, ["down_proj"], kind="identity")
    if draw.plain:
        return [module.down_proj(F.silu(module.gate_proj(x)) * module.up_proj(x))]
    return [module(x)]


def linear(draw: Draw) -> Sequence[Tensor]:
    """Frozen linear layer after its weight has changed, so that a stale packed copy is found."""
    x = draw.states()
    layer = draw.linear(draw.config.hidden_size, draw.config.intermediate_size)
    layer(x)
    layer.weight.neg_()
    return [layer(x)]


def attention(draw: Draw, *, window: int | None = None, continued: bool = True) -> Sequence[Tensor]:
    """Attention of rows; if ``continued``, some continue others, else none does, as in training with dropout."""
    rows = draw.rows if continued else Rows(draw.rows.lengths, draw.device)
    key_heads = draw.config.num_key_value_heads
    counts = (draw.config.num_attention_heads, key_heads, key_heads)
    q, k, v = (draw(draw.tokens, heads, draw.config.head_dim).transpose(0, 1) for heads in counts)
    compute = plain_attention if draw.plain else attend
    return [compute(q, k, v, rows, draw.config.head_dim**-0.5, window)]


def decoding(draw: Draw, *, window: int | None) -> Sequence[Tensor]:
    """Attention of rows that are generated after a common beginning, two at a time: the next row replaces one that
    ends."""
    key_heads = draw.config.num_key_value_heads
    rows = Rows((BEGINNING, *WRITTEN), draw.device, (None, *[0] * len(WRITTEN)))
    counts = (draw.config.num_attention_heads, key_heads, key_heads)
    q, k, v = (draw.random((heads, sum(rows.lengths), draw.config.head_dim)) for heads in counts)
    scaling = draw.config.head_dim**-0.5
    if draw.plain:
        return [plain_attention(q, k, v, rows, scaling, window)]
    out = q.new_empty(q.shape).transpose(0, 1)
    module = nn.Identity()
    cache = KeyValueCache(draw.device)

    def compute(step: CachedPass, places: Sequence[int]) -> None:
        tokens = send(places, draw.device)
        new_q, new_k, new_v = (x.index_select(1, tokens) for x in (q, k, v))
        out.index_copy_(0, tokens, step.attend(module, new_q, new_k, new_v, scaling, window))

    compute(cache.first_pass(BEGINNING), range(BEGINNING))
    cache.resize(2, max(WRITTEN))
    waiting = [deque(range(*bounds)) for bounds in rows.bounds[1:]]
    writing: list[deque[int]] = []  # places of the tokens to come, of each row
    while writing or waiting:
        entering = waiting[: 2 - len(writing)]
        del waiting[: len(entering)]
        places = [row.popleft() for row in writing]
        for row in entering:
            places += [row.popleft() for _ in range(PROMPT)]
        compute(cache.next_pass([PROMPT] * len(entering)), places)
        writing += entering
        for number in reversed(range(len(writing))):
            if not writing[number]:
                cache.remove(number)
                writing[number] = writing[-1]
                writing.pop()
    return [out]


def dropout(draw: Draw, *, rank: int = RANK, width: int | None = None) -> Sequence[Tensor]:
    """Product with dropout under checkpointing: forward, backward and recomputed passes must drop the same entries.

    The entries that a seed keeps are computed on the host.
    """
    width = width or draw.config.hidden_size
    x = draw(draw.tokens, width)
    a = draw(rank, width)
    layer = Dropout(DROPPED)
    torch.manual_seed(draw.seed)
    if draw.plain:
        drawn = layer.draw(x.to(draw.rounded))
        assert drawn is not None
        if drawn.dtype == torch.float64:
            kept = kept_by_philox(x.shape, *drawn.tolist()).to(draw.device)
        else:
            kept = zero_dropped(torch.ones_like(x), drawn)
        return [F.linear(x * kept, a), x]
    dropped: tuple[Tensor, Tensor] = checkpoint(lambda x: project(x, a, layer.draw(x)), x, use_reentrant=False)
    return dropped


def kept_by_philox(shape: Sequence[int], seed: float, p: float) -> Tensor:
    """Mask of the entries that `moslora.kernels.dropped` keeps, bool of this shape.

    Entry i has word i mod 4 of Philox4x32-7 (Salmon, Moraes, Dror and Shaw, SC 2011) at the counter i div 4; rows begin
    at a multiple of 4.
    """
    low = np.uint64(2**32 - 1)
    half = np.uint64(32)
    counters = np.arange(math.prod(shape[:-1]) * math.ceil(shape[-1] / 4), dtype=np.uint64)
    a, b, c, d = counters, *np.zeros((3, len(counters)), np.uint64)
    keys = [int(seed), 0]
    for _ in range(7):
        first = a * np.uint64(0xD2511F53)
        second = c * np.uint64(0xCD9E8D57)
        a, c = second >> half ^ b ^ np.uint64(keys[0]), first >> half ^ d ^ np.uint64(keys[1])
        b, d = second & low, first & low
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    words = np.stack([a, b, c, d], 1).reshape(*shape[:-1], -1)[..., : shape[-1]]
    return torch.from_numpy(words >> np.uint64(1) >= round(p * 2**31))


def dropped_share(draw: Draw) -> Sequence[Tensor]:
    """Share of the entries that dropout drops."""
    ones = torch.ones(DRAWN, device=draw.device, dtype=draw.dtype)
    if draw.plain:
        return [ones[0, 0] * DROPPED]
    return [1 - zero_dropped(ones, Dropout(DROPPED).draw(ones)).double().mean()]


def adapters(draw: Draw, *, kind: str) -> Sequence[Tensor]:
    """Three layers that read the same x, folded together; the plain formula computes each by itself."""
    x = draw(1, draw.tokens, draw.config.hidden_size)
    keys = draw.config.head_dim * draw.config.num_key_value_heads
    outputs = {"q_proj": 2 * keys, "k_proj": keys, "v_proj": keys}
    model = nn.ModuleDict({name: draw.linear(x.shape[-1], width) for name, width in outputs.items()})
    tasks = {"tasks": ["this", "that"]} if kind == "task-gate" else {}
    draw.adapt(model, [*outputs], kind=kind, **tasks)
    describe_batch(model, tasks=send([1], draw.device))
    with SharedInputLayers(model).folded(draw.dtype):
        return [layer(x) for _, layer in named_adapters(model)]


def loss(draw: Draw, *, learns: bool) -> Sequence[Tensor]:
    """Label loss if ``learns``, else log-probabilities of labels, computed in several chunks of the vocabulary or, on a
    GPU, of the positions."""
    width = draw.config.hidden_size
    tokens = min(draw.config.vocab_size, VOCABULARY_ON_CPU)
    count = draw.tokens
    if draw.device.type != "cpu":
        tokens = min(draw.config.vocab_size, unused_memory(draw.device) // (BYTES_OF_A_WEIGHT * width))
        count = vocabulary.LOGITS_AT_ONCE // tokens + RANK
    states = draw(count, width)
    weight = draw.weight(tokens, width)
    labels = torch.randint(tokens, (count,))
    if learns:
        on_device = send(labels, draw.device)
        if not draw.plain:
            return [sum_of_losses(states, weight, on_device)]
        parts = zip(states.split(PLAIN_POSITIONS), on_device.split(PLAIN_POSITIONS), strict=True)
        losses = [checkpoint(plain_loss, part, weight, of_part, use_reentrant=False) for part, of_part in parts]
        return [torch.stack(losses).sum()]
    draw.learned.clear()
    if not draw.plain:
        return [log_probabilities(states.detach(), weight, range(count), labels.tolist())]
    found = []
    for first in range(0, count, PLAIN_POSITIONS):
        targets = labels[first : first + PLAIN_POSITIONS].tolist()
        found.append(plain_log_probabilities(states.detach(), weight, range(first, first + len(targets)), targets))
    return [torch.cat(found)]


def optimizer(draw: Draw, *, scaled: bool) -> Sequence[Tensor]:
    """Change of a weight by fused AdamW with clipped gradients; the plain formula is torch's AdamW that is not fused.

    If ``scaled``, through the scaler of float16, which skips a gradient that overflows.
    """
    weight, *gradients = (draw.weight(RANK, draw.config.hidden_size).data for _ in range(1 + UPDATES))
    learned = nn.Parameter(weight.clone())
    adamw = build_optimizer(nn.ParameterList([learned]), TrainingSection(learning_rate=0.1, weight_decay=0.1))
    for options in (adamw.defaults, *adamw.param_groups):
        options["fused"] = not draw.plain
    scaler = torch.amp.GradScaler(draw.device.type, enabled=scaled and not draw.plain)
    for number, gradient in enumerate(gradients):
        gradient.mul_(0.1**number)  # clipped at first, and then not
    if scaler.is_enabled():
        gradients.insert(1, torch.full_like(weight, torch.inf))
    for gradient in gradients:
        learned.grad = scaler.scale(gradient.clone())
        update(adamw, scaler, max_norm=1.0)
    return [learned.detach() - weight]


PIECES = (
    Piece("norm", "norm", norm),
    Piece("RoPE", "rope", rope),
    Piece("MLP", "mlp", mlp),
    Piece("linear", "linear", linear),
    Piece("attention", "attention", attention, UNEVEN),
    Piece("attention, no shared start", "attention", partial(attention, continued=False), UNEVEN),
    Piece("attention, sliding window", "attention", partial(attention, window=8), UNEVEN),
    Piece("decoding", PLAIN_STEP, partial(decoding, window=None), UNEVEN),
    Piece("decoding, sliding window", PLAIN_STEP, partial(decoding, window=8), UNEVEN),
    Piece("dropout", "dropout", dropout),
    Piece("dropout, wide", "dropout", partial(dropout, rank=ODD_RANK, width=WIDE)),
    Piece("dropout, share", "dropout", dropped_share, dict.fromkeys(TOLERANCES, 5e-2)),
    *(
        Piece(
            f"adapters, {kind}",
            "adapters",
            partial(adapters, kind=kind),
            UNEVEN if mixer.options_type.routes else TOLERANCES,
        )
        for kind, mixer in MIXERS.items()
    ),
    Piece("loss", "loss", partial(loss, learns=True)),
    Piece("log-probabilities", "loss", partial(loss, learns=False)),
    Piece("optimizer", "optimizer", partial(optimizer, scaled=False), {torch.float32: 1e-4}),
    Piece("optimizer, scaled", "optimizer", partial(optimizer, scaled=True), {torch.float32: 1e-4}),
)


def product(draw: Draw, *, bits: int, recomputed: bool = False) -> Sequence[Tensor]:
    """Product by a weight of bitsandbytes in 4 or 8 bits.

    If ``recomputed``, it runs under gradient checkpointing, with so many rows that bitsandbytes unpacks the weight
    first.
    """
    import bitsandbytes

    library: Any = bitsandbytes.nn
    x = draw(PACKED_ROWS + RANK, draw.config.hidden_size) if recomputed else draw.states()
    weight = draw.weight(x.shape[-1], x.shape[-1]).to("cpu", draw.rounded)  # quantised as it is sent
    if bits == 4:
        layer = library.Linear4bit(*weight.shape, bias=False, compute_dtype=draw.dtype, quant_type="nf4")
        layer.weight = library.Params4bit(weight, requires_grad=False, quant_type="nf4").to(draw.device)
        decoded = _nf4(layer.weight)
    else:
        layer = library.Linear8bitLt(*weight.shape, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = library.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(draw.device)
        decoded = layer.weight.data * layer.weight.SCB[:, None] / 127
    if draw.plain:
        return [F.linear(x, decoded.to(draw.dtype))]
    model: Any = nn.ModuleList([layer])
    layer.quant_state = getattr(layer.weight, "quant_state", None)  # as in a model that was loaded
    fix_layers(model, on_cpu=draw.device.type == "cpu", recomputed=recomputed)
    return [checkpoint(layer, x, use_reentrant=False) if recomputed else layer(x)]


def _nf4(weight: Any) -> Tensor:
    """Decoded NF4 weight ``(out_features, in_features)``: value of each entry's code, times the decoded scale of its
    block."""
    state = weight.quant_state
    packed = weight.data.long()
    codes = torch.cat([packed >> 4, packed & 15], 1).view(-1, state.blocksize)
    units = state.state2.absmax.repeat_interleave(state.state2.blocksize)[: len(codes)]
    scales = state.state2.code[state.absmax.long()] * units + state.offset
    decoded: Tensor = state.code[codes] * scales[:, None]
    return decoded.view(state.shape)


def quantized_pieces() -> list[Piece]:
    """Pieces of bitsandbytes, if it is installed. A GPU also rounds the inputs of int8 products."""
    if find_spec("bitsandbytes") is None:
        return []
    setting = "model.quantization=null"
    rounding = dict.fromkeys(TOLERANCES, 3e-2)
    return [
        Piece("product, NF4", setting, partial(product, bits=4)),
        Piece("product, NF4, checkpointing", setting, partial(product, bits=4, recomputed=True)),
        Piece("product, int8", setting, partial(product, bits=8), rounding),
    ]
