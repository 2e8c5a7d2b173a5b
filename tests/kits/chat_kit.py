"""Chat templates of five families, from their `tokenizer_config.json` without the branches for tools; and with marks;
and random conversations.

The marks are transformers' ``{% generation %}``, around each answer with the end token behind it. TRL's
`assistant_only_loss` needs such marks; the templates that models come with have none.
"""

# ruff: noqa: E501

import copy
import random
from functools import cache

from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from data_kit import smollm2
from evaluation_kit import WORDS
from evaluation_kit import tokenizer as small_tokenizer
from moslora.data.encode import IGNORE_INDEX

Messages = list[dict[str, str]]

LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""

LLAMA3_MARKED = """{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>

' }}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""

GEMMA_MARKED = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<start_of_turn>model
' }}{% generation %}{{ message['content'] | trim + '<end_of_turn>' }}{% endgeneration %}{{ '
' }}{% else %}{{ '<start_of_turn>user
' + message['content'] | trim + '<end_of_turn>
' }}{% endif %}{% endfor %}"""

QWEN25 = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN25_MARKED = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == "assistant" %}
        {%- generation %}
        {{- message.content + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
"""

QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN3_MARKED = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == "assistant" %}
        {%- if loop.last %}
            {{- '<think>\\n\\n</think>\\n\\n' }}
        {%- endif %}
        {%- generation %}
        {%- if loop.last %}
            {{- message.content.lstrip('\\n') + '<|im_end|>' }}
        {%- else %}
            {{- message.content + '<|im_end|>' }}
        {%- endif %}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
"""

COMMAND = """{{ bos_token }}{% for message in messages %}<|START_OF_TURN_TOKEN|>{% if message['role'] == 'assistant' %}<|CHATBOT_TOKEN|><|START_RESPONSE|>{{ message['content'] }}<|END_RESPONSE|>{% else %}<|{{ message['role']|upper }}_TOKEN|>{{ message['content'] }}{% endif %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>{% endif %}"""

COMMAND_MARKED = """{{ bos_token }}{% for message in messages %}<|START_OF_TURN_TOKEN|>{% if message['role'] == 'assistant' %}<|CHATBOT_TOKEN|><|START_RESPONSE|>{% generation %}{{ message['content'] }}<|END_RESPONSE|>{{ eos_token }}{% endgeneration %}{% else %}<|{{ message['role']|upper }}_TOKEN|>{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"""

SMOLLM2_MARKED = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
'}}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '
'}}{% else %}{{ message['content'] + '<|im_end|>' + '
'}}{% endif %}{% endfor %}"""

TEMPLATES = {
    "LLaMA-3": (LLAMA3, LLAMA3_MARKED),
    "Gemma": (GEMMA, GEMMA_MARKED),
    "Qwen2.5": (QWEN25, QWEN25_MARKED),
    "Qwen3": (QWEN3, QWEN3_MARKED),
    "Command R7B": (COMMAND, COMMAND_MARKED),
}
"""Family -> its template, and the one with marks."""

SPECIAL = [
    *("<bos>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"),
    *("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    *("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
]
"""The special tokens of all."""


@cache
def tokenizer_of(family: str, *, trims: bool = False) -> PreTrainedTokenizerBase:
    """The tests' small tokenizer with the family's template, and with offsets that leave white space out, as LLaMA-3's
    do; SmolLM2's own."""
    if family == "SmolLM2":
        return smollm2()
    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": SPECIAL[1:]})
    if trims:
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.chat_template = TEMPLATES[family][0]
    return tokenizer


MARKED = {family: marked for family, (_, marked) in TEMPLATES.items()} | {"SmolLM2": SMOLLM2_MARKED}


def conversations(count: int, *, system: bool = True, seed: int = 0) -> list[Messages]:
    """Random ones: of one to six questions, with white space at ends, the same text in several turns, and emojis."""
    draw = random.Random(seed)
    texts = ["a", "\n\n- one\n- two  ", " a fox ", "né 🦊🌉!", "a\n", "assistant", "user\nwhile two"]

    def text() -> str:
        return draw.choice([" ".join(draw.choices(WORDS, k=draw.randint(1, 20))), draw.choice(texts)])

    found = []
    for _ in range(count):
        messages = []
        if system and draw.random() < 0.5:
            messages.append({"role": "system", "content": text()})
        for _ in range(draw.randint(1, 6)):
            messages += [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
        found.append(messages)
    return found


def marked_labels(messages: Messages, tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[list[int], list[int]]:
    """transformers' tokens and labels of a template with marks."""
    found = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = found["input_ids"]
    labels = [id if kept else IGNORE_INDEX for id, kept in zip(ids, found["assistant_masks"], strict=True)]
    return ids, labels
