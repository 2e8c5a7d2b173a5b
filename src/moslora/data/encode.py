"""Encoding of examples: from texts to token ids and labels.

Prompt and answer are encoded separately, so that the label mask is exact. This requires the prompt's tokens to be the
first tokens of the whole text, which the tests check. If a format (``Format.joint``) or a tokenizer
(:data:`BOUNDARIES`) breaks this rule, prompt and answer are encoded as one string and split by character offsets.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from transformers import PreTrainedTokenizerBase

from moslora.choices import FormatName, LossOn
from moslora.data.conversations import encode_conversations, end_of_answer
from moslora.errors import UsageError
from moslora.prompts.formats import Format, make_format
from moslora.tasks import Conversation, Example

_CHUNK = 1_000  # texts per call of the tokenizer: enough for its threads, with little memory

TokenPair = tuple[list[int], list[int]]
"""Token ids of a prompt, and token ids of its answer."""

BOUNDARIES = (("### Response:\n", "the correct answer is"), ("Question: why?\nAnswer:", " because"))
"""Sample ends of prompts and beginnings of answers, for the formats ``label`` and ``cloze``. A tokenizer such as Llama
2's adds a space before every text, so that an answer encoded by itself has one space too many."""

IGNORE_INDEX = -100
"""Label of a position without loss (PyTorch's default ``ignore_index``)."""


@dataclass(frozen=True)
class EncodedText:
    """Token ids of one prompt with its answer, or of a text without a prompt."""

    ids: list[int]  # BOS if the tokenizer adds one, prompt, answer, EOS if asked for
    answer_start: int  # position of the first answer token
    truncated: bool  # whether the start of the prompt, or the end of a text, was cut
    bytes: int = 0  # of a text without a prompt: the UTF-8 length of what follows its first token


@dataclass(frozen=True)
class Encoded:
    """Training row as tokens. ``labels[i]`` (not shifted) is ``input_ids[i]``, or `IGNORE_INDEX` for no loss."""

    id: str
    task: str
    input_ids: list[int]
    labels: list[int]
    truncated: bool


class Encoder:
    """A tokenizer with a length limit that never cuts an answer.

    Args:
        tokenizer: a fast tokenizer. BOS is prepended if the tokenizer itself does so.
        max_length: maximum number of tokens of a text, special ones included. A longer text loses the start of its
            prompt (after BOS), because the end holds the question and the answer.
        key: the recipe's key of the limit, for messages.

    Raises:
        UsageError: the tokenizer is not a fast one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, key: str = "data.max_length"
    ) -> None:
        if not tokenizer.is_fast:
            raise UsageError(f"{tokenizer.name_or_path}: moslora needs a fast tokenizer (a tokenizer.json)")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._key = key
        bos = tokenizer.bos_token_id
        self._bos: list[int] = []
        if bos is not None and tokenizer("a").input_ids[0] == bos:
            self._bos = [bos]
        self._joint = self._encode_apart(BOUNDARIES) != self._encode_joint(BOUNDARIES)

    @cached_property
    def identity(self) -> str:
        """Hash of everything that decides a text's tokens, except the length limit."""
        parts = (self.tokenizer.backend_tokenizer.to_str(), self._bos, self.tokenizer.eos_token_id)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def encode(self, prompt: str, answer: str, *, joint: bool = False, eos: bool = True, room: int = 0) -> EncodedText:
        """Encode one (prompt, answer) pair, as in `encode_all`."""
        return self.encode_all([(prompt, answer)], joint=joint, eos=eos, room=room)[0]

    def encode_all(
        self,
        texts: Sequence[tuple[str, str]],
        *,
        joint: bool = False,
        eos: bool = True,
        end: Sequence[int] = (),
        room: int = 0,
    ) -> list[EncodedText]:
        """Encode (prompt, answer) pairs in batches, which the tokenizer runs in parallel; an answer may be empty.

        Args:
            texts: the pairs.
            joint: encode each pair as one string; its answer starts at the first token that reaches into it.
            eos: append the end-of-sequence token, so that a model learns to stop.
            end: tokens to append instead of the end-of-sequence token.
            room: number of tokens to keep free below the limit.

        Raises:
            UsageError: an answer alone is longer than the limit, or the tokenizer has no end-of-sequence token.
        """
        if joint or self._joint:
            pairs = self._encode_joint(texts)
        else:
            pairs = self._encode_apart(texts)
        if eos and not end:
            if self.tokenizer.eos_token_id is None:
                raise UsageError(f"{self.tokenizer.name_or_path}: the tokenizer has no end-of-sequence token")
            end = [self.tokenizer.eos_token_id]
        lengths = [len(self._bos) + len(answer) + len(end) for _, answer in pairs]
        longer = [length for length in lengths if self.max_length is not None and length > self.max_length]
        if longer:
            raise UsageError(
                f"{self._key}={self.max_length}: {len(longer)} of {len(lengths)} answers are longer, and answers are"
                f" never cut; the longest needs {self._key}={max(longer)}"
            )
        return [self._assemble(prompt, [*answer, *end], room=room) for prompt, answer in pairs]

    def encode_text(self, text: str) -> EncodedText:
        """Encode a text without a prompt: its first token, or BOS, is the context, and the rest is the answer.

        A text over the limit loses its end. A character of several tokens counts with its first token, so ``bytes`` may
        be off by up to 3 at either end. It is 0 if no character begins after the context.
        """
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = self._bos + encoded["input_ids"]
        ends = [0] * len(self._bos) + [end for _, end in encoded["offset_mapping"]]  # position after each token
        kept = ids[: self.max_length]
        truncated = len(kept) < len(ids)
        if not ids:
            return EncodedText(kept, 1, truncated=False)
        answer_end = ends[len(kept) - 1] if truncated else len(text)
        return EncodedText(kept, 1, truncated=truncated, bytes=len(text[ends[0] : answer_end].encode()))

    def _encode_apart(self, texts: Sequence[tuple[str, str]]) -> list[TokenPair]:
        """Encode prompts and answers separately, and equal texts once: options share a prompt, and rows an answer."""
        distinct = list(dict.fromkeys(chain.from_iterable(texts)))
        ids: list[list[int]] = []
        for begin in range(0, len(distinct), _CHUNK):
            ids += self.tokenizer(distinct[begin : begin + _CHUNK], add_special_tokens=False)["input_ids"]
        ids_of = dict(zip(distinct, ids, strict=True))
        return [(ids_of[prompt], ids_of[answer]) for prompt, answer in texts]

    def _encode_joint(self, texts: Sequence[tuple[str, str]]) -> list[TokenPair]:
        """Encode each prompt with its answer as one string, and split the tokens by their character offsets."""
        pairs = []
        for begin in range(0, len(texts), _CHUNK):
            chunk = texts[begin : begin + _CHUNK]
            wholes = [prompt + answer for prompt, answer in chunk]
            encoded = self.tokenizer(wholes, add_special_tokens=False, return_offsets_mapping=True)
            ids_and_offsets = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            for (prompt, _), (ids, offsets) in zip(chunk, ids_and_offsets, strict=True):
                start = sum(end <= len(prompt) for _, end in offsets)  # first token that reaches beyond the prompt
                pairs.append((ids[:start], ids[start:]))
        return pairs

    def _assemble(self, prompt: list[int], answer: list[int], *, room: int) -> EncodedText:
        """Join BOS, as much of the end of the prompt as fits, and the answer."""
        if prompt[:1] == self._bos:  # chat templates write BOS themselves
            prompt = prompt[len(self._bos) :]
        kept = prompt
        if self.max_length is not None:
            left = self.max_length - len(self._bos) - len(answer) - room
            kept = prompt[max(0, len(prompt) - left) :]
        start = len(self._bos) + len(kept)
        return EncodedText([*self._bos, *kept, *answer], start, truncated=len(kept) < len(prompt))


def encoding(encoder: Encoder, format: FormatName) -> dict[str, str]:
    """Hashes of the ``tokenizer`` and, if the format has one, the ``chat_template``, which decide a question's
    tokens."""
    hashes = {"tokenizer": encoder.identity}
    template = make_format(format, encoder.tokenizer).identity()
    if template:
        hashes["chat_template"] = hashlib.sha256(template.encode()).hexdigest()
    return hashes


def encode_examples(examples: Sequence[Example], format: Format, encoder: Encoder, *, loss_on: LossOn) -> list[Encoded]:
    """Encode training rows: a prompt with the right option, or a conversation.

    The end of an answer has a label too: EOS, or the end token of a chat template.

    Args:
        examples: the rows.
        format: prompts and answers of the rows.
        encoder: the tokenizer with its length limit.
        loss_on: "response" trains on all answers, "last" on the last answer of a conversation, "all" on every token, as
            LLM-Adapters does.
    """
    conversations = [example for example in examples if isinstance(example, Conversation)]
    of_turns = iter(encode_conversations(conversations, format, max_length=encoder.max_length, last=loss_on == "last"))
    options = [format.train(example) for example in examples if not isinstance(example, Conversation)]
    pairs = [(option.prompt, option.answer) for option in options]
    texts = encoder.encode_all(pairs, joint=format.joint, end=end_of_answer(format) if pairs else ())
    of_pairs = ((text.ids, [range(text.answer_start, len(text.ids))], text.truncated) for text in texts)
    rows = []
    for example in examples:
        ids, answers, truncated = next(of_turns if isinstance(example, Conversation) else of_pairs)
        labels = list(ids)
        if loss_on != "all":
            labels = [IGNORE_INDEX] * len(ids)
            for span in answers:
                labels[span.start : span.stop] = ids[span.start : span.stop]
        rows.append(Encoded(example.id, example.task, ids, labels, truncated))
    return rows
