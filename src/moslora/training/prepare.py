"""Preparation of a training: rows, model, adapters, optimizer and plan of steps."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.amp import GradScaler
from transformers import PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.adapters import task_names
from moslora.base.adapted import adapted_layers, adapters_of, own_parameters, with_adapters
from moslora.base.failures import fitting
from moslora.base.identity import fingerprint
from moslora.base.load import choose_engine_of, in_files, load_tokenizer, read_base, stored_names
from moslora.base.shapes import independent_length
from moslora.base.sharded import read_on_host, shard_base, shards
from moslora.choices import Strategy
from moslora.data.encode import Encoder
from moslora.data.prepared import RunRows, TrainingData
from moslora.data.steps import StepPlan, default_micro_batch_tokens
from moslora.errors import MosloraError, UsageError
from moslora.processes.devices import keep_freed_memory
from moslora.recipe import Recipe
from moslora.runs.adapted_model import check_base
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.best import Best
from moslora.runs.continued import Continued
from moslora.training.budget import RankBudget
from moslora.training.loop import TrainState
from moslora.training.objective import LabelLoss
from moslora.training.optimizer import build_optimizer
from moslora.training.questions import refuse_too_few_questions
from moslora.training.selection import Selection


@dataclass(frozen=True)
class Inputs:
    """Inputs of a run, fetched, converted and encoded once per machine, with the fingerprint of the base's weights."""

    data: TrainingData
    plan: StepPlan
    base: str
    tokenizer: PreTrainedTokenizerBase


def gather_inputs(recipe: Recipe) -> Inputs:
    """Download and encode the inputs of ``recipe``. It needs no exchange between processes, so it may take long."""
    adapters_of(recipe).settings(recipe)  # says what is wrong before anything is downloaded
    encoder = Encoder(load_tokenizer(recipe.model), max_length=recipe.data.max_length)
    base = fingerprint(recipe.model.name, revision=recipe.model.revision)
    data = RunRows.of(recipe, encoder).prepare()
    refuse_too_few_questions(recipe.training, data)
    plan = StepPlan(recipe.training, rows=len(data.rows), seed=recipe.seed)
    return Inputs(data, plan, base, encoder.tokenizer)


def prepare(
    accelerator: Accelerator,
    recipe: Recipe,
    start: AdapterFolder | Continued | None = None,
    *,
    inputs: Inputs | None = None,
) -> tuple[TrainState, TrainingData]:
    """Load and build everything that ``recipe`` trains with. The adapters take the weights of ``start``, if given."""
    keep_freed_memory()
    set_seed(recipe.seed)
    if inputs is None:
        inputs = gather_inputs(recipe)
    strategy = recipe.training.strategy
    device = accelerator.device
    on_host = read_on_host(strategy, recipe.model, device)
    if on_host:
        device = torch.device("cpu")
    sharding = "" if strategy == "fsdp" else "training.strategy=fsdp on several GPUs, "
    if isinstance(start, AdapterFolder):
        check_base(start)
    with fitting(recipe.model, sharding=sharding):
        model = read_base(recipe.model, device=device, computed_here=not on_host)
        model = adapt(model, recipe, start=start)
        choose_engine_of(model, recipe.model, computed_here=not on_host)
        objective = distribute(LabelLoss(model), accelerator, strategy)
    budget = None
    if recipe.training.rank_budget is not None:
        budget = RankBudget(model, recipe.training.rank_budget, total=len(inputs.plan))
    tokens = recipe.training.micro_batch_tokens
    if tokens is None:
        tokens = default_micro_batch_tokens(on_gpu=accelerator.device.type != "cpu")
    state = TrainState(
        accelerator=accelerator,
        settings=recipe.training,
        model=model,
        tasks=task_names(model),
        objective=objective,
        optimizer=build_optimizer(model, recipe.training),
        scaler=GradScaler(accelerator.device.type, enabled=recipe.model.dtype == "float16"),
        rows=inputs.data.rows,
        replay=inputs.data.replay,
        plan=inputs.plan,
        micro_batch_tokens=tokens,
        budget=budget,
        # Steps at which a rank budget still has entries to drop are not chosen.
        selection=Selection(recipe.training, budget.reached_at if budget else 1, Best(recipe.training.best_by)),
    )
    return state, inputs.data


def _refuse_dependent_rows(config: PretrainedConfig, max_length: int) -> None:
    """Refuse rows so long that their result depends on the longest row of their pass."""
    length = independent_length(config)
    if length is not None and max_length > length:
        raise UsageError(
            f"data.max_length = {max_length}: beyond {length:,} tokens this model's RoPE makes a row's result depend"
            f" on the longest row beside it; set at most {length}"
        )


def adapt(model: PreTrainedModel, recipe: Recipe, *, start: AdapterFolder | Continued | None = None) -> PreTrainedModel:
    """Put the adapters of ``recipe`` into ``model``, in place, with the weights of ``start`` if given.

    Raises:
        MosloraError: ``start`` does not fit.
        UsageError: no layer matches; the output layer matches, whose weight scoring reads; matching layers are one
            tensor in the files; trained weights have 16 bits; or a row's result would depend on the longest row of its
            pass.
    """
    _refuse_dependent_rows(model.config, recipe.data.max_length)
    output = model.get_output_embeddings()
    stored = stored_names(model)
    weights = start.weights() if start else None
    try:
        model = with_adapters(model, recipe, state=weights)
    except ValueError as error:
        if start:
            raise MosloraError(f"{start.path}: does not fit this run: {error}") from None
        raise UsageError(f"adapter: {error}") from None
    in_files(adapted_layers(model), stored)
    if model.get_output_embeddings() is not output:
        raise UsageError("adapter.target_modules: matches the output layer, which cannot be adapted; remove it")
    if any(p.requires_grad and p.dtype.itemsize < 4 for p in model.parameters()):
        raise UsageError(
            "adapter: its weights are trained in 16 bits, in which small updates are lost; set model.dtype: float32"
        )
    return model


def distribute(objective: LabelLoss, accelerator: Accelerator, strategy: Strategy) -> LabelLoss:
    """Make several processes compute ``objective`` together: each with the whole base (``ddp``), or with a share of it
    (``fsdp``).

    With both, every process holds whole adapters, which start as rank 0's, because a start may come from a
    decomposition that another machine rounds differently. `GradientSum` adds their gradients up once a step. Adapters
    are not sharded: that would save a process 16 (1 − 1/n) bytes per trainable parameter, but they would be gathered
    twice for every micro-batch. On 8 GPUs 0.4 GB for LLaMA-3-8B at rank 16 on five projections (28 million), and 1.9 GB
    for 70B (139 million). Sharding the base saves 12 and 120 GB.
    """
    if shards(strategy):
        shard_base(objective.model, device=accelerator.device)
    if accelerator.num_processes > 1:
        own = own_parameters(objective.model)
        for weight in objective.model.parameters():
            if weight in own:
                dist.broadcast(weight.detach(), src=0)
    return objective
