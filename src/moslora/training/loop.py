"""The training algorithm. Folders and metrics are in ``train.py``, data in ``prepare.py``, checkpoints in
``checkpoints.py``."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters import AdapterLinear, SharedInputLayers, describe_batch, layers_of, shares_beginnings
from moslora.base.engines import Engine, engine_of
from moslora.data.encode import Encoded
from moslora.data.prepared import Replay, RowTable
from moslora.data.steps import MicroBatch, StepPlan, collate, label_count, largest_micro_batch, micro_batches_of
from moslora.errors import Diverged
from moslora.process_rank import local_world_size, world_size
from moslora.processes.devices import gpu_module
from moslora.recipe import TrainingSection
from moslora.training.budget import RankBudget
from moslora.training.gradients import GradientSum
from moslora.training.optimizer import make_moments, rate_factor, set_rate, update
from moslora.training.selection import Selection

SKIPS_IN_A_ROW = 10
"""Most overflows in a row that the float16 scaler may skip. Each halves its scale, which starts at 2¹⁶."""

BUCKETS = 4
"""Number of buckets in which gradients are sent to other machines, which takes longer than between the GPUs of one."""


@dataclass(frozen=True)
class TrainState:
    """Everything that one run trains with; the same on every process."""

    accelerator: Accelerator
    settings: TrainingSection
    model: PreTrainedModel
    objective: nn.Module  # the loss of the model
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rows: RowTable
    plan: StepPlan
    micro_batch_tokens: int  # most of one forward pass
    replay: Replay | None = None
    tasks: tuple[str, ...] = ()  # names by number, for gates that route by task
    budget: RankBudget | None = None
    selection: Selection = field(default_factory=Selection)

    @cached_property
    def adapters(self) -> Sequence[AdapterLinear]:
        """Our adapters, in the model's order."""
        return layers_of(self.model)

    @cached_property
    def folded_layers(self) -> SharedInputLayers:
        """Our adapters, grouped by the input that they share."""
        return SharedInputLayers(self.model, parts=self._buckets)

    @cached_property
    def gradients(self) -> GradientSum:
        """Sum of the gradients over the processes."""
        learned = [weight for weight in self.model.parameters() if weight.requires_grad]
        if self.accelerator.num_processes == 1:
            learned = []
        return GradientSum(learned, buckets=self._buckets)

    @property
    def _buckets(self) -> int:
        """Number of buckets in which gradients are added up over the processes.

        It is one within a machine; with gradient checkpointing, as factors cannot be folded in parts; and over a
        sharded base, which has exchanges of its own in a backward pass.
        """
        if world_size() == local_world_size() or self.settings.strategy == "fsdp":
            return 1
        recomputes = any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())
        return 1 if recomputes else BUCKETS

    @cached_property
    def engine(self) -> Engine:
        """Engine that computes the model: ours, or transformers' own forward (`moslora.base.engines`)."""
        return engine_of(self.model)

    @cached_property
    def _shares(self) -> list[bool]:
        """Whether a beginning that all rows share is computed once, which needs training without dropout."""
        return [shares_beginnings(self.model, training=training) for training in (False, True)]

    @property
    def looks_ahead(self) -> bool:
        """Whether a step may start before the numbers of the last step are read. Not with a rank budget, which changes
        weights by these numbers, nor on a CPU, where it would only delay them."""
        return self.budget is None and self.accelerator.device.type != "cpu"

    def drawn(self, step: int) -> list[Encoded]:
        """Rows of a step, and the replayed texts beside them; the same on every process."""
        rows = [self.rows[row] for row in self.plan[step]]
        if self.replay is not None:
            rows += self.replay.beside(step, rows)
        return rows

    def passes(self, rows: Sequence[Encoded]) -> list[list[Encoded]]:
        """This process's share of ``rows``, by micro-batch."""
        return micro_batches_of(
            rows,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            tokens=self.micro_batch_tokens,
            pads=self.engine.pads,
        )

    def micro_batch(self, rows: Sequence[Encoded], *, training: bool) -> MicroBatch:
        """Batch of ``rows`` on this process's device, for a training pass if ``training``, else without dropout."""
        share = self._shares[training]
        device = self.accelerator.device
        return collate(rows, device=device, tasks=self.tasks, share=share, build_batch=self.engine.build_batch)


def train(
    state: TrainState,
    *,
    first_step: int,
    report: Callable[..., None],
    checkpoint: Callable[[int], object],
    validate: Callable[[int], bool],
    stop_requested: Callable[[], bool],
) -> int:
    """Run the steps from ``first_step`` on.

    Args:
        first_step: optimizer updates already done.
        report: called after each update with its number, ``tokens`` (no padding), ``examples`` and metrics by name.
        checkpoint: called on every process with the number of updates done: every ``checkpoint_every`` updates, after
            the last one, and after a new best validation if the result is the best step.
        validate: called on every process with the number of updates done: with 0 before a run's first step, every
            ``validate_every`` updates, and after the last planned one; passes its result to ``state.selection``, and
            returns whether it is the best so far.
        stop_requested: called after each step, on every process; one ``True`` stops all.

    Returns:
        The number of updates done: ``len(state.plan)``, or fewer after a stop, or where patience ran out. The last
        one has a checkpoint.

    Raises:
        Diverged: a loss or gradient is not finite.
    """
    settings = state.settings
    optimizer = state.optimizer
    total = len(state.plan)
    warmup = settings.warmup(total)
    overflows_in_a_row = 0
    started = None  # the gradient of the next step, after its first forward pass
    state.objective.train()
    if state.selection.patience_ran_out:  # the run was killed after its last step
        return first_step
    if first_step == 0:
        validate(0)
    for step in range(first_step, total):
        rows = state.drawn(step)
        if started is None:
            started = start_step(state, step)
        set_rate(optimizer, rate_factor(step, schedule=settings.schedule, warmup_steps=warmup, total_steps=total))

        losses = accumulate(state, rows, started)
        norm = update(optimizer, state.scaler, max_norm=settings.max_grad_norm)
        done = step + 1
        validates = done % settings.validate_every == 0 or done == total
        saves = done % settings.checkpoint_every == 0 or done == total
        numbers = _reduced(state.accelerator, losses, norm, stop=stop_requested())
        started = None
        if state.looks_ahead and not (validates or saves):
            # The host waits, once a step, for the numbers; the device has the next pass to compute then.
            started = start_step(state, done)
        loss, penalty, stop, gradient_norm = numbers()

        is_finite = math.isfinite(loss + penalty + gradient_norm)
        if is_finite:
            overflows_in_a_row = 0
        else:
            overflows_in_a_row += 1
            if not state.scaler.is_enabled() or overflows_in_a_row == SKIPS_IN_A_ROW:
                raise _not_finite(step, loss=loss + penalty, norm=gradient_norm, rows=rows)

        values = {"loss": loss, "grad_norm": gradient_norm, "learning_rate": optimizer.param_groups[0]["lr"]}
        if state.budget is not None:
            values |= state.budget.prune(done, skipped=not is_finite)
        if penalty:
            values["penalty"] = penalty

        report(done, tokens=sum(len(row.input_ids) for row in rows), examples=len(rows), **values)
        is_best = validates and validate(done)
        ends = stop or done == total or state.selection.patience_ran_out
        if ends or saves or (is_best and settings.result == "best"):
            checkpoint(done)
        if ends:
            return done
    return total


def _reduced(accelerator: Accelerator, losses: Tensor, norm: Tensor, *, stop: bool) -> Callable[[], list[float]]:
    """Start to add up loss, penalty and stop requests over all processes; return a function that waits for the sums,
    and for the gradient's norm.

    They are reduced together, once a step; the norm is the same everywhere. The function waits for these numbers alone,
    and not for work that the device was given later.
    """
    own = torch.cat([losses, losses.new_full((1,), stop)])
    everyones = accelerator.reduce(own, reduction="sum")
    numbers = torch.cat([everyones, norm.to(own)[None]]).to("cpu", non_blocking=True)
    if own.device.type == "cpu":
        return numbers.tolist
    copied = gpu_module().Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        values: list[float] = numbers.tolist()
        return values

    return read


def rehearse(state: TrainState, *, first_step: int) -> None:
    """Before training, compute the step from ``first_step`` on that has the largest pass, and discard its gradient.

    So a GPU's memory that is too small shows at once, not after hours. The optimizer's moments are created before, so
    that they take memory as in every step but the first, and are kept. The training's results are the same, bit for
    bit.
    """
    lengths = state.rows.lengths()
    processes = state.accelerator.num_processes

    def size_of_largest_pass(step: int) -> int:
        drawn = [lengths[row] for row in state.plan[step]]
        if state.replay is not None:
            drawn = [len(row.input_ids) for row in state.drawn(step)]
        tokens = state.micro_batch_tokens
        return largest_micro_batch(drawn, processes=processes, tokens=tokens, pads=state.engine.pads)

    step = max(range(first_step, len(state.plan)), key=size_of_largest_pass)
    make_moments(state.optimizer)
    state.objective.train()
    accumulate(state, state.drawn(step))


def seed_step(seed: int, *, step: int, process: int) -> None:
    """Seed every device's default generator, which dropout uses, for one step of one process."""
    digest = hashlib.sha256(f"{seed}/{step}/{process}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def start_step(state: TrainState, step: int) -> Iterator[Tensor]:
    """Start the gradient of ``step``: its first forward pass is launched, and `accumulate` computes the rest."""
    seed_step(state.plan.seed, step=step, process=state.accelerator.process_index)
    gradient = _gradient(state, state.drawn(step))
    next(gradient)
    return gradient


def accumulate(state: TrainState, rows: Sequence[Encoded], started: Iterator[Tensor] | None = None) -> Tensor:
    """Compute the gradient of one step, and return this process's share of its loss.

    The step's loss is (1/N) Σ −log p(label) over the N label tokens of all its rows. It does not depend on the number
    of processes or micro-batches. A mixer's penalty is averaged over the micro-batches, weighted by their tokens. A
    gate's balance is not linear in the rows, so each micro-batch has its own.

    Args:
        rows: of the whole step, the same on every process.
        started: what `start_step` returned for them.

    Returns:
        Float32 ``(2,)``, label loss and penalty; the shares of all processes add up to the step's.
    """
    *_, share = started or _gradient(state, rows)
    return share


def _gradient(state: TrainState, rows: Sequence[Encoded]) -> Iterator[Tensor]:
    """Add up the gradient of a step. Yield once after the first forward pass, so that the caller can go on, and at the
    end this process's share of the loss."""
    passes = state.passes(rows)
    labels = label_count(rows)
    tokens = sum(len(row.input_ids) for row in rows)
    share = torch.zeros(2, device=state.accelerator.device)
    gradient = state.scaler.scale(torch.ones_like(share))
    state.optimizer.zero_grad()
    for number, of_pass in enumerate(passes, start=1):
        batch = state.micro_batch(of_pass, training=True)
        weight = sum(len(row.input_ids) for row in of_pass) / tokens
        with state.folded_layers.folded(state.model.dtype):
            loss, penalty = state.objective(batch)
            losses = torch.stack([loss / labels, penalty * weight])
            if number == 1:
                yield share
            if number == len(passes):
                state.gradients.start()
            losses.backward(gradient)
        share += losses.detach()
    state.gradients.finish()
    describe_batch(state.adapters)  # forget the batch
    yield share


def _not_finite(step: int, *, loss: float, norm: float, rows: Sequence[Encoded]) -> Diverged:
    """Error that names the step, its numbers and its rows."""
    ids = ", ".join(row.id for row in rows)
    return Diverged(
        f"step {step + 1}: loss {loss:g}, gradient norm {norm:g}: not finite, so the run stops. Rows of this step:"
        f" {ids}. Try a lower training.learning_rate or model.dtype=bfloat16"
    )
