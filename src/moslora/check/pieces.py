"""The pieces of the engine, each beside its formula in a few lines, or beside torch's or transformers' function.

Products with frozen weights in 4 and 8 bits are beside those with the weights written out, and a training step of a
small model with adapters is beside the same by transformers' own modules.
"""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from moslora.adapters import MIXERS, Families, describe_batch, named_adapters
from moslora.base.engine import use_own_modules
from moslora.base.engines import Own, Transformers, engine_of
from moslora.base.quantized import fix_layers
from moslora.base.twin import small_config
from moslora.check.piece import PLAIN_STEP, RANK, TOLERANCES, Draw, Piece
from moslora.data.encode import Encoded
from moslora.data.steps import collate
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
from moslora.training.objective import LabelLoss
from moslora.training.optimizer import build_optimizer, update

EPSILON = 1e-5
DROPPED = 0.05
DRAWN = 2**20
"""Entries over which the share that is dropped is taken."""

UPDATES = 3
VOCABULARY_ON_CPU = 9_000
"""The most that is compared there: three pieces of a vocabulary, which are alike in a larger one."""


def norm(draw: Draw) -> Sequence[Tensor]:
    x = draw.states()
    a = draw(RANK, draw.config.hidden_size)
    weight = draw.weight(draw.config.hidden_size)
    if draw.plain:
        y = weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
        return [F.linear(y, a), y]
    return project(RMSNorm(weight, EPSILON)(x), a, None)


def rope(draw: Draw) -> Sequence[Tensor]:
    q = draw(1, draw.tokens, draw.config.num_attention_heads, draw.config.head_dim)
    k = draw(1, draw.tokens, draw.config.num_key_value_heads, draw.config.head_dim)
    turn = LlamaRotaryEmbedding(LlamaConfig(head_dim=draw.config.head_dim)).to(draw.device)
    cos, sin = turn(q, draw.rows.positions)
    if draw.plain:
        return apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
    turned: tuple[Tensor, Tensor] = Turned.apply(q.clone(), k.clone(), cos, sin)  # copies, which may be overwritten
    return turned


def mlp(draw: Draw) -> Sequence[Tensor]:
    """With an adapter that computes y again."""
    sizes = (draw.config.hidden_size, draw.config.intermediate_size)
    x = draw.states()
    module = GatedMLP(draw.linear(*sizes), draw.linear(*sizes), draw.linear(*sizes[::-1]))
    draw.adapt(module, ["down_proj"], kind="identity")
    if draw.plain:
        return [module.down_proj(F.silu(module.gate_proj(x)) * module.up_proj(x))]
    return [module(x)]


def linear(draw: Draw) -> Sequence[Tensor]:
    """After W has changed: a copy of it must have changed, too."""
    x = draw.states()
    layer = draw.linear(draw.config.hidden_size, draw.config.intermediate_size)
    layer(x)
    layer.weight.neg_()
    return [layer(x)]


def attention(draw: Draw, *, window: int | None) -> Sequence[Tensor]:
    key_heads = draw.config.num_key_value_heads
    counts = (draw.config.num_attention_heads, key_heads, key_heads)
    # As projections make them:
    q, k, v = (draw(draw.tokens, heads, draw.config.head_dim).transpose(0, 1) for heads in counts)
    compute = plain_attention if draw.plain else attend
    return [compute(q, k, v, draw.rows, draw.config.head_dim**-0.5, window)]


def dropout(draw: Draw) -> Sequence[Tensor]:
    """The entries that a pass drops, its backward pass, and one that checkpointing repeats."""
    x = draw.states()
    a = draw(RANK, draw.config.hidden_size)
    layer = Dropout(DROPPED)
    torch.manual_seed(0)
    if draw.plain:
        drawn = layer.draw(x.to(draw.rounded))
        return [F.linear(x * without(torch.ones_like(x), drawn), a), x]
    dropped: tuple[Tensor, Tensor] = checkpoint(lambda x: project(x, a, layer.draw(x)), x, use_reentrant=False)
    return dropped


def dropped_share(draw: Draw) -> Sequence[Tensor]:
    ones = torch.ones(DRAWN, device=draw.device)
    if draw.plain:
        return [ones[0] * DROPPED]
    return [1 - without(ones, Dropout(DROPPED).draw(ones)).mean()]


def adapters(draw: Draw, *, kind: str) -> Sequence[Tensor]:
    """Three layers that read the same x, folded together, beside each by itself."""
    x = draw(1, draw.tokens, draw.config.hidden_size)
    keys = draw.config.head_dim * draw.config.num_key_value_heads
    outputs = {"q_proj": 2 * keys, "k_proj": keys, "v_proj": keys}
    model = nn.ModuleDict({name: draw.linear(x.shape[-1], width) for name, width in outputs.items()})
    tasks = {"tasks": ["this", "that"]} if kind == "task-gate" else {}
    draw.adapt(model, [*outputs], kind=kind, **tasks)
    describe_batch(model, tasks=send([1], draw.device))
    with Families(model).folded(draw.dtype):
        return [layer(x) for _, layer in named_adapters(model)]


def loss(draw: Draw, *, learns: bool) -> Sequence[Tensor]:
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
        return [(plain_loss if draw.plain else sum_of_losses)(states, weight, send(labels, draw.device))]
    draw.learned.clear()
    compute = plain_log_probabilities if draw.plain else log_probabilities
    return [compute(states.detach(), weight, range(count), labels.tolist())]


def optimizer(draw: Draw) -> Sequence[Tensor]:
    """How far a weight comes, with its gradient's norm clipped, beside torch's AdamW without a kernel of its own."""
    weight, *gradients = (draw.weight(RANK, draw.config.hidden_size) for _ in range(1 + UPDATES))
    learned = nn.Parameter(weight.clone())
    adamw = build_optimizer(nn.ParameterList([learned]), TrainingSection(learning_rate=0.1, weight_decay=0.1))
    for options in (adamw.defaults, *adamw.param_groups):
        options["fused"] = not draw.plain
    for gradient in gradients:
        learned.grad = gradient.clone()
        update(adamw, torch.amp.GradScaler(draw.device.type, enabled=False), max_norm=1.0)
    return [learned.detach() - weight]


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


def product(draw: Draw, *, bits: int) -> Sequence[Tensor]:
    import bitsandbytes

    library: Any = bitsandbytes.nn
    x = draw.states()
    weight = draw.weight(x.shape[-1], x.shape[-1]).float().cpu()  # quantised as it is sent
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
    fix_layers(model, on_cpu=draw.device.type == "cpu")
    return [layer(x)]


def _nf4(weight: Any) -> Tensor:
    """W: for each entry the value of its code, times the scale of its block, which is a code itself."""
    state = weight.quant_state
    packed = weight.data.long()
    codes = torch.cat([packed >> 4, packed & 15], 1).view(-1, state.blocksize)
    units = state.state2.absmax.repeat_interleave(state.state2.blocksize)[: len(codes)]
    scales = state.state2.code[state.absmax.long()] * units + state.offset
    decoded: Tensor = state.code[codes] * scales[:, None]
    return decoded.view(state.shape)


def quantized_pieces() -> list[Piece]:
    """Those of bitsandbytes, where it is installed; a GPU rounds the inputs of int8, too."""
    if find_spec("bitsandbytes") is None:
        return []
    setting = "model.quantization=null"
    rounding = dict.fromkeys(TOLERANCES, 3e-2)
    return [
        Piece("product, NF4", setting, partial(product, bits=4)),
        Piece("product, int8", setting, partial(product, bits=8), rounding),
    ]


STEP_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.3}
"""Of a whole step, in which rounding adds up."""

SMALL_LLAMA: PretrainedConfig = LlamaConfig(num_key_value_heads=8)
TEXTS = [[1, 2, 3, *range(5, 9 + 2 * row)] for row in range(6)]
ROWS = [Encoded("", "", text, text, truncated=False) for text in TEXTS]


def small_model(draw: Draw, config: PretrainedConfig) -> PreTrainedModel:
    """A model with few, narrow layers and adapters off their start, of our modules or of transformers'."""
    small = small_config(config, initializer_range=0.03)
    model: Any = AutoModelForCausalLM.from_config(small, attn_implementation="sdpa")
    model.to(draw.rounded).to(draw.device, draw.dtype)
    draw.adapt(model, "all-linear", kind="dense")
    model.moslora_engine = Transformers.name
    if not draw.plain:
        use_own_modules(model)
        model.moslora_engine = Own.name
    return model


def training_step(draw: Draw, *, config: PretrainedConfig) -> Sequence[Tensor]:
    """The loss."""
    model = small_model(draw, config)
    batch = collate(ROWS, device=draw.device, share=True, lay=engine_of(model).lay)
    with Families(model).folded(draw.dtype):
        loss, _ = LabelLoss(model).train()(batch)
    return [loss]


def step_piece(config: PretrainedConfig) -> Piece:
    return Piece("a training step", PLAIN_STEP, partial(training_step, config=config), STEP_TOLERANCES)
