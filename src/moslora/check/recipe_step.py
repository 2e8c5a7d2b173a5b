"""Memory and time of one real step of a recipe, beside the memory that `moslora plan` counts."""

import time

from accelerate import Accelerator

from moslora.base.failures import or_out_of_memory
from moslora.data.steps import default_micro_batch_tokens
from moslora.plan.memory import Devices, memory
from moslora.plan.outline import outline
from moslora.plan.plan import gigabytes
from moslora.processes.devices import gpus
from moslora.recipe import Recipe
from moslora.training.loop import accumulate, rehearse
from moslora.training.optimizer import update
from moslora.training.prepare import gather_inputs, prepare
from moslora.training.tracking import peak_memory_gb


def real_step(recipe: Recipe) -> list[list[str]]:
    """A table, header first: the memory of the run's largest step, and the time of its first. Nothing is kept.

    Raises:
        MosloraError: it did not fit.
    """
    training = recipe.training
    on_gpu = gpus() > 0
    inputs = gather_inputs(recipe)  # first, because it makes the rows
    run = outline(recipe)
    largest = run.share_of_a_step(1).of(training.micro_batch_tokens or default_micro_batch_tokens(on_gpu=on_gpu))
    needed = memory(run.model, recipe.model, largest, Devices(on_gpu), rank_budget=training.rank_budget is not None)
    before = peak_memory_gb()
    with or_out_of_memory("out of GPU memory; moslora plan says what would fit"):
        parts, _ = prepare(Accelerator(mixed_precision="no", cpu=not on_gpu), recipe, inputs=inputs)
        rehearse(parts, first_step=0)
        rows = parts.drawn(0)
        began = time.perf_counter()
        accumulate(parts, rows)
        update(parts.optimizer, parts.scaler, max_norm=training.max_grad_norm).tolist()  # waits for the device
        seconds = time.perf_counter() - began
    tokens = sum(len(row.input_ids) for row in rows)
    return [
        [f"a step of {tokens:,} tokens", "estimate", "measured"],
        ["memory, GB", gigabytes(needed.total - needed.overhead), gigabytes(1e9 * (peak_memory_gb() - before))],
        ["time, s", "–", f"{seconds:.2g}"],
    ]
