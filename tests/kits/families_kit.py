"""Every family of transformers' causal language models, tiny: built from its default config, with random weights.

``python tests/kits/families_kit.py`` prints what becomes of each: our engine or transformers computes it, it is not
causal, not computable, or wrong.
"""

import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig
from peft.tuners import lora
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from moslora.adapters import inject, named_adapters
from moslora.base.engine_choice import choose_engine
from moslora.base.engines import engine_of
from moslora.base.load import read_base
from moslora.base.own_engine import text_part
from moslora.base.twin import small_config, spread_weights
from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.data.steps import collate
from moslora.errors import MosloraError, UsageError
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
    "xlnet": {"d_head": 16},
    "xmod": {"default_language": "en_XX"},
}
"""What the default config of a family lacks, or leaves out of what a model can have."""

SMALL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16},
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention"],
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
    },
    "falcon_h1": {
        "mamba_d_ssm": 128,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_chunk_size": 16,
    },
    "bailing_hybrid": {"linear_num_heads": 4, "linear_head_dim": 16},
    "kimi_linear": {"linear_num_heads": 4, "linear_head_dim": 16},
    "qwen3_next": {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "xlstm": {"qk_dim_factor": 1.0, "num_blocks": 2},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16},
    "dory": {
        "num_hidden_layers": 6,  # each of attention or an MLP alone, which it counts as half a layer
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "full_attention", "mlp"],
        **dict.fromkeys(("n_input_layers", "n_recurrent_layers", "n_output_layers"), 2),
    },
}
"""Values of a family's small config that have to fit each other, or are large."""


class Outcome(NamedTuple):
    """What becomes of a family."""

    kind: str  # own, padded, transformers, not causal, not computable, or wrong
    reason: str = ""  # the line of a refusal, or what differs


@cache
def characters() -> PreTrainedTokenizerFast:
    """A tokenizer of single characters, for the few tokens that a tiny model knows."""
    known = ["<pad>", "<eos>", "<unk>", *(chr(code) for code in range(32, 127)), "\n"]
    tokenizer = Tokenizer(models.WordLevel({token: id for id, token in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def make(family: str, folder: Path, *, steep: bool = True) -> None:
    """Writes a tiny model of ``family``; ``steep``: its logits are so large that any cap would show."""
    torch.manual_seed(0)
    usual = CONFIG_MAPPING[family](**CONFIGS.get(family, {}))
    config = small_config(usual, **SMALL.get(family, {}))
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


def adapt(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Adapters on the layers of these ``names``, moved off their start."""
    pattern = "|".join(map(re.escape, names))
    inject(model, rank=2, alpha=4, mixer={"kind": "dense"}, target_modules=pattern, within=text_part(model))
    draw = torch.Generator().manual_seed(1)
    for _, layer in named_adapters(model):
        with torch.no_grad():
            layer.lora_b.copy_(0.1 * torch.randn(layer.lora_b.shape, generator=draw))


def load_adapted(folder: Path) -> PreTrainedModel:
    """The model in ``folder`` with adapters on every layer of attention and MLP that can have one, and with its engine.

    Layers that decide where a token goes are left out: what they choose jumps.
    """
    section = ModelSection(name=str(folder), dtype="float32")
    model = read_base(section)
    names = adaptable(model)
    while names:
        adapt(model, names)
        try:
            choose_engine(model)
        except UsageError as refused:
            found = re.search(r"reads the weights of (.+) itself, or never calls", str(refused))
            if found is None:
                raise
            others = {*found[1].split(", ")}
            names = [name for name in names if name.rpartition(".")[2] not in others]
            model = read_base(section)
        else:
            return model
    choose_engine(model)
    return model


ROUTERS = re.compile(r"lm_head|\b(router|gate|wg|shared_expert_gate)\b")


def adaptable(model: PreTrainedModel) -> list[str]:
    """The names of all linear layers that read text, but for the output layer and those that route tokens."""
    parts = {*(text_part(model) or model).modules()}
    parts.discard(model.get_output_embeddings())
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


def generated(model: Any, prompt: list[int]) -> list[int]:
    """What transformers' ``generate`` writes after a prompt alone."""
    length = len(prompt) + NEW_TOKENS
    model.generation_config = GenerationConfig(max_length=length, do_sample=False, pad_token_id=0)
    found = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long))
    return [int(token) for token in found[0, len(prompt) :]]


def compared(ours: PreTrainedModel, folder: Path) -> Iterator[tuple[str, float]]:
    """How far the engine's logits, scores, greedy texts, loss and gradient are off those of transformers."""
    names = [name for name, _ in named_adapters(ours)]
    theirs = stock(folder)
    if names:
        adapt(theirs, names)  # in stock modules
    yield from scores_compared(ours, theirs)
    yield "share of other texts", share_of_other_texts(ours, theirs)
    if names:  # GPT-2's layers are convolutions, which PEFT alone adapts
        yield from gradients_compared(ours, folder)


@torch.no_grad()
def scores_compared(ours: PreTrainedModel, theirs: PreTrainedModel) -> Iterator[tuple[str, float]]:
    """How far logits and log-probabilities are off those of rows by themselves, the latter as lm-eval has them."""
    engine = engine_of(ours)
    expected = torch.cat([theirs(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in ROWS])
    batch = engine.build_batch([ROWS[:2], ROWS[2:]], torch.device("cpu"))
    places: list[int] = []
    for path in batch.paths:
        places += path
    yield "logits", off(engine.logits(batch, places), expected)
    scores = [engine.log_p(batch, path[1:-1], row[2:]).sum() for row, path in zip(ROWS, batch.paths, strict=True)]
    harness = HFLM(pretrained=theirs, tokenizer=characters(), backend="causal", batch_size=1)
    requests = [(("", ""), [*row[:2]], [*row[2:]]) for row in ROWS]
    authority = torch.tensor([value for value, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)])
    yield "scores", off(torch.stack(scores), authority)


@torch.no_grad()
def share_of_other_texts(ours: PreTrainedModel, theirs: PreTrainedModel) -> float:
    """Of the texts that the engine writes those that another way does not."""
    options: dict[str, Any] = {"ended": lambda row, tokens: False, "ends": (), "batch_tokens": 200}
    engine = engine_of(ours)
    authority = generated if engine.pads else likeliest
    differ = 0
    for asked in (PROMPTS, ROWS):
        written = engine.write(asked, max_new_tokens=NEW_TOKENS, **options)
        differ += sum(text != authority(theirs, row) for row, text in zip(asked, written, strict=True))
    return differ / (len(PROMPTS) + len(ROWS))


def gradients_compared(ours: PreTrainedModel, folder: Path) -> Iterator[tuple[str, float]]:
    """How far the loss of all rows and the adapters' gradients are off those of a plain loop with PEFT's LoRA, with
    common beginnings shared and without."""
    layers = dict(named_adapters(ours))
    theirs = stock(folder)
    expected_of: list[Tensor] = []
    mine: list[Tensor] = []
    for name, layer in layers.items():
        # By hand: of some experts' models PEFT itself adapts other layers than those that are named.
        peft = lora.Linear(theirs.get_submodule(name), "default", LoraConfig(r=2), r=2, lora_alpha=4)
        with torch.no_grad():
            peft.lora_A["default"].weight.copy_(layer.mixer.matrix() @ layer.lora_a)
            peft.lora_B["default"].weight.copy_(layer.lora_b)
        theirs.set_submodule(name, peft.eval())
        expected_of.append(peft.lora_B["default"].weight)
        mine.append(layer.lora_b)
    expected = torch.zeros(())
    for row in ROWS:
        logits = theirs(input_ids=torch.tensor([row]), use_cache=False).logits[0]
        expected = expected - logits[:-1].log_softmax(1).gather(1, torch.tensor(row[1:])[:, None]).sum()
    expected_gradients = flat(torch.autograd.grad(expected, expected_of))
    encoded = [Encoded("", "", [*row], [IGNORE_INDEX, *row[1:]], truncated=False) for row in ROWS]
    for share in (False, True):
        batch = collate(encoded, device=torch.device("cpu"), share=share, build_batch=engine_of(ours).build_batch)
        loss, _ = LabelLoss(ours).eval()(batch)
        yield "loss", off(loss.detach(), expected.detach())
        yield "gradient", off(flat(torch.autograd.grad(loss, mine)), expected_gradients)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries, one after the other."""
    return torch.cat([x.flatten() for x in tensors])


def outcome(family: str, folder: Path) -> Outcome:
    """What becomes of ``family``, of which a tiny model is written to ``folder``."""
    try:
        make(family, folder)
    except Exception as error:
        return Outcome("not computable", told(error))
    try:
        model = load_adapted(folder)
    except MosloraError as error:
        return Outcome("not causal" if "is not causal" in str(error) else "not computable", str(error))
    try:
        for what, difference in compared(model, folder):
            if not difference <= TOLERANCE[what]:
                return Outcome("wrong", f"its {what} differs by {difference:.2g}")
    except Exception as error:
        return Outcome("wrong", told(error))
    return Outcome(engine_of(model).name)


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
    counts = Counter[str]()
    for family in sys.argv[1:] or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        with TemporaryDirectory() as folder:
            found = outcome(family, Path(folder))
        counts[found.kind] += 1
        print(f"{family:26} {found.kind:14} {found.reason}")
    print(dict(counts))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    main()
