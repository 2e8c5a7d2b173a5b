"""Cloze against a naive float64 sum over every option's own sequence."""

import random

import pytest
import torch

from evaluation_kit import all_tasks, log_probability, make_examples, make_model, tokenizer
from moslora.data.encode import Encoder
from moslora.errors import MosloraError
from moslora.evaluation import Request, cloze, evaluate
from moslora.kernels import vocabulary
from moslora.prompts import FORMATS


def test_scores_are_summed_log_probabilities() -> None:
    examples = all_tasks(6)
    results = evaluate(make_model(), tokenizer(), examples, Request(protocol="cloze", format="cloze", max_length=None))
    model, encoder = make_model(torch.float64), Encoder(tokenizer(), max_length=None)
    by_id = {example.id: example for rows in examples.values() for example in rows}
    for prediction in results.predictions:
        options = FORMATS["cloze"].options(by_id[prediction.id])
        texts = [encoder.encode(option.prompt, option.answer, eos=False) for option in options]
        naive = torch.tensor(
            [log_probability(model, t.ids[: t.answer_start], t.ids[t.answer_start :]) for t in texts],
            dtype=torch.float64,
        )
        # 1e-5 per token: sums of up to a few hundred nats
        tolerance = 1e-5 * max(len(text.ids) - text.answer_start for text in texts)
        given = torch.tensor(prediction.scores, dtype=torch.float64)
        torch.testing.assert_close(given, naive, rtol=0, atol=tolerance)
        assert prediction.prediction == int(naive.argmax())
        assert prediction.characters == tuple(option.characters for option in options)


@pytest.mark.parametrize("batch_tokens", [1, 500, 5_000])
def test_float32_predictions_do_not_depend_on_batch_tokens_or_order(batch_tokens: int) -> None:
    examples = all_tasks(20)
    shuffled = {task: random.Random(batch_tokens).sample(rows, 20) for task, rows in reversed(examples.items())}
    settings = {"protocol": "cloze", "format": "cloze-passage"}
    expected = evaluate(make_model(), tokenizer(), examples, Request(**settings))
    given = evaluate(make_model(), tokenizer(), shuffled, Request(batch_tokens=batch_tokens, **settings))
    by_id = {prediction.id: prediction for prediction in given.predictions}
    assert len(by_id) == 8 * 20
    for prediction in expected.predictions:
        other = by_id[prediction.id]
        assert other.prediction == prediction.prediction
        given_scores, scores = torch.tensor(other.deciding_scores), torch.tensor(prediction.deciding_scores)
        assert given_scores.argmax() == scores.argmax()
        torch.testing.assert_close(given_scores, scores, rtol=0, atol=1e-5)


def test_logits_in_pieces_are_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(23, 8, generator=generator), torch.randn(50, 8, generator=generator)
    targets = torch.randint(50, (40,), generator=generator).tolist()
    places = torch.randint(23, (40,), generator=generator).tolist()
    expected = torch.log_softmax(hidden.double() @ weight.double().T, dim=1)[places, targets]
    monkeypatch.setattr(vocabulary, "PIECE_ON_CPU", (4, 12))  # the last pieces are smaller
    given, likeliest = cloze.log_probabilities(hidden, weight, places, targets)
    torch.testing.assert_close(given.double(), expected, rtol=0, atol=1e-5)
    assert likeliest.tolist() == [
        (hidden[p] @ weight.T).argmax().item() == t for p, t in zip(places, targets, strict=True)
    ]


def test_a_long_prompt_loses_its_beginning_and_is_counted() -> None:
    examples = {"piqa": make_examples("piqa", 30)}
    settings = {"protocol": "cloze", "format": "cloze"}
    results = evaluate(make_model(), tokenizer(), examples, Request(max_length=24, **settings))
    encoder = Encoder(tokenizer(), max_length=None)
    too_long = sum(
        any(len(encoder.encode(o.prompt, o.answer, eos=False).ids) > 24 for o in FORMATS["cloze"].options(e))
        for e in examples["piqa"]
    )
    assert results.tasks["piqa"].truncated == too_long > 0


def test_no_room_for_any_prompt_is_refused() -> None:
    example = make_examples("piqa", 1)[0]
    encoder = Encoder(tokenizer(), max_length=None)
    longest = max(len(encoder.encode("", o.answer, eos=False).ids) for o in FORMATS["cloze"].options(example))
    with pytest.raises(MosloraError, match=r"piqa/test/0: .*evaluation\.max_length"):
        evaluate(
            make_model(),
            tokenizer(),
            {"piqa": [example]},
            Request(protocol="cloze", format="cloze", max_length=longest),
        )
