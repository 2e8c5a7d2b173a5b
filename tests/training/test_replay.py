"""Texts that are trained on beside the rows of each step."""

import shutil

import pytest
import torch
from accelerate import Accelerator

from changes_kit import write_jsonl
from evaluation_kit import make_examples, tokenizer
from moslora.base.load import load_base
from moslora.errors import UsageError
from moslora.plan.outline import outline
from moslora.training import train_recipe
from moslora.training.loop import accumulate
from moslora.training.prepare import prepare
from training_kit import cut_after, same_files


@pytest.fixture
def texts(tmp_path):
    """File of ten texts."""
    questions = [example.question for example in make_examples("piqa", 10)]
    return write_jsonl(tmp_path / "notes.jsonl", [{"text": f"{text} {n}"} for n, text in enumerate(questions)])


@pytest.fixture
def replaying(recipe, texts):
    """The world's recipe with replayed texts, as a share of the label tokens."""
    task = f"tasks={{notes: {{texts: {texts}}}}}"
    return lambda share, *others: recipe(task, f"data.replay={{texts: notes, share: {share}}}", *others)


def split(rows):
    """Split rows into rows of tasks and texts."""
    return [row for row in rows if row.task != "notes"], [row for row in rows if row.task == "notes"]


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_replayed_texts_have_their_share_of_each_step(recipe, replaying, share):
    """Counted by hand, as a first token is no label. Rows are those of a run without texts, whatever the order of
    steps."""
    plain, _ = prepare(Accelerator(), recipe())
    parts, data = prepare(Accelerator(), replaying(share))
    steps = [parts.drawn(step) for step in range(len(parts.plan))]
    assert data.replay is not None
    whole = {tuple(row.input_ids) for row in data.replay.texts}
    assert len(whole) == 10
    drawn = set()
    for step, found in enumerate(steps):
        rows, texts = split(found)
        assert rows == plain.drawn(step)
        labels = sum(sum(label != -100 for label in row.labels[1:]) for row in rows)
        of_texts = sum(len(text.input_ids) - 1 for text in texts)
        assert abs(of_texts - (labels + of_texts) * share) <= 0.5
        assert all(text.labels == text.input_ids for text in texts)
        assert all(tuple(text.input_ids) in whole for text in texts[:-1])
        last = tuple(texts[-1].input_ids)
        assert any(text[: len(last)] == last for text in whole)
        drawn.add(last[:3])
    assert len(drawn) > 3
    again, _ = prepare(Accelerator(), replaying(share))
    assert [again.drawn(step) for step in reversed(range(len(steps)))] == steps[::-1]


def test_the_loss_is_the_mean_over_rows_and_texts(replaying):
    """Authority: the base's loss, as ΔW is zero before the first step, by transformers' logits of one row at a time."""
    own = replaying(0.3, "adapter.dropout=0", "model.engine=transformers")
    parts, _ = prepare(Accelerator(), own)
    rows = parts.drawn(0)
    base = load_base(own.model).eval()
    losses = []
    for row in rows:
        logits = base(input_ids=torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
        losses += [-logits[at - 1, label] for at, label in enumerate(row.labels) if at and label != -100]
    assert split(rows)[1]
    loss, _ = accumulate(parts, rows)
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_interrupted_replay_resumes_to_the_same_bits(replaying, texts, tmp_path):
    own = replaying(0.3, "training.epochs=null", "training.max_steps=6", "training.keep_checkpoints=9")
    whole = train_recipe(own, out=tmp_path / "whole").parent
    again = cut_after(4, shutil.copytree(whole, tmp_path / "again"))
    train_recipe(own, out=again, resuming=True)
    assert same_files(whole, again)
    cut_after(4, again)
    texts.write_text(texts.read_text(encoding="utf-8").replace(" 9", " 8"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"data\.replay"):
        train_recipe(own, out=again, resuming=True)


def test_a_plan_counts_the_texts(replaying):
    """The plan has the tokens of all steps, and the largest step."""
    own = replaying(0.4)
    parts, _ = prepare(Accelerator(), own)
    steps = [[len(row.input_ids) for row in parts.drawn(step)] for step in range(len(parts.plan))]
    run = outline(own)
    assert run.tokens == pytest.approx(sum(map(sum, steps)), rel=0.05)
    largest, without = (sum(outlined.share_of_a_step(1).lengths) for outlined in (run, outline(replaying(0.01))))
    assert largest >= max(map(sum, steps)) > without
    assert any("40%" in line for line in run.summary)


def test_texts_of_one_token_are_refused(replaying, texts):
    texts.write_text('{"text": "old"}\n', encoding="utf-8")
    assert len(tokenizer()("old").input_ids) == 1
    with pytest.raises(UsageError, match=r"data\.replay.*notes"):
        prepare(Accelerator(), replaying(0.1))
