"""What the evaluation's tests share: questions of all eight sets, a tiny model and a tokenizer."""

import random
import re
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from moslora.prompts.formats import FORMATS
from moslora.runs.evaluation import read_evaluation
from moslora.runs.results import Results, results_of
from moslora.tasks import COMMONSENSE, Example
from reference import tiny_llama

WORDS = re.findall(r"\w+", "a red fox sat near the old stone bridge while two birds sang about rain and cold nights")
CHOICES = {
    "boolq": 2,
    "piqa": 2,
    "siqa": 3,
    "hellaswag": 4,
    "winogrande": 2,
    "arc_easy": 4,
    "arc_challenge": 5,
}


def make_examples(task: str, count: int) -> list[Example]:
    """Questions of 3 to 40 words, always the same ones."""
    draw = random.Random(task)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    examples = []
    for row in range(count):
        number = CHOICES.get(task, 4)
        if task == "boolq":
            choices = ("true", "false")
        else:  # each with a first word of its own: equal options would tie
            choices = tuple(f"{first} {text(1, 8)}" for first in draw.sample(WORDS, number))
        if task == "winogrande":
            question = f"{text(2, 20)} _ {text(2, 8)}."
        else:
            question = text(3, 40)
        context = None
        if task in ("boolq", "siqa", "hellaswag"):
            context = text(2, 9)
        examples.append(Example(f"{task}/test/{row}", task, question, choices, draw.randrange(number), context))
    return examples


def all_tasks(count: int) -> dict[str, list[Example]]:
    return {task: make_examples(task, count) for task in COMMONSENSE}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE in the manner of GPT-2, digits apart from letters, trained on the tests' texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = []
    for examples in all_tasks(20).values():
        for example in examples:
            for name in ("label", "cloze"):
                texts += [option.prompt + option.answer for option in FORMATS[name].options(example)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>")


def make_model(dtype: torch.dtype = torch.float32, *, context: int = 512) -> LlamaForCausalLM:
    """The tests' random LLaMA over this tokenizer, in evaluation mode."""
    return tiny_llama(dtype=dtype, vocab_size=len(tokenizer()), context=context).eval()


@torch.inference_mode()
def log_probability(model: LlamaForCausalLM, prompt: list[int], answer: list[int]) -> float:
    """Σ log softmax(logits)[answer], the naive way: one unpadded sequence, the whole model, every logit."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]  # (T, V)
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return sum(float(log_probabilities[len(prompt) + i - 1, token]) for i, token in enumerate(answer))


def read_results(folder: Path) -> Results:
    """The results of the finished tasks in an evaluation's folder."""
    return results_of(read_evaluation(folder).complete)
