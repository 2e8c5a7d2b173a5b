"""Conversations as tokens: those of the tokenizer's chat template, with the places of the answers among them.

A template may change a turn by what follows it, as Qwen3's does, so that a conversation does not begin with the text of
its first turns. Therefore an answer is found in the whole text, by the same text with a marker in the answer's place.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

from jinja2 import TemplateError

from moslora.errors import UsageError, by_row
from moslora.prompts.formats import ChatFormat, Format
from moslora.tasks import Conversation, Turn

_MARKER = "\ue000answer\ue000"  # with a character of Unicode's private use


class TokensOfTurns(NamedTuple):
    ids: list[int]  # exactly those of `apply_chat_template`
    answers: list[range]  # positions of each answer's tokens, with the end token, or two, that the template puts behind
    truncated: bool  # whether turns were left out


def encode_conversations(
    conversations: Sequence[Conversation], format: Format, *, max_length: int | None, last: bool
) -> list[TokensOfTurns]:
    """The tokens of each conversation.

    Args:
        conversations: one that is longer than ``max_length`` loses questions with their answers from its beginning,
            but not its system message.
        last: only the last answer counts, and the template may change the others.

    Raises:
        UsageError: the format has no turns; the template refuses a conversation, changes an answer, or puts no end
            token behind it; or a last question with its answer is longer than the limit.
    """
    encoded = []
    faults: dict[str, list[str]] = {}
    for conversation in conversations:
        if not isinstance(format, ChatFormat):
            raise UsageError(
                f"{conversation.id}: format {format.name} has no place for several turns or a system message; set"
                " data.format=chat evaluation.protocol=choice, with an instruction-tuned model"
            )
        try:
            encoded.append(_encode(conversation.turns, format, max_length=max_length, last=last))
        except (ValueError, TemplateError) as fault:
            faults.setdefault(str(fault), []).append(conversation.id)
    if faults:
        raise UsageError(by_row(faults))
    return encoded


def end_of_answer(format: Format) -> list[int]:
    """Tokens that a chat template puts behind an answer. Empty if it puts none, and for other formats."""
    if not isinstance(format, ChatFormat):
        return []
    try:
        ids, (answer,), _ = _encode([Turn("user", "question"), Turn("assistant", "answer")], format)
    except (ValueError, TemplateError):
        return []
    return [id for id in ids[answer.start : answer.stop] if id in format.tokenizer.added_tokens_decoder]


def _encode(
    turns: Sequence[Turn], format: ChatFormat, *, max_length: int | None = None, last: bool = False
) -> TokensOfTurns:
    kept = [*turns]
    first = int(turns[0].role == "system")  # the position of the first question
    text, ids, offsets = _rendered(kept, format)
    while max_length is not None and len(ids) > max_length:
        del kept[first : first + 2]
        if not kept[first:]:
            raise ValueError(
                f"longer than data.max_length={max_length} with its last question and answer alone, which are never"
                " cut; raise it (moslora data audit prints the longest row), or remove the row"
            )
        text, ids, offsets = _rendered(kept, format)
    left_out = len(turns) - len(kept)
    answers = []
    for number, turn in enumerate(kept):
        if turn.role == "assistant" and (number == len(kept) - 1 or not last):
            where = f"turn {number + left_out + 1}: the chat template"
            marked = format.render([*kept[:number], turn._replace(content=_MARKER), *kept[number + 1 :]])
            begin, end = _place(turn.content.strip(), text, marked, where=where)
            behind = bisect_left(offsets, (end, 0))
            while behind < len(ids) and not text[slice(*offsets[behind])].strip():
                behind += 1
            if behind == len(ids) or ids[behind] not in format.tokenizer.added_tokens_decoder:
                raise ValueError(f"{where} puts no end token behind this answer, so a model would not learn to stop")
            if ids[behind + 1 : behind + 2] == [format.tokenizer.eos_token_id]:
                behind += 1  # as behind Cohere's end of a response
            answers.append(range(bisect_right(offsets, begin, key=itemgetter(1)), behind + 1))
    return TokensOfTurns(ids, answers, left_out > 0)


def _rendered(turns: Sequence[Turn], format: ChatFormat) -> tuple[str, list[int], list[tuple[int, int]]]:
    """The text of a conversation, the ids of its tokens, and the characters of each."""
    text = format.render(turns)
    encoded = format.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return text, encoded["input_ids"], encoded["offset_mapping"]


def _place(answer: str, text: str, marked: str, *, where: str) -> tuple[int, int]:
    """The characters of ``text`` that stand in the marker's place. These must be the answer, which may be trimmed."""
    before, _, behind = marked.partition(_MARKER)
    end = len(text) - len(behind)
    begin = end - len(answer)  # where the template puts a part of the answer, such as reasoning, before the marker
    if text.startswith(before):
        begin = len(before)
    if marked.count(_MARKER) != 1 or not text.endswith(behind) or text[begin:end].strip() != answer:
        fix = "remove what it takes out, such as reasoning, or set data.loss_on=last"
        raise ValueError(f"{where} changes or drops this answer; {fix}")
    return begin, end
