"""Everything that only a GPU can show, in the few minutes that there is one.

    benchmarks/gpu.sh                            # with what it needs, into gpu.json
    python benchmarks/gpu.py --out gpu.json      # where all is installed
    python benchmarks/gpu.py --dry-run           # every part with a tiny model on this CPU, in a minute or two
    python benchmarks/gpu.py work ours           # one part alone, as JSON

Each part is a process of its own with a time limit, so that one that fails or runs out of memory costs the others
nothing. The large models have LLaMA-3-8B's shapes (or the largest that fits) and random weights: no download. The rows
are random tokens with the lengths of real ones, 16 a step, loss on all tokens, as LLM-Adapters trains.

    suite       the tests marked ``gpu``
    ours        training by this program, then the protocols on the same model
    latency     an answer and writing with every kind of adapter, merged and not: benchmarks/latency.py
    peft:4:random    PEFT's LoRA under the Trainer of transformers at the released settings, micro-batches of 4 × 4
    peft:…           the same with other sizes of micro-batch and ways to sample
    sharded     training on all GPUs, with the base whole on each and with a share on each, and the protocols with
                shares; skipped with one GPU, and in two processes on a CPU

The JSON::

    machine     device, its memory in GB, torch, transformers, peft, bitsandbytes (null where missing)
    model       name of the shapes, and the shapes
    parts       by part: "seconds" and, one of these, "error" (its last lines), "skipped" (why), or its own keys
      suite         passed, failed, skipped, faults (test -> message), facts (test -> what it recorded: peak_mb, …)
      ours, peft:…  training: matmul_tflops (of one large bfloat16 product: the peak that can be reached),
                    step_seconds, rows_per_second, tokens_per_second, share_of_peak, peak_gb, kernels_per_step,
                    kernel_seconds_per_step (on a CPU of operations)
      ours          also checkpointing (training with gradient checkpointing), questions_per_second by protocol,
                    and failed (what -> error)
      latency       contestant -> answer_ms, tokens_per_second
      sharded       processes; ddp and fsdp, each a training, peak_gb of rank 0; same_losses, to the bit;
                    questions_per_second by protocol, with fsdp
    ours_is     rows per second of ours over those of PEFT: "released" and "best"
    seconds     of all
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from contestants import our_step, timed, trainer_settings, with_lora
from report import wait

ROOT = Path(__file__).parents[1]
RELEASED = "peft:4:random"
LIMITS = {
    "ours": 140,
    RELEASED: 70,
    "suite": 150,
    "latency": 90,
    "peft:16:random": 50,
    "peft:8:group_by_length": 50,
    "peft:4:group_by_length": 50,
    "sharded": 120,
}
"""Seconds of each part at most. What is compared comes first: a part that takes long leaves the rest what it can."""

TOTAL = 470
"""Seconds of all parts at most."""

ROWS, STEPS = 16, 6 if torch.cuda.is_available() else 2

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
}
NEEDS = {"Meta-Llama-3-8B": 30, "Llama-3.2-3B": 14, "Llama-3.2-1B": 0}
"""Gigabytes that the device needs for each of the shapes, weights and activations together."""


def device() -> torch.device:
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )


def shapes() -> tuple[str, dict[str, Any]]:
    """Name and shapes of the model: the largest that fits, a tiny one on a CPU."""
    from moslora.base.shapes import SHAPES

    if not torch.cuda.is_available():
        return "tiny", TINY
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    name = next(name for name, least in NEEDS.items() if memory >= least)
    return name, SHAPES[name]


def random_model() -> Any:
    """A LLaMA of :func:`shapes` on the device, bfloat16, small random weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**shapes()[1], max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    with device():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return model.eval()


def step_rows(step: int) -> list[Any]:
    """16 training rows of random tokens, about 110 of them each, as long as the eight sets' rows are."""
    from moslora.data.encode import Encoded

    draw = random.Random(step)
    vocabulary = shapes()[1]["vocab_size"]
    rows = []
    for row in range(ROWS):
        length = min(256, max(50, round(draw.lognormvariate(4.65, 0.35))))
        tokens = [draw.randrange(3, vocabulary) for _ in range(length)]
        rows.append(Encoded(f"{step}/{row}", "boolq", tokens, tokens, truncated=False))
    return rows


def peak_gb() -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


def matmul_tflops() -> float:
    """TFLOP/s of one large bfloat16 product, the best of some."""
    size = 8192 if torch.cuda.is_available() else 512
    a, b = (torch.randn(size, size, device=device(), dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(12):
        wait()
        began = time.perf_counter()
        _ = a @ b
        wait()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times) / 1e12


def kernels(work: Callable[[], object]) -> dict[str, float]:
    """CUDA kernels of ``work``, and their time; on a CPU its operations."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        work()
        wait()
    events = [event for event in profiled.events() or [] if event.device_type == kind]
    time_us = sum(event.device_time_total if on_gpu else event.self_cpu_time_total for event in events)
    return {"kernels_per_step": len(events), "kernel_seconds_per_step": time_us / 1e6}


def rates(seconds: Sequence[float], *, parameters: int, tflops: float) -> dict[str, float]:
    """What ``seconds`` of the steps 1, 2, … come to.

    A frozen base costs 2 operations a parameter and token forward and 2 backward: no gradient of its weights.
    """
    tokens = [sum(len(row.input_ids) for row in step_rows(1 + step)) for step in range(len(seconds))]
    per_second = sum(tokens) / sum(seconds)
    return {
        "matmul_tflops": tflops,
        "step_seconds": statistics.median(seconds),
        "rows_per_second": ROWS * len(seconds) / sum(seconds),
        "tokens_per_second": per_second,
        "share_of_peak": 4 * parameters * per_second / (tflops * 1e12),
        "peak_gb": peak_gb(),
    }


def ours() -> dict[str, Any]:
    """Training and evaluation by this program, over one random model."""
    from moslora.adapters import inject
    from moslora.base.load import use_own_modules
    from moslora.recipe import load_recipe

    recipe, model, tflops = load_recipe("llama3-8b"), random_model(), matmul_tflops()
    use_own_modules(model)
    parameters = model.num_parameters()
    inject(model, **recipe.adapter_options())
    found: dict[str, Any] = {"failed": {}}

    def part(name: str, work: Callable[[], dict[str, Any]]) -> None:
        try:
            found[name] = work()
        except Exception as error:  # the next part may work
            found["failed"][name] = f"{type(error).__name__}: {error}"[:500]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    part("training", partial(train, model, recipe, parameters=parameters, tflops=tflops))
    found |= found.pop("training", {})
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    part("checkpointing", partial(train, model, recipe, parameters=parameters, tflops=tflops))
    model.gradient_checkpointing_disable()
    model.eval()
    part("questions_per_second", partial(questions_per_second, model))
    return found


def train(
    model: Any, recipe: Any, *, parameters: int, tflops: float, strategy: Literal["ddp", "fsdp"] = "ddp"
) -> dict[str, Any]:
    step = our_step(model, recipe.training, strategy=strategy)
    reset_peak()
    seconds, losses = timed(lambda number: step(step_rows(number)), range(1, STEPS + 1))
    result = rates(seconds, parameters=parameters, tflops=tflops)
    return {**result, **kernels(lambda: step(step_rows(1))), "losses": losses}


def sharded() -> dict[str, Any]:
    """In each of several processes: the same steps under both strategies, then the protocols on the sharded model."""
    import torch.distributed as dist

    from moslora.adapters import inject
    from moslora.base.load import use_own_modules
    from moslora.recipe import load_recipe

    recipe, found = load_recipe("llama3-8b", ["adapter.dropout=0"]), dict[str, Any]()
    for strategy in ("ddp", "fsdp"):
        model, tflops = random_model(), matmul_tflops()
        use_own_modules(model)
        parameters = model.num_parameters()
        inject(model, **recipe.adapter_options())
        found[strategy] = train(model, recipe, parameters=parameters, tflops=tflops, strategy=strategy)
    found["processes"] = dist.get_world_size()
    found["same_losses"] = found["ddp"]["losses"] == found["fsdp"]["losses"]
    found["questions_per_second"] = questions_per_second(model.eval())
    dist.destroy_process_group()
    return found


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def questions_per_second(model: Any) -> dict[str, float]:
    """By protocol, over questions of two sets with the tests' tokenizer."""
    sys.path.insert(0, str(ROOT / "tests"))
    from evaluation_kit import make_examples, tokenizer
    from moslora.evaluation import Request, evaluate

    found = {}
    count = {"rank": 256, "cloze": 256, "generate": 64} if torch.cuda.is_available() else dict.fromkeys(FORMATS, 4)
    for protocol, format in FORMATS.items():
        questions = {task: make_examples(task, count[protocol]) for task in ("arc_easy", "siqa")}
        request = Request(protocol=protocol, format=format)  # type: ignore[arg-type]
        if torch.cuda.is_available():  # the first warms up
            evaluate(model, tokenizer(), {task: rows[:8] for task, rows in questions.items()}, request)
        wait()
        began = time.perf_counter()
        evaluate(model, tokenizer(), questions, request)
        found[protocol] = 2 * count[protocol] / (time.perf_counter() - began)
    return found


FORMATS = {"rank": "label", "cloze": "cloze", "generate": "label"}


def latency() -> dict[str, Any]:
    """An answer and writing with every kind of adapter, one question at a time, over one random model."""
    sys.path.insert(0, str(ROOT / "tests"))
    from evaluation_kit import tokenizer
    from latency import measure, medians
    from moslora.base.load import use_own_modules
    from moslora.recipe import load_recipe

    tokens, repetitions = (16, 5) if torch.cuda.is_available() else (2, 1)
    model = random_model()
    use_own_modules(model)
    adapter = load_recipe("llama3-8b").adapter
    return medians(measure(model, tokenizer(), adapter, tokens=tokens, repetitions=repetitions))


def peft(micro_batch: int, sampling: str) -> dict[str, Any]:
    """Training by PEFT's LoRA under the Trainer: padded left, causal mask and cross entropy of transformers."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from moslora.recipe import load_recipe

    recipe, model, tflops = load_recipe("llama3-8b"), random_model(), matmul_tflops()
    parameters = model.num_parameters()
    model = with_lora(model, recipe.adapter)
    rows = [row for step in range(1, STEPS + 1) for row in step_rows(step)]  # each once: their tokens are known
    data = [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **options: Any) -> None:
            if not ends:
                wait()
                ends.append(time.perf_counter())

        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            wait()
            ends.append(time.perf_counter())

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = -(-max(len(row["input_ids"]) for row in batch) // 8) * 8
        room = [longest - len(row["input_ids"]) for row in batch]
        return {
            "input_ids": torch.tensor([[0] * left + row["input_ids"] for left, row in zip(room, batch, strict=True)]),
            "labels": torch.tensor([[-100] * left + row["labels"] for left, row in zip(room, batch, strict=True)]),
            "attention_mask": torch.tensor([[0] * left + [1] * (longest - left) for left in room]),
        }

    with tempfile.TemporaryDirectory() as folder:
        settings = trainer_settings(
            recipe.training, rows=ROWS, micro_batch=micro_batch, train_sampling_strategy=sampling, logging_steps=1000
        )
        arguments = TrainingArguments(output_dir=folder, max_steps=1, **settings)
        callback = Clock()
        trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[callback])
        trainer.train()  # warms up
        arguments.max_steps = STEPS
        ends.clear()
        reset_peak()
        trainer.train()
        found = rates([b - a for a, b in itertools.pairwise(ends)], parameters=parameters, tflops=tflops)
        arguments.max_steps = 1
        return {**found, **kernels(trainer.train)}


def suite() -> dict[str, Any]:
    """The tests marked ``gpu``, and what they recorded."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py", f"--junitxml={report}"]
        dry = {} if torch.cuda.is_available() else {"MOSLORA_GPU_DRY_RUN": "1"}
        ran = subprocess.run(command, cwd=ROOT, env=os.environ | dry, capture_output=True, text=True, check=False)
        if not report.exists():
            raise RuntimeError(ran.stdout[-1500:] + ran.stderr[-500:])
        cases = list(xml.parse(report).iter("testcase"))
    faults = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    facts = {
        str(case.get("name")): {str(fact.get("name")): fact.get("value") for fact in case.iter("property")}
        for case in cases
    }
    return {
        "passed": len(cases) - len(faults) - len(skipped),
        "failed": len(faults),
        "skipped": len(skipped),
        "faults": {str(case.get("name")): first_message(case) for case in faults},
        "facts": {name: values for name, values in facts.items() if values},
    }


def first_message(case: Any) -> str:
    fault = next(child for child in case if child.tag in ("failure", "error"))
    return str(fault.get("message"))[:300]


def work(name: str) -> dict[str, Any]:
    if name.startswith("peft:"):
        _, micro_batch, sampling = name.split(":")
        return peft(int(micro_batch), sampling)
    return {"suite": suite, "latency": latency, "ours": ours, "sharded": sharded}[name]()


def in_process(name: str, *, limit: float) -> dict[str, Any]:
    """What the part ``name`` finds in a process of its own, or why it found nothing."""
    if name.startswith("peft") and version("peft") is None:
        return {"skipped": "peft is not installed"}
    if name == "suite" and version("pytest") is None:
        return {"skipped": "pytest is not installed"}
    launch = []
    if name == "sharded":
        processes = torch.cuda.device_count() if torch.cuda.is_available() else 2
        if processes == 1:
            return {"skipped": "one GPU"}
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    began = time.perf_counter()
    command = [sys.executable, *launch, __file__, "work", name]
    environment = os.environ | {"TQDM_DISABLE": "1", "PYTHONPATH": f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}"}
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=max(5.0, limit)
        )
        found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        found = {"error": f"not ended after {limit:.0f} seconds"}
    except (IndexError, ValueError):
        found = {"error": ran.stderr[-1500:]}
    return {"seconds": round(time.perf_counter() - began, 1), **found}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    return {
        "device": torch.cuda.get_device_name(0) if on_gpu else "cpu",
        "memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if on_gpu else None,
        **{package: version(package) for package in packages},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--dry-run", action="store_true", help="with a tiny model on the CPU")
    parser.add_argument("--parts", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    options = parser.parse_args(arguments)
    if options.dry_run:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    elif not torch.cuda.is_available():
        sys.exit("no CUDA device here; --dry-run runs every part on the CPU")
    began = time.perf_counter()
    parts: dict[str, dict[str, Any]] = {}
    name, sizes = shapes()
    result: dict[str, Any] = {"machine": machine(), "model": name, "shapes": sizes, "parts": parts}

    def write() -> None:
        result["seconds"] = round(time.perf_counter() - began, 1)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    for part in options.parts:
        slower = 3 if options.dry_run else 1
        left = slower * TOTAL - (time.perf_counter() - began)
        parts[part] = in_process(part, limit=min(slower * LIMITS[part], left)) if left > 5 else {"skipped": "no time"}
        print(f"{part}: {summary(parts[part])}", flush=True)
        write()  # what was found outlives whatever comes next
    speeds: dict[str, float] = {who: one["rows_per_second"] for who, one in parts.items() if "rows_per_second" in one}
    peers = {who: speed for who, speed in speeds.items() if who.startswith("peft")}
    if "ours" in speeds and RELEASED in peers:
        result["ours_is"] = {
            "released": speeds["ours"] / peers[RELEASED],
            "best": speeds["ours"] / max(peers.values()),
        }
    write()
    print(f"{options.out}: {result['seconds']} s, ours is {result.get('ours_is')}")


def summary(found: dict[str, Any]) -> str:
    kept = {key: value for key, value in found.items() if key not in ("losses", "facts")}
    return json.dumps(kept)[:900]


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        result = work(sys.argv[2])
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(result))
    else:
        main()
