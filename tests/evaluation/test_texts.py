"""Texts against transformers' own loss in float64; what is cut, what counts, and which gate they go through."""

import copy

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from evaluation_kit import make_examples, make_model, tokenizer
from moslora.adapters import describe_task, inject, named_adapters
from moslora.errors import UsageError
from moslora.evaluation import Request, evaluate
from moslora.evaluation.display import remarks
from moslora.tasks import Plain, Task
from moslora.tasks.task import Columns
from reference import perturb

SET = Task(name="mine", columns=Columns(), wording=Plain(), splits={})
FOX = "a red fox sat near the old stone bridge"
TEXTS = ["The café is old.", FOX, "rain" * 40, "\n two birds sang\n\nabout 日本"]


def with_bos():
    """The tests' tokenizer, which adds a BOS as LLaMA's does."""
    made = copy.deepcopy(tokenizer().backend_tokenizer)
    made.post_processor = TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<pad>", eos_token="<eos>")


def rows(texts=TEXTS):
    return [SET.text(text) for text in texts]


def measured(model, texts=TEXTS, **asked):
    return evaluate(model, asked.pop("tokenizer", tokenizer()), {"mine": rows(texts)}, Request(**asked))


@torch.inference_mode()
def nats_and_bytes(model, tokens, text):
    """transformers' mean loss times its tokens; a token of a byte-level BPE has a character for each byte."""
    ids = tokens(text, return_tensors="pt").input_ids
    loss = copy.deepcopy(model).double()(input_ids=ids, labels=ids).loss
    return float(loss) * (ids.shape[1] - 1), sum(map(len, tokens.convert_ids_to_tokens(ids[0, 1:])))


@pytest.mark.parametrize("tokens", [tokenizer(), with_bos()], ids=["no BOS", "BOS"])
def test_nats_per_byte_are_transformers_own_loss(tokens):
    model = make_model()
    results = measured(model, tokenizer=tokens)
    expected = []
    for text in TEXTS:
        (prediction,) = [p for p in results.predictions if p.id == SET.text(text).id]
        nats, size = nats_and_bytes(model, tokens, text)
        assert prediction.bytes == size and (size == len(text.encode())) == (tokens.bos_token is not None)
        assert -prediction.scores[0] == pytest.approx(nats, abs=1e-6 * size)
        expected.append(nats / size)
    assert results.texts["mine"].nats_per_byte == pytest.approx(sum(expected) / len(TEXTS), abs=1e-6)


def test_character_begun_by_the_first_token_does_not_count():
    """A byte-level token may be half of "é"; with BOS all 8 bytes count."""
    assert len(tokenizer()("é").input_ids) == 2
    for tokens, size in ((tokenizer(), 6), (with_bos(), 8)):
        assert measured(make_model(), ["é a fox"], tokenizer=tokens).predictions[0].bytes == size


@pytest.mark.parametrize("tokens", [tokenizer(), with_bos()], ids=["no BOS", "BOS"])
def test_a_long_text_loses_its_end(tokens):
    text = f"{FOX} {TEXTS[2]}"
    results = measured(make_model(), [text, "a fox"], tokenizer=tokens, max_length=9)
    kept = tokens.decode(tokens(text).input_ids[:9], skip_special_tokens=True)
    nats, size = nats_and_bytes(make_model(), tokens, kept)
    (cut,) = [p for p in results.predictions if p.truncated]
    assert text.startswith(kept) and cut.bytes == size and -cut.scores[0] == pytest.approx(nats, abs=1e-5)
    assert results.texts["mine"].truncated == 1 and "1 longer than" in remarks(results)[0]


def test_neither_limit_nor_protocol_moves_a_text():
    """Bit for bit in bfloat16, where shapes move a score; in float32 no batch moves it."""
    texts = [example.question for example in make_examples("piqa", 80)]
    whole = {p.id: p for p in measured(make_model(torch.bfloat16), texts).predictions}
    assert len(whole) == 80
    for asked in ({"protocol": "generate"}, {"protocol": "cloze", "format": "cloze"}):
        results = measured(make_model(torch.bfloat16), texts[::-1], limit=70, **asked)
        assert len(results.predictions) == 70 and all(p == whole[p.id] for p in results.predictions)
        assert not (results.tasks or results.macro or results.micro or results.collapse)
    together, alone = (measured(make_model(), texts, batch_tokens=tokens).predictions for tokens in (2_000, 1))
    scores = {p.id: p.scores for p in together}
    assert all(p.scores == pytest.approx(scores[p.id], abs=1e-4) for p in alone) and len(alone) == 80


def test_a_task_gate_is_the_mean_of_its_tasks():
    """By M, a matrix once the gates are known; the vector of rows without a task has no part in it."""
    model = make_model()
    mixer = {"kind": "task-gate", "experts": 2, "tasks": ("boolq", "obqa", "piqa")}
    inject(model, rank=4, alpha=8, mixer=mixer, target_modules=["q_proj", "down_proj"])
    with torch.no_grad():
        perturb((p for p in model.parameters() if p.requires_grad), size=0.5)

    @torch.no_grad()
    def matrices():
        return torch.stack([layer.mixer.matrix() for _, layer in named_adapters(model)])

    of_task = []
    for task in mixer["tasks"]:
        describe_task(model, task)
        of_task.append(matrices())
    measured(model.eval())  # which names them
    torch.testing.assert_close(matrices(), torch.stack(of_task).mean(0))
    assert (of_task[0] - of_task[1]).abs().max() > 1e-3


def test_text_of_one_token_needs_bos():
    assert len(tokenizer()("a").input_ids) == 1
    for text, asked, named in (
        ("a", {}, r"\('a'\): nothing of this text is left"),
        ("🦄", {}, r"\('🦄'\): nothing of this text is left"),
        ("a fox", {"tokenizer": with_bos(), "max_length": 1}, r"raise evaluation\.max_length"),
    ):
        with pytest.raises(UsageError, match=named):
            measured(make_model(), [text], **asked)
    assert measured(make_model(), ["a fox", "a"], tokenizer=with_bos()).texts["mine"].n == 2
