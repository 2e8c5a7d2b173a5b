"""A model has two methods: ``log_probabilities`` of given answers, and ``write``, which continues prompts.

`Local` computes on this machine; `Served` asks a server. Both methods start the work and return a function that waits
for it and yields outputs as they arrive, by the place of their question; a server's output may be a refusal. This lets
the host encode the next questions while a GPU computes. Prompts and answers are tokens; `moslora.evaluation.scorers`
makes them of questions.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.adapters import SharedInputLayers, describe_task
from moslora.base.decoding import Ended
from moslora.base.engines import Engine, engine_of, generate
from moslora.base.sharded import join_uneven_passes
from moslora.console import say
from moslora.data.encode import Encoder, TokenPair
from moslora.errors import MosloraError, UsageError, counted
from moslora.evaluation.batches import in_batches
from moslora.evaluation.reading import Echo, Reading, ways_to_read
from moslora.evaluation.server import Misread, Refused, Reply, Server, Unavailable
from moslora.kernels.rows import common_prefix
from moslora.processes.devices import keep_freed_memory, wait_for

Item = TypeVar("Item")
Output = TypeVar("Output")

Pairs = Sequence[TokenPair]
"""A question as tokens: prompts, each with the answer that is scored, or with an empty one."""

Wait = Callable[[], Iterator[Mapping[int, Output | Refused]]]
"""Function that waits for started work, and yields outputs by the place of their question."""


@dataclass(frozen=True)
class Writing:
    """Settings of the texts that a model writes for one task.

    Attributes:
        max_new_tokens: largest number of tokens of a text.
        ended: stop test for each prompt, by its place: whether no further tokens can change the answer.
        ends: tokens that end a text.
        search: arguments of transformers' `GenerationConfig` for beam search; ``None`` for greedy decoding.
    """

    max_new_tokens: int
    ended: Ended
    ends: Collection[int]
    search: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Local:
    """A model that computes on this machine, whole or sharded over the processes.

    Attributes:
        model: a causal language model on its device, in evaluation mode.
        tokenizer: decoder of the texts that the model writes.
        batch_tokens: largest number of tokens in a batch.
        temperature: temperature of the softmax from which a text's tokens are drawn; 0 for the likeliest tokens.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_tokens: int
    temperature: float = 0.0

    def __post_init__(self) -> None:
        keep_freed_memory()

    @cached_property
    def engine(self) -> Engine:
        """Engine that computes the model."""
        return engine_of(self.model)

    @cached_property
    def folded_layers(self) -> SharedInputLayers:
        """Adapters whose factors are folded together anew for each call of `log_probabilities` or `write`."""
        return SharedInputLayers(self.model)

    @cached_property
    def alone(self) -> "Local":
        """This model with one question in each batch."""
        return replace(self, batch_tokens=1)

    @property
    def named_ends(self) -> Collection[int]:
        """End tokens in the model's own generation settings."""
        ends = getattr(self.model.generation_config, "eos_token_id", None) or []
        return [ends] if isinstance(ends, int) else ends

    def length(self, question: Pairs, *, one_prompt: bool = False) -> int:
        """Number of a batch's tokens that a question takes. Unless the engine pads rows, the common beginning of the
        question's rows counts once."""
        rows = _rows(question, one_prompt=one_prompt)
        lengths = [len(row) for row in rows]
        if self.engine.pads:
            return len(rows) * max(lengths)
        shared = common_prefix(rows)
        return shared + sum(length - shared for length in lengths)

    def log_probabilities(
        self, questions: Sequence[Pairs], *, task: str | None, one_prompt: bool = False
    ) -> Wait[list[float]]:
        """Sum of the log-probabilities of each answer's tokens, given its prompt, in nats:

        s_j = Σ_t log softmax(h(prompt_j, answer_j,<t) · Wᵀ)[answer_j,t]

        with h the last hidden state and W the output layer.

        Args:
            questions: questions of one task; their order and number decide the batches.
            task: name of the questions' task; ``None`` for texts.
            one_prompt: whether all options of a question have the same prompt, and all questions begin alike.
        """

        def start() -> Wait[list[float]]:
            lengths = [self.length(question, one_prompt=one_prompt) for question in questions]
            started = []
            with self._computing(task):
                for batch in in_batches(lengths, self.batch_tokens):
                    values = self._log_p([questions[place] for place in batch], one_prompt=one_prompt)
                    started.append((batch, values))

            def wait() -> Iterator[Mapping[int, list[float]]]:
                wait_for(self.model.device)
                outputs: dict[int, list[float]] = {}
                for batch, values in started:
                    answers = [answer for place in batch for _, answer in questions[place]]
                    sums = iter([float(each.sum()) for each in values.double().split([len(one) for one in answers])])
                    outputs |= {place: [next(sums) for _ in questions[place]] for place in batch}
                yield {place: outputs[place] for place in range(len(questions))}

            return wait

        if self.model.device.type != "cpu":
            return start()
        return lambda: start()()  # a CPU has nothing to compute with while it encodes

    def _log_p(self, questions: Sequence[Pairs], *, one_prompt: bool) -> Tensor:
        """Log-probability of each answer token of a batch, shape ``(tokens,)``, being copied to the host."""
        rows = [_rows(question, one_prompt=one_prompt) for question in questions]
        groups = [[row for of_question in rows for row in of_question]] if one_prompt else rows
        batch = self.engine.build_batch(groups, self.model.device)
        paths = iter(batch.paths)
        places: list[int] = []  # of the tokens before the scored ones
        targets: list[int] = []
        for question, of_question in zip(questions, rows, strict=True):
            of_rows = cycle([next(paths) for _ in of_question])  # one path per option, or one for all options
            for (prompt, answer), path in zip(question, of_rows, strict=False):
                places += path[len(prompt) - 1 :]
                targets += answer
        return self.engine.log_p(batch, places, targets).to("cpu", non_blocking=True)

    def write(self, prompts: Sequence[list[int]], how: Writing, *, task: str | None) -> Wait[str]:
        """Continue each prompt of one ``task`` with a text."""
        search = self._drawn(how) if self.temperature else how.search

        def wait() -> Iterator[Mapping[int, str]]:
            with self._computing(task):
                if search is None:  # all prompts together, since a row that ends makes room for another
                    written = self.engine.write(
                        prompts,
                        max_new_tokens=how.max_new_tokens,
                        ended=how.ended,
                        ends=how.ends,
                        batch_tokens=self.batch_tokens,
                    )
                else:
                    written = self._search(prompts, search, max_new_tokens=how.max_new_tokens)
            yield dict(enumerate(self.tokenizer.batch_decode(written, skip_special_tokens=True)))

        return wait

    def _drawn(self, how: Writing) -> Mapping[str, Any]:
        """Arguments of transformers' `GenerationConfig` to draw tokens at this temperature."""
        drawn = {"do_sample": True, "temperature": self.temperature, "top_k": 0}
        return {**drawn, "max_new_tokens": how.max_new_tokens, "eos_token_id": sorted(how.ends) or None}

    def _search(
        self, prompts: Sequence[list[int]], search: Mapping[str, Any], *, max_new_tokens: int
    ) -> list[list[int]]:
        """Return the new tokens of each prompt, by transformers' beam search or sampling."""
        written: dict[int, list[int]] = {}
        lengths = [search.get("num_beams", 1) * (len(prompt) + max_new_tokens) for prompt in prompts]
        for batch in in_batches(lengths, self.batch_tokens):
            new = generate(self.engine.model, [prompts[place] for place in batch], search).tolist()
            written |= zip(batch, new, strict=True)
        return [written[place] for place in range(len(prompts))]

    @contextmanager
    def _computing(self, task: str | None) -> Iterator[None]:
        """Within the block, let the model compute questions of ``task``, without gradients. The processes may make
        different numbers of passes of a sharded model.

        Raises:
            MosloraError: a module is in training mode.
        """
        for name, module in self.model.named_modules():
            if module.training:
                raise MosloraError(
                    f"module {name!r} is in training mode, so dropout would add noise to the scores; call model.eval()"
                )
        with torch.inference_mode(), join_uneven_passes(self.model):
            describe_task(self.model, task)
            with self.folded_layers.folded(self.model.dtype):
                yield


def _rows(question: Pairs, *, one_prompt: bool) -> list[list[int]]:
    """Rows of tokens that a model reads for a question: each option without its last token, which is only predicted. If
    all options have the same prompt and one token each, their rows are equal, and one remains."""
    rows = [prompt + answer[:-1] for prompt, answer in question]
    return rows[:1] if one_prompt else rows


@dataclass
class Served:
    """A model behind a server, with the form in which it is asked.

    Attributes:
        server: server, with the name of the model.
        encoder: encoder of the questions.
        at_once: number of questions that are asked at the same time.
        probe: question on which the ways to read log-probabilities are tried; empty if no scored question can be sent.
        reading: reader of log-probabilities; ``None`` if the server returns none.
        as_text: whether prompts are sent as text.
        without_bos: whether prompts of tokens are sent without their BOS, because the server adds one.
    """

    server: Server
    encoder: Encoder
    at_once: int
    probe: Pairs = ()
    reading: Reading | None = None
    as_text: bool = False
    without_bos: bool = False

    alone = None
    named_ends = ()

    def __str__(self) -> str:
        """Form of the prompts and of the log-probabilities, in words."""
        form = "text" if self.as_text else "tokens without BOS" if self.without_bos else "tokens"
        reading = self.reading.says if self.reading else "by its texts alone"
        return f"asked as {form}, {reading}"

    def log_probabilities(
        self, questions: Sequence[Pairs], *, task: str | None, one_prompt: bool = False
    ) -> Wait[list[float]]:
        """Log-probabilities as in `Local.log_probabilities`. If the server ends while it computes log-probabilities of
        prompts, and is there again, it is asked token by token."""

        def wait() -> Iterator[Mapping[int, list[float] | Refused]]:
            remaining = dict(enumerate(questions))
            while remaining:
                try:
                    for place, output in self._each(self._log_p, remaining):
                        del remaining[place]
                        yield {place: output}
                except Unavailable:
                    if not isinstance(self.reading, Echo):
                        raise
                    with suppress(Unavailable, UsageError):
                        self.reading = self.first_reading(after_echo=True)
                    if isinstance(self.reading, Echo):
                        raise
                    self.announce(len(remaining))

        return wait

    def _log_p(self, question: Pairs) -> list[float]:
        """Log-probability of each answer of a question, summed over its tokens, in nats."""
        assert self.reading is not None
        sums = []
        for ids, answer in question:
            value = self.reading.log_p(self.complete, ids, answer)
            if value is None:
                raise Refused("its log-probabilities are not told in whole")
            sums.append(value)
        return sums

    def write(self, prompts: Sequence[list[int]], how: Writing, *, task: str | None) -> Wait[str]:
        """Continue each prompt, as in `Local.write`; the server decodes greedily and ends its texts itself."""

        def text(ids: list[int]) -> str:
            return self.complete(ids, max_tokens=how.max_new_tokens).text or ""

        def wait() -> Iterator[Mapping[int, str | Refused]]:
            for place, output in self._each(text, dict(enumerate(prompts))):
                yield {place: output}

        return wait

    def _each(self, ask: Callable[[Item], Output], items: Mapping[int, Item]) -> Iterator[tuple[int, Output | Refused]]:
        """Yield for each item its place with what ``ask`` returns, or with the server's refusal, as answers arrive.

        Raises:
            Unavailable: the server does not answer.
        """

        def reply(place: int) -> tuple[int, Output | Refused]:
            try:
                return place, ask(items[place])
            except Refused as refusal:
                return place, refusal

        try:
            yield from each_reply(reply, list(items), at_once=self.at_once)
        except Unavailable as fault:
            raise Unavailable(f"{fault}, {self}") from None

    def announce(self, count: int) -> None:
        """Print in which form ``count`` questions are sent to the server."""
        say(f"asking {counted(count, 'question')} of {self.server.name}, {self}")

    def complete(self, ids: list[int], *, max_tokens: int = 1, **fields: Any) -> Reply:
        """Let the server continue a prompt greedily.

        Raises:
            Refused: the server refuses the prompt, or reads more or fewer tokens than were sent.
        """
        return self.server.complete(self.prompt(ids), max_tokens=max_tokens, **fields).of_prompt(len(ids))

    def prompt(self, ids: list[int]) -> str | list[int]:
        """Return a prompt in the form in which it is sent.

        Raises:
            Refused: the server adds a BOS and the prompt begins without one; or the prompt must be sent as text, and no
                text has its tokens, because its start was cut.
        """
        tokenizer = self.encoder.tokenizer
        if self.without_bos and ids[0] != tokenizer.bos_token_id:
            raise Refused("it has no BOS to be left out")
        if not self.as_text:
            return ids[self.without_bos :]
        added = len(self.encoder.encode("", "", eos=False).ids)  # a BOS that the tokenizer adds
        text = str(tokenizer.decode(ids[added:]))
        if self.encoder.encode(text, "", eos=False).ids != ids:
            raise Refused("its text does not lead to the run's tokens")
        return text

    def first_reading(self, *, after_echo: bool = False) -> Reading:
        """Return the first reader of log-probabilities that works for the probe. If the server ends, the next reader is
        tried. ``after_echo``: skip the reader `Echo`, over which the server has ended before.

        Raises:
            UsageError: the server returns no log-probabilities.
            Unavailable: the server has ended twice.
            MosloraError: the server reads another prompt than the one that was sent.
        """
        answers = [answer for _, answer in self.probe]
        ways = ways_to_read(self.encoder.tokenizer)
        misread = ended = None
        if self.without_bos:
            ways = ways[:1]  # only Echo shows which token the server adds
            misread = Misread("it adds a token to those that are sent, and does not show that this is BOS")
        impatient = replace(self, server=replace(self.server, patient=False))
        for way in ways[after_echo:]:
            try:
                if answers and way.works(impatient.complete, self.probe[0][0], answers):
                    return way
            except Misread as fault:
                misread = fault
            except Refused:
                continue
            except Unavailable as fault:
                if ended:
                    raise
                ended = fault
        if ended:
            raise ended
        if misread:
            raise MosloraError(f"{self.server.name}: {misread}")
        raise UsageError(
            f"{self.server.name}: returns no log-probabilities, which score the options; compare texts that run and"
            " server write instead: --protocol generate"
        )


def open_served(server: Server, encoder: Encoder, questions: Sequence[Pairs], *, at_once: int) -> Served:
    """Find the form in which a server takes prompts: tokens, tokens without BOS, or text. The shortest of the questions
    is tried, because the server's context may be short.

    Raises:
        UsageError: the server returns no log-probabilities, and the questions need them.
        Refused: the server takes no form.
        Unavailable: the server does not answer.
    """
    served = Served(server, encoder, at_once)
    if not questions:  # nothing is asked
        return served
    by_length = sorted(questions, key=lambda pairs: max(len(prompt) + len(answer) for prompt, answer in pairs))
    served = _in_a_form_it_takes(served, by_length[0][0][0])
    scored = [pairs for pairs in by_length if pairs[0][1]]
    for pairs in scored:
        with suppress(Refused):
            served.prompt(pairs[0][0])
            served.probe = pairs
            break
    if scored:
        served.reading = served.first_reading()
    served.announce(len(questions))
    return served


def _in_a_form_it_takes(served: Served, ids: list[int]) -> Served:
    """Return a copy of ``served`` that sends prompts in the first form (tokens, tokens without BOS, text) that the
    server takes.

    Both forms of tokens are tried with the prompt ``ids``, and text with a prompt of one letter.
    """
    impatient = replace(served.server, patient=False)
    for without_bos in (False, True):
        with suppress(Refused):
            replace(served, server=impatient, without_bos=without_bos).complete(ids)
            return replace(served, without_bos=without_bos)
    served.server.complete("a")
    return replace(served, as_text=True)


def each_reply(ask: Callable[[Item], Output], items: Sequence[Item], *, at_once: int) -> Iterator[Output]:
    """Yield what ``ask`` returns for each item, in the order of completion; raise the first error that ``ask`` raises.

    The pool's threads are daemons, so that Ctrl-C ends the program while a server has not answered.
    """
    with ThreadPool(at_once) as pool:
        yield from pool.imap_unordered(ask, items)


Model = Local | Served
"""A model that answers the questions of an evaluation."""
