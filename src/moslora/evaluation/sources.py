"""What answers an evaluation: a target that is loaded here, or a server in its place."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from moslora.base.identity import fingerprint, packages
from moslora.console import note
from moslora.data.encode import Encoder
from moslora.errors import UsageError, counted
from moslora.evaluation.batches import batch_budget, block_size
from moslora.evaluation.evaluator import PreparedQuestions, conditions_of
from moslora.evaluation.journal import Journal
from moslora.evaluation.loading import load_model, tokenizer_of
from moslora.evaluation.model import Local, Served, open_served
from moslora.evaluation.request import Request
from moslora.evaluation.server import Server
from moslora.evaluation.target import Target
from moslora.kernels import liger
from moslora.processes.devices import device
from moslora.processes.group import take_gpu
from moslora.prompts.protocols import PROTOCOLS
from moslora.runs.conditions import Conditions, Endpoint, Weights, without_double
from moslora.runs.manifest import WEIGHTS
from moslora.tasks import Example

Questions = Mapping[str, Sequence[Example]]
"""Task -> all its questions."""


class Here:
    """A target that is loaded on this device, which is taken first."""

    ending = ""

    def __init__(self, target: Target) -> None:
        take_gpu()
        self.target = target

    def conditions(self, request: Request, questions: Questions, encoder: Encoder) -> Conditions:
        """Return the conditions of an evaluation by the target, which need not be loaded."""
        model = self.target.model
        adapter = self.target.adapter
        quantization: str | None = model.quantization
        if quantization == "nf4" and not model.double_quantization:
            quantization = without_double(quantization)
        answered_by = Weights(
            dtype=model.dtype,
            device=device().type,
            batch_tokens=request.batch_tokens or batch_budget(device()),
            block_size=block_size(device().type, writes=PROTOCOLS[request.protocol].writes),
            base=model.name,
            fingerprint=fingerprint(model.name, revision=model.revision),
            adapter=adapter.manifest["sha256"][WEIGHTS] if adapter else None,
            quantization=quantization,
        )
        by_peft = adapter is not None and adapter.recipe.adapter.needs_peft
        versions = packages(quantized=quantization is not None, peft=by_peft)
        return conditions_of(request, questions, encoder, answered_by, versions)

    def open(self, prepared: PreparedQuestions, open_journal: Callable[[], Journal]) -> tuple[Local, Journal]:
        """Return the model, loaded, and the journal, which is opened after it: a model that does not load leaves no
        folder."""
        liger.agree()
        assert isinstance(prepared.conditions.answered_by, Weights)
        batch_tokens = prepared.conditions.answered_by.batch_tokens
        return Local(load_model(self.target), tokenizer_of(self.target), batch_tokens), open_journal()


@dataclass(frozen=True)
class There:
    """A server that is asked in place of a target, so many questions ``at_once``."""

    server: Server
    at_once: int

    @property
    def ending(self) -> str:
        """End of the name of the results folder."""
        return f"-at-{name_of(self.server)}"

    def conditions(self, request: Request, questions: Questions, encoder: Encoder) -> Conditions:
        """Return the conditions of an evaluation by the server, of which nobody knows what it computes.

        Raises:
            UsageError: texts would be written by beam search, which no server does.
        """
        if PROTOCOLS[request.protocol].writes and request.beams > 1:
            raise UsageError(f"{request.beams} beams: servers write greedily; evaluate with --beams 1")
        return conditions_of(request, questions, encoder, Endpoint(self.server.address, self.server.model), {})

    def open(self, prepared: PreparedQuestions, open_journal: Callable[[], Journal]) -> tuple[Served, Journal]:
        """Return the server, and how it is to be asked what is missing in the journal, and the journal.

        Nobody knows whether answers that are there are of what is served now.
        """
        journal = open_journal()
        if journal.predictions and journal.folder:
            known = counted(len(journal.predictions), "question")
            note(f"{known} answered in an earlier call: remove {journal.folder} if something else is served since")
        served = open_served(self.server, prepared.encoder, prepared.missing(journal), at_once=self.at_once)
        return served, journal


Source = Here | There


def name_of(server: Server) -> str:
    """A server and its model, as part of a folder's name."""
    address = server.address.partition("://")[2]
    return re.sub(r"[^\w.-]+", "-", f"{address}-{server.model}").strip("-.")
