"""Token ids and label masks: prompt and answer apart give the tokens of the whole text, and answers stay whole."""

import copy
from datetime import datetime
from functools import cache

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from data_kit import TOKENIZERS, hub_examples, llama3, sample, smollm2
from evaluation_kit import make_examples
from evaluation_kit import tokenizer as small_tokenizer
from moslora.data.encode import IGNORE_INDEX, Encoder, encode_examples
from moslora.errors import UsageError
from moslora.prompts.formats import FORMATS, make_format
from moslora.prompts.instructions import instruction, labels
from moslora.tasks import COMMONSENSE


@cache
def questions(task):
    """300 of the training set, 100 of the test set, and raw ones where the hub's text differs."""
    found = sample(task, "train", 300) + sample(task, "test", 100)
    if task == "hellaswag":
        found += hub_examples(task)[-100:]
    return found


def texts(task, format):
    """Every option as evaluated and the right one as trained."""
    rendered = FORMATS[format]
    found = []
    for example in questions(task):
        found += [*rendered.options(example), rendered.train(example)]
    return found


def clean_cases():
    """Tasks and formats whose prompts end where a token does; all but two tasks are slow."""
    cases = [("boolq", "cloze-passage")]
    for format in ("label", "cloze"):
        cases += [(task, format) for task in COMMONSENSE]
    marked = []
    for task, format in cases:
        marks = [] if task in ("piqa", "obqa") else [pytest.mark.slow]
        marked.append(pytest.param(task, format, marks=marks))
    return marked


@pytest.mark.parametrize(("task", "format"), clean_cases())
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_prompt_is_a_token_prefix_of_the_whole_text(name, task, format):
    encoder = Encoder(TOKENIZERS[name](), max_length=None)
    pairs = [(option.prompt, option.answer) for option in texts(task, format)]
    assert encoder.encode_all(pairs) == encoder.encode_all(pairs, joint=True)


SPACED = {
    "as Llama 2's": {"normalizer": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])},
    "Metaspace": {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="always", split=False)},
}


@pytest.mark.parametrize("format", ["label", "cloze"])
@pytest.mark.parametrize("parts", SPACED.values(), ids=SPACED)
def test_a_tokenizer_that_begins_every_text_with_a_space(parts, format):
    """As lm-eval splits it: the tokens of the whole text, and of these the answer's are behind the prompt's own."""
    examples = []
    for task in COMMONSENSE:
        examples += make_examples(task, 20)
    pairs = []
    for example in examples:
        pairs += [(option.prompt, option.answer) for option in FORMATS[format].options(example)]
    bpe = Tokenizer(models.BPE())
    words = [pre_tokenizers.Metaspace(prepend_scheme="never"), pre_tokenizers.Split("\n", "isolated")]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(words)
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<eos>"], show_progress=False)
    bpe.train_from_iterator([prompt + answer for prompt, answer in pairs], trainer)
    bpe.pre_tokenizer = None
    for name, part in parts.items():
        setattr(bpe, name, part)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")
    encoder = Encoder(tokenizer, max_length=None)
    for (prompt, answer), text in zip(pairs, encoder.encode_all(pairs, eos=False), strict=True):
        whole = tokenizer(prompt + answer, add_special_tokens=False).input_ids
        context = tokenizer(prompt, add_special_tokens=False).input_ids
        assert whole[: len(context)] == context
        assert (text.ids, text.answer_start) == (whole, len(context))
    for example, row in zip(examples, encode_examples(examples, FORMATS[format], encoder, loss_on="all"), strict=True):
        option = FORMATS[format].train(example)
        assert row.labels == [*tokenizer(option.prompt + option.answer).input_ids, tokenizer.eos_token_id]


@pytest.mark.parametrize("task", COMMONSENSE)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_one_token_decides_between_labels(name, task):
    """The answers of a question agree but for their last token, one token each: what `choice` compares."""
    encoder = Encoder(TOKENIZERS[name](), max_length=None)
    for example in questions(task)[:50]:
        pairs = [(option.prompt, option.answer) for option in FORMATS["label"].options(example)]
        answers = [text.ids[text.answer_start :] for text in encoder.encode_all(pairs, eos=False)]
        assert len({tuple(answer[:-1]) for answer in answers}) == 1
        assert len({answer[-1] for answer in answers}) == len(answers)


def test_training_rows_end_with_eos_and_mask_the_prompt():
    tokenizer = smollm2()
    examples = questions("arc_easy")
    encoder = Encoder(tokenizer, max_length=512)
    on_response = encode_examples(examples, FORMATS["label"], encoder, loss_on="response")
    on_all = encode_examples(examples, FORMATS["label"], encoder, loss_on="all")
    for example, row, whole in zip(examples, on_response, on_all, strict=True):
        assert (row.id, row.task, row.truncated) == (example.id, "arc_easy", False)
        assert row.input_ids == whole.input_ids == whole.labels
        kept = [label for label in row.labels if label != IGNORE_INDEX]
        assert row.labels == [IGNORE_INDEX] * (len(row.labels) - len(kept)) + kept
        option = FORMATS["label"].train(example)
        assert tokenizer.decode(kept) == option.answer + tokenizer.eos_token
        assert kept[-1] == row.input_ids[-1] == tokenizer.eos_token_id


LLAMA3_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def chat_tokenizer(name):
    """SmolLM2's as it is; LLaMA-3's as the instruction-tuned model has it: with its template, BOS first, EOT last."""
    tokenizer = TOKENIZERS[name]()
    if name == "llama3":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = LLAMA3_CHAT
        tokenizer.eos_token = "<|eot_id|>"
        bos = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    return tokenizer


@pytest.mark.parametrize("task", ["boolq", "siqa", "arc_easy"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_chat_is_the_tokenizers_own_conversation(name, task):
    """The training row has the tokens of the template over both messages; only the label and its end have labels."""
    tokenizer = chat_tokenizer(name)
    encoder = Encoder(tokenizer, max_length=None)
    format = make_format("chat", tokenizer)
    examples = questions(task)[:50]
    for example, row in zip(examples, encode_examples(examples, format, encoder, loss_on="response"), strict=True):
        label = labels(example)[example.gold]
        said = [{"role": "user", "content": instruction(example)}, {"role": "assistant", "content": label}]
        whole = tokenizer.apply_chat_template(said, tokenize=True, return_dict=False)
        assert row.input_ids == whole[: len(row.input_ids)]
        assert tokenizer.decode(whole[len(row.input_ids) :]).strip() == ""
        kept = [id for id in row.labels if id != IGNORE_INDEX]
        assert tokenizer.decode(kept) == label + tokenizer.eos_token
        pairs = [(option.prompt, option.answer) for option in format.options(example)]
        options = encoder.encode_all(pairs, eos=False)
        assert options[example.gold].ids == row.input_ids[:-1]
        assert encoder.encode(format.generation_prompt(example), "", eos=False).ids == row.input_ids[: -len(kept)]


LLAMA31_DATE = (
    "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
    '        {%- set date_string = "26 Jul 2024" %}\n    {%- endif %}\n{%- endif %}\n'
    '{{- "Today Date: " + date_string + "\\n\\n" }}\n'
)
DATED = {
    "LLaMA 3.1": LLAMA31_DATE,
    "SmolLM3": '{%- set today = strftime_now("%d %B %Y") -%}\n{{- "Today Date: " ~ today ~ "\\n" -}}\n',
    "in a macro, after white space": "\n  {% macro day(form) %}{{ strftime_now(format=form) }}{% endmacro %}\n"
    "  {{ day('%A, %Y-%m-%d %H:%M') }}\n",
}


@pytest.mark.parametrize("dated", DATED.values(), ids=DATED)
def test_chat_templates_get_a_fixed_date(dated, monkeypatch):
    """The text is transformers' own on 26 July 2024, the date in LLaMA 3.1's template."""
    tokenizer = copy.deepcopy(smollm2())
    tokenizer.chat_template = dated + LLAMA3_CHAT
    example = questions("boolq")[0]
    message = [{"role": "user", "content": instruction(example)}]

    def at(*day):
        clock = type("Clock", (), {"now": lambda: datetime(*day)})
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)
        own = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return own, make_format("chat", tokenizer).generation_prompt(example)

    theirs, ours = at(2024, 7, 26)
    theirs_later, ours_later = at(2031, 12, 1)
    assert theirs != theirs_later and ours == ours_later == theirs


def test_a_tokenizer_without_a_chat_template_is_refused():
    with pytest.raises(UsageError, match="has no chat template"):
        make_format("chat", small_tokenizer()).train(questions("boolq")[0])


@pytest.mark.parametrize("joint", [False, True])
def test_the_prompt_gives_way_never_the_answer(joint):
    tokenizer = smollm2()
    prompt = "one two three four five six seven\n"
    answer = "the correct answer is true"
    whole = Encoder(tokenizer, max_length=None).encode(prompt, answer, joint=joint)
    assert not whole.truncated
    length = len(whole.ids)
    answer_ids = whole.ids[whole.answer_start :]
    for limit in range(len(answer_ids), length + 2):
        text = Encoder(tokenizer, max_length=limit).encode(prompt, answer, joint=joint)
        assert text.ids == whole.ids[max(0, length - limit) :]
        assert text.ids[text.answer_start :] == answer_ids
        assert text.truncated == (limit < length)
    with pytest.raises(UsageError, match=rf"data\.max_length={len(answer_ids)}$"):
        Encoder(tokenizer, max_length=len(answer_ids) - 1).encode(prompt, answer, joint=joint)


def with_bos_and_eos():
    """The small tokenizer with a post-processor that wraps every text."""
    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.add_special_tokens({"bos_token": "<bos>", "eos_token": "<end>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <end>", special_tokens=[("<bos>", tokenizer.bos_token_id), ("<end>", tokenizer.eos_token_id)]
    )
    return tokenizer


def test_bos_survives_the_cut():
    tokenizer = with_bos_and_eos()
    bos = tokenizer.bos_token_id
    eos = tokenizer.eos_token_id
    encoder = Encoder(tokenizer, max_length=None)
    whole = encoder.encode("a red fox sat near", " the bridge")
    assert whole.ids[0] == bos and whole.ids[-1] == eos
    assert whole.ids.count(bos) == 1 and whole.ids.count(eos) == 1
    assert encoder.encode("a red fox sat near", " the bridge", eos=False).ids == whole.ids[:-1]
    cut = Encoder(tokenizer, max_length=len(whole.ids) - 2).encode("a red fox sat near", " the bridge")
    assert cut.ids == [bos, *whole.ids[3:]] and cut.truncated
    assert cut.answer_start == whole.answer_start - 2
    assert llama3().bos_token_id not in Encoder(llama3(), max_length=None).encode("a", "b").ids
