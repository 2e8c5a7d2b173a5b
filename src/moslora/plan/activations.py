"""What a forward and backward pass keeps and needs, in bytes, for the decoders that this engine trains.

With e bytes per entry and the widths H (hidden), F (intermediate), Q (all query heads) and K (all key heads), autograd
keeps in each layer, per token,

    2 (H e + 4)               the inputs of both norms, and their roots
    (2 Q + 2 K) e + 4 heads   query, key, value and output of the fused attention, and its sums; padded rows count
    2 F e                     the two factors of the MLP's product
    in m                      of each adapter the draw of its dropout
    rank_out e                of each adapter; a gate, or M learning alone, rank_in e more

On a GPU m is 1, of a mask, and in float32 K is Q, as keys and values are repeated. On a CPU m is 4 λ, of the places,
with λ = −log(1 − dropout), and attention keeps its weights instead of the output: (Q + 2 K + heads · row) e. The inputs
of adapters are computed again from what the norms and the MLP keep, except attention's output and what a gate reads. A
frozen linear layer keeps nothing. Where norms and MLP are not ours, the MLP keeps F e more, and adapters their inputs.
With gradient checkpointing H e stays of each layer, and the backward pass needs one layer's share at a time.
docs/plan.md has a worked example.
"""

import math
import re
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from moslora.adapters import AdapterLinear, named_adapters
from moslora.adapters.mixers.gates import Gate
from moslora.base.load import DTYPES
from moslora.kernels.attention import takes_rows
from moslora.kernels.linear import IN_FLOAT32, kernel
from moslora.kernels.mlp import GatedMLP
from moslora.kernels.vocabulary import sizes
from moslora.processes.devices import GPU
from moslora.recipe import ModelSection


@dataclass(frozen=True)
class Work:
    """The largest micro-batch of a process.

    Attributes:
        tokens: T.
        longest: tokens of its longest row.
        labels: labelled tokens.
        row: keys that a query has scores for, those of padding included, on average over the tokens.
        padding: entries of the batch that a GPU pads for attention, per token.
    """

    tokens: int
    longest: int
    labels: int
    row: float
    padding: float

    def of(self, tokens: int) -> "Work":
        """The same of at most ``tokens`` tokens."""
        tokens = min(tokens, self.tokens)
        return replace(self, tokens=tokens, labels=-(-self.labels * tokens // self.tokens))


def block_of(name: str) -> str:
    """The decoder layer of a module or parameter, such as ``model.layers.3``; "" outside of all."""
    found = re.match(r".*?\.\d+(?=\.|$)", name)
    return found[0] if found else ""


def unknown(model: PreTrainedModel) -> str | None:
    """Why the formulas do not hold for ``model``; ``None`` if they do."""
    if not takes_rows(model):
        return "has an attention of its own"
    missing = [key for key in ("intermediate_size", "num_key_value_heads") if not hasattr(model.config, key)]
    if missing:
        return f"has no {missing[0]} in its config"
    routed = any(hasattr(model.config, key) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    return "routes its tokens to experts" if routed else None


def kept(model: PreTrainedModel, section: ModelSection, work: Work, *, on_gpu: bool) -> tuple[int, int]:
    """The bytes that autograd keeps until the backward pass, and the most that this pass needs beside them."""
    config, width, tokens = model.config, DTYPES[section.dtype].itemsize, work.tokens
    size = head_size(model)
    layers = {block: tokens * share for block, share in _per_token(model, section, work, on_gpu=on_gpu).items()}
    if width < 4:  # the factors' copies in the dtype of the computation
        for name, layer in named_adapters(model):
            layers[block_of(name)] += width * sum(p.numel() for p in layer.parameters() if p.requires_grad)
    # Outside of the layers: the final norm's input and root, the cosines and sines of the positions.
    outside = tokens * (config.hidden_size * width + 4 + 2 * size * width)
    # Of the MLP's product and the residual stream, and what is computed again.
    gradients = tokens * (3 * config.intermediate_size + config.hidden_size) * width
    converts = not on_gpu and kernel(torch.device("cpu"), DTYPES[section.dtype]) == IN_FLOAT32
    if converts:  # the MLP's input and output
        gradients += 4 * tokens * (config.intermediate_size + config.hidden_size)
    if section.gradient_checkpointing:
        inputs = len(layers) * tokens * config.hidden_size * width
        return int(outside + inputs), int(max(layers.values()) + gradients)
    return int(outside + sum(layers.values())), int(gradients)


def loss_needs(model: PreTrainedModel, section: ModelSection, work: Work, *, on_gpu: bool) -> int:
    """The final hidden states, those before a label with their gradient; and of the positions taken at once the logits
    of a piece of the vocabulary and their softmax, and what each piece adds to the gradient.

    A piece's logits or softmax are freed only when those of the next take their place.
    """
    config, width = model.config, DTYPES[section.dtype].itemsize
    positions, tokens = sizes(config.vocab_size, torch.device(GPU if on_gpu else "cpu"))
    positions, pieces = min(work.labels, positions), math.ceil(config.vocab_size / tokens)
    several = pieces > 1 or work.labels > positions
    entry = (3 if several else 2) * (4 if on_gpu else width)
    logits = positions * (min(tokens, config.vocab_size) * entry + pieces * config.hidden_size * width)
    return logits + (work.tokens + 2 * work.labels) * config.hidden_size * width


def _per_token(model: PreTrainedModel, section: ModelSection, work: Work, *, on_gpu: bool) -> dict[str, float]:
    """Bytes that autograd keeps per token in each decoder layer."""
    config, width, size = model.config, DTYPES[section.dtype].itemsize, head_size(model)
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    if on_gpu:
        repeated = heads if width == 4 else keys
        attention = work.padding * (2 * (heads + repeated) * size * width + 4 * heads)
    else:
        attention = ((heads + 2 * keys) * size + heads * work.row) * width
    factors = 2 if _computes_again(model) else 3
    layer = 2 * (config.hidden_size * width + 4) + attention + factors * config.intermediate_size * width
    names = [name for name, _ in model.named_modules()]
    layers = {name: layer for name in names if name and name == block_of(name)}
    for name in names:  # Qwen3's norms of each head
        if name.endswith((".q_norm", ".k_norm")):
            layers[block_of(name)] += (heads if name.endswith(".q_norm") else keys) * (size * width + 4)
    for name, adapter in named_adapters(model):
        layers[block_of(name)] += _beside_its_input(adapter, width, on_gpu=on_gpu)
    for parent, features, _ in _kept_inputs(model):
        layers[block_of(parent)] += features * width
    return layers


def _beside_its_input(adapter: AdapterLinear, width: int, *, on_gpu: bool) -> float:
    """Bytes per token that an adapter keeps beside its undropped input."""
    mixer = adapter.mixer
    size: float = (mixer.rank_out + (0 if adapter.folds else mixer.rank_in)) * width
    places = 0 if on_gpu else -math.log1p(-adapter.dropout.p)
    if adapter.dropout.p:
        size += adapter.in_features * (1 if on_gpu else 4 * places)
    if isinstance(mixer, Gate) and mixer.reads_input:  # the experts' weights
        size += mixer.experts * (4 + width)
    if adapter.magnitude is not None:  # DoRA: W x and ΔW x, which its gain multiplies, and the index that x loses
        size += 2 * adapter.out_features * width + adapter.in_features * 8 * places
    return size


def _kept_inputs(model: PreTrainedModel) -> set[tuple[str, int, bool]]:
    """The inputs that adapters keep. Those of one width in one module are one tensor, but attention's own output."""
    inputs, lean = set(), _computes_again(model)
    for name, adapter in named_adapters(model):
        parent, _, last = name.rpartition(".")
        if (last == "o_proj" or adapter.mixer.reads_input or not lean) and block_of(name):
            inputs.add((parent, adapter.in_features, last == "o_proj"))
    return inputs


def _computes_again(model: PreTrainedModel) -> bool:
    """Whether norms and MLPs are those whose output the backward pass computes again, judged by the MLPs."""
    return any(isinstance(module, GatedMLP) for module in model.modules())


def head_size(model: PreTrainedModel) -> int:
    """Of one attention head."""
    size: int | None = getattr(model.config, "head_dim", None)
    return size or model.config.hidden_size // model.config.num_attention_heads
