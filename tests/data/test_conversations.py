"""Conversations: the chat template's tokens, with labels on the answers and their ends; and what is refused of them."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from changes_kit import write_jsonl
from chat_kit import MARKED, conversations, marked_labels, tokenizer_of
from cli_kit import run
from message_kit import says
from moslora.data.encode import IGNORE_INDEX, Encoded, Encoder, encode_examples
from moslora.data.local import read_file
from moslora.data.overlap import content
from moslora.data.prepared import RowTable
from moslora.data.steps import label_count
from moslora.errors import UsageError
from moslora.prompts.formats import FORMATS, make_format
from moslora.tasks import INSTRUCTION, Conversation, Turn


def encoded(
    said,
    tokenizer,
    *,
    max_length=None,
    loss_on="response",
):
    rows = []
    for number, messages in enumerate(said):
        turns = [Turn(message["role"], message["content"]) for message in messages]
        rows.append(Conversation.of(f"{INSTRUCTION}/train/{number}", turns))
    encoder = Encoder(tokenizer, max_length=max_length)
    return encode_examples(rows, make_format("chat", tokenizer), encoder, loss_on=loss_on)


@pytest.mark.parametrize("trims", [False, True], ids=["", "trimmed offsets"])
@pytest.mark.parametrize("family", MARKED)
def test_tokens_and_labels_are_those_of_the_template_with_marks(family, trims):
    """As TRL's `assistant_only_loss` takes them, over a hundred conversations."""
    tokenizer = tokenizer_of(family, trims=trims)
    said = conversations(100, system=family != "Gemma")
    for messages, row in zip(said, encoded(said, tokenizer), strict=True):
        plain = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        ids, labels = marked_labels(messages, tokenizer, MARKED[family])
        assert row.input_ids == plain == ids
        assert row.labels == labels and not row.truncated


@pytest.mark.parametrize("family", MARKED)
def test_one_exchange_ends_as_the_template_ends_it(family, tmp_path):
    """A row of a file, with a tokenizer whose EOS is another token: the answer and the template's end have labels."""
    tokenizer = copy.deepcopy(tokenizer_of(family))
    tokenizer.eos_token = "<|endoftext|>" if family == "SmolLM2" else "<bos>"
    question, answer = {"role": "user", "content": "A planet?"}, {"role": "assistant", "content": "Mars."}
    (row,) = read_file(write_jsonl(tmp_path / "rows.jsonl", [{"messages": [question, answer]}]), "train")
    encoder = Encoder(tokenizer, max_length=None)
    (found,) = encode_examples([row], make_format("chat", tokenizer), encoder, loss_on="last")
    _, labels = marked_labels([question, answer], tokenizer, MARKED[family])
    end = [label for label in labels if label != IGNORE_INDEX]
    prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=False)
    assert found.input_ids == prompt + end
    assert found.labels == [IGNORE_INDEX] * len(prompt) + end


@pytest.mark.parametrize("family", MARKED)
def test_the_loss_on_the_last_answer_and_on_all_tokens(family):
    tokenizer = tokenizer_of(family)
    said = conversations(50, system=family != "Gemma", seed=1)
    alone = encoded(said, tokenizer, loss_on="last")
    for messages, last, whole in zip(said, alone, encoded(said, tokenizer, loss_on="all"), strict=True):
        ids, labels = marked_labels(messages, tokenizer, MARKED[family])
        start = len(ids) - 1
        while labels[start] == IGNORE_INDEX:
            start -= 1
        while labels[start] != IGNORE_INDEX:
            start -= 1
        assert last.labels == [IGNORE_INDEX] * (start + 1) + labels[start + 1 :]
        assert whole.labels == whole.input_ids == ids


@pytest.mark.parametrize("loss_on", ["response", "last", "all"])
def test_a_table_gives_back_every_label(loss_on):
    rows = encoded(conversations(100), tokenizer_of("Qwen3"), loss_on=loss_on)
    table = RowTable.of(rows)
    assert list(table) == rows
    assert table.label_count() == label_count(rows) and table.token_count() == sum(len(row.input_ids) for row in rows)
    with_question = [*rows]
    with_question[3] = Encoded(**{**vars(rows[3]), "labels": rows[3].input_ids})
    assert (RowTable.of(with_question).token_hash() == table.token_hash()) == (loss_on == "all")


@pytest.mark.parametrize("family", MARKED)
def test_long_conversation_loses_first_questions_but_not_system_message(family):
    """It is the row of the longest end that fits, tried one by one."""
    tokenizer = tokenizer_of(family)
    said = conversations(60, system=family != "Gemma", seed=2)
    needed = []
    for messages in said:
        system = [message for message in messages if message["role"] == "system"]
        needed.append(len(encoded([[*system, *messages[-2:]]], tokenizer)[0].input_ids))
    limit = max(needed)
    cut = encoded(said, tokenizer, max_length=limit)
    assert 5 < sum(row.truncated for row in cut) < 60
    for messages, row in zip(said, cut, strict=True):
        system = [message for message in messages if message["role"] == "system"]
        spoken = messages[len(system) :]
        (expected,) = encoded([messages], tokenizer)
        while len(expected.input_ids) > limit:
            spoken = spoken[2:]
            (expected,) = encoded([[*system, *spoken]], tokenizer)
        assert (row.input_ids, row.labels) == (expected.input_ids, expected.labels)
        assert row.truncated == (len(spoken) + len(system) < len(messages))
    with pytest.raises(UsageError, match=rf"^instruction/train/\d+: longer than data\.max_length={limit - 1} "):
        encoded(said, tokenizer, max_length=limit - 1)


def test_reasoning_counts_where_the_template_keeps_it():
    """Qwen3's template keeps that of the last answer alone."""
    tokenizer = tokenizer_of("Qwen3")
    thought = "<think>\na fox\n</think>\n\nold"
    asked = {"role": "user", "content": "rain"}
    last = [asked, {"role": "assistant", "content": "cold"}, asked, {"role": "assistant", "content": thought}]
    first = [asked, {"role": "assistant", "content": thought}, asked, {"role": "assistant", "content": "cold"}]
    (row,) = encoded([last], tokenizer)
    kept = tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX])
    assert kept == f"cold<|im_end|>{thought}<|im_end|>"
    with pytest.raises(UsageError, match=r"instruction/train/1: turn 2: .*drops.*data\.loss_on=last"):
        encoded([last, first], tokenizer)
    (row,) = encoded([first], tokenizer, loss_on="last")
    assert tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX]) == "cold<|im_end|>"


CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + CONTENT }}{% endfor %}"
UNFIT = {
    "drops an answer": CHATML.replace("CONTENT", "('' if loop.index0 == 1 else m.content) + '<|im_end|>'"),
    "says it twice": CHATML.replace("CONTENT", "m.content + (m.content if loop.index0 == 1 else '') + '<|im_end|>'"),
    "its end is a text": CHATML.replace("CONTENT", "m.content + ' end of turn '"),
    "it has no end": CHATML.replace("CONTENT", "m.content"),
}


@pytest.mark.parametrize("template", UNFIT.values(), ids=UNFIT)
def test_template_that_drops_or_does_not_end_an_answer_is_refused(template):
    tokenizer = copy.deepcopy(tokenizer_of("Qwen3"))
    tokenizer.chat_template = template
    said = [
        {"role": "user", "content": "a red fox"},
        {"role": "assistant", "content": "sang about the rain"},
        {"role": "user", "content": "and"},
        {"role": "assistant", "content": "cold"},
    ]
    with pytest.raises(UsageError) as error:
        encoded([said] * 3, tokenizer)
    (line,) = str(error.value).splitlines()
    turn = 4 if template == UNFIT["it has no end"] else 2  # before which there is the end of a template's next turn
    assert line.startswith(f"instruction/train/0: turn {turn}: the chat template ")
    assert line.endswith("(and 2 more rows)")


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "A planet?"},
    {"role": "assistant", "content": "Mars."},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": "Venus."},
]
NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
SHARED = [{"from": NAMES[turn["role"]], "value": turn["content"], "weight": None} for turn in TALK]


def test_messages_and_conversations_of_any_length_are_read(tmp_path):
    rows = [{"messages": TALK}, {"conversations": SHARED, "tools": ""}, {"messages": TALK[1:]}, {"messages": TALK[:3]}]
    one, other, without_system, short = read_file(write_jsonl(tmp_path / "rows.jsonl", rows), "train")
    assert isinstance(one, Conversation) and isinstance(other, Conversation) and isinstance(short, Conversation)
    assert one.turns == other.turns == tuple(Turn(**turn) for turn in TALK)
    assert (one.task, one.question, one.context) == (INSTRUCTION, "A planet?\nMars.\nAnother?", "Be brief.")
    assert (one.choices, without_system.context, short.choices) == (("Venus.",), None, ("Mars.",))
    assert one.id == "instruction/train/0"
    (plain,) = read_file(write_jsonl(tmp_path / "rows.jsonl", [{"messages": TALK[1:3]}]), "train")
    assert not isinstance(plain, Conversation), "a question and its answer are what prompt and completion are"


def turn(number, **changes):
    """The conversation with a turn changed, counted from 1."""
    changed = [*TALK]
    changed[number - 1] = {**changed[number - 1], **changes}
    return {"messages": changed}


FAULTS = {
    "a tool": (turn(4, role="tool"), "messages, turn 4: role 'tool'", "'user'"),
    "a call": (turn(3, content=None, tool_calls=[{"id": 1}]), "messages, turn 3: tool_calls: not supported"),
    "tools": ({"messages": TALK, "tools": [{"name": "f"}]}, "tools: not supported"),
    "a system message later": (turn(4, role="system"), "messages, turn 4: role 'system'", "'user'"),
    "no text": (turn(4, content=[]), "messages, turn 4: content is empty"),
    "an image": (turn(4, content=[{"type": "image_url"}]), "messages, turn 4: ", "only texts"),
    "empty": (turn(3, content=" "), "messages, turn 3: content is empty"),
    "half an emoji": (turn(3, content="\ud83e"), "surrogates"),
    "no answer at the end": ({"messages": TALK[:4]}, "last turn is not an answer"),
    "no object": ({"messages": ["Hello"]}, "messages, turn 1: role None", "'user'"),
}


@pytest.mark.parametrize(("row", "said"), [(row, said) for row, *said in FAULTS.values()], ids=FAULTS)
def test_unsupported_parts_of_conversations_are_refused(row, said, tmp_path):
    with pytest.raises(UsageError) as error:
        read_file(write_jsonl(tmp_path / "rows.jsonl", [{"messages": TALK}, row]), "train")
    (line,) = str(error.value).splitlines()
    assert says(line, "rows.jsonl:2: ", *said)


def test_only_a_chat_has_turns(tmp_path):
    rows = read_file(write_jsonl(tmp_path / "rows.jsonl", [{"messages": TALK}]), "train")
    encoder = Encoder(tokenizer_of("Qwen3"), max_length=None)
    for format, rendered in FORMATS.items():
        with pytest.raises(UsageError, match=rf"^instruction/train/0: format {format} .*data\.format=chat"):
            encode_examples(rows, rendered, encoder, loss_on="response")


def test_a_question_of_a_set_is_known_with_a_system_message(tmp_path):
    """So that its leak is found; other conversations are compared by their texts."""
    asked = "Please answer the following question with true or false, question: is it?\n\nAnswer format: true/false"
    spoken = [{"role": "user", "content": asked}, {"role": "assistant", "content": "the correct answer is true"}]
    rows = [{"messages": spoken}, {"messages": [TALK[0], *spoken]}, {"messages": TALK}, {"messages": TALK[1:]}]
    known, with_system, talk, without_system = read_file(write_jsonl(tmp_path / "rows.jsonl", rows), "train")
    assert content(known) == content(with_system) and content(known).choices == ("false", "true")
    assert content(talk) == content(without_system) == ("a planet mars another", (), "venus")


@pytest.fixture
def talks(tmp_path, world, monkeypatch):
    """Writes a recipe of conversations over the small model with LLaMA-3's template."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world / "model", "tokenizer")
    tokenizer_of("LLaMA-3").save_pretrained("tokenizer")

    def recipe(said, **data):
        write_jsonl(Path("talks.jsonl"), [{"messages": messages} for messages in said])
        file = Path("talks.yaml")
        section = json.dumps({"source": "./talks.jsonl", "format": "chat", **data})
        file.write_text(
            f"model: {{name: {world / 'model'}, dtype: float32}}\ndata: {section}\nevaluation: {{protocol: choice}}\n"
        )
        return file

    return recipe


def test_show_prints_turns_tokens_and_mask(talks, capsys):
    _, shown, errors = run(capsys, "data", "show", talks([TALK, TALK[1:]]), "--model", "./tokenizer")
    assert not errors
    row, *_ = encoded([TALK], tokenizer_of("LLaMA-3"))
    with_loss = sum(label != IGNORE_INDEX for label in row.labels)
    assert says(shown, "instruction/train/0", f"{len(row.input_ids)} tokens", f"loss on {with_loss} of them")
    assert says(shown, "1 system", "| Be brief.", "2 user", "| A planet?", "3 assistant", "| Mars.", "5 assistant")
    assert shown.count("loss  '<|eot_id|>'") == 2 and shown.count("-  '<|eot_id|>'") == 3
