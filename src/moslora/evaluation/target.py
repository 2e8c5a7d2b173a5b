"""The model that ``moslora eval`` scores: a run, an adapter folder, or any model."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.failures import fitting
from moslora.base.identity import fingerprint
from moslora.base.load import load_base, load_tokenizer
from moslora.base.sharded import read_on_host, shard_base, shards
from moslora.choices import DType, EngineChoice, Strategy
from moslora.console import note, note_once
from moslora.data.encode import Encoder, encoding
from moslora.errors import UsageError
from moslora.evaluation.in_run import refuse_name_of_other_weights
from moslora.evaluation.request import Request
from moslora.processes.devices import device
from moslora.processes.group import group_size
from moslora.recipe import ModelSection, Recipe
from moslora.runs import RUNS
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import AdapterFolder, check_encoding
from moslora.runs.evaluation import refuse_other_scores
from moslora.runs.manifest import WEIGHTS
from moslora.runs.named import Named, read_named
from moslora.runs.run import EVALUATIONS, Run, checkpoint_name, evaluation_name, unfinished


@dataclass(frozen=True)
class Target:
    """A model to score, not loaded yet.

    Attributes:
        model: how it is loaded.
        request: how it is asked: the settings of its recipe, or the defaults.
        recipe: its run's, or what a merged model's folder has of it.
        trained: the adapter folder of its run, also if the base alone is scored; ``None`` for a model without a run.
        base: the run's base is scored, without the adapter.
        strategy: what each of several processes holds.
    """

    model: ModelSection
    request: Request
    recipe: Recipe | None = None
    trained: AdapterFolder | None = None
    base: bool = False
    strategy: Strategy = "ddp"

    @property
    def run(self) -> Run | None:
        return self.trained.run if self.trained else None

    @property
    def adapter(self) -> AdapterFolder | None:
        """The adapter that is scored, if there is one."""
        return None if self.base else self.trained

    def asked(self, typed: Mapping[str, Any]) -> Request:
        """Its request with the ``typed`` fields."""
        request = self.request.with_typed(typed)
        if self.recipe is None and "protocol" not in typed and "format" not in typed:
            note_once(
                f"no recipe says how to ask this model, so it is asked by protocol {request.protocol};"
                " --protocol chooses another"
            )
        elif self.recipe is not None and request.format not in (self.request.format, typed.get("format")):
            note_once(
                f"protocol {request.protocol} cannot read format {self.request.format}; using format {request.format},"
                " which this model was not trained for"
            )
        return request

    def results_folder(self, request: Request, typed: Path | None, *, ending: str = "") -> Path:
        """Where its results are: the ``typed`` folder, which must not hold anything else, by default one of the run's,
        or one that is named by the fingerprint of a model, which is downloaded for it. ``ending``: of the name, for
        a server's results."""
        checkpoint = self.trained and checkpoint_name(self.trained.path)
        suffix = f"-{checkpoint}" if checkpoint else ""
        if self.base:
            suffix = "-base"
        suffix += ending
        name = evaluation_name(request.protocol, request.format, self.model.precision) + suffix
        if typed is not None:
            folder = typed
        elif self.run is not None:
            folder = self.run.path / EVALUATIONS / name
        else:
            model = Path(os.path.expanduser(self.model.name)).name
            folder = RUNS / f"eval-{model}-{fingerprint(self.model.name)[:8]}" / name
        refuse_name_of_other_weights(folder, self.run, suffix=suffix)
        refuse_other_scores(folder)
        return folder

    def load(self) -> PreTrainedModel:
        """The model in evaluation mode on the GPU or else the CPU, sharded if the strategy asks for it."""
        sharded = shards(self.strategy)
        another_way = "--strategy fsdp, " if group_size() > 1 and not sharded else ""
        on_host = read_on_host(self.strategy, self.model, device())
        place = torch.device("cpu") if on_host else device()
        with fitting(self.model, another=another_way):
            if self.adapter is None:
                model = load_base(self.model, device=place, computed_here=not on_host)
            else:
                model = load_adapted(
                    self.adapter,
                    device=place,
                    computed_here=not on_host,
                    dtype=self.model.dtype,
                    engine=self.model.engine,
                )
            if sharded:
                shard_base(model, device=device())
        return model

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer, which must be the one that the run was trained with."""
        tokenizer = load_tokenizer(self.model)
        if self.trained is not None:
            encoder = Encoder(tokenizer, max_length=None)
            check_encoding(self.trained, encoding(encoder, self.trained.recipe.data.format))
        return tokenizer

    def identity(self) -> dict[str, Any]:
        """Facts that identify the model and the arithmetic of its device."""
        facts: dict[str, Any] = {
            "base": self.model.name,
            "fingerprint": fingerprint(self.model.name, revision=self.model.revision),
            "adapter": self.adapter.manifest["sha256"][WEIGHTS] if self.adapter else None,
            "quantization": self.model.quantization,
        }
        if self.model.quantization == "nf4":
            facts["double_quantization"] = self.model.double_quantization
        facts["device"] = device().type
        return facts


def open_target(
    target: str | Named,
    *,
    base: bool = False,
    dtype: DType | None = None,
    engine: EngineChoice | None = None,
    trust_remote_code: bool = False,
    strategy: Strategy | None = None,
) -> Target:
    """The model that ``target`` names: a run, an adapter folder, a model folder, or a hub id.

    Args:
        target: as typed, or as `read_named` has read it.
        base: of a run, the base without the adapter.
        dtype: in place of the recipe's.
        engine: in place of the one that trained the run.
        trust_remote_code: the model's own Python code may run, which a run's recipe cannot allow.
        strategy: in place of the recipe's.
    """
    named = read_named(target, trust_remote_code=trust_remote_code) if isinstance(target, str) else target
    recipe = named.recipe
    trained = named.adapter
    model = recipe.model if recipe else ModelSection(name=named.name)
    changes: dict[str, Any] = {"dtype": dtype or model.dtype, "engine": engine or (trained or model).engine}
    if trained is None:
        changes |= {"name": named.name, "trust_remote_code": trust_remote_code}
    else:
        if strategy == "fsdp" and model.quantization == "int8":
            raise UsageError("--strategy fsdp: int8 layers lose their scales when they are sharded; use ddp")
        remark = unfinished(Path(os.path.expanduser(named.name)), trained.path, doing="scoring")
        if remark and not base:
            note(remark)
        strategy = strategy or trained.recipe.training.strategy
    model = model.model_copy(update=changes)
    return Target(model, Request.of(recipe), recipe, trained, base and trained is not None, strategy or "ddp")


def load(
    run: str | Path, *, dtype: DType | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that ``moslora eval`` would score, on the GPU or else the CPU, in evaluation mode, and its tokenizer.

    >>> model, tokenizer = moslora.load("runs/mine")
    >>> logits = model(**tokenizer("A stone falls.", return_tensors="pt").to(model.device)).logits  # (1, T, vocabulary)

    ``run`` is a run, an adapter folder, or a model without adapters, such as ``moslora merge`` writes. ``dtype`` is
    that of the base and the computation, by default the run's, or bfloat16; A, M and B stay in float32.

    Raises:
        MosloraError: there is no such thing, it is damaged, or it does not fit into the GPU's memory.
    """
    target = open_target(str(run), dtype=dtype, trust_remote_code=trust_remote_code, strategy="ddp")
    return target.load(), target.tokenizer()
