"""The training algorithm. Folders, data and checkpoints are in ``run.py``."""

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters import Families, describe_batch, shares_beginnings
from moslora.data.encode import Encoded
from moslora.data.steps import MicroBatch, StepPlan, collate, label_count, largest_pass, passes
from moslora.errors import Diverged
from moslora.recipe import TrainingSection
from moslora.training.budget import RankBudget
from moslora.training.optimizer import make_moments, rate_factor, set_rate, update

SKIPS_IN_A_ROW = 10
"""Overflows in a row that the float16 scaler may skip: each halves its scale, which starts at 2¹⁶."""


@dataclass(frozen=True)
class Parts:
    """Everything one run trains with; the same on every process."""

    accelerator: Accelerator
    model: PreTrainedModel
    objective: nn.Module  # the loss of the model, as the processes compute it together
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rows: Sequence[Encoded]
    plan: StepPlan
    micro_batch_tokens: int  # most of one forward pass
    tasks: tuple[str, ...] = ()  # names by number, for gates that route by task
    budget: RankBudget | None = None

    @cached_property
    def families(self) -> Families:
        """The adapters."""
        return Families(self.model)

    def drawn(self, step: int) -> list[Encoded]:
        """The rows of a step, the same on every process."""
        return [self.rows[row] for row in self.plan[step]]

    def passes(self, rows: Sequence[Encoded]) -> list[list[Encoded]]:
        """This process's share of ``rows``, by micro-batch."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        return passes(rows, process=process, processes=processes, tokens=self.micro_batch_tokens)

    def micro_batch(self, rows: Sequence[Encoded], *, training: bool) -> MicroBatch:
        """``rows`` on this process's device, laid for a pass in training or without dropout."""
        share = shares_beginnings(self.model, training=training)
        return collate(rows, device=self.accelerator.device, tasks=self.tasks, share=share)


def train(
    parts: Parts,
    settings: TrainingSection,
    *,
    first_step: int,
    report: Callable[..., None],
    checkpoint: Callable[[int], object],
    validate: Callable[[int], None],
    stop_requested: Callable[[], bool],
) -> int:
    """Runs the steps from ``first_step`` on.

    Args:
        first_step: optimizer updates already done.
        report: called after each update with its number, ``tokens`` (no padding), ``examples`` and metrics by name.
        checkpoint: called with the number of updates done, on every process; ``validate`` too.
        stop_requested: called after each step on every process; one true stops all.

    Returns:
        The number of updates done: ``len(parts.plan)``, or fewer after a stop, which saves a checkpoint.

    Raises:
        Diverged: a loss or gradient is not finite.
    """
    optimizer, scaler, total = parts.optimizer, parts.scaler, len(parts.plan)
    warmup, skipped, first = settings.warmup(total), 0, None
    parts.objective.train()
    for step in range(first_step, total):
        drawn, done = parts.drawn(step), step + 1
        seed_step(parts.plan.seed, step=step, process=parts.accelerator.process_index)
        set_rate(optimizer, rate_factor(step, schedule=settings.schedule, warmup_steps=warmup, total_steps=total))

        losses = accumulate(parts, drawn, first)
        gradient_norm = update(optimizer, scaler, max_norm=settings.max_grad_norm)
        # One small reduction a step: the losses of all processes, and whether anyone wants to stop.
        shared = torch.cat([losses, losses.new_full((1,), stop_requested())])
        numbers = torch.cat([parts.accelerator.reduce(shared, reduction="sum"), gradient_norm.to(shared)[None]])
        # The next step's first pass is laid before the host waits, once a step, for what is the same everywhere.
        first = parts.micro_batch(parts.passes(parts.drawn(done))[0], training=True) if done < total else None
        loss, penalty, stop, norm = numbers.tolist()
        finite = math.isfinite(loss + penalty + norm)
        skipped = 0 if finite else skipped + 1
        if not finite and (not scaler.is_enabled() or skipped >= SKIPS_IN_A_ROW):
            raise _not_finite(step, loss=loss + penalty, norm=norm, drawn=drawn)

        extras = parts.budget.update(done, skipped=not finite) if parts.budget else {}
        optimizer.zero_grad()

        if penalty:
            extras["penalty"] = penalty
        values = {"loss": loss, "grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"], **extras}
        report(done, tokens=sum(len(row.input_ids) for row in drawn), examples=len(drawn), **values)
        if done % settings.validate_every == 0 or done == total:
            validate(done)
        if stop or done % settings.checkpoint_every == 0 or done == total:
            checkpoint(done)
        if stop:
            return done
    return total


def rehearse(parts: Parts, *, first_step: int) -> None:
    """Computes the step with the largest pass of any process, from ``first_step`` on, and throws its gradient away:
    what does not fit into a GPU's memory says so now, not in hours.

    The optimizer's moments are there by then, as in any step but the first; they stay, and training changes by no bit.
    """
    lengths, processes = [len(row.input_ids) for row in parts.rows], parts.accelerator.num_processes

    def largest(step: int) -> int:
        drawn = [lengths[row] for row in parts.plan[step]]
        return largest_pass(drawn, processes=processes, tokens=parts.micro_batch_tokens)

    make_moments(parts.optimizer)
    parts.objective.train()
    accumulate(parts, parts.drawn(max(range(first_step, len(parts.plan)), key=largest)))
    parts.optimizer.zero_grad()


def settle_order(parts: Parts) -> None:
    """Computes the gradient of the shortest row, and throws it away.

    After its first backward pass DDP lays the gradients out anew, in the order in which they came. Three processes or
    more add a number up in an order that depends on its place, so the first step after a resumption would be rounded
    in another way than the same step of a run that was not interrupted.
    """
    parts.objective.train()
    accumulate(parts, [min(parts.rows, key=lambda row: len(row.input_ids))])
    parts.optimizer.zero_grad()


def seed_step(seed: int, *, step: int, process: int) -> None:
    """Seeds every device's default generator, which dropout uses, for one step of one process."""
    digest = hashlib.sha256(f"{seed}/{step}/{process}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def accumulate(parts: Parts, drawn: Sequence[Encoded], first: MicroBatch | None = None) -> Tensor:
    """Adds the gradient of one step, and returns this process's share of its loss.

    The step's loss is (1/N) Σ −log p(label) over the N label tokens of all its rows. It does not depend on the number
    of processes or micro-batches. A mixer's penalty is averaged over the micro-batches, weighted by their tokens; a
    gate's balance is not linear in the rows, so each micro-batch has its own.

    Args:
        drawn: the rows of the whole step, the same on every process.
        first: this process's first micro-batch of them, if it is laid already.

    Returns:
        Float32 ``(2,)``, label loss and penalty; the shares of all processes add up to the step's.
    """
    accelerator, batches = parts.accelerator, parts.passes(drawn)
    labels, total = label_count(drawn), sum(len(row.input_ids) for row in drawn)
    share = torch.zeros(2, device=accelerator.device)
    # DDP averages the gradients over the processes; here they are summed.
    gradient = parts.scaler.scale(torch.full_like(share, accelerator.num_processes))
    for n, rows in enumerate(batches, start=1):
        batch = first if first and n == 1 else parts.micro_batch(rows, training=True)
        weight = sum(len(row.input_ids) for row in rows) / total
        communicate = nullcontext() if n == len(batches) else accelerator.no_sync(parts.objective)
        with communicate, parts.families.folded(parts.model.dtype):
            loss, penalty = parts.objective(batch)
            losses = torch.stack([loss / labels, penalty * weight])
            losses.backward(gradient)
        share += losses.detach()
    describe_batch(parts.objective)  # forget the batch
    return share


def _not_finite(step: int, *, loss: float, norm: float, drawn: Sequence[Encoded]) -> Diverged:
    ids = ", ".join(row.id for row in drawn)
    return Diverged(
        f"step {step + 1}: loss {loss:g}, gradient norm {norm:g}: not finite, so the run stops. Rows of this step:"
        f" {ids}. Try a lower training.learning_rate or model.dtype=bfloat16"
    )
