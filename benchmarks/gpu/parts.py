"""The parts of runner.py, each in a process of its own: python -m benchmarks.gpu.parts PART RECORDS"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from functools import partial
from importlib.metadata import distributions
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.gpu.alone import kernels, products
from benchmarks.gpu.race import DEVICE, GPU, SIZES, Record, adapted, lengths, ours, peft, random_model, step_rows
from benchmarks.gpu.whole import command
from benchmarks.speed.contestants import our_step, timed
from benchmarks.timing import reset_peak, seconds
from moslora.kernels import liger
from moslora.process_rank import is_main_process, launched
from moslora.processes.group import take_gpu

sys.path.append(str(ROOT / "tests" / "kits"))

PACKAGES = ("transformers", "accelerate", "peft", "bitsandbytes", "liger_kernel", "triton", "flash_attn")
FORMATS = {"choice": "label", "cloze": "cloze", "generate": "label"}

MATRIX_SIZE = 8192 if GPU else 512
"""Of both factors of the large product."""

QUESTIONS = {"choice": 256, "cloze": 256, "generate": 64} if GPU else dict.fromkeys(FORMATS, 4)
"""Of each set, by protocol."""

WRITTEN_TOKENS, ROUNDS = (8, 5) if GPU else (2, 1)
"""In the part "latency"."""

SHARDED_STEPS = 7 if GPU else 3
"""Of which the first warms up."""


def check(record: Record) -> None:
    """What `moslora check` finds, in the shapes of the other parts' model.

    Raises:
        RuntimeError: a piece is off.
    """
    from moslora.recipe import ModelSection
    from moslora.selfcheck.check import check as findings
    from moslora.selfcheck.piece import said_of

    model = ModelSection(name="meta-llama/Meta-Llama-3-8B") if GPU else None
    off = []
    for finding in findings(model):
        record(**{f"{finding.name}, {finding.dtype}": asdict(finding)})
        if not finding.passed:
            off.append(finding)
    if off:
        raise RuntimeError("\n".join(said_of(off)))


def first(record: Record) -> None:
    """Versions of Python, torch and the packages that compute, what the device is, and whether Liger-Kernel works."""
    there = {one.name.replace("-", "_"): one.version for one in distributions()}
    record(python=platform.python_version(), torch=torch.__version__, device=str(DEVICE), shapes=SIZES)
    record(**{package: there.get(package) for package in PACKAGES})
    if GPU:
        about = torch.cuda.get_device_properties(0)
        record(device=about.name, memory_gb=about.total_memory / 1e9, devices=torch.cuda.device_count())
        record(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    take_gpu()
    took = seconds(liger.fault)
    record(liger={"there": liger.is_installed(), "fault": liger.fault(), "seconds": took})


def machine(record: Record) -> None:
    """The speed of a large product, and of a copy."""
    a, b = torch.randn(2, MATRIX_SIZE, MATRIX_SIZE, device=DEVICE, dtype=torch.bfloat16)
    fastest = min(seconds(lambda: a @ b) for _ in range(12))
    record(matmul_tflops=2 * MATRIX_SIZE**3 / fastest / 1e12)
    source, target = torch.zeros(2, 16 * MATRIX_SIZE**2, device=DEVICE, dtype=torch.uint8)
    fastest = min(seconds(lambda: target.copy_(source)) for _ in range(12))
    record(copy_tb_per_second=2 * source.numel() / fastest / 1e12)


class Results:
    """A plugin of pytest: each test is written down as it ends, with the counts so far."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.running: dict[str, dict[str, Any]] = defaultdict(lambda: {"outcome": "passed", "seconds": 0.0})

    def pytest_runtest_logreport(self, report: Any) -> None:
        test = self.running[report.nodeid]
        test["seconds"] += report.duration
        if report.outcome != "passed":
            test |= {"outcome": report.outcome, "message": report.longreprtext[-700:]}
        if report.when == "teardown":
            self.counts[test["outcome"]] += 1
            name = report.nodeid.partition("::")[2]
            found = test | dict(report.user_properties)
            self.record(**self.counts, **{name: found})


def tests(record: Record, *files: str) -> None:
    """The tests marked ``gpu``, several at a time where there are many cores."""
    import pytest

    workers = min(4, os.cpu_count() or 1)
    if not files:
        kernels = (f"{ROOT}/tests/kernels/test_{name}.py" for name in ("dropped", "liger"))
        files = (f"{ROOT}/tests/end_to_end/test_gpu.py", *kernels)
    options = ["-q", "-m", "gpu", f"-n{workers}", "-p", "no:cacheprovider"]
    code = pytest.main([*options, *files], plugins=[Results(record)])
    if code != pytest.ExitCode.TESTS_FAILED:  # what failed is written down
        sys.exit(int(code))


def memory(record: Record) -> None:
    """Bytes of two training steps, without and with gradient checkpointing: planned, and as the device had them."""
    from moslora.plan.memory import Devices
    from moslora.plan.memory import memory as planned
    from moslora.plan.step import Work

    steps = [step_rows(number) for number in range(8)]
    rows = max(steps, key=lambda rows: sum(lengths(rows)))
    work = Work(tuple(sorted(lengths(rows))), labelled=1)
    _, meta = adapted(on=torch.device("meta"))
    recipe, model = adapted()
    step = our_step(model, recipe.training)
    for name in ("plain", "checkpointing"):
        section = recipe.model.model_copy(update={"gradient_checkpointing": name == "checkpointing"})
        if name == "checkpointing":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.cuda.empty_cache()
        reset_peak()
        for _ in range(2):
            step(rows)
        plan = planned(meta, section, work, Devices(on_gpu=GPU))
        found: dict[str, Any] = {
            "planned": plan.total,
            "planned_parts": asdict(plan),
            "allocated": torch.cuda.max_memory_allocated(),
        }
        if GPU:
            free, total = torch.cuda.mem_get_info()  # with the context, which torch does not count
            found |= {"reserved": torch.cuda.max_memory_reserved(), "device": total - free}
        record(tokens=work.tokens, **{name: found})


def evaluation(record: Record, model: Any = None) -> None:
    """Questions per second by protocol, over questions of two sets with the tests' tokenizer."""
    from evaluation_kit import make_examples, tokenizer
    from moslora.evaluation import Request, evaluate

    if model is None:
        _, model = adapted()
    model.eval()
    found: dict[str, float] = {}
    for protocol, format in FORMATS.items():
        count = QUESTIONS[protocol]
        questions = {task: make_examples(task, count) for task in ("arc_easy", "siqa")}
        few = {task: rows[:8] for task, rows in questions.items()}
        request = Request.model_validate({"protocol": protocol, "format": format})
        evaluate(model, tokenizer(), few, request)  # warms up
        took = seconds(partial(evaluate, model, tokenizer(), questions, request))
        found[protocol] = 2 * count / took
        record(questions_per_second=found)


def latency(record: Record) -> None:
    """One question at a time, over one random model; written down after every round."""
    from benchmarks.speed.latency import Times, measure, medians
    from evaluation_kit import tokenizer
    from moslora.base.own_engine import use_own_modules
    from moslora.recipe import AdapterSection, load_recipe

    def after_round(found: dict[str, Times]) -> None:
        record(rounds=len(found["base"].answer), **medians(found))

    model = random_model()
    adapter = load_recipe("llama3-8b").adapter
    assert isinstance(adapter, AdapterSection)
    use_own_modules(model)
    measure(model, tokenizer(), adapter, tokens=WRITTEN_TOKENS, repetitions=ROUNDS, after_round=after_round)


def sharded(record: Record) -> None:
    """In a process for each GPU, two on a CPU: the same steps under both strategies, then the protocols."""
    import torch.distributed as dist

    if not launched():
        processes = torch.cuda.device_count() if GPU else 2
        if processes == 1:
            record(skipped="one GPU")
            return
        sys.exit(run_again(processes))
    steps = [step_rows(number) for number in range(SHARDED_STEPS)]
    losses = {}
    for strategy in ("ddp", "fsdp"):
        recipe, model = adapted("adapter.dropout=0")
        step = our_step(model, recipe.training, strategy=strategy)
        reset_peak()
        times, losses[strategy] = timed(step, steps)
        found = {
            "step_seconds": statistics.median(times),
            "losses": losses[strategy],
            "peak": torch.cuda.max_memory_allocated(),
        }
        record(processes=dist.get_world_size(), backend=dist.get_backend(), **{strategy: found})
    record(same_losses=losses["ddp"] == losses["fsdp"])
    evaluation(record, model)
    dist.destroy_process_group()


def run_again(processes: int) -> int:
    """Runs this command in so many processes that know each other, and returns the largest of their exit codes."""
    from torch.distributed.elastic.utils.distributed import get_free_port

    shared = os.environ | {
        "WORLD_SIZE": f"{processes}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{get_free_port()}",
    }
    command = [sys.executable, "-m", "benchmarks.gpu.parts", *sys.argv[1:]]
    started = []
    for rank in range(processes):
        environment = shared | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT))
    return max(process.wait() for process in started)


_PARTS = (check, first, machine, tests, memory, ours, products, kernels, command, evaluation, latency, sharded)
PARTS = {part.__name__: part for part in _PARTS}
BEGAN = time.perf_counter()


def write(records: str, part: str, **found: Any) -> None:
    """Appends a line, which stays when this process is ended."""
    line = {"part": part, "seconds": round(time.perf_counter() - BEGAN, 1), "found": found}
    with open(records, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def forget(**found: Any) -> None:
    """Writes nothing: for the processes beside the main one, which writes for all."""


def main(part: str, records: str, *options: str) -> None:
    if not GPU and "MOSLORA_GPU_DRY_RUN" not in os.environ:
        sys.exit("no CUDA device here; --dry-run runs every part on a CPU")
    name, _, how = part.partition(":")
    record: Record = forget
    if is_main_process():
        record = partial(write, records, part)
    if how:
        peft(record, how)
    else:
        PARTS[name](record, *options)


if __name__ == "__main__":
    main(*sys.argv[1:])
