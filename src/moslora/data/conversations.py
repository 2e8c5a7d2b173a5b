"""Conversations as tokens of the tokenizer's chat template, with the positions of the answers.

A template may change a turn because of later turns, as Qwen3's does, so the text of the first turns need not begin the
text of the conversation. An answer is therefore located by rendering the conversation again with a marker in its place.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

from jinja2 import TemplateError

from moslora.errors import UsageError, by_row
from moslora.prompts.formats import ChatFormat, Format
from moslora.tasks import Conversation, Turn

_MARKER = "\ue000answer\ue000"  # has a character for private use, which no text should have


class TokensOfTurns(NamedTuple):
    """Tokens of a conversation, and the positions of its answers."""

    ids: list[int]  # equal to those of `apply_chat_template`
    answers: list[range]  # positions of each answer's tokens, with the one or two end tokens of the template
    truncated: bool  # whether turns were removed


def encode_conversations(
    conversations: Sequence[Conversation], format: Format, *, max_length: int | None, last: bool
) -> list[TokensOfTurns]:
    """Encode conversations.

    Args:
        conversations: turns, with a system message or without.
        format: a chat template.
        max_length: maximum number of tokens. A longer conversation loses its first questions and answers, but not its
            system message.
        last: locate only the last answer; the template may change the others.

    Raises:
        UsageError: the format has no turns; the template refuses a conversation, changes an answer, or writes no end
            token after it; or a last question with its answer is longer than the limit.
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
    """Tokens that a chat template writes after an answer; none for other formats."""
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
                f"longer than data.max_length={max_length} even with only the last question and answer, which are never"
                " cut; raise data.max_length (moslora data audit prints the longest row), or remove the row"
            )
        text, ids, offsets = _rendered(kept, format)
    removed = len(turns) - len(kept)
    answers = []
    for number, turn in enumerate(kept):
        if turn.role == "assistant" and (number == len(kept) - 1 or not last):
            where = f"turn {number + removed + 1}: the chat template"
            marked = format.render([*kept[:number], turn._replace(content=_MARKER), *kept[number + 1 :]])
            begin, end = _place(turn.content.strip(), text, marked, where=where)
            last_token = bisect_left(offsets, (end, 0))
            while last_token < len(ids) and not text[slice(*offsets[last_token])].strip():
                last_token += 1
            if last_token == len(ids) or ids[last_token] not in format.tokenizer.added_tokens_decoder:
                raise ValueError(f"{where} writes no end token after this answer, so a model would not learn to stop")
            if ids[last_token + 1 : last_token + 2] == [format.tokenizer.eos_token_id]:
                last_token += 1  # as after Cohere's end of a response
            answers.append(range(bisect_right(offsets, begin, key=itemgetter(1)), last_token + 1))
    return TokensOfTurns(ids, answers, removed > 0)


def _rendered(turns: Sequence[Turn], format: ChatFormat) -> tuple[str, list[int], list[tuple[int, int]]]:
    """Render a conversation: its text, the ids of its tokens, and the start and end offset of each token in the text.

    End offsets are exclusive.
    """
    text = format.render(turns)
    encoded = format.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return text, encoded["input_ids"], encoded["offset_mapping"]


def _place(answer: str, text: str, marked: str, *, where: str) -> tuple[int, int]:
    """Find the start and the exclusive end of the answer in ``text``, as offsets.

    ``marked`` is the same conversation with a marker instead of the answer. The template may trim the answer.
    """
    before, _, after = marked.partition(_MARKER)
    end = len(text) - len(after)
    begin = end - len(answer)  # if the template moves a part of the answer, such as reasoning, before the marker
    if text.startswith(before):
        begin = len(before)
    if marked.count(_MARKER) != 1 or not text.endswith(after) or text[begin:end].strip() != answer:
        fix = "remove the part that it drops, such as reasoning, or set data.loss_on=last"
        raise ValueError(f"{where} changes or drops this answer; {fix}")
    return begin, end
