"""The training algorithm. Folders, data and checkpoints are in ``train.py``."""

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters import Families, describe_batch, shares_beginnings
from moslora.base.engines import Engine, engine_of
from moslora.data.encode import Encoded
from moslora.data.steps import MicroBatch, StepPlan, collate, label_count, largest_pass, passes
from moslora.errors import Diverged
from moslora.recipe import TrainingSection
from moslora.training.budget import RankBudget
from moslora.training.optimizer import make_moments, rate_factor, set_rate, update
from moslora.training.selection import Selection

SKIPS_IN_A_ROW = 10
"""Overflows in a row that the float16 scaler may skip: each halves its scale, which starts at 2¹⁶."""


@dataclass(frozen=True)
class Parts:
    """Everything one run trains with; the same on every process."""

    accelerator: Accelerator
    settings: TrainingSection
    model: PreTrainedModel
    objective: nn.Module  # the loss of the model, as the processes compute it together
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rows: Sequence[Encoded]
    plan: StepPlan
    micro_batch_tokens: int  # most of one forward pass
    tasks: tuple[str, ...] = ()  # names by number, for gates that route by task
    budget: RankBudget | None = None
    selection: Selection = field(default_factory=Selection)

    @cached_property
    def families(self) -> Families:
        """The adapters."""
        return Families(self.model)

    @cached_property
    def engine(self) -> Engine:
        """What computes the model."""
        return engine_of(self.model)

    def drawn(self, step: int) -> list[Encoded]:
        """The rows of a step, the same on every process."""
        return [self.rows[row] for row in self.plan[step]]

    def passes(self, rows: Sequence[Encoded]) -> list[list[Encoded]]:
        """This process's share of ``rows``, by micro-batch."""
        return passes(
            rows,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            tokens=self.micro_batch_tokens,
            pads=self.engine.pads,
        )

    def micro_batch(self, rows: Sequence[Encoded], *, training: bool) -> MicroBatch:
        """``rows`` on this process's device, for a pass in training or without dropout."""
        share = shares_beginnings(self.model, training=training)
        device = self.accelerator.device
        return collate(rows, device=device, tasks=self.tasks, share=share, lay=self.engine.lay)


def train(
    parts: Parts,
    *,
    first_step: int,
    report: Callable[..., None],
    checkpoint: Callable[[int], object],
    validate: Callable[[int], bool],
    stop_requested: Callable[[], bool],
) -> int:
    """Runs the steps from ``first_step`` on.

    Args:
        first_step: optimizer updates already done.
        report: called after each update with its number, ``tokens`` (no padding), ``examples`` and metrics by name.
        checkpoint: called with the number of updates done, on every process.
        validate: called likewise, and with 0 before the first step; tells ``parts.selection`` what it found, and
            returns whether it is the best so far.
        stop_requested: called after each step, on every process; one true stops all.

    Returns:
        The number of updates done: ``len(parts.plan)``, or fewer after a stop, or where patience ran out. The last
        one has a checkpoint.

    Raises:
        Diverged: a loss or gradient is not finite.
    """
    settings = parts.settings
    optimizer = parts.optimizer
    total = len(parts.plan)
    warmup = settings.warmup(total)
    overflows_in_a_row = 0
    next_batch = None  # this process's first micro-batch of the step
    parts.objective.train()
    if parts.selection.patience_ran_out:  # the run was killed after its last step
        return first_step
    if first_step == 0:
        validate(0)
    for step in range(first_step, total):
        rows = parts.drawn(step)
        seed_step(parts.plan.seed, step=step, process=parts.accelerator.process_index)
        set_rate(optimizer, rate_factor(step, schedule=settings.schedule, warmup_steps=warmup, total_steps=total))

        losses = accumulate(parts, rows, next_batch)
        norm = update(optimizer, parts.scaler, max_norm=settings.max_grad_norm)
        done = step + 1
        numbers = _reduced(parts.accelerator, losses, norm, stop=stop_requested())
        next_batch = None
        if done < total:
            # It is made before the host waits, once a step, for the numbers.
            next_batch = parts.micro_batch(parts.passes(parts.drawn(done))[0], training=True)
        loss, penalty, stop, gradient_norm = numbers.tolist()

        is_finite = math.isfinite(loss + penalty + gradient_norm)
        if is_finite:
            overflows_in_a_row = 0
        else:
            overflows_in_a_row += 1
            if not parts.scaler.is_enabled() or overflows_in_a_row == SKIPS_IN_A_ROW:
                raise _not_finite(step, loss=loss + penalty, norm=gradient_norm, rows=rows)

        values = {"loss": loss, "grad_norm": gradient_norm, "learning_rate": optimizer.param_groups[0]["lr"]}
        if parts.budget is not None:
            values |= parts.budget.update(done, skipped=not is_finite)
        if penalty:
            values["penalty"] = penalty
        optimizer.zero_grad()

        report(done, tokens=sum(len(row.input_ids) for row in rows), examples=len(rows), **values)
        is_best = False
        if done % settings.validate_every == 0 or done == total:
            is_best = validate(done)
        ends = stop or done == total or parts.selection.patience_ran_out
        if ends or done % settings.checkpoint_every == 0 or (is_best and parts.selection.keeps_best):
            checkpoint(done)
        if ends:
            return done
    return total


def _reduced(accelerator: Accelerator, losses: Tensor, norm: Tensor, *, stop: bool) -> Tensor:
    """The loss, the penalty and the wishes to stop of all processes, and the gradient's norm, ``(4,)``, still on the
    device. They are reduced once a step, together; the norm is the same everywhere."""
    own = torch.cat([losses, losses.new_full((1,), stop)])
    everyones = accelerator.reduce(own, reduction="sum")
    return torch.cat([everyones, norm.to(own)[None]])


def rehearse(parts: Parts, *, first_step: int) -> None:
    """Computes the step with the largest pass of any process, from ``first_step`` on, and throws its gradient away:
    what does not fit into a GPU's memory says so now, not in hours.

    The optimizer's moments are there by then, as in any step but the first; they stay, and training changes by no bit.
    """
    lengths = [len(row.input_ids) for row in parts.rows]
    processes = parts.accelerator.num_processes

    def size_of_largest_pass(step: int) -> int:
        drawn = [lengths[row] for row in parts.plan[step]]
        tokens = parts.micro_batch_tokens
        return largest_pass(drawn, processes=processes, tokens=tokens, pads=parts.engine.pads)

    step = max(range(first_step, len(parts.plan)), key=size_of_largest_pass)
    make_moments(parts.optimizer)
    parts.objective.train()
    accumulate(parts, parts.drawn(step))
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


def accumulate(parts: Parts, rows: Sequence[Encoded], first: MicroBatch | None = None) -> Tensor:
    """Adds the gradient of one step, and returns this process's share of its loss.

    The step's loss is (1/N) Σ −log p(label) over the N label tokens of all its rows. It does not depend on the number
    of processes or micro-batches. A mixer's penalty is averaged over the micro-batches, weighted by their tokens; a
    gate's balance is not linear in the rows, so each micro-batch has its own.

    Args:
        rows: of the whole step, the same on every process.
        first: this process's first micro-batch of them, if it was made already.

    Returns:
        Float32 ``(2,)``, label loss and penalty; the shares of all processes add up to the step's.
    """
    accelerator = parts.accelerator
    passes = parts.passes(rows)
    labels = label_count(rows)
    tokens = sum(len(row.input_ids) for row in rows)
    share = torch.zeros(2, device=accelerator.device)
    # DDP averages the gradients over the processes; here they are summed.
    gradient = parts.scaler.scale(torch.full_like(share, accelerator.num_processes))
    for number, of_pass in enumerate(passes, start=1):
        batch = first
        if batch is None or number > 1:
            batch = parts.micro_batch(of_pass, training=True)
        weight = sum(len(row.input_ids) for row in of_pass) / tokens
        communicating: AbstractContextManager[None] = nullcontext()
        if number < len(passes):
            communicating = accelerator.no_sync(parts.objective)
        with communicating, parts.families.folded(parts.model.dtype):
            loss, penalty = parts.objective(batch)
            losses = torch.stack([loss / labels, penalty * weight])
            losses.backward(gradient)
        share += losses.detach()
    describe_batch(parts.objective)  # forget the batch
    return share


def _not_finite(step: int, *, loss: float, norm: float, rows: Sequence[Encoded]) -> Diverged:
    ids = ", ".join(row.id for row in rows)
    return Diverged(
        f"step {step + 1}: loss {loss:g}, gradient norm {norm:g}: not finite, so the run stops. Rows of this step:"
        f" {ids}. Try a lower training.learning_rate or model.dtype=bfloat16"
    )
