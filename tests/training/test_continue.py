"""A training that continues another adapter: it starts where that one was, learns as PEFT would from there, and keeps
where it came from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from card_kit import Card
from changes_kit import edit_tensors
from cli_kit import run as cli
from importing_kit import OFFICIAL, TARGETS, official_model, write_source
from message_kit import in_order, says
from methods_kit import METHODS, PEFT_METHODS, logits_of, recipe_of
from moslora.convert.export import export_peft
from moslora.errors import UsageError
from moslora.experiment.file import PlannedRun
from moslora.experiment.provenance import provenance
from moslora.experiment.reproduce import reproduce, start_of
from moslora.plan.plan import plan
from moslora.recipe import load_recipe
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.continued import read_continued
from moslora.runs.manifest import read_manifest
from moslora.runs.origin import Origin, predecessor_of
from moslora.runs.run import Run
from moslora.training import train_recipe
from moslora.training.prepare import prepare
from reference import perturb
from training_kit import adapter, cut_after, in_processes, same_bits, same_files, sign

LORA = (
    "adapter.rank=4",
    "adapter.alpha=8",
    "adapter.dropout=0",
    "adapter.mixer.kind=identity",
    "adapter.target_modules=[q_proj, v_proj, down_proj]",
)
SHORT = ("training.epochs=null", "training.max_steps=4", "training.checkpoint_every=2", "training.log_every=1")


def started(recipe):
    """Model with which a training of ``recipe`` starts."""
    parts, _ = prepare(Accelerator(cpu=True), recipe, read_continued(recipe))
    return parts.model


def peft_lora(world, folder, **config):
    """PEFT's LoRA, moved off its start and saved in ``folder``."""
    base = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS} | config
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    perturb([weight for weight in model.parameters() if weight.requires_grad], size=0.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("method", [*METHODS, *(pytest.param(name, marks=pytest.mark.slow) for name in PEFT_METHODS)])
def test_continued_run_starts_at_the_predecessors_weights(finished, method, world, tmp_path):
    """The seed differs, but folded and frozen M, PiSSA's residual and DoRA's magnitudes are the predecessor's."""
    done = finished(method)
    recipe = recipe_of(method, world, tmp_path, f"adapter.continue_from={done.out}", "seed=8")
    assert torch.equal(logits_of(started(recipe)), done.logits)
    fresh = recipe_of(method, world, tmp_path, "seed=8")
    assert not torch.allclose(logits_of(started(fresh)), done.logits, atol=1e-3)


@pytest.mark.parametrize("method", ["peft/miss", "peft/vera", "peft/vblora", "peft/randlora", "peft/dora"])
def test_a_method_of_peft_goes_on_from_pefts_folder(method, world, tmp_path):
    """The folder is as PEFT saves it: every default written out, and weights in bfloat16."""
    recipe = recipe_of(method, world, tmp_path)
    theirs = started(recipe)
    learning = [weight for weight in theirs.parameters() if weight.requires_grad]
    perturb(learning, size=0.05)
    for weight in learning:
        weight.data = weight.data.bfloat16().float()
    theirs.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "adapter_model.safetensors"
    kept = load_file(file)
    for name, value in kept.items():
        if torch.equal(value, value.bfloat16().to(value.dtype)):  # all but what a method drew
            kept[name] = value.bfloat16()
    save_file(kept, file, metadata={"format": "pt"})
    continuing = recipe_of(method, world, tmp_path, f"adapter.continue_from={tmp_path / 'theirs'}", "seed=8")
    assert torch.equal(logits_of(started(continuing)), logits_of(theirs))


def test_an_export_goes_on_as_a_plain_lora(trained, world, tmp_path):
    """M is folded into A and no longer trained. The run is named, not only its folder."""
    export_peft(trained / "adapter", out=tmp_path / "peft")
    recipe = load_recipe(world / "recipe.yaml", [*LORA, *SHORT, f"adapter.continue_from={tmp_path / 'peft'}"])
    expected = logits_of(load_adapted(open_adapter(trained / "adapter")))
    torch.testing.assert_close(logits_of(started(recipe)), expected, rtol=1e-5, atol=1e-5)
    train_recipe(recipe, out=tmp_path / "run")
    predecessor = predecessor_of(read_manifest(tmp_path / "run" / "adapter"))
    assert predecessor is not None and (predecessor.run, predecessor.step) == ("small", 21)


def test_adapter_of_the_moslora_repository_continues(world, tmp_path):
    model, state = official_model(world)
    source = write_source(tmp_path / "source", OFFICIAL | {"base_model_name_or_path": str(world / "model")}, state)
    changes = ["adapter.rank=4", "adapter.alpha=6", f"adapter.continue_from={source}"]
    found = started(load_recipe(world / "recipe.yaml", changes))
    torch.testing.assert_close(logits_of(found), logits_of(model), rtol=1e-5, atol=1e-5)


DIFFERENCES = {
    "scale": (
        ["adapter.alpha=4", "adapter.scaling=rslora"],
        ["adapter.alpha was 8.0, is 4.0", "adapter.scaling was lora, is rslora"],
    ),
    "layers": (["adapter.target_modules=all-linear"], ["was [down_proj, q_proj, v_proj], is all-linear"]),
    "mixer": (
        ["adapter.mixer.kind=identity"],
        ["adapter.mixer.kind was dense, is identity", "adapter.mixer.init was kaiming, is null"],
    ),
    "start and magnitudes": (
        ["adapter.start=pissa", "adapter.mixer.init=orthogonal", "adapter.dora=true"],
        [
            "adapter.start was lora, is pissa",
            "adapter.dora was false, is true",
            "adapter.mixer.init was kaiming, is orthogonal",
        ],
    ),
    "method of PEFT": (
        ["adapter.peft={peft_type: MISS, r: 8}"],
        ["adapter.rank was 4, is null", "adapter.mixer.kind was dense, is null"],
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_unfit_predecessor_is_refused_at_once(trained, world, tmp_path, name, capsys):
    changes, expected = DIFFERENCES[name]
    words = [f"adapter.continue_from={trained}", *SHORT, "--out", tmp_path / "run"]
    code, _, said = cli(capsys, "train", world / "recipe.yaml", *changes, *words)
    assert code == 2 and said.startswith(f"error: adapter.continue_from = {trained / 'adapter'}: ")
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()
    for line in expected:
        assert line in said


@pytest.mark.parametrize(("trains", "expected"), [("b", "lora_b"), ("mixer", "weight")])
def test_dropout_and_trained_factors_may_change(trained, world, tmp_path, trains, expected):
    """M alone may be trained, which is impossible at a start with B zero."""
    changes = [*SHORT, "adapter.dropout=0", f"adapter.trains={trains}", f"adapter.continue_from={trained}"]
    recipe = load_recipe(world / "recipe.yaml", changes)
    before = adapter(trained)
    learning = [name for name, weight in started(recipe).named_parameters() if weight.requires_grad]
    assert {name.rpartition(".")[2] for name in learning} == {expected}
    train_recipe(recipe, out=tmp_path / "run")
    after = adapter(tmp_path / "run")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {*learning}


def test_what_does_not_fit_a_method_of_peft_is_named(finished, world, tmp_path):
    """Cases: one field, also a field at PEFT's default; another method, as one difference; and our LoRA instead of
    PEFT's."""
    peft_lora(world, tmp_path / "theirs", use_dora=True)
    ours, theirs = (f"adapter.continue_from={it}" for it in (finished("peft/lora").out, tmp_path / "theirs"))
    for recipe, *named in (
        (recipe_of("peft/lora", world, tmp_path, ours, "adapter.peft.lora_alpha=99"), "adapter.peft.lora_alpha was "),
        (load_recipe(world / "recipe.yaml", [ours]), "adapter.peft.peft_type was LORA, is null"),
        (recipe_of("peft/miss", world, tmp_path, ours), "LORA", "MISS"),
        (load_recipe(world / "recipe.yaml", [*LORA, theirs]), "use_dora = True", "adapter.peft"),
    ):
        with pytest.raises(UsageError, match=in_order(*named)) as raised:
            read_continued(recipe)
        assert str(raised.value).count(" was ") <= 1
    method = "adapter.peft={peft_type: LORA, r: 4, lora_alpha: 8, use_dora: true}"
    started(load_recipe(world / "recipe.yaml", [*LORA[-1:], theirs, method]))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4"])
def test_a_base_that_was_split_is_split_in_the_same_way(world, tmp_path, start):
    """A random split depends on the seed, which PEFT's folder does not store."""
    field = f"adapter.peft.init_lora_weights={start}"
    train_recipe(recipe_of("peft/lora", world, tmp_path, field), out=tmp_path / "first")
    source = f"adapter.continue_from={tmp_path / 'first'}"
    expected = logits_of(load_adapted(open_adapter(tmp_path / "first" / "adapter")))
    assert torch.equal(logits_of(started(recipe_of("peft/lora", world, tmp_path, field, source))), expected)
    other_seed = recipe_of("peft/lora", world, tmp_path, field, source, "seed=8")
    if start == "pissa":
        assert torch.equal(logits_of(started(other_seed)), expected)
        return
    with pytest.raises(UsageError, match="seed was 3, is 8"):
        read_continued(other_seed)
    export_peft(tmp_path / "first" / "adapter", out=tmp_path / "peft")
    with pytest.raises(UsageError, match="at random"):
        read_continued(recipe_of("peft/lora", world, tmp_path, field, f"adapter.continue_from={tmp_path / 'peft'}"))


def test_another_base_is_refused(trained, world, tmp_path):
    """A base is recognised by its weights and config, not by its name; of PEFT's folders only an export has a
    fingerprint."""
    other = shutil.copytree(world / "model", tmp_path / "other")
    changes = [f"model.name={other}", f"adapter.continue_from={trained}"]
    started(load_recipe(world / "recipe.yaml", changes))
    edit_tensors(other / "model.safetensors", lambda weights: perturb([*weights.values()], size=0.1))
    gone = Path(shutil.move(other, tmp_path / "changed"))
    export_peft(trained / "adapter", out=tmp_path / "peft")
    for source, others, named in (
        (trained, ["adapter.rank=8"], "adapter.rank was 4, is 8"),
        (trained, [], in_order("another base", str(world / "model"), str(gone))),
        (tmp_path / "peft", LORA, "another base"),
    ):
        changes = [*others, f"model.name={gone}", f"adapter.continue_from={source}"]
        with pytest.raises(UsageError, match=named):
            read_continued(load_recipe(world / "recipe.yaml", changes))


GATE = ("adapter.mixer.kind=task-gate", "adapter.mixer.experts=2")


def test_a_gate_goes_on_for_the_tasks_that_it_knows(world, tmp_path):
    """Tasks count of which the predecessor had rows, even before the continued run has any."""
    train_recipe(load_recipe(world / "recipe.yaml", [*GATE, *SHORT]), out=tmp_path / "first")
    source = f"adapter.continue_from={tmp_path / 'first'}"
    for tasks in ("[boolq, obqa]", "[obqa, arc_easy, boolq]"):
        with pytest.raises(UsageError, match=r"data\.tasks was \[boolq, arc_easy, obqa\], is "):
            read_continued(load_recipe(world / "recipe.yaml", [*GATE, source, f"data.tasks={tasks}"]))
    few = ("training.epochs=null", "training.max_steps=1", "training.global_batch_size=1")
    train_recipe(load_recipe(world / "recipe.yaml", [*GATE, *few, source]), out=tmp_path / "second")
    folder = open_adapter(tmp_path / "second" / "adapter")
    assert len(folder.manifest["data"]["tasks"]) == 1
    assert set(folder.trained_tasks() or ()) == {"boolq", "arc_easy", "obqa"}


def test_predecessors_of_earlier_versions_are_read():
    """Earlier versions recorded the adapter's step as ``steps``."""
    first = {"sha256": "f1", "name": "first", "steps": None, "gate_tasks": [], "continued_from": None}
    second = {"sha256": "5e", "name": "second", "steps": 21, "gate_tasks": ["obqa"], "continued_from": first}
    expected = Origin("second", "5e", step=21, gate_tasks=("obqa",), continued_from=Origin("first", "f1"))
    assert predecessor_of({"continued_from": second | {"strength": 0.5}}) == replace(expected, strength=0.5)
    assert predecessor_of({"continued_from": second}) == expected


def test_a_run_says_what_it_continues(trained, world, tmp_path, capsys):
    """The predecessor is named at the start, in the plan, manifests, card and exports, also along a chain of runs."""
    first = shutil.copytree(trained, tmp_path / "first")
    changes = [*SHORT, "name=second", f"adapter.continue_from={first}"]
    recipe = load_recipe(world / "recipe.yaml", changes)
    manifest = read_manifest(first / "adapter")
    digest = manifest["sha256"]["adapter.safetensors"]
    line = f"continues step 21 of first (sha256 {digest[:12]}…)"
    assert line in plan(recipe, gpu_memory="8GB").heading
    train_recipe(recipe, out=tmp_path / "second")
    assert line in capsys.readouterr().out.splitlines()
    run = Run(tmp_path / "second")
    expected = Origin("first", digest, 21, fingerprint=manifest["base"]["fingerprint"])
    for facts in (run.facts, *map(read_manifest, (*run.checkpoints, run.result))):
        assert predecessor_of(facts) == expected
    changes = ["training.max_steps=2", f"adapter.continue_from={run.path}"]
    train_recipe(load_recipe(world / "recipe.yaml", changes), out=tmp_path / "third")
    export_peft(tmp_path / "third" / "adapter", out=tmp_path / "peft")
    card = Card(tmp_path / "peft")
    assert says(card.fields["continued from"], "step 4 of second", "step 21 of first", digest[:12])
    assert str(tmp_path) not in card.text


RESUMED = [
    ("methods/moslora", "nothing"),
    *((f"methods/{name}", "the predecessor") for name in ("moslora", "pissa", "dora", "lora-moe-topk")),
    ("peft/miss", "the predecessor"),
]


@pytest.mark.parametrize(("method", "lost"), RESUMED)
def test_continued_run_resumes_without_its_predecessor(finished, method, world, tmp_path, lost):
    first = shutil.copytree(finished(method).out, tmp_path / "first")
    recipe = recipe_of(
        method, world, tmp_path, f"adapter.continue_from={first}", "seed=8", "training.keep_checkpoints=9"
    )
    train_recipe(recipe, out=tmp_path / "straight")
    step = int(Run(tmp_path / "straight").checkpoints[0].name.removeprefix("step-"))
    cut = cut_after(step, shutil.copytree(tmp_path / "straight", tmp_path / "cut"))
    if lost == "the predecessor":
        shutil.move(first, tmp_path / "elsewhere")
    train_recipe(Run(cut).recipe_to_resume(), out=cut, resuming=True)
    assert same_files(tmp_path / "straight", cut)
    assert Run(cut).facts["continued_from"] == Run(tmp_path / "straight").facts["continued_from"]


def changed(run):
    """Give a finished run other weights, and the hashes that fit them."""
    edit_tensors(run / "adapter/adapter.safetensors", lambda tensors: perturb([*tensors.values()], size=0.1))
    sign(run / "adapter")


def test_restart_requires_the_same_predecessor(trained, world, tmp_path):
    first = shutil.copytree(trained, tmp_path / "first")
    train_recipe(load_recipe(world / "recipe.yaml", [*SHORT, f"adapter.continue_from={first}"]), out=tmp_path / "run")
    run = cut_after(0, tmp_path / "run")
    facts = Run(run).facts
    del facts["seconds"]  # which a run has at its end
    (run / "run.json").write_text(json.dumps(facts))
    again = shutil.copytree(run, tmp_path / "again")
    train_recipe(Run(again).recipe_to_resume(), out=again, resuming=True)
    changed(first)
    with pytest.raises(UsageError, match="other weights"):
        train_recipe(Run(run).recipe_to_resume(), out=run, resuming=True)
    assert not Run(run).finished and Run(again).finished


def test_a_path_is_absolute_in_the_run(trained, world, tmp_path, monkeypatch):
    """The recipe keeps that path after the folder at it is gone."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "first")
    recipe = load_recipe(world / "recipe.yaml", [*SHORT, "adapter.continue_from=first"])
    train_recipe(recipe, out=Path("run"))
    assert Run(Path("run")).recipe.adapter.continue_from == str(tmp_path / "first")
    cut_after(2, Path("run"))
    shutil.rmtree("first")
    train_recipe(recipe, out=Path("run"), resuming=True)


def test_a_checkpoint_and_a_run_that_was_stopped_go_on(trained, world, tmp_path, capsys):
    first = shutil.copytree(trained, tmp_path / "first")
    by_step = f"adapter.continue_from={first / 'checkpoints' / 'step-20'}"
    continued = read_continued(load_recipe(world / "recipe.yaml", [by_step]))
    assert continued is not None and continued.predecessor.step == 20
    shutil.rmtree(first / "adapter")
    read_continued(load_recipe(world / "recipe.yaml", [f"adapter.continue_from={first}"]))
    assert f"{first} is unfinished: continuing from step" in capsys.readouterr().out


WRONG = {
    "a name with a slip": (lambda folder: folder.with_name("firs"), "did you mean"),
    "a hub id": (lambda folder: Path("owner/name"), "hf download owner/name"),
    "a model": (lambda folder: folder.with_name("model"), "not a run or an adapter folder"),
    "another method": (lambda folder: folder.with_name("loha"), "LOHA"),
    "a damaged file": (
        lambda folder: (folder / "adapter/adapter.safetensors").write_bytes(b"half") and folder,
        "altered",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_predecessor_path_is_one_line(trained, world, tmp_path, name, capsys):
    first = shutil.copytree(trained, tmp_path / "first")
    shutil.copytree(world / "model", tmp_path / "model")
    (tmp_path / "loha").mkdir()
    (tmp_path / "loha" / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    save_file({"any": torch.ones(1)}, tmp_path / "loha" / "adapter_model.safetensors")
    find, expected = WRONG[name]
    out = tmp_path / "run"
    code, _, said = cli(capsys, "train", world / "recipe.yaml", f"adapter.continue_from={find(first)}", "--out", out)
    assert code and expected in said and said.count("\n") == 1 and not out.exists()


def test_it_is_reproduced_from_the_same_weights_alone(trained, world, tmp_path):
    first = shutil.copytree(trained, tmp_path / "first")
    recipe = load_recipe(world / "recipe.yaml", [*SHORT, f"adapter.continue_from={first}"])
    train_recipe(recipe, out=tmp_path / "run")
    assert same_bits(start_of(recipe), adapter(first))
    line = reproduce(Run(tmp_path / "run"), out=tmp_path / "again")
    assert line.startswith("bitwise equal")
    changed(first)
    with pytest.raises(UsageError, match="other weights"):
        reproduce(Run(tmp_path / "run"), out=tmp_path / "other")


def test_experiment_repeats_a_run_with_a_changed_predecessor(trained, recipe):
    planned = PlannedRun("arm", recipe(f"adapter.continue_from={trained}"), scored=False)
    digest = read_manifest(trained / "adapter")["sha256"]["adapter.safetensors"]
    assert provenance(planned)["start"] == digest
    assert provenance(PlannedRun("arm", recipe(), scored=False))["start"] is None


@pytest.mark.slow
def test_two_processes_start_with_the_same_weights(trained, world, tmp_path):
    changes = [*SHORT, "adapter.dropout=0", f"adapter.continue_from={trained}"]
    train_recipe(load_recipe(world / "recipe.yaml", changes), out=tmp_path / "one")
    in_processes("-m", "moslora", "train", world / "recipe.yaml", *changes, "--out", tmp_path / "two")
    for key, value in adapter(tmp_path / "two").items():
        torch.testing.assert_close(value, adapter(tmp_path / "one")[key], rtol=1e-3, atol=1e-4)
    assert Run(tmp_path / "two").facts["continued_from"] == Run(tmp_path / "one").facts["continued_from"]
