"""The plan that a user reads: figures of published models, what fits, and the rows at hand."""

import math
import re
from unittest.mock import Mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPTNeoXConfig, MixtralConfig

from cli_kit import run
from message_kit import says
from moslora.adapters import inject
from moslora.base.shapes import meta_model
from moslora.kernels import liger
from moslora.plan.duration import GPUS, Cost, cost, format_duration, on_gpus, on_this_cpu
from moslora.plan.outline import outline
from moslora.plan.plan import disk_line
from moslora.plan.sizes import parse_bytes
from moslora.recipe import ModelSection, load_recipe
from moslora.runs.run import Run
from moslora.training.objective import LabelLoss
from recipe_kit import MODELS
from reference import PROJECTIONS, as_micro_batch, tiny_llama, token_batch

PUBLISHED = {
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "smollm2-135m-instruct": 134_515_008,
}
"""Parameters, by the safetensors metadata on the hub."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_published_number_of_parameters(name):
    assert meta_model(ModelSection(name=name)).num_parameters() == PUBLISHED[name]


@pytest.mark.parametrize("name", MODELS)
def test_every_recipe_is_planned_offline(capsys, monkeypatch, tmp_path, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MOSLORA_HOME", str(tmp_path))
    code, out, _ = run(capsys, "plan", name, "--gpu-memory", "80GB", "--processes", "8")
    base = PUBLISHED[load_recipe(name).model.name]
    (trained, total) = (
        int(n.replace(",", "")) for n in re.findall(r"([\d,]+) trainable parameters of ([\d,]+)", out)[0]
    )
    assert code == 0 and total - trained == base
    assert "an estimate" in out and re.search(r"^fits", out, re.M)
    if "nf4" not in name:
        (weights,) = re.findall(r"^weights +([\d.]+) ", out, re.M)
        assert float(weights) == pytest.approx(2 * base / 1e9, rel=0.01)


def planned(capsys, *arguments):
    """Output of the command, and its line that says whether the run fits."""
    code, out, _ = run(capsys, "plan", *arguments)
    said = next(line for line in out.splitlines() if re.match(r"fits|does not fit", line))
    assert code == (1 if said.startswith("does not fit") else 0)
    return out, said


@pytest.mark.slow
def test_plan_suggests_what_would_fit(capsys):
    def remark(memory, *changes):
        return planned(capsys, "llama3-8b", "--gpu-memory", memory, *changes)[1]

    smaller = remark("24GB")
    assert smaller.startswith("does not fit: ")
    budget = int(re.findall(r"that fits is ([\d,]+)$", smaller)[0].replace(",", ""))
    assert remark("24GB", f"training.micro_batch_tokens={budget}").startswith("fits; the largest ")
    assert remark("24GB", f"training.micro_batch_tokens={budget + 64}").startswith("does not fit: ")
    assert remark("16GB").endswith("row; try model.quantization=nf4")
    assert remark("4GB").endswith("it needs more memory")


@pytest.mark.parametrize(("text", "size"), [("80GB", 80e9), ("79.6 GiB", 79.6 * 2**30), ("24", 24e9), ("16gb", 16e9)])
def test_memory_is_parsed_in_gb_and_gib(text, size):
    assert parse_bytes(text) == int(size)


def test_the_dry_run_of_train_is_the_plan(capsys, world, monkeypatch):
    recipe = world / "recipe.yaml"
    monkeypatch.setattr("moslora.plan.plan.on_this_cpu", lambda *_: 60.0)
    assert run(capsys, "train", recipe, "--dry-run") == run(capsys, "plan", recipe)
    monkeypatch.setattr("moslora.plan.plan.total_memory", lambda device: 2_000_000)
    for gpus in (0, 1):
        monkeypatch.setattr("moslora.plan.plan.gpus", lambda gpus=gpus: gpus)
        code, out, _ = run(capsys, "train", recipe, "--dry-run")
        assert code == 1 and "\ndoes not fit" in out and "moslora plan RECIPE --probe" in out


def test_available_rows_are_counted(recipe, trained):
    """Authority: the rows of every step; ``trained`` has put them into the cache."""
    run = outline(recipe())
    assert run.data is not None
    lengths = [len(row.input_ids) for row in run.data.rows]
    for processes in (1, 3):
        shares = [[lengths[row] for row in drawn[rank::processes]] for drawn in run.plan for rank in range(processes)]
        *others, longest = run.share_of_a_step(processes).lengths
        assert [*others, max(max(shares, key=sum))] == sorted(max(shares, key=sum)) and longest == max(map(max, shares))
    assert any("tokens on average" in line for line in run.summary)


def test_a_probe_runs_steps_and_keeps_nothing(capsys, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "plan", world / "recipe.yaml", "--probe")
    assert code == 0 and re.search(r"^measured here: [\d,]+ tokens a second .*5 steps", out, re.M)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (GPTNeoXConfig, "fits, even a whole step"),
        (MixtralConfig, "memory and time are not known: MixtralForCausalLM routes its tokens to experts"),
    ],
)
def test_other_architectures_are_planned_or_refused(capsys, world, tmp_path, kind, said):
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind(**shape, vocab_size=64).save_pretrained(tmp_path)
    changes = (f"model.name={tmp_path}", "adapter.target_modules=all-linear")
    code, out, _ = run(capsys, "plan", world / "recipe.yaml", *changes)
    assert code == 0 and f"\n{said}" in out


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("recomputed", [False, True])
def test_operations_are_those_that_torch_counts(recomputed, dora):
    """DoRA's too, with the second product with each frozen weight that dropout asks for; of more tokens, beside which
    its norms are little."""
    times = 20 if dora else 1
    model = tiny_llama(hidden_size=64, intermediate_size=192, layers=4)
    options = {"mixer": {"kind": "dense"}, "dora": dora, "dropout": 0.1 if dora else 0.0}
    inject(model, rank=8, alpha=8, target_modules=PROJECTIONS, **options)
    if recomputed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.get_input_embeddings().requires_grad_()  # its gradient is no product
    batch = as_micro_batch(token_batch(model, rows=8 * times, length=6))
    products = {torch.ops.mkldnn._linear_pointwise: lambda x, w, *_, **__: 2 * math.prod(x) * w[0]}  # of these shapes
    with FlopCounterMode(display=False, custom_mapping=products) as counter:
        LabelLoss(model.train())(batch)[0].backward()
    model.get_input_embeddings().requires_grad_(False)
    section = ModelSection(name="tiny", gradient_checkpointing=recomputed)
    found = cost(model, section, tokens=48 * times, labels=40 * times, row=6, passes=1)
    assert found.operations == pytest.approx(counter.get_total_flops(), rel=0.03 if dora else 0.02)
    assert not found.unpacked


@pytest.mark.parametrize(
    ("dora", "recomputed", "of_adapted"), [(False, False, 0), (True, False, 2), (False, True, 0), (True, True, 2)]
)
def test_a_base_in_4_bits_is_unpacked_twice_a_pass(dora, recomputed, of_adapted):
    """All of its linear layers, in three passes: forwards and backwards, or forwards and as they are computed again.
    Adapted ones with DoRA and dropout once more each."""
    model = tiny_llama(hidden_size=64, intermediate_size=192, layers=4)
    options = {"mixer": {"kind": "dense"}, "dora": dora, "dropout": 0.1}
    inject(model, rank=8, alpha=8, target_modules=PROJECTIONS, **options)
    section = ModelSection(name="tiny", quantization="nf4", gradient_checkpointing=recomputed)
    found = cost(model, section, tokens=48, labels=40, row=6, passes=3)
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 192
    adapted = 64 * 64 + 64 * 32 * 2 + 2 * 64 * 192  # all but o and gate
    assert found.unpacked == 3 * 2.5 * 4 * (2 * layer + of_adapted * adapted)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("by_liger", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_launches_of_the_host(monkeypatch, recomputed, by_liger, dora):
    """Authority: the pretend device's count for a layer with five adapters and dropout, within a fifth; 56 is one
    layer."""
    launches = {
        (False, True, False): 56,
        (True, True, False): 76,
        (False, False, False): 85,
        (True, False, False): 117,
        (False, True, True): 306,
        (True, True, True): 495,
        (False, False, True): 310,
        (True, False, True): 486,
    }
    monkeypatch.setattr(liger, "is_installed", lambda: by_liger)
    model = tiny_llama(layers=4)
    inject(model, rank=8, alpha=8, target_modules=PROJECTIONS, mixer={"kind": "dense"}, dropout=0.1, dora=dora)
    section = ModelSection(name="tiny", gradient_checkpointing=recomputed)
    found = cost(model, section, tokens=48, labels=40, row=6, passes=3)
    assert found.launched == pytest.approx(3 * 4 * launches[recomputed, by_liger, dora] / 56, rel=0.2)


def test_run_too_long_for_this_cpu_names_the_command_for_gpus(capsys, monkeypatch):
    """The run takes 2·10¹⁸ operations on a machine without GPUs; the suggested command plans for GPUs."""
    monkeypatch.setattr("moslora.plan.plan.on_this_cpu", lambda total, *_: total.operations / 4e11)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Mock(free=10**10))
    small = "training.global_batch_size=8"  # a row for each of eight, whose steps are measured sooner
    code, out, _ = run(capsys, "plan", "llama3-8b", small)
    assert says(out, "to download: about 16.1 GB into", "10.0 GB are free; too little")
    first = out.splitlines()[0]
    assert code == 0 and says(first, "no GPU here", "CPU", " h;", "for GPUs: moslora plan llama3-8b")
    hours = float(re.findall(r"([\d,.]+) h;", first)[0].replace(",", ""))
    (operations,) = (float(found) for found in re.findall(r"about (\S+) operations", out))
    assert hours == pytest.approx(operations / 4e11 / 3600, rel=0.03)
    elsewhere, _ = planned(capsys, *first.partition(": moslora plan ")[2].split())
    assert "GPU" in elsewhere and "download:" not in elsewhere
    code, out, _ = run(capsys, "plan", "llama3-8b", "--processes", "8", small)
    assert says(out.splitlines()[0], "no GPU here", "moslora plan llama3-8b", "--processes 8 --gpu-memory")
    assert code == ("\ndoes not fit" in out), "of this machine, as the processes are named"


def test_time_on_a_gpu_by_hand():
    """10¹⁵ operations and 10¹² bytes on an H100, or 1,000 layers that its host launches: by hand."""
    h100 = GPUS["H100 SXM"]
    for work, dtype, seconds in (
        (Cost(1e15), "bfloat16", [1e15 / (x * 989e12) for x in (0.52, 0.45)]),
        (Cost(1e15), "float32", [1e15 / (x * 67e12) for x in (0.63, 0.57)]),
        (Cost(0, 1e12), "bfloat16", [1e12 / (x * 3.35e12) for x in (0.78, 0.72)]),
        (Cost(1e15, 0, 1000), "bfloat16", [1e15 / (0.52 * 989e12), 3.2]),
    ):
        assert work.seconds(h100, dtype=dtype) == pytest.approx(seconds)
    day = Cost(3600 * 24 * 0.45 * 989e12)
    assert "H100 SXM 10.4–12.0 h" in on_gpus(day, dtype="bfloat16", memory=int(80e9), devices=2)
    assert [format_duration(60, 299), format_duration(5000, 7200), format_duration(4e7)] == [
        "1–5 min",
        "1.4–2.0 h",
        "11,111 h",
    ]


def test_eight_gpus_wait_for_their_hosts(capsys, monkeypatch):
    """31,932 steps: 32 layers that a host launches in 1.4 to 3.2 ms each, and a checkpoint of 340.2 MB after 200 steps;
    22,419 questions of 132 tokens, each half of a trained one."""
    monkeypatch.setattr(liger, "is_installed", lambda: True)
    _, out, _ = run(capsys, "plan", "llama3-8b", "--gpu-memory=80GB", "--processes=8")
    copied = math.ceil(31_932 / 200) * 340.2e6 / 2e9
    ends = [31_932 * 32 * of_layer + copied for of_layer in (1.4e-3, 3.2e-3)]
    assert f"H100 SXM {format_duration(*ends)};" in out
    assert re.search(r"then 22,419 test questions by choice: .*H100 SXM 1 min$", out, re.M)
    assert says(out, "24.3 GB for 8 ranks", "note: each GPU has 264 tokens", "800", "one run per GPU")
    alone = run(capsys, "plan", "llama3-8b", "--gpu-memory=80GB")[1]
    assert "one run per GPU" not in alone
    assert "then 22,419 test questions by choice: A100 80GB 4–5 min, H100 SXM 1–2 min" in alone


def test_cpu_is_timed_with_the_models_shapes(monkeypatch):
    """The clock advances by a second a product: 256 tokens, k's and down's weights, and seven tenths of that speed."""
    now = iter(range(10))
    monkeypatch.setattr("moslora.plan.duration.time.perf_counter", lambda: next(now))
    model = tiny_llama(hidden_size=64, intermediate_size=192, layers=1)
    smallest = model.model.layers[0].self_attn.k_proj.weight.numel()
    speed = 2 * 256 * (smallest + 64 * 192) / 2
    assert on_this_cpu(Cost(1e12), model, "float32") == pytest.approx(1e12 / speed / 0.7)


def test_validations_are_in_the_time(recipe, trained):
    """A token of validation rows takes half the time of a token of training."""
    run = outline(recipe())
    assert run.data is not None
    rows = sum(len(row.input_ids) for row in run.data.validation)
    trained_on = run.data.rows.token_count() / len(run.data.rows)
    count = 6  # of 21 steps, one before the first, every five and after the last
    assert run.validated == pytest.approx(count * 6 * trained_on / 2) == pytest.approx(count * rows / 2, rel=0.2)
    share = run.validated / (run.tokens + run.validated)
    assert says("\n".join(run.summary), f"{count} validations of 6 rows", f"{share:.1%}", "without their questions")
    assert not outline(recipe("data.validation_rows=0")).validated


@pytest.mark.parametrize(("changes", "files"), [((), 2), (("training.result=best",), 4)])
def test_disk_line_equals_the_files_of_a_run(recipe, trained, changes, files):
    """Authority: the files of a run, except headers and small files."""
    own = recipe(*changes)
    line = disk_line(outline(own).model, own.training)
    weights = (trained / "adapter" / "adapter.safetensors").stat().st_size
    moments = (Run(trained).checkpoints[-1] / "optimizer.safetensors").stat().st_size
    total, checkpoints, of_one, result = (float(number) for number in re.findall(r"[\d.]+", line))
    assert checkpoints == files
    assert result == pytest.approx(weights / 1e6, abs=0.1) and of_one == pytest.approx(
        (weights + moments) / 1e6, abs=0.1
    )
    assert total == pytest.approx(files * of_one + result, abs=0.3)


@pytest.mark.parametrize(("quantization", "named"), [("null", True), ("int8", False), ("nf4", False)])
def test_fsdp_is_suggested_only_where_it_helps(capsys, quantization, named):
    changes = (f"model.quantization={quantization}", "model.gradient_checkpointing=true")
    out, _ = planned(capsys, "llama3-70b-nf4", "--processes", "8", "--gpu-memory", "80GB", *changes)
    assert ("with training.strategy=fsdp it fits" in out) == named
