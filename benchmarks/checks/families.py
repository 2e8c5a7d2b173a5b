"""Random small models of every family, computed by the engine that they get and by stock transformers.

    make soak                                                   # this, for half an hour, among others
    python -m benchmarks.checks.families --minutes 5 --seed 7 --families phi3 qwen2_moe

Each config draws windows, key heads, RoPE, caps, biases, experts and kinds of layers. Rows of up to three windows, with
common beginnings, are computed in one pass and in several: the logits, and the gradient of every adapter's factors.
The authority is transformers' forward of each row alone in float64. An error counts if it is larger than the usual one
of float32, and than ten times that of stock transformers in float32, as steep random weights multiply rounding.

Exits with 1 if a model was computed in another way than by transformers.
"""

import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from benchmarks import ROOT
from benchmarks.commands import command
from moslora.adapters import named_adapters
from moslora.base.engines import engine_of
from moslora.base.shapes import context_length
from moslora.base.twin import small_config, spread_weights
from moslora.errors import MosloraError

sys.path.append(str(ROOT / "tests" / "kits"))

from families_kit import CONFIGS, SMALL, TOLERANCE, adapt, characters, flat, load_adapted, off, stock

WINDOWS = (3, 7, 16)
LONGEST = 3 * WINDOWS[-1]
"""Tokens of a row."""

ORIGINAL_CONTEXT = 32
"""Tokens up to which a drawn RoPE does not scale by length."""

Row = list[int]


def drawn_rope(rope: dict[str, Any], size: int, draw: random.Random) -> dict[str, Any]:
    """RoPE of another kind, for heads of ``size`` entries."""
    theta = {"rope_theta": rope.get("rope_theta", 1e4)}
    if "partial_rotary_factor" in rope:
        theta["partial_rotary_factor"] = rope["partial_rotary_factor"]
    turned = int(size * theta.get("partial_rotary_factor", 1)) // 2
    scaled = {"factor": 2.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}
    kinds: dict[str, dict[str, Any]] = {
        "default": {},
        "linear": {"factor": 2.0},
        "dynamic": {"factor": 2.0},
        "yarn": scaled,
        "llama3": scaled | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "longrope": scaled | {name: [draw.uniform(1, 4) for _ in range(turned)] for name in LONGROPE},
    }
    kind = draw.choice(list(kinds))
    return {"rope_type": kind, **theta, **kinds[kind]}


LONGROPE = ("short_factor", "long_factor")


def drawn_values(values: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Other values of some keys of a text model's small config."""
    size = values.get("head_dim") or values.get("hidden_size", 64) // (values.get("num_attention_heads") or 4)
    chosen: dict[str, Any] = {}
    for key, value in values.items():
        if key.endswith("sliding_window") and not isinstance(value, bool):
            chosen[key] = draw.choice(WINDOWS)
        elif isinstance(value, bool) and key.endswith(("bias", "use_sliding_window", "tie_word_embeddings")):
            chosen[key] = draw.random() < 0.5
        elif "softcap" in key:
            chosen[key] = draw.choice([value, 5.0])
        elif key == "num_key_value_heads" and value:
            chosen[key] = draw.choice([1, 2, 4])
        elif key in ("num_experts_per_tok", "max_window_layers") and value:
            chosen[key] = draw.choice([1, 2])
        elif key == "layer_types" and value and {*value} <= {"full_attention", "sliding_attention"}:
            chosen[key] = [draw.choice(["full_attention", "sliding_attention"]) for _ in value]
        elif key == "rope_parameters" and value and "rope_type" in value:
            chosen[key] = drawn_rope(value, size, draw)
    # Half of the draws change few keys, since some do not go together.
    share = draw.choice([0.3, 1.0])
    return {key: value for key, value in chosen.items() if draw.random() < share}


def drawn_config(family: str, draw: random.Random) -> PretrainedConfig:
    """A small config of ``family``, with values drawn for the part that reads text."""
    small = small_config(CONFIG_MAPPING[family](**CONFIGS.get(family, {})), **SMALL.get(family, {}))
    text = small.get_text_config(decoder=True)
    values = drawn_values(text.to_dict(), draw)
    if text is small:
        return small_config(small, **{**SMALL.get(family, {}), **values})
    name = next(name for name in small.sub_configs if getattr(small, name) is text)
    return small_config(small, **{name: {**text.to_dict(), **values}})


def drawn_rows(longest: int, draw: random.Random) -> list[list[Row]]:
    """Families of rows; those of one have a common beginning."""
    families = []
    for _ in range(draw.randint(1, 3)):
        begin = [draw.randrange(3, 95) for _ in range(draw.randint(0, longest // 2))]
        ends = [draw.randint(2, longest - len(begin)) for _ in range(draw.randint(1, 3))]
        families.append([begin + [draw.randrange(3, 95) for _ in range(end)] for end in ends])
    return families


def factors(model: PreTrainedModel) -> list[Tensor]:
    return [weight for _, layer in named_adapters(model) for weight in (layer.lora_a, layer.lora_b)]


def alone(model: PreTrainedModel, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Logits and gradient by transformers' forward of each row by itself."""
    found = []
    loss = torch.zeros((), dtype=model.dtype)
    for row in rows:
        logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
        loss = loss - logits[:-1].log_softmax(1).gather(1, torch.tensor(row[1:])[:, None]).sum()
        found.append(logits.detach())
    learned = factors(model)
    return torch.cat(found), flat(torch.autograd.grad(loss, learned)) if learned else torch.ones(1)


def in_passes(model: PreTrainedModel, passes: Sequence[list[list[Row]]]) -> tuple[Tensor, Tensor]:
    """Logits and gradient by the model's engine, the families of each pass together."""
    engine = engine_of(model)
    found = []
    learned = factors(model)
    total = torch.zeros(sum(weight.numel() for weight in learned)) if learned else torch.ones(1)
    for families in passes:
        batch = engine.build_batch(families, torch.device("cpu"))
        with torch.no_grad():
            found.append(engine.logits(batch, [place for path in batch.paths for place in path]))
        if learned:
            places = [place for path in batch.paths for place in path[:-1]]
            targets = torch.tensor([token for family in families for row in family for token in row[1:]])
            loss = engine.loss(batch, places, torch.tensor(places), targets)
            total += flat(torch.autograd.grad(loss, learned))
    return torch.cat(found), total


def outcome(family: str, draw: random.Random, folder: Path) -> tuple[str, str]:
    """What becomes of a random model of ``family``: the engine's name, a refusal, or a fault with what differs."""
    try:
        config = drawn_config(family, draw)
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config).eval()
        spread_weights(made)
        made.get_output_embeddings().weight.data.div_(20)
        made(input_ids=torch.arange(3, 20)[None], use_cache=False)
        made.save_pretrained(folder)
    except Exception as error:  # values that do not go together
        return "no model", f"{type(error).__name__}: {error}"[:200]
    characters().save_pretrained(folder)
    said = str({key: value for key, value in config.get_text_config(decoder=True).to_diff_dict().items()})
    try:
        model = load_adapted(folder)
    except MosloraError as refused:
        return "refused", str(refused)[:200]
    theirs = stock(folder)
    names = [name for name, _ in named_adapters(model)]
    if names:
        adapt(theirs, names)
        for _, layer in named_adapters(theirs):
            layer.context.plain = True
    families = drawn_rows(min(LONGEST, context_length(config) or LONGEST), draw)
    rows = [row for family in families for row in family]
    rounded = alone(theirs, rows)
    theirs.set_experts_implementation("eager")  # the only one in float64
    try:
        authority = alone(theirs.double(), rows)
    except RuntimeError as error:  # of code that names float32
        return "not in float64", str(error)
    name = engine_of(model).name
    for passes in ([families], [[family] for family in families]):
        for what, ours, stocks, right in zip(
            ("logits", "gradient"), in_passes(model, passes), rounded, authority, strict=True
        ):
            usual = off(stocks, right)
            if not off(ours, right) <= max(TOLERANCE[what], 10 * usual):
                found = f"{what} off by {off(ours, right):.2g}, stock by {usual:.2g}, in {len(passes)} passes"
                return "FAULT", f"{name}: {found}; rows {[len(row) for row in rows]}; {said}"
    return name, ""


def main(*, minutes: float = 30, seed: int = 0, families: tuple[str, ...] = ()) -> None:
    """Tries random models of ``families``, or without any of all, for so long."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    began = time.monotonic()
    counts: Counter[str] = Counter()
    number = seed * 10**6
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOSLORA_HOME", f"{scratch}/home")
        patch.setenv("HF_HUB_OFFLINE", "1")
        while time.monotonic() - began < 60 * minutes:
            for family in families or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
                number += 1
                try:
                    kind, why = outcome(family, random.Random(number), Path(scratch) / "model")
                except Exception as error:
                    kind, why = "FAULT", f"{error!r} {traceback.format_exc(limit=-3)}"
                counts[kind] += 1
                if kind in ("FAULT", "refused"):
                    print(f"{number} {family}: {kind}: {why}", flush=True)
                if time.monotonic() - began > 60 * minutes:
                    break
    print(f"{sum(counts.values())} models in {time.monotonic() - began:.0f} s: {dict(counts)}")
    if counts["FAULT"]:
        sys.exit("FAILED: a model was computed in another way than by transformers; the lines above say which")


if __name__ == "__main__":
    command(main)
