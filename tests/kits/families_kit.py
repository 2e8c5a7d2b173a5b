"""Every family of transformers' causal language models, tiny: built from its default config, with random weights.

``python tests/kits/families_kit.py`` prints what becomes of each: equal, refused, not buildable, or neither.
"""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from moslora.adapters import inject, named_adapters
from moslora.base.check import refuse_by_config
from moslora.base.engine import final_hidden, output_weight, text_part
from moslora.base.load import load_base
from moslora.base.twin import VOCABULARY, small_config, spread_weights
from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.data.steps import collate
from moslora.errors import MosloraError, UsageError
from moslora.evaluation.decoding import decode
from moslora.kernels.loss import log_probabilities
from moslora.kernels.rows import concatenate
from moslora.recipe import ModelSection
from moslora.training.objective import LabelLoss

ROPE = {"rope_type": "default", "rope_theta": 1e4}
CONFIGS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 20,
        "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"head_dim": 16, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_routed_experts": 8},
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "embedding_multiplier": 4.0},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 8},
    "xmod": {"default_language": "en_XX"},
}
"""What the default config of a family lacks, or leaves out of what a model can have."""

SMALL: dict[str, dict[str, Any]] = {
    "dory": {
        "num_hidden_layers": 6,  # each of attention or an MLP alone, which it counts as half a layer
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "full_attention", "mlp"],
        **dict.fromkeys(("n_input_layers", "n_recurrent_layers", "n_output_layers"), 2),
    },
}
"""Values of a family's small config that have to fit each other."""

NOT_BUILDABLE = {
    "gemma4_assistant": "ValueError: hidden_size_per_layer_input must be 0, got 256",
    "gemma4_unified_assistant": "ValueError: inputs_embeds and shared_kv_states cannot be None.",
}
"""The last line of what transformers raises."""

EQUAL = (
    *("afmoe", "apertus", "apertus1p5_text", "arcee", "aria_text", "bitnet", "cohere_compass_text", "cwm", "dbrx"),
    *("diffllama", "dots1", "ernie4_5", "ernie4_5_moe", "exaone", "exaone4", "exaone_moe", "flex_olmo", "fuyu"),
    *("gemma", "gemma3", "gemma3_text", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text", "glm"),
    *("glm4", "glm4_moe", "glm4_moe_lite", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox", "granite", "granitemoe"),
    *("granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "internlm3"),
    *("iquestcoder", "jais2", "jetmoe", "kolibri1", "laguna", "lfm2", "llama", "mellum", "minimax_m2"),
    *("minimax_m3_vl_text", "ministral", "ministral3", "mistral", "mixtral", "moshi", "moss_transcribe_diarize"),
    *("olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi3", "phi4_multimodal", "phimoe", "qwen2"),
    *("qwen2_moe", "qwen3", "qwen3_moe", "sarvam_moe", "seed_oss", "smollm3", "solar_open", "starcoder2"),
)
"""Families that are trained, scored and merged; all others of transformers are refused in a line."""


@dataclass(frozen=True)
class Outcome:
    """What becomes of a family."""

    kind: str  # equal, refused, not buildable, or neither
    reason: str = ""  # the line of a refusal, or what differs

    def __str__(self) -> str:
        return f"{self.kind:13} {self.reason}"


@cache
def characters() -> PreTrainedTokenizerFast:
    """A tokenizer of single characters, for the few tokens that a tiny model knows."""
    known = ["<pad>", "<eos>", "<unk>", *(chr(code) for code in range(32, 127)), "\n"]
    tokenizer = Tokenizer(models.WordLevel({token: id for id, token in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def config_of(family: str) -> PretrainedConfig:
    """The family's config, of its usual size."""
    config: PretrainedConfig = CONFIG_MAPPING[family](**CONFIGS.get(family, {}))
    return config


def make(family: str, folder: Path, *, steep: bool = True) -> None:
    """Writes a tiny model of ``family``; ``steep``: its logits are so large that any cap would show."""
    torch.manual_seed(0)
    config = small_config(config_of(family), **SMALL.get(family, {}))
    model = AutoModelForCausalLM.from_config(config).eval()
    spread_weights(model)
    if not steep:
        model.get_output_embeddings().weight.data.div_(20)
    model(input_ids=torch.arange(3, 20)[None], use_cache=False)
    model.save_pretrained(folder)
    characters().save_pretrained(folder)


def stock(folder: Path) -> PreTrainedModel:
    """The model as transformers has it."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def adapt(model: PreTrainedModel, like: PreTrainedModel | None = None) -> list[Tensor]:
    """Adapters on every layer of attention and MLP, or on those that ``like`` has, moved off their start: B of each.

    Layers that decide where a token goes are left out: what they choose jumps.
    """
    if like is None:
        names = adaptable(model)
    else:
        names = [name for name, _ in named_adapters(like)]
    pattern = "|".join(map(re.escape, names))
    inject(model, rank=2, alpha=4, mixer={"kind": "dense"}, target_modules=pattern, within=text_part(model))
    draw = torch.Generator().manual_seed(1)
    for _, layer in named_adapters(model):
        with torch.no_grad():
            layer.lora_b.copy_(0.1 * torch.randn(layer.lora_b.shape, generator=draw))
    return [layer.lora_b for _, layer in named_adapters(model)]


ROUTERS = re.compile(r"lm_head|\b(router|gate|wg|shared_expert_gate)\b")


def adaptable(model: PreTrainedModel) -> list[str]:
    """The names of all linear layers that read text, but for the output layer and those that route tokens."""
    parts = {*(text_part(model) or model).modules()}
    linear = [name for name, module in model.named_modules() if hasattr(module, "in_features") and module in parts]
    return [name for name in linear if not ROUTERS.search(name)]


TOLERANCE = {"logits": 1e-5, "scores": 1e-5, "share of other texts": 0, "loss": 1e-5, "gradient": 1e-4}
"""Largest relative errors. Float32 loses as much of the gradient as these steep random weights multiply."""

ROWS = ([5, 9, 20, 31, 44, 58], [5, 9, 20, 31, 7, 90, 64, 13, 27, 71], [80, 3, 17])
"""Two rows with a common beginning, and another."""


PROMPTS = tuple([*range(11, 31), *row] for row in ROWS[:2])
"""Two rows whose common beginning is long enough to be computed once."""

NEW_TOKENS = 6


def off(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float((found - expected).norm() / expected.norm())


def likeliest(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """The likeliest token after a prompt, one after the other, each by a pass over all before it."""
    ids = [*prompt]
    for _ in range(NEW_TOKENS):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def compared(folder: Path) -> Iterator[tuple[str, float]]:
    """How far the engine's logits, scores, greedy texts, loss and gradient are off those of transformers."""
    ours = load_base(ModelSection(name=str(folder), dtype="float32"))
    theirs = stock(folder)
    yield from scores_compared(ours, theirs)
    yield "share of other texts", share_of_other_texts(ours, theirs)
    if adaptable(ours):  # GPT-2's layers are convolutions, which PEFT alone adapts
        yield from gradients_compared(ours, theirs)


@torch.no_grad()
def scores_compared(ours: PreTrainedModel, theirs: PreTrainedModel) -> Iterator[tuple[str, float]]:
    """How far logits and log-probabilities are off."""
    expected = torch.cat([theirs(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in ROWS])
    tokens, rows, paths = concatenate([ROWS[:2], ROWS[2:]], torch.device("cpu"))
    hidden = final_hidden(ours, tokens, rows)
    places: list[int] = []
    for path in paths:
        places += path
    yield "logits", off(hidden[places] @ output_weight(ours).T, expected)
    targets = [(7 * place + 3) % VOCABULARY for place in range(len(places))]
    scores, _ = log_probabilities(hidden, output_weight(ours), places, targets)
    yield "scores", off(scores, expected.log_softmax(1).gather(1, torch.tensor(targets)[:, None])[:, 0])


@torch.no_grad()
def share_of_other_texts(ours: PreTrainedModel, theirs: PreTrainedModel) -> float:
    """Of the texts that the engine decodes those that are not the likeliest."""
    options: dict[str, Any] = {"ended": lambda row, tokens: False, "ends": (), "batch_tokens": 200}
    differ = 0
    for asked in (PROMPTS, ROWS):
        written = decode(ours, asked, max_new_tokens=NEW_TOKENS, **options)
        for row, text in zip(asked, written, strict=True):
            if text != likeliest(theirs, row):
                differ += 1
    return differ / (len(PROMPTS) + len(ROWS))


def gradients_compared(ours: PreTrainedModel, theirs: PreTrainedModel) -> Iterator[tuple[str, float]]:
    """How far the loss of all rows and the adapters' gradients are off, with common beginnings shared and without."""
    mine = adapt(ours)
    other = adapt(theirs, like=ours)
    expected = torch.zeros(())
    for row in ROWS:
        logits = theirs(input_ids=torch.tensor([row]), use_cache=False).logits[0]
        expected = expected - logits[:-1].log_softmax(1).gather(1, torch.tensor(row[1:])[:, None]).sum()
    expected_gradients = flat(torch.autograd.grad(expected, other))
    encoded = [Encoded("", "", [*row], [IGNORE_INDEX, *row[1:]], truncated=False) for row in ROWS]
    for share in (False, True):
        loss, _ = LabelLoss(ours).eval()(collate(encoded, device=torch.device("cpu"), share=share))
        yield "loss", off(loss.detach(), expected.detach())
        yield "gradient", off(flat(torch.autograd.grad(loss, mine)), expected_gradients)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries, one after the other."""
    return torch.cat([x.flatten() for x in tensors])


def outcome(family: str, folder: Path) -> Outcome:
    """What becomes of ``family``, of which a tiny model is written to ``folder``."""
    try:
        refuse_by_config(config_of(family))
    except UsageError as error:
        return Outcome("refused", str(error))
    except Exception as error:
        return Outcome("not buildable", told(error))
    try:
        make(family, folder)
    except Exception as error:
        return Outcome("not buildable", told(error))
    try:
        for what, difference in compared(folder):
            if not difference <= TOLERANCE[what]:
                return Outcome("neither", f"its {what} differs by {difference:.2g}")
    except MosloraError as error:
        return Outcome("refused", str(error))
    except Exception as error:
        return Outcome("neither", told(error))
    return Outcome("equal")


def told(error: Exception) -> str:
    """The last line of an error."""
    line = str(error).strip().splitlines()[-1].strip()
    if "Error: " in line:
        return line
    return f"{type(error).__name__}: {line}"


def main() -> None:
    """Prints the table."""
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    counts: dict[str, int] = {}
    for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        with TemporaryDirectory() as folder:
            found = outcome(family, Path(folder))
        counts[found.kind] = counts.get(found.kind, 0) + 1
        print(f"{family:26} {found}")
    print(counts)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    main()
