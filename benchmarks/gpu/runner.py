"""Everything that only a GPU can show, in the few minutes that there is one.

    benchmarks/gpu.sh                     # all parts but `sharded`, in 570 seconds at most
    benchmarks/gpu.sh --seconds 280       # in so many: all limits shrink by one factor
    benchmarks/gpu.sh --only sharded      # on several GPUs
    benchmarks/gpu.sh --dry-run           # every part with a tiny model on this CPU, in some minutes

Nothing is installed or fetched. Each part is a process group of its own with a time limit, so that one that fails,
hangs or runs out of memory costs the others nothing, and writes down what it finds as it finds it. The models have
LLaMA-3-8B's shapes and random weights; a step is 16 rows of random tokens, as long as real ones, with the loss on all.

    first         versions, and whether Liger-Kernel works
    machine       the speed of a large product, and of a copy
    ours          training by this program's loop: 30 steps, timed when they come again; this and the first three of
                  PEFT's also by part of a step, beside the ESTIMATE of benchmarks/gpu/operations.py
    check         each piece of the engine against its plain formula, as `moslora check` does
    tests         the tests marked ``gpu``
    memory        the peak of training steps against the one that `moslora plan` computes
    products      each product with a frozen weight alone, beside its ESTIMATE
    kernels       each Triton kernel alone, the forward product with dropout over tiles, beside its ESTIMATE
    peft:rows     the same by PEFT's LoRA under the Trainer of transformers: 16 rows at once, padded on the right
    peft:length   … with rows of similar length in a step
    peft:packed   … with the rows of a step end to end
    peft:liger    as peft:length, with the kernels of liger-kernel
    peft:compile  as peft:length, with decoder layers by torch.compile
    evaluation    questions per second by protocol
    command       the command over such a model on disk: trained in bfloat16 and NF4, killed, resumed, scored
    latency       an answer and writing with every kind of adapter: benchmarks/speed/latency.py
    sharded       training with the base whole on each GPU and with a share on each, and the protocols with shares

Into the folder OUT, or the current one:

    gpu.jsonl     a line for each finding: its part, seconds since the part began, and what was found
    gpu.log       what the parts printed
    gpu.json      the findings by part, with its "seconds", and "limit" if it was ended, or "error", or "skipped";
                  "ours_is" are our rows per second over each contestant's
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.commands import command

LIMITS = {
    "first": 40,
    "machine": 30,
    "ours": 45,
    "check": 75,
    "tests": 60,
    "memory": 25,
    "products": 20,
    "kernels": 40,
    "peft:rows": 25,
    "peft:length": 25,
    "peft:packed": 25,
    "peft:liger": 25,
    "peft:compile": 55,
    "evaluation": 25,
    "command": 150,
    "latency": 30,
    "sharded": 150,
}
"""Seconds of each part, to which comes what those before it have left over. All are multiplied by one factor, so that
together they are what the run may take; by three, and no less, in a dry run. The first has time for imports from a disk
that was never read."""

SECONDS = 570.0
"""What a run may take: less than the ten minutes of a command on a machine that is lent."""

GRACE = 3.0  # seconds between asking a group to end and ending it


def run_part(command: Sequence[str], *, until: float, log: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Runs ``command`` as a process group until that time of `time.monotonic`, and ends what is left of the group.

    All that it prints goes to ``log``. Returns its "seconds", and "limit" if it had to be ended, or "error".
    """
    began = time.monotonic()
    with log.open("ab") as output:
        at = output.tell()
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **streams)
    found: dict[str, Any] = {}
    try:
        if process.wait(until - began):
            printed = log.read_bytes()[at:].decode(errors="replace")
            found["error"] = f"exit code {process.returncode}: {printed[-1500:]}"
    except subprocess.TimeoutExpired:
        found["limit"] = round(until - began, 1)
    finally:
        end(process)
    return {"seconds": round(time.monotonic() - began, 1), **found}


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends all of the group that ``process`` leads."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        patience = time.monotonic() + GRACE
        try:
            os.killpg(process.pid, number)
            while time.monotonic() < patience:
                process.poll()  # a leader that has ended stays in its group until it is asked
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:  # nothing of the group is left
            return


def findings(records: Path, part: str) -> dict[str, Any]:
    """What a part has written down, the newest value of each key; a last line may be torn."""
    found: dict[str, Any] = {}
    if not records.exists():
        return found
    for line in records.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            one = json.loads(line)
            if one["part"] == part:
                found |= one["found"]
    return found


def ratios(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Rows per second of ours over those of each contestant."""
    speeds = {name: part["rows_per_second"] for name, part in parts.items() if "rows_per_second" in part}
    ours = speeds.pop("ours", None)
    return {name: round(ours / speed, 3) for name, speed in speeds.items()} if ours else {}


def beside(found: Mapping[str, Any]) -> str:
    """Lines with the device's time of a step by part beside the ESTIMATE of it, where a part of this file has both."""
    lines = ""
    for part, one in found.get("parts", {}).items():
        fast, slow = one["estimate_ms"]
        lines += f"\n  {part:20} {one['launches']:6,} launches {one['ms']:9.2f} ms, ESTIMATE {fast:.2f}–{slow:.2f} ms"
    return lines


def environment_of(part: str, scratch: str, *, dry_run: bool) -> dict[str, str]:
    """Our packages, the wheels' in ``scratch`` and a home there; nothing from the network, and no progress. The first
    device alone, of which the Trainer would use all, unless the part is for several."""
    path = [f"{ROOT}/src", f"{scratch}/packages", os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "HF_HUB_OFFLINE": "1",
        "MOSLORA_HOME": f"{scratch}/home",
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",
    }
    if "PYTORCH_CUDA_ALLOC_CONF" not in environment:  # as the command does: steps of many sizes leave gaps
        environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if part != "sharded":
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if dry_run:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MOSLORA_GPU_DRY_RUN": "1"}
    return environment


def run_parts(chosen: Sequence[str], *, wheels: Path, out: Path, dry_run: bool, seconds: float) -> dict[str, Any]:
    """Runs one part after the other, and returns what gpu.json has then; it is written again after each."""
    factor = 3 if dry_run else min(1.0, seconds / sum(LIMITS[part] for part in chosen))
    records = out / "gpu.jsonl"
    log = out / "gpu.log"
    summary = out / "gpu.json"
    for file in (records, log, summary):
        file.unlink(missing_ok=True)
    parts: dict[str, dict[str, Any]] = {}
    began = until = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="moslora-gpu-") as scratch:
        carried = sorted(wheels.glob("*.whl"))
        for wheel in carried:
            zipfile.ZipFile(wheel).extractall(f"{scratch}/packages")
        result: dict[str, Any] = {"wheels": [wheel.name for wheel in carried], "parts": parts}
        for part in chosen:
            until += factor * LIMITS[part]
            command = [sys.executable, "-m", "benchmarks.gpu.parts", part, str(records)]
            environment = environment_of(part, scratch, dry_run=dry_run)
            ended = run_part(command, until=until, log=log, environment=environment)
            found = findings(records, part) | ended
            parts[part] = found
            result |= {"seconds": round(time.monotonic() - began, 1), "ours_is": ratios(parts)}
            summary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(f"{part}: {json.dumps(found)[:1200]}{beside(found)}", flush=True)
            if part == "machine" and "error" in ended:
                break  # no other part can do without
    return result


def main(
    *, dry_run: bool = False, only: tuple[str, ...] = (), wheels: Path = ROOT / "wheels", seconds: float = SECONDS
) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the part that runs
    chosen = only or [part for part in LIMITS if dry_run or part != "sharded"]
    out = Path(os.environ.get("OUT", ".")).resolve()
    result = run_parts(chosen, wheels=wheels, out=out, dry_run=dry_run, seconds=seconds)
    print(f"{out / 'gpu.json'}: {result['seconds']} s, ours is {result['ours_is']}")
    return int(any("error" in part or part.get("failed") for part in result["parts"].values()))


if __name__ == "__main__":
    command(main, only=LIMITS)
