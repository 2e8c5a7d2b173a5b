"""What follows training, on the pretend device: protocols, a question and conversions against the same on the CPU."""

from dataclasses import replace

import pytest

from evaluation_kit import make_examples
from moslora.adapters import describe_task
from moslora.base.decoding import decode
from moslora.base.load import load_tokenizer
from moslora.evaluation import Request
from moslora.evaluation.batches import block_size
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.loading import load_model
from moslora.evaluation.model import Local
from moslora.evaluation.scorers import make_encoder, make_scorer
from moslora.evaluation.target import open_target
from pretend_kit import on_cpu, watch
from tests.end_to_end import test_own_tasks

mine = test_own_tasks.mine  # a run on a task of one's own and on BoolQ, made on the device here
FORMATS = {"choice": "label", "cloze": "cloze", "generate": "label"}


def scored(target, out, protocol="cloze", **options):
    opened = open_target(str(target), dtype="float32")
    asked = {"protocol": protocol, "format": FORMATS[protocol], "limit": 12}
    results, _ = evaluate_target(opened, out=out, **asked, **options)
    return results.predictions


def same(found, expected):
    assert len(found) == len(expected) >= 12
    for one, other in zip(found, expected, strict=True):
        assert (one.id, one.prediction, one.text) == (other.id, other.prediction, other.text)
        assert one.scores == pytest.approx(other.scores, abs=1e-4)


@pytest.mark.parametrize("protocol", FORMATS)
def test_the_predictions_are_those_of_the_cpu(mine, tmp_path, protocol):
    with watch() as seen:
        found = scored(mine / "run", tmp_path / "there", protocol)
    assert seen.operations.total() > 100
    same(found, on_cpu(scored, mine / "run", tmp_path / "cpu", protocol))


@pytest.mark.parametrize(("protocol", "most"), [("choice", 175), ("cloze", 180)])
@pytest.mark.parametrize("batches", [1, 3])
def test_a_block_of_questions_waits_for_its_scores_alone(mine, protocol, most, batches):
    target = open_target(str(mine / "run"))
    model = load_model(target)
    request = Request(protocol=protocol, format=FORMATS[protocol])
    examples = make_examples("arc_easy", 64)
    tokenizer = load_tokenizer(target.model)
    scorer = make_scorer(examples[0], make_encoder(model.config, tokenizer, request), request)
    assert block_size(model.device.type, writes=False) == 4 * 64
    local = Local(model, tokenizer, batch_tokens=1)
    longest = max(scorer.length(scorer.encode(example), local) for example in examples)
    local = replace(local, batch_tokens=-(-64 // batches) * longest)
    describe_task(model, "arc_easy")
    with watch() as seen:
        assert len(scorer.score(examples, local)) == 64
    print(f"{protocol}: {seen.operations.total()} operations, waits: {dict(seen.waits)}")
    assert seen.waits.total() == 1 and seen.operations.total() <= most * batches


def test_a_pass_of_generated_text_waits_for_its_tokens_alone(mine):
    target = open_target(str(mine / "run"))
    model = load_model(target)
    prompts = [list(range(3, 30 + length)) for length in (1, 5, 9)]
    with watch() as seen:
        written = decode(model, prompts, max_new_tokens=6, ended=lambda *_: False, ends=(), batch_tokens=2_048)
    assert [len(row) for row in written] == [6, 6, 6]
    print(f"{seen.operations.total()} operations, waits: {dict(seen.waits)}")
    assert seen.waits.total() == 6, "the common beginning is not waited for"
