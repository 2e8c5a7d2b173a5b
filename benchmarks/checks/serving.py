"""What llama.cpp answers, with what a run was turned into, against the run itself.

    make serving                                                 # in an environment of its own; builds llama.cpp once
    .venv-serving/bin/python -m benchmarks.checks.serving --run runs/NAME      # a run of yours, not a short training
    .venv-serving/bin/python -m benchmarks.checks.serving --library FOLDER     # with libllama and libggml as they are

The reference is the base with its adapter in float32. Both are asked the same questions by the protocol ``cloze``:
every option's text behind its question, by the log-probabilities of its tokens, which are ours. Whether llama.cpp's
tokenizer gives the same is asked of its server, here that of the package xllamacpp, with the likeliest next token
behind each question's text.
"""

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import numpy as np
import torch

from benchmarks import DOCS, ROOT
from benchmarks.tables import machine, markdown, publish
from moslora.base.load import load_tokenizer
from moslora.base.resolve import locate
from moslora.compare.statistics import MACRO, effects
from moslora.data.encode import EncodedText
from moslora.data.sources import load_examples
from moslora.download.wheels import home
from moslora.evaluation import Request
from moslora.evaluation.cloze import Cloze
from moslora.evaluation.scorers import make_scorer
from moslora.files import new_folder, sha256
from moslora.kernels.rows import common_prefix
from moslora.runs.adapter_folder import load_adapted, open_adapter
from moslora.runs.answers import order_key
from moslora.runs.predictions import Prediction
from moslora.tasks import COMMONSENSE, TASKS, Example

PACKAGE = "llama_cpp_python"
VERSION = "0.3.35"
SHA256 = "1139dbb54509074b70893fab8554e3b079aa9f4d312058ce4018ef0019e3de12"
"""The sdist has the whole source of llama.cpp with its converters, and Python's way to its library."""

TRAINING = [
    *("smollm2-135m", "data.rows=60", "data.validation_rows=24", "training.global_batch_size=16"),
    *("training.max_steps=30", "training.warmup_steps=5"),
]
QUANTISED = ("Q8_0", "Q4_K_M", "Q4_0")


@dataclass(frozen=True)
class Form:
    """What llama.cpp loads."""

    name: str
    model: Path
    adapter: Path | None = None

    @property
    def megabytes(self) -> str:
        return " + ".join(f"{path.stat().st_size / 1e6:,.0f}" for path in (self.model, self.adapter) if path)


def command(*words: str | Path) -> None:
    """Prints and runs it."""
    print("$", *words, flush=True)
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


def unpacked() -> Path:
    """A folder of the user's cache with the sdist's ``source`` of llama.cpp and ``llama_cpp``; fetched once.

    Raises:
        RuntimeError: the sdist is another than the one named here.
    """
    folder = home() / "llama.cpp" / f"{PACKAGE}-{VERSION}"
    if not (folder / "llama_cpp").exists():
        with new_folder(folder) as scratch:
            download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "--dest"]
            command(*download, scratch, f"{PACKAGE}=={VERSION}")
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
        command(cmake, "-S", llama / "source", "-B", build, "-DCMAKE_BUILD_TYPE=Release", *parts)
        command(cmake, "--build", build, "--parallel", str(os.cpu_count()), "--target", "llama")
    return build / "bin"


def loaded(llama: Path, library: Path) -> Any:
    """The module ``llama_cpp`` over the library of that folder."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(library)
    sys.path.insert(0, str(llama))
    import llama_cpp

    # A library for several processors has what computes in files of their own.
    ctypes.CDLL(str(library / "libggml.so")).ggml_backend_load_all_from_path(str(library).encode())
    return llama_cpp


def converted(run: Path, work: Path, llama: Path, llama_cpp: Any) -> list[Form]:
    """The run's forms, written into ``work`` by the commands of docs/serving.md."""
    python = sys.executable
    moslora = [python, "-m", "moslora"]
    to_gguf = llama / "source" / "convert_hf_to_gguf.py"
    lora_to_gguf = llama / "source" / "convert_lora_to_gguf.py"
    base = locate(open_adapter(run / "adapter").recipe.model.name)
    merged = work / "merged-F16.gguf"
    plain = work / "base-F16.gguf"
    adapter = work / "adapter.gguf"
    for name in ("merged", "peft"):
        shutil.rmtree(work / name, ignore_errors=True)
    command(*moslora, "merge", run, "--dtype", "float32", "--out", work / "merged")
    command(python, to_gguf, work / "merged", "--outtype", "f16", "--outfile", merged)
    command(*moslora, "export", run, "--format", "peft", "--out", work / "peft")
    command(python, to_gguf, base, "--outtype", "f16", "--outfile", plain)
    command(python, lora_to_gguf, work / "peft", "--base", base, "--outfile", adapter)
    forms = [Form("merged, F16", merged), Form("base in F16, adapter", plain, adapter)]
    for kind in QUANTISED:
        forms.append(Form(f"merged, {kind}", work / f"merged-{kind}.gguf"))
        how = llama_cpp.llama_model_quantize_default_params()  # what llama-quantize calls
        how.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        if llama_cpp.llama_model_quantize(bytes(merged), bytes(forms[-1].model), ctypes.byref(how)):
            raise RuntimeError(f"{merged}: llama.cpp cannot quantise it to {kind}")
    return forms


def asked(form: Form, llama_cpp: Any, scorer: Cloze, questions: dict[str, list[Example]]) -> list[Prediction]:
    """llama.cpp's predictions: each option's Σ log p over its tokens, of its own logits."""
    encoded = [(example, scorer.encode(example)) for example in chain.from_iterable(questions.values())]
    longest = 0
    for _, texts in encoded:
        longest = max(longest, *(len(text.ids) for text in texts))
    lora = str(form.adapter) if form.adapter else None
    threads = torch.get_num_threads()
    how = {"n_ctx": longest, "n_threads": threads, "n_threads_batch": threads, "logits_all": True, "verbose": False}
    model = llama_cpp.Llama(str(form.model), lora_path=lora, **how)

    def scores(texts: Sequence[EncodedText]) -> Iterator[tuple[float, bool]]:
        shared = common_prefix([text.ids[:-1] for text in texts])
        model.reset()
        model.eval(texts[0].ids[:shared])
        for text in texts:
            model.n_tokens = shared  # what it has read beyond is forgotten
            model.eval(text.ids[shared:-1])
            logits = torch.from_numpy(model.scores[text.answer_start - 1 : len(text.ids) - 1]).double()
            targets = torch.tensor(text.ids[text.answer_start :])[:, None]
            values = logits.log_softmax(1).gather(1, targets)
            yield float(values.sum()), bool((logits.argmax(1, keepdim=True) == targets).all())

    found = [scorer.read(example, texts, list(scores(texts))) for example, texts in encoded]
    model.close()
    return found


def compared(ours: Sequence[Prediction], theirs: Sequence[Prediction]) -> list[str]:
    """Same answers, mean and largest |Δ log p| of the right option's text, and the accuracy's difference.

    The difference is theirs − ours, in points, the mean over the tasks, with the paired interval over the questions.
    """
    pairs = list(zip(ours, theirs, strict=True))
    moved = []
    for a, b in pairs:
        assert a.gold is not None, f"{a.id}: has no options"
        moved.append(abs(a.scores[a.gold] - b.scores[a.gold]))
    gained: dict[str, list[int]] = {}
    for a, b in pairs:
        gained.setdefault(a.task, []).append((b.chosen == b.gold) - (a.chosen == a.gold))
    effect = effects({task: np.array([each], float) for task, each in gained.items()}, binary=True)[MACRO]
    low, high = (f"{100 * bound:+.1f}" for bound in effect.interval)
    return [
        f"{sum(a.chosen == b.chosen for a, b in pairs)} of {len(pairs)}",
        f"{sum(moved) / len(moved):.2g}",
        f"{max(moved):.2g}",
        f"{100 * effect.difference:+.1f} ({low} to {high})".replace("-", "−"),
    ]


def post(address: str, **body: Any) -> dict[str, Any]:
    request = HttpRequest(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def served(form: Form, scorer: Cloze, questions: dict[str, list[Example]]) -> str:
    """One sentence on the text of each question: the server's tokens, and its likeliest next token."""
    import xllamacpp

    how = xllamacpp.CommonParams()
    how.model.path = str(form.model)
    how.n_ctx = 2_048
    how.n_parallel = 1
    how.cpuparams.n_threads = torch.get_num_threads()
    if form.adapter:
        how.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(form.adapter), 1.0)]
    server = xllamacpp.Server(how)
    same_tokens = 0
    same_next = 0
    moved = 0.0
    count = 0
    for example in chain.from_iterable(questions.values()):
        text = scorer.encode(example)[0]
        prompt = scorer.format.options(example)[0].prompt
        ids = text.ids[: text.answer_start]
        with torch.inference_mode():
            expected = scorer.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(0)
        address = server.listening_address
        same_tokens += post(f"{address}/tokenize", content=prompt, add_special=True)["tokens"] == ids
        answer = post(f"{address}/completion", prompt=prompt, n_predict=1, n_probs=1, temperature=-1)
        (likeliest,) = answer["completion_probabilities"][0]["top_logprobs"]
        same_next += likeliest["id"] == int(expected.argmax())
        moved = max(moved, abs(likeliest["logprob"] - float(expected[likeliest["id"]])))
        count += 1
    return (
        f"{form.name}: the same tokens in {same_tokens} of {count} prompts, the same likeliest next token in"
        f" {same_next}, its log p within {moved:.2g}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run; without it, a short one is trained")
    parser.add_argument("--library", type=Path, help="the folder of libllama and libggml; without it, they are built")
    parser.add_argument("--limit", type=int, default=8, help="questions of each set (%(default)s)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "benchmarks" / "serving", help="for the files")
    parser.add_argument("--docs", type=Path, default=DOCS / "serving.md", help="where the table is written")
    parser.add_argument("--print-only", action="store_true", help="leave the document as it is")
    given = parser.parse_args(arguments)
    llama = unpacked()
    run = given.run or given.work / "run"
    llama_cpp = loaded(llama, given.library or built(llama))
    if not (run / "adapter").exists():
        command(sys.executable, "-m", "moslora", "train", *TRAINING, "--out", run)
    given.work.mkdir(parents=True, exist_ok=True)
    forms = converted(run, given.work, llama, llama_cpp)
    folder = open_adapter(run / "adapter")
    model = load_adapted(folder, dtype="float32")
    tokenizer = load_tokenizer(folder.recipe.model)
    scorer = make_scorer(model, tokenizer, Request(protocol="cloze", format="cloze"))
    assert isinstance(scorer, Cloze)
    questions = {}
    for task in COMMONSENSE:
        rows = load_examples(TASKS[task], "test", source="wheel")
        questions[task] = sorted(rows, key=lambda row: order_key(row.id))[: given.limit]
    ours = []
    for rows in questions.values():
        ours += scorer.score(rows)
    header = ["llama.cpp loads", "MB", "same answers", "mean \\|Δ log p\\|", "largest"]
    table = [[*header, "accuracy, points (95 % interval)"]]
    for form in forms:
        table.append([form.name, form.megabytes, *compared(ours, asked(form, llama_cpp, scorer, questions))])
        print(" | ".join(table[-1]), flush=True)
    through = [f"* {served(form, scorer, questions)}" for form in forms[:2]]
    caption = (
        f"{machine()}; llama.cpp {llama_cpp.llama_version().decode()}, converters of {PACKAGE} {VERSION};"
        f" {given.limit} questions of each of {len(questions)} sets; accuracy of the run itself"
        f" {100 * sum(p.chosen == p.gold for p in ours) / len(ours):.1f} %"
    )
    text = "\n".join([caption, "", markdown(table), "", "Through the server, from the prompts' text:", "", *through])
    publish(text, given.docs, "serving table", print_only=given.print_only)


if __name__ == "__main__":
    main()
