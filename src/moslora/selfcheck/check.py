"""Check of kernels, layers, training steps in one and two processes, and a recipe's step, on this machine's device.

The step of a recipe is measured in memory and time, and compared with the plan's estimate.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace

import pydantic_core
import torch
from accelerate import Accelerator

from moslora.base.engine_choice import choose_engine
from moslora.base.engines import engine_of
from moslora.base.failures import or_out_of_memory
from moslora.base.shapes import meta_model
from moslora.data.steps import default_micro_batch_tokens, label_count
from moslora.kernels import liger
from moslora.kernels.plain import VARIABLE, disabled_kernels
from moslora.plan.duration import cost, gpus_with, on_this_cpu, timed_step
from moslora.plan.memory import Devices, memory
from moslora.plan.outline import outline
from moslora.plan.plan import gigabytes
from moslora.processes.devices import device, device_name, gpus, multiplies_bfloat16, total_memory
from moslora.recipe import ModelSection, Recipe
from moslora.selfcheck.piece import Finding, measure
from moslora.selfcheck.pieces import PIECES, quantized_pieces
from moslora.selfcheck.processes import two_processes
from moslora.selfcheck.steps import SMALL_LLAMA, whole_pieces
from moslora.training.loop import rehearse
from moslora.training.prepare import gather_inputs, prepare
from moslora.training.tracking import peak_memory_gb

SIZES = {
    "hidden_size": 1_024,
    "intermediate_size": 2_816,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 32_000,
}
"""A small LLaMA with heads of LLaMA-3's size."""


def check(section: ModelSection | None = None) -> Iterator[Finding]:
    """Compare kernels and layers with torch's own in the sizes of a model; sizes that its config lacks are `SIZES`.

    The training step is that of the model's architecture if moslora's own engine computes it.
    """
    liger.agree()
    torch.backends.cuda.enable_cudnn_sdp(False)  # as when a model is loaded
    config = SMALL_LLAMA
    sizes = dict(SIZES)
    if section is not None:
        model = meta_model(section)
        choose_engine(model, computed_here=False)
        if engine_of(model).name == "own":
            config = model.config
        text = model.config.get_text_config(decoder=True)
        heads = text.num_attention_heads
        sizes |= {"num_key_value_heads": heads, "head_dim": text.hidden_size // heads}
        sizes |= {name: getattr(text, name) for name in SIZES if getattr(text, name, None)}
    for piece in (*PIECES, *quantized_pieces(), *whole_pieces(config)):
        for dtype in piece.tolerances:
            if piece.part not in disabled_kernels() and (dtype != torch.bfloat16 or multiplies_bfloat16(device())):
                yield measure(piece, SimpleNamespace(**sizes), device(), dtype)
    yield from two_processes()


def not_compared(findings: Iterable[Finding]) -> list[str]:
    """Lines that name what was not compared on this machine."""
    lines = []
    for finding in findings:
        if not finding.fits:
            lines.append(f"not compared: {finding.name} in {finding.dtype}, as the GPU has too little free memory")
    if disabled_kernels():
        lines.append(f"left out by {VARIABLE}, and not compared: {', '.join(sorted(disabled_kernels()))}")
    if not multiplies_bfloat16(device()):
        lines.append("not compared: bfloat16, which this device does not multiply")
    if gpus() == 1:
        lines.append("not compared: a step of two processes, as there is one GPU")
    return lines


def to_json(
    findings: Sequence[Finding], *, environment: Mapping[str, str], step: list[list[str]] | None, said: Sequence[str]
) -> str:
    """Findings of a check as JSON.

    Args:
        findings: what was compared; ``off`` is null if a fault ended the comparison.
        environment: versions and facts of this machine, by name.
        step: table of `real_step`, if there is one.
        said: lines that the command prints below the findings.
    """
    values = {
        "passed": all(finding.passed for finding in findings),
        "device": device_name(device()),
        "memory": total_memory(device()),
        "environment": environment,
        "step": step,
        "findings": findings,
        "said": said,
    }
    return pydantic_core.to_json(values, inf_nan_mode="null", indent=2).decode()


def real_step(recipe: Recipe) -> list[list[str]]:
    """Measure the memory of a run's largest step and the time of its first step; return a table, header first.

    Raises:
        MosloraError: the step needs more memory than there is.
    """
    training = recipe.training
    on_gpu = gpus() > 0
    inputs = gather_inputs(recipe)  # first, because it prepares the rows
    run = outline(recipe)
    largest = run.share_of_a_step(1).limited_to(
        training.micro_batch_tokens or default_micro_batch_tokens(on_gpu=on_gpu)
    )
    needed = memory(run.model, recipe.model, largest, Devices(on_gpu), rank_budget=training.rank_budget is not None)
    before = peak_memory_gb()
    with or_out_of_memory("out of GPU memory; moslora plan says what would fit"):
        state, _ = prepare(Accelerator(mixed_precision="no", cpu=not on_gpu), recipe, inputs=inputs)
        rehearse(state, first_step=0)
        rows = state.drawn(0)
        seconds = timed_step(state, rows)
    tokens = sum(len(row.input_ids) for row in rows)
    total = cost(
        run.model,
        recipe.model,
        tokens=tokens,
        labels=label_count(rows),
        row=tokens / len(rows),
        passes=len(state.passes(rows)),
    )
    if on_gpu:
        times = []
        for name, gpu in gpus_with(total_memory(device())).items():
            fast, slow = total.seconds(gpu, dtype=recipe.model.dtype)
            times.append(f"{fast:.2g}–{slow:.2g} ({name})")
    else:
        times = [f"{on_this_cpu(total, run.model, recipe.model.dtype):.2g}"]
    return [
        [f"a step of {tokens:,} tokens", "estimate", "measured"],
        ["memory, GB", gigabytes(needed.total - needed.overhead), gigabytes(1e9 * (peak_memory_gb() - before))],
        ["time, s", ", ".join(times), f"{seconds:.2g}"],
    ]
