"""Rank against the labels' full log-probabilities in float64."""

import random

import pytest
import torch

from evaluation_kit import all_tasks, log_probability, make_examples, make_model, tokenizer
from moslora.data.encode import Encoder
from moslora.errors import MosloraError
from moslora.evaluation import Request, evaluate
from moslora.evaluation.rank import Rank
from moslora.prompts import FORMATS


@pytest.mark.parametrize("format", ["label", "llm-adapters"])
def test_scores_are_the_labels_full_log_probabilities_among_the_options(format: str) -> None:
    """All tokens of every label, not the differing one alone, and no padding, in float64."""
    examples = all_tasks(6)
    results = evaluate(make_model(), tokenizer(), examples, Request(protocol="rank", format=format, max_length=None))
    model, encoder = make_model(torch.float64), Encoder(tokenizer(), max_length=None)
    by_id = {example.id: example for rows in examples.values() for example in rows}
    for prediction in results.predictions:
        full = []
        for option in FORMATS[format].options(by_id[prediction.id]):
            text = encoder.encode(option.prompt, option.answer, joint=FORMATS[format].joint, eos=False)
            start = text.answer_start
            full.append(log_probability(model, text.ids[:start], text.ids[start:]))
        among = torch.log_softmax(torch.tensor(full, dtype=torch.float64), dim=0)
        torch.testing.assert_close(torch.tensor(prediction.scores, dtype=torch.float64), among, rtol=0, atol=1e-5)
        assert prediction.prediction == int(among.argmax())


@pytest.mark.parametrize("batch_tokens", [1, 500, 5_000])
def test_float32_predictions_do_not_depend_on_batch_tokens_or_order(batch_tokens: int) -> None:
    examples = all_tasks(40)
    shuffled = {task: random.Random(batch_tokens).sample(rows, 40) for task, rows in reversed(examples.items())}
    settings = {"protocol": "rank", "format": "label"}
    expected = evaluate(make_model(), tokenizer(), examples, Request(**settings))
    given = evaluate(make_model(), tokenizer(), shuffled, Request(batch_tokens=batch_tokens, **settings))
    by_id = {prediction.id: prediction for prediction in given.predictions}
    assert len(by_id) == 8 * 40
    for prediction in expected.predictions:
        other = by_id[prediction.id]
        assert other.prediction == prediction.prediction
        torch.testing.assert_close(torch.tensor(other.scores), torch.tensor(prediction.scores), rtol=0, atol=1e-5)


def test_options_of_several_tokens_are_refused_with_the_mend() -> None:
    with pytest.raises(MosloraError, match=r"task siqa, format cloze: .* use evaluation.protocol=cloze"):
        evaluate(
            make_model(), tokenizer(), {"siqa": make_examples("siqa", 3)}, Request(protocol="rank", format="cloze")
        )


def test_what_the_labels_share_is_read_by_the_model() -> None:
    scorer = Rank(make_model(), Encoder(tokenizer(), max_length=None), FORMATS["label"], batch_tokens=400)
    question = scorer.encode(make_examples("arc_challenge", 1)[0])
    assert tokenizer().decode(question.input_ids).endswith("### Response:\nthe correct answer is answer")
    assert tokenizer().convert_ids_to_tokens(question.option_tokens) == ["1", "2", "3", "4", "5"]
