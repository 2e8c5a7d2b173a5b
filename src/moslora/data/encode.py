"""Text to token ids and labels.

Prompt and answer are encoded separately, so that the label mask is exact. This requires the prompt to be a token prefix
of the whole text, which the tests check. The one format without this property (``Format.joint``), and every format with
a tokenizer without it (:data:`BOUNDARIES`), is encoded as one string and split by character offsets.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from moslora.choices import FormatName, LossOn
from moslora.errors import UsageError
from moslora.prompts.formats import Format, make_format
from moslora.tasks import Example

_CHUNK = 1_000  # texts per call of the tokenizer: enough for its threads, with little memory

BOUNDARIES = (("### Response:\n", "the correct answer is"), ("Question: why?\nAnswer:", " because"))
"""Where prompts of the formats ``label`` and ``cloze`` end. Llama 2's tokenizer begins every text with a space, so that
an answer by itself has one too many."""

IGNORE_INDEX = -100
"""Label of a position without loss (PyTorch's default ``ignore_index``)."""


@dataclass(frozen=True)
class EncodedText:
    """Token ids of one prompt with its answer."""

    ids: list[int]  # BOS if the tokenizer adds one, prompt, answer, EOS if asked for
    answer_start: int  # position of the first answer token
    truncated: bool  # whether the prompt was cut, or the end of a text by itself
    # of a text by itself: in UTF-8, those of its answer, which begins behind the characters of the first token
    bytes: int = 0


@dataclass(frozen=True)
class Encoded:
    """A training row. ``labels[i]`` (not shifted) is ``input_ids[i]``, or `IGNORE_INDEX` without loss."""

    id: str
    task: str
    input_ids: list[int]
    labels: list[int]
    truncated: bool


class Encoder:
    """A tokenizer with a length limit that never cuts an answer.

    Args:
        tokenizer: a fast tokenizer. BOS is prepended if the tokenizer itself does so.
        max_length: most tokens of a text, special ones included. A longer text loses the start of its prompt (after
            BOS), because the end holds the question and the answer.
        key: the recipe's key of the limit, for messages.
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
        self._bos = [bos] if bos is not None and tokenizer("a").input_ids[0] == bos else []
        self._joint = self._apart(BOUNDARIES) != self._split_by_offsets(BOUNDARIES)

    def identity(self) -> str:
        """A hash of what decides a text's tokens, beside the length limit."""
        parts = (self.tokenizer.backend_tokenizer.to_str(), self._bos, self.tokenizer.eos_token_id)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def encode(self, prompt: str, answer: str, *, joint: bool = False, eos: bool = True, room: int = 0) -> EncodedText:
        """One text, as in `encode_all`."""
        return self.encode_all([(prompt, answer)], joint=joint, eos=eos, room=room)[0]

    def encode_all(
        self, texts: Sequence[tuple[str, str]], *, joint: bool = False, eos: bool = True, room: int = 0
    ) -> list[EncodedText]:
        """Encodes (prompt, answer) pairs in batches, which the tokenizer runs in parallel; an answer may be empty.

        ``joint`` encodes each pair as one string, whose answer starts at the first token that reaches into it. ``eos``
        appends the end-of-sequence token, so that a model learns to stop. ``room`` tokens of the limit stay free.
        """
        pairs = self._split_by_offsets(texts) if joint or self._joint else self._apart(texts)
        end = [self.tokenizer.eos_token_id] if eos else []
        if end == [None]:
            raise UsageError(f"{self.tokenizer.name_or_path}: the tokenizer has no end-of-sequence token")
        needed = [len(self._bos) + len(answer) + len(end) for _, answer in pairs]
        if over := [length for length in needed if self.max_length is not None and length > self.max_length]:
            raise UsageError(
                f"{self._key}={self.max_length}: {len(over)} of {len(needed)} answers alone are longer, and answers are"
                f" not cut; the longest needs {self._key}={max(over)}"
            )
        return [self._assemble(prompt, answer + end, room=room) for prompt, answer in pairs]

    def encode_text(self, text: str) -> EncodedText:
        """A text by itself, as the answer to its first token, or to BOS; without its end if it is too long.

        A character of several tokens counts with the first of them, so that ``bytes`` may be up to 3 off at either end;
        it is 0 if no character begins behind the context.
        """
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = [*self._bos, *found["input_ids"]]
        ends = [*(0 for _ in self._bos), *(end for _, end in found["offset_mapping"])]
        kept = ids[: self.max_length]
        counted = text[ends[0] : len(text) if kept == ids else ends[len(kept) - 1]] if ends else ""
        return EncodedText(kept, 1, truncated=len(kept) < len(ids), bytes=len(counted.encode()))

    def training_texts(self, examples: Sequence[Example], format: Format) -> list[EncodedText]:
        """Each example's prompt with its right option, and EOS."""
        options = [format.train(example) for example in examples]
        return self.encode_all([(option.prompt, option.answer) for option in options], joint=format.joint)

    def _apart(self, texts: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        # Options of one question share their prompt, and many rows an answer: each text once.
        distinct = list(dict.fromkeys(text for pair in texts for text in pair))
        ids: list[list[int]] = []
        for begin in range(0, len(distinct), _CHUNK):
            ids += self.tokenizer(distinct[begin : begin + _CHUNK], add_special_tokens=False)["input_ids"]
        of = dict(zip(distinct, ids, strict=True))
        return [(of[prompt], of[answer]) for prompt, answer in texts]

    def _split_by_offsets(self, texts: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        pairs = []
        for begin in range(0, len(texts), _CHUNK):
            chunk = texts[begin : begin + _CHUNK]
            wholes = [prompt + answer for prompt, answer in chunk]
            encoded = self.tokenizer(wholes, add_special_tokens=False, return_offsets_mapping=True)
            ids_and_offsets = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            for (prompt, _), (ids, offsets) in zip(chunk, ids_and_offsets, strict=True):
                start = next((i for i, (_, end) in enumerate(offsets) if end > len(prompt)), len(ids))
                pairs.append((ids[:start], ids[start:]))
        return pairs

    def _assemble(self, prompt: list[int], answer: list[int], *, room: int) -> EncodedText:
        # A chat template has BOS in its text.
        kept = prompt = prompt[len(self._bos) :] if prompt[:1] == self._bos else prompt
        if self.max_length is not None:
            left = self.max_length - len(self._bos) - len(answer) - room
            kept = prompt[max(0, len(prompt) - left) :]
        start = len(self._bos) + len(kept)
        return EncodedText([*self._bos, *kept, *answer], start, truncated=len(kept) < len(prompt))


def encoding(tokenizer: PreTrainedTokenizerBase, format: FormatName) -> dict[str, str]:
    """Hashes of what decides a question's tokens, besides the format's name: ``tokenizer`` and, where the format has
    one, ``chat_template``."""
    found = {"tokenizer": Encoder(tokenizer, max_length=None).identity()}
    template = make_format(format, tokenizer).identity()
    if template:
        found["chat_template"] = hashlib.sha256(template.encode()).hexdigest()
    return found


def encode_examples(examples: Sequence[Example], format: Format, encoder: Encoder, *, loss_on: LossOn) -> list[Encoded]:
    """Training rows: the right option, then EOS, which has a label too.

    ``loss_on="response"`` masks the prompt; "all" trains on every token, as LLM-Adapters does.
    """
    rows = []
    for example, text in zip(examples, encoder.training_texts(examples, format), strict=True):
        masked = text.answer_start if loss_on == "response" else 0
        labels = [IGNORE_INDEX] * masked + text.ids[masked:]
        rows.append(Encoded(example.id, example.task, text.ids, labels, text.truncated))
    return rows
