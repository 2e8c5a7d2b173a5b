"""What llama.cpp answers, with what a run was turned into, against the run itself.

    make serving                                                 # in an environment of its own; builds llama.cpp once
    .venv-serving/bin/python -m benchmarks.checks.serving --run runs/NAME      # a run of yours, not a short training

Each form is served by llama.cpp's own server, here that of the package xllamacpp, and `moslora verify` asks it what the
run has answered. Two of them are faults: the base alone, and the adapter at 0.9 of its scale.
"""

import ctypes
import os
import shutil
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import DOCS, ROOT
from benchmarks.commands import command, run_command
from benchmarks.tables import machine, markdown, publish
from moslora.base.resolve import locate
from moslora.download.wheels import home
from moslora.files import new_folder, sha256
from moslora.runs.adapter_folder import open_adapter
from moslora.verify.report import Report
from moslora.verify.verification import verify

PACKAGE = "llama_cpp_python"
VERSION = "0.3.35"
SHA256 = "1139dbb54509074b70893fab8554e3b079aa9f4d312058ce4018ef0019e3de12"
"""The sdist has the whole source of llama.cpp with its converters, and Python's way to its library."""

TRAINING = [
    "smollm2-135m",
    "data.rows=60",
    "data.validation_rows=24",
    "training.global_batch_size=16",
    "training.max_steps=30",
    "training.warmup_steps=5",
]
WORK = ROOT / "runs" / "benchmarks" / "serving"
QUANTISED = ("Q8_0", "Q4_K_M")


@dataclass(frozen=True)
class Form:
    """What llama.cpp loads."""

    name: str
    model: Path
    adapter: Path | None = None
    scale: float = 1.0


def unpacked() -> Path:
    """A folder of the user's cache with the sdist's ``source`` of llama.cpp and ``llama_cpp``; fetched once.

    Raises:
        RuntimeError: the sdist is another than the one named here.
    """
    folder = home() / "llama.cpp" / f"{PACKAGE}-{VERSION}"
    if not (folder / "llama_cpp").exists():
        with new_folder(folder) as scratch:
            download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "--dest"]
            run_command(*download, scratch, f"{PACKAGE}=={VERSION}")
            archive = scratch / f"{PACKAGE}-{VERSION}.tar.gz"
            found = sha256(archive)
            if found != SHA256:
                raise RuntimeError(f"{archive.name} has sha256 {found}, expected {SHA256}")
            with tarfile.open(archive) as packed:
                packed.extractall(scratch, filter="data")
            sdist = scratch / f"{PACKAGE}-{VERSION}"
            (sdist / "vendor" / "llama.cpp").rename(scratch / "source")
            (sdist / "llama_cpp").rename(scratch / "llama_cpp")
            shutil.rmtree(sdist)
            archive.unlink()
    return folder


def built(llama: Path) -> Path:
    """The folder of llama.cpp's library, compiled once for this machine's processor."""
    build = llama / "build"
    cmake = Path(sys.executable).with_name("cmake")
    if not (build / "bin" / "libllama.so").exists():
        parts = [f"-DLLAMA_BUILD_{name}=OFF" for name in ("COMMON", "TOOLS", "SERVER", "TESTS", "EXAMPLES", "APP")]
        run_command(cmake, "-S", llama / "source", "-B", build, "-DCMAKE_BUILD_TYPE=Release", *parts)
        run_command(cmake, "--build", build, "--parallel", str(os.cpu_count()), "--target", "llama")
    return build / "bin"


def loaded(llama: Path, library: Path) -> Any:
    """The module ``llama_cpp`` over the library of that folder."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(library)
    sys.path.insert(0, str(llama))
    import llama_cpp

    # A library for several processors has what computes in files of their own.
    ctypes.CDLL(str(library / "libggml.so")).ggml_backend_load_all_from_path(str(library).encode())
    return llama_cpp


def converted(run: Path, llama: Path, llama_cpp: Any) -> list[Form]:
    """The run's forms, written into `WORK` by the commands of docs/serving.md."""
    python = sys.executable
    moslora = [python, "-m", "moslora"]
    to_gguf = llama / "source" / "convert_hf_to_gguf.py"
    base = locate(open_adapter(run / "adapter").recipe.model.name)
    merged = WORK / "merged-F16.gguf"
    plain = WORK / "base-F16.gguf"
    adapter = WORK / "gguf" / "adapter.gguf"
    for name in ("merged", "gguf"):
        shutil.rmtree(WORK / name, ignore_errors=True)
    run_command(*moslora, "merge", run, "--dtype", "float32", "--out", WORK / "merged")
    run_command(python, to_gguf, WORK / "merged", "--outtype", "f16", "--outfile", merged)
    run_command(*moslora, "export", run, "--format", "gguf", "--llama-cpp", llama / "source", "--out", WORK / "gguf")
    run_command(python, to_gguf, base, "--outtype", "f16", "--outfile", plain)
    forms = [
        Form("merged, F16", merged),
        Form("base in F16, adapter", plain, adapter),
        Form("base in F16", plain),
        Form("base in F16, adapter at 0.9", plain, adapter, scale=0.9),
    ]
    for kind in QUANTISED:
        file = WORK / f"merged-{kind}.gguf"
        how = llama_cpp.llama_model_quantize_default_params()  # what llama-quantize calls
        how.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        if llama_cpp.llama_model_quantize(bytes(merged), bytes(file), ctypes.byref(how)):
            raise RuntimeError(f"{merged}: llama.cpp cannot quantise it to {kind}")
        forms.append(Form(f"merged, {kind}", file))
    return forms


def started(form: Form) -> Any:
    """llama.cpp's server of this form."""
    import xllamacpp

    how = xllamacpp.CommonParams()
    how.model.path = str(form.model)
    how.n_ctx = 2_048
    how.n_parallel = 1
    how.cpuparams.n_threads = torch.get_num_threads()
    if form.adapter:
        how.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(form.adapter), form.scale)]
    return xllamacpp.Server(how)


def verified(form: Form, run: Path) -> Report:
    """What `moslora verify` says of the form behind llama.cpp's server."""
    server = started(form)
    return verify(run, server.listening_address, at_once=1, out=WORK / "verify" / form.name)


def publish_reports(name: str, heading: str, reports: Iterable[tuple[str, Report, str]], *, print_only: bool) -> None:
    """Writes the table of that ``name``: a line for each thing that is served, with what `moslora verify` reports of it
    and what serves it, which is printed as soon as it is there."""
    table = [[heading, "same answers", "distance", "k", "verdict"]]
    for served, report, by in reports:
        assert report.fit is not None
        low, high = report.fit.interval
        k = f"{report.fit.k:.2f} ({low:.2f} to {high:.2f})".replace("-", "−")
        same = f"{report.same} of {report.answered}"
        table.append([served, same, f"{report.fit.distance:.2g}", k, report.verdict.kind])
        print(" | ".join(table[-1]), flush=True)
        rounding = f"rounding explains {report.tolerance:.2g}"
        caption = f"{machine()}; {by}; distances in nats, of which {rounding}; k with its interval of 99 %"
    publish(f"{caption}\n\n{markdown(table)}", DOCS / "serving.md", name, print_only=print_only)


def main(*, run: Path = WORK / "run", print_only: bool = False) -> None:
    llama = unpacked()
    llama_cpp = loaded(llama, built(llama))
    if not (run / "adapter").exists():
        run_command(sys.executable, "-m", "moslora", "train", *TRAINING, "--out", run)
    WORK.mkdir(parents=True, exist_ok=True)
    forms = converted(run, llama, llama_cpp)
    by = f"llama.cpp of xllamacpp, converters of {PACKAGE} {VERSION}"
    reports = ((form.name, verified(form, run), by) for form in forms)
    publish_reports("serving table", "llama.cpp loads", reports, print_only=print_only)


if __name__ == "__main__":
    command(main)
