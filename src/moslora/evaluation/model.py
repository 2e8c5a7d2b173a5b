"""A model is two methods: log-probabilities of given answers, and texts that it writes.

`Local` computes them here; `Served` asks a server. Both methods start the work and return a function that waits for it
and yields outputs as they come, by the place of their question; a server's may be a refusal. So the host encodes the
next questions while a GPU computes.
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
"""A question as tokens: prompts, each with an answer that is scored behind it, or without one."""

Wait = Callable[[], Iterator[Mapping[int, Output | Refused]]]
"""Waits for work that was started: yields the place of each question with its output, several together."""


@dataclass(frozen=True)
class Writing:
    """How the texts of one task are written.

    Attributes:
        max_new_tokens: of each text.
        ended: stop test for each prompt, by its place: whether more tokens leave the answer as it is.
        ends: tokens that end a text.
        search: arguments of transformers' `GenerationConfig` for a search by beams; ``None`` for greedy decoding.
    """

    max_new_tokens: int
    ended: Ended
    ends: Collection[int]
    search: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Local:
    """A model that computes here, whole or sharded over the processes.

    Attributes:
        model: a causal language model on its device, in evaluation mode.
        tokenizer: decodes the texts that it writes.
        batch_tokens: maximum number of tokens in a batch.
        temperature: of the softmax from which the tokens of a text are drawn; 0 for the likeliest.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_tokens: int
    temperature: float = 0.0

    def __post_init__(self) -> None:
        keep_freed_memory()

    @cached_property
    def engine(self) -> Engine:
        """What computes the model."""
        return engine_of(self.model)

    @cached_property
    def folded_layers(self) -> SharedInputLayers:
        """The adapters whose factors are folded for each block."""
        return SharedInputLayers(self.model)

    @cached_property
    def alone(self) -> "Local":
        """The same model, which computes each question by itself."""
        return replace(self, batch_tokens=1)

    @property
    def named_ends(self) -> Collection[int]:
        """Tokens that end a text by the model's own generation settings."""
        named = getattr(self.model.generation_config, "eos_token_id", None) or []
        return [named] if isinstance(named, int) else named

    def length(self, question: Pairs, *, one_prompt: bool = False) -> int:
        """Tokens that a question takes of a batch: its common beginning once, unless rows are padded."""
        rows = _rows(question, one_prompt=one_prompt)
        lengths = [len(row) for row in rows]
        if self.engine.pads:
            return len(rows) * max(lengths)
        shared = common_prefix(rows)
        return shared + sum(length - shared for length in lengths)

    def log_probabilities(
        self, questions: Sequence[Pairs], *, task: str | None, one_prompt: bool = False
    ) -> Wait[list[float]]:
        """Sum of log p of each answer's tokens behind its prompt, in nats:

        s_j = Σ_t log softmax(h(prompt_j, answer_j,<t) · Wᵀ)[answer_j,t]

        with h the last hidden state and W the output layer.

        Args:
            questions: of one task; their order and number decide the batches.
            task: the questions' task; ``None`` for texts.
            one_prompt: the options of a question have one prompt, and the prompts of all questions begin alike.
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
        return lambda: start()()  # nothing computes on a CPU while the host does something else

    def _log_p(self, questions: Sequence[Pairs], *, one_prompt: bool) -> Tensor:
        """Log p of the answers' tokens of a batch, end to end; on its way to the host."""
        rows = [_rows(question, one_prompt=one_prompt) for question in questions]
        groups = [[row for its in rows for row in its]] if one_prompt else rows
        batch = self.engine.build_batch(groups, self.model.device)
        paths = iter(batch.paths)
        places: list[int] = []  # of the tokens that a scored one follows
        targets: list[int] = []
        for question, its in zip(questions, rows, strict=True):
            of_rows = cycle([next(paths) for _ in its])  # each option's own, or one for all
            for (prompt, answer), path in zip(question, of_rows, strict=False):
                places += path[len(prompt) - 1 :]
                targets += answer
        return self.engine.log_p(batch, places, targets).to("cpu", non_blocking=True)

    def write(self, prompts: Sequence[list[int]], how: Writing, *, task: str | None) -> Wait[str]:
        """The text that follows each prompt of one ``task``."""

        search = self._drawn(how) if self.temperature else how.search

        def wait() -> Iterator[Mapping[int, str]]:
            with self._computing(task):
                if search is None:  # all together, since a row that ends makes room for another
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
        """Arguments of transformers' `GenerationConfig` for tokens that are drawn at this temperature."""
        drawn = {"do_sample": True, "temperature": self.temperature, "top_k": 0}
        return {**drawn, "max_new_tokens": how.max_new_tokens, "eos_token_id": sorted(how.ends) or None}

    def _search(
        self, prompts: Sequence[list[int]], search: Mapping[str, Any], *, max_new_tokens: int
    ) -> list[list[int]]:
        """The new tokens of each prompt, by beam search or drawn."""
        written: dict[int, list[int]] = {}
        lengths = [search.get("num_beams", 1) * (len(prompt) + max_new_tokens) for prompt in prompts]
        for batch in in_batches(lengths, self.batch_tokens):
            new = generate(self.engine.model, [prompts[place] for place in batch], search).tolist()
            written |= zip(batch, new, strict=True)
        return [written[place] for place in range(len(prompts))]

    @contextmanager
    def _computing(self, task: str | None) -> Iterator[None]:
        """The model computes questions of ``task``; other processes may make other numbers of passes.

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
    """What a model reads of a question: each option but its last token, which is only predicted; equal rows once."""
    rows = [prompt + answer[:-1] for prompt, answer in question]
    return rows[:1] if one_prompt else rows


@dataclass
class Served:
    """A model behind a server, and how it is asked.

    Attributes:
        server: with the model's name.
        encoder: of the questions.
        at_once: number of questions that are asked at the same time.
        probe: a question by which readings are tried; empty if none can be sent.
        reading: how log-probabilities are read; ``None`` if the server returns none.
        as_text: prompts are sent as text.
        without_bos: prompts of tokens are sent without their BOS, because the server adds one.
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
        """How it is asked, in words."""
        form = "text" if self.as_text else "tokens without BOS" if self.without_bos else "tokens"
        reading = self.reading.says if self.reading else "by its texts alone"
        return f"asked as {form}, {reading}"

    def log_probabilities(
        self, questions: Sequence[Pairs], *, task: str | None, one_prompt: bool = False
    ) -> Wait[list[float]]:
        """As `Local.log_probabilities`. A server that ends while it is asked for the log-probabilities of prompts is
        asked token by token, if it is there again."""

        def wait() -> Iterator[Mapping[int, list[float] | Refused]]:
            left = dict(enumerate(questions))
            while left:
                try:
                    for place, output in self._each(self._log_p, left):
                        del left[place]
                        yield {place: output}
                except Unavailable:
                    if not isinstance(self.reading, Echo):
                        raise
                    with suppress(Unavailable, UsageError):
                        self.reading = self.first_reading(after_echo=True)
                    if isinstance(self.reading, Echo):
                        raise
                    self.announce(len(left))

        return wait

    def _log_p(self, question: Pairs) -> list[float]:
        assert self.reading is not None
        sums = []
        for ids, answer in question:
            value = self.reading.log_p(self.complete, ids, answer)
            if value is None:
                raise Refused("its log-probabilities are not told in whole")
            sums.append(value)
        return sums

    def write(self, prompts: Sequence[list[int]], how: Writing, *, task: str | None) -> Wait[str]:
        """As `Local.write`; the server ends its texts itself, and writes greedily."""

        def text(ids: list[int]) -> str:
            return self.complete(ids, max_tokens=how.max_new_tokens).text or ""

        def wait() -> Iterator[Mapping[int, str | Refused]]:
            for place, output in self._each(text, dict(enumerate(prompts))):
                yield {place: output}

        return wait

    def _each(self, ask: Callable[[Item], Output], items: Mapping[int, Item]) -> Iterator[tuple[int, Output | Refused]]:
        """What ``ask`` returns for each item, or why the server refuses it, by place, as the answers come.

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
        """Say how the server is asked that many questions."""
        say(f"asking {counted(count, 'question')} of {self.server.name}, {self}")

    def complete(self, ids: list[int], *, max_tokens: int = 1, **fields: Any) -> Reply:
        """What the server writes behind a prompt, greedily.

        Raises:
            Refused: it does not serve this prompt, or reads more or fewer tokens.
        """
        return self.server.complete(self.prompt(ids), max_tokens=max_tokens, **fields).of_prompt(len(ids))

    def prompt(self, ids: list[int]) -> str | list[int]:
        """A prompt as it is sent.

        Raises:
            Refused: it cannot be sent so: it has no BOS to be left out, or no text has its tokens, as of a prompt that
                has lost its start.
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
        """The first way of reading log-probabilities that works for the probe. A server that ends when it is asked in
        one way is asked in the next. ``after_echo``: it has ended over those of prompts, which are not asked for any
        more.

        Raises:
            UsageError: the server returns no log-probabilities.
            Unavailable: it has ended twice.
            MosloraError: it reads another prompt than the one that was sent.
        """
        answers = [answer for _, answer in self.probe]
        ways = ways_to_read(self.encoder.tokenizer)
        misread = ended = None
        if self.without_bos:
            ways = ways[:1]  # Echo alone shows which token the server adds
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
            f"{self.server.name}: tells no log-probabilities, which score the options; let texts answer, of the run and"
            " of the server: --protocol generate"
        )


def open_served(server: Server, encoder: Encoder, questions: Sequence[Pairs], *, at_once: int) -> Served:
    """How this server is asked, by the shortest of the questions, which one with a short context answers, too: as
    tokens if it takes a prompt so and reads these tokens, or those that it puts a BOS before; else as text.

    Raises:
        UsageError: it returns no log-probabilities, and these questions need them.
        Refused: it takes neither.
        Unavailable: it does not answer.
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
    impatient = replace(served.server, patient=False)
    for without_bos in (False, True):
        with suppress(Refused):
            replace(served, server=impatient, without_bos=without_bos).complete(ids)
            return replace(served, without_bos=without_bos)
    served.server.complete("a")
    return replace(served, as_text=True)


def each_reply(ask: Callable[[Item], Output], items: Sequence[Item], *, at_once: int) -> Iterator[Output]:
    """What ``ask`` returns for these items, several at a time, in the order in which they are done; its first error is
    raised.

    The threads of this pool are daemons: Ctrl-C ends a program that waits for a server.
    """
    with ThreadPool(at_once) as pool:
        yield from pool.imap_unordered(ask, items)


Model = Local | Served
"""What answers the questions of an evaluation."""
