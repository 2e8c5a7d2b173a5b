"""Questions shared out among processes: the results of one, byte for byte; with one lost, what is done is kept.

A sharded base scores like a whole one, to the bit, although the processes have different numbers of passes.
"""

import shutil

import pytest

from evaluation_kit import make_examples, tokenizer
from moslora.adapters import inject
from moslora.base.sharded import shard_base
from moslora.evaluation import Request, evaluate
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.processes.devices import device
from reference import perturb, tiny_llama
from training_kit import in_processes

LOSES_ONE = """
import os, signal
from moslora import cli
from moslora.evaluation.model import Local
if os.environ["RANK"] == "1":
    Local.log_probabilities = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
cli.main()
"""


@pytest.mark.slow
def test_two_processes_score_as_one(trained, tmp_path):
    evaluate_target(open_target(str(trained)), out=tmp_path / "one")
    script = tmp_path / "loses_one.py"
    script.write_text(LOSES_ONE)
    command = ("eval", trained, "--out", tmp_path / "two")
    with pytest.raises(AssertionError) as failed:
        in_processes(script, *command)
    assert "another process has ended" in str(failed.value) and "the same command continues" in str(failed.value)
    kept = (tmp_path / "two" / "predictions.jsonl").read_text().splitlines()
    assert len(kept) == 20, "the block of the process that lived"

    said = in_processes("-m", "moslora", *command)
    assert said.count("macro average") == 1 and "2 processes" in said
    for name in ("results.json", "settings.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    one, two = ((tmp_path / run / "predictions.jsonl").read_text().splitlines() for run in ("one", "two"))
    assert two[:20] == kept and sorted(one) == sorted(two)


COUNTED = """
from torch.distributed.tensor import DTensor
from moslora import cli
from moslora.base import sharded
from moslora.evaluation import loading
share, announce, passes = loading.shard_base, sharded._announce, [0, 0]

def shared(model, **options):
    share(model, **options)
    for name, weight in model.named_parameters():
        assert isinstance(weight, DTensor) == (".layers." in name and "lora" not in name and "mixer" not in name), name
        assert not isinstance(weight, DTensor) or weight.to_local().numel() * 2 == weight.numel(), name

def counted(model, own):
    found = announce(model, own)
    passes[own] += int(found > 0)
    return found

loading.shard_base, sharded._announce = shared, counted
try:
    cli.main()
finally:
    print(f"{passes[1]} passes and {passes[0]} empty ones", flush=True)
"""


@pytest.mark.slow
def test_two_processes_with_a_share_each_score_like_one(trained, tmp_path):
    """Three blocks and three drifts, so that in every second round one process has nothing; as the recipe says."""
    run = shutil.copytree(trained, tmp_path / "run")
    evaluate_target(open_target(str(run)), out=tmp_path / "one", batch_tokens=300)
    script = tmp_path / "counted.py"
    script.write_text(COUNTED)
    options = ("--strategy", "fsdp", "--batch-tokens", 300, "--out", tmp_path / "two")
    said = in_processes(script, "eval", run, *options)
    counts = [[int(word) for word in line.split() if word.isdigit()] for line in said.splitlines() if "empty" in line]
    assert len(counts) == 2 and sum(counts[0]) == sum(counts[1]) and counts[0] != counts[1], said
    for file in ("results.json", "settings.json"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes(), file
    one, two = ((tmp_path / run / "predictions.jsonl").read_text().splitlines() for run in ("one", "two"))
    assert sorted(one) == sorted(two) and len(one) == 60


CASES = [(False, "choice"), *((True, asked) for asked in ("choice", "cloze", "generate"))]


def scored(*, tied, protocol, share=False):
    """Results and predictions of a random model with gates that need each row's task; three blocks."""
    model = tiny_llama(vocab_size=len(tokenizer()), tied=tied)
    mixer = {"kind": "task-gate", "experts": 2, "tasks": ("siqa", "obqa")}
    inject(model, rank=4, alpha=8, mixer=mixer, target_modules=["q_proj", "v_proj", "down_proj"])
    perturb([p for p in model.parameters() if p.requires_grad])
    model.eval()
    if share:
        shard_base(model, device=device())
    questions = {task: make_examples(task, 12) for task in ("siqa", "piqa", "obqa")}
    request = Request(protocol=protocol, format="cloze" if protocol == "cloze" else "label", batch_tokens=300)
    results = evaluate(model, tokenizer(), questions, request)
    return "\n".join([results.to_json(), *(prediction.to_json() for prediction in results.predictions)])


@pytest.mark.slow
def test_every_protocol_over_tied_and_untied_embeddings(tmp_path):
    one = [scored(tied=tied, protocol=protocol) for tied, protocol in CASES]
    script = tmp_path / "script.py"
    script.write_text(
        "import torch.distributed as dist\n"
        "from tests.evaluation.test_processes import CASES, scored\n"
        "dist.init_process_group('gloo')\n"
        "for number, (tied, protocol) in enumerate(CASES):\n"
        "    text = scored(tied=tied, protocol=protocol, share=True)\n"
        f"    open(f'{tmp_path}/{{number}}-{{dist.get_rank()}}', 'w').write(text)\n"
        "dist.destroy_process_group()\n"
    )
    in_processes(script)
    for number, (case, text) in enumerate(zip(CASES, one, strict=True)):
        for rank in (0, 1):
            assert (tmp_path / f"{number}-{rank}").read_text() == text, case
    assert len({*one}) == len(CASES)
