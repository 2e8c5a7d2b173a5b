"""The authorities: small models, and methods re-derived from their equations in plain tensor algebra."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from moslora.adapters import AdapterLinear, Mixer, build_mixer, inject
from moslora.adapters.mixers import read_mixer
from moslora.base.engines import Engine, Own
from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.data.steps import MicroBatch, collate

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def tiny_llama(
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    vocab_size: int = 320,
    layers: int = 2,
    hidden_size: int = 48,
    intermediate_size: int = 80,
    tied: bool = False,
    context: int = 512,
) -> LlamaForCausalLM:
    """A random LLaMA with grouped-query attention, large enough weights to make outputs differ."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def adapted_llama(
    mixer: dict[str, object], *, moved: float = 0.0, dtype: torch.dtype = torch.float32, **options: object
) -> LlamaForCausalLM:
    """The same with adapters, by default of rank 4 on q_proj, moved off their start where wanted."""
    model = tiny_llama(dtype=dtype)
    inject(model, mixer=mixer, **{"rank": 4, "alpha": 8, "target_modules": ["q_proj"], **options})  # type: ignore[arg-type]
    if moved:
        perturb((p for p in model.parameters() if p.requires_grad), size=moved)
    return model


def mixer_of(
    *,
    rank: int,
    rank_out: int | None = None,
    in_features: int | None = None,
    tasks: Sequence[str] = (),
    **options: object,
) -> Mixer:
    """The mixer of these options, as they are written for `inject`."""
    return build_mixer(read_mixer(options), rank=rank, rank_out=rank_out, in_features=in_features, tasks=tasks)


def adapted_linear(
    mixer: dict[str, object], *, size: float, rank: int = 8, bias: bool = True, **options: object
) -> AdapterLinear:
    """A layer of 10 inputs and 7 outputs with s = 1.7, in float64, moved off its start."""
    torch.manual_seed(0)
    built = mixer_of(**{"rank": rank, "in_features": 10, **mixer})  # type: ignore[arg-type]
    layer = AdapterLinear(nn.Linear(10, 7, bias=bias), mixer=built, scale=1.7, **options).double()  # type: ignore[arg-type]
    layer.reset_parameters()
    if layer.magnitude is not None:
        layer.magnitude.measure(layer.base.weight)
        layer.magnitude.reset_parameters()
    perturb((p for p in layer.parameters() if p.requires_grad), size=size)
    return layer


def token_batch(model: LlamaForCausalLM, *, rows: int = 3, length: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, model.config.vocab_size, (rows, length), generator=generator)


def as_micro_batch(
    ids: Tensor,
    *,
    lengths: Sequence[int] = (),
    begins: Sequence[int] = (),
    share: bool = False,
    engine: type[Engine] = Own,
) -> MicroBatch:
    """The rows of ``ids``, of which the first ``lengths`` tokens count and those from ``begins`` on are labelled."""
    rows = []
    for number, tokens in enumerate(ids.tolist()):
        if lengths:
            tokens = tokens[: lengths[number]]
        labels = [*tokens]
        if begins:
            begin = begins[number]
            labels = [IGNORE_INDEX] * begin + tokens[begin:]
        rows.append(Encoded(str(number), "none", tokens, labels, truncated=False))
    return collate(rows, device=ids.device, share=share, build_batch=engine.build_batch)


@torch.no_grad()
def perturb(parameters: Iterable[nn.Parameter], *, seed: int = 0, size: float = 0.05) -> None:
    """Moves parameters off their start, where B = 0 would hide almost any mistake."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_((size * noise).to(parameter))


class OfficialLayer(nn.Module):
    """The released layer's equations: ``result += lora_B(lora_AB(lora_A(dropout(x)))) * scaling``.

    Source: wutaiqiang/MoSLoRA, ``commonsense_reasoning/peft/src/peft/tuners/lora.py``, ``Linear.forward``.
    """

    def __init__(self, base: nn.Linear, *, a: Tensor, m: Tensor, b: Tensor, scaling: float) -> None:
        super().__init__()
        self.base = base
        self.scaling = scaling
        self.lora_A = nn.Linear(a.shape[1], a.shape[0], bias=False)
        self.lora_AB = nn.Linear(m.shape[1], m.shape[0], bias=False)
        self.lora_B = nn.Linear(b.shape[1], b.shape[0], bias=False)
        for linear, weight in ((self.lora_A, a), (self.lora_AB, m), (self.lora_B, b)):
            linear.weight = nn.Parameter(weight.clone())

    def forward(self, x: Tensor) -> Tensor:
        result = F.linear(x, self.base.weight, self.base.bias)
        result += self.lora_B(self.lora_AB(self.lora_A(x))) * self.scaling
        return result
