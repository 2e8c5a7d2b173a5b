"""A folder that PEFT wrote, wherever a run is named: what PEFT computes, and nothing written of what is refused."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli_kit import run
from importing_kit import REFUSED, altered_source
from message_kit import says
from moslora.convert import importing
from moslora.errors import UsageError
from moslora.evaluation.loading import load_model, tokenizer_of
from moslora.evaluation.target import open_target
from moslora.runs.evaluation import read_predictions
from moslora.runs.run import Run
from reference import token_batch
from server_kit import Pretended, serving

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def theirs(world, tmp_path_factory):
    """A LoRA that PEFT and a plain loop trained over the small model."""
    base = world / "model"
    torch.manual_seed(0)
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        peft.LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], r=3, lora_alpha=5, task_type="CAUSAL_LM"),
    )
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=3e-2)
    batch = AutoTokenizer.from_pretrained(base)("The answer is answer2", return_tensors="pt")
    for _ in range(8):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("peft") / "theirs"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """A command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def of(*arguments):
        capsys.readouterr()  # of what was made for it
        return run(capsys, *arguments)

    return of


@pytest.fixture
def imports(monkeypatch):
    """Where each import went."""
    made = []
    own = importing.import_adapter

    def counted(source, *, out, **options):
        made.append(out)
        return own(source, out=out, **options)

    monkeypatch.setattr(importing, "import_adapter", counted)
    return made


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@torch.inference_mode()
def logits(model):
    found = model(token_batch(model)).logits
    return found


def merged_by_peft(theirs, base):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, theirs).merge_and_unload().eval()
    return merged


def test_peft_folder_is_merged_and_exported_like_peft(command, imports, theirs, world):
    base = world / "model"
    before = contents(base), contents(theirs)
    code, out, errors = command("merge", theirs, "--dtype", "float32")
    assert code == 0 and says(out, theirs, "runs/theirs", "written to runs/theirs/merged"), out + errors
    merged = AutoModelForCausalLM.from_pretrained("runs/theirs/merged", dtype=torch.float32).eval()
    expected = logits(merged_by_peft(theirs, base))
    assert float((logits(merged) - expected).abs().max() / expected.abs().max()) <= 1e-5
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    assert float((logits(plain) - expected).abs().max() / expected.abs().max()) > 0.01
    assert command("export", theirs, "--out", "exported")[0] == 0
    own, exported = (load_file(folder / "adapter_model.safetensors") for folder in (theirs, Path("exported")))
    assert own.keys() == exported.keys() and all(exported[name].equal(tensor) for name, tensor in own.items())
    assert imports == [Path("runs/theirs")], "once"
    assert (contents(base), contents(theirs)) == before


@pytest.mark.slow
def test_peft_folder_works_in_every_command(command, imports, theirs, world, trained):
    shutil.copytree(trained, "runs/ours")
    ways = ("--tasks", "boolq,arc_easy,obqa", "--source", world / "data", "--dtype", "float32")
    assert command("import", theirs, "--out", "named")[0] == 0
    for target in ("named", theirs, "runs/ours"):
        code, out, errors = command("eval", target, *ways)
        assert code == 0, out + errors
    imported, own = (read_predictions(Path(folder, "eval/choice-label-float32")) for folder in ("named", "runs/theirs"))
    assert len(own) == 60 and own == imported
    code, out, errors = command("ask", theirs, "--question", "Is it so?", "--option", "yes", "--option", "no")
    assert code == 0 and "%" in out, errors
    code, out, errors = command("compare", theirs, "runs/ours")
    assert code == 2 and says(errors, "steps: unknown", "runs/theirs", "--allow steps"), errors
    assert errors.count("--allow") == 1
    code, out, errors = command("compare", theirs, "runs/ours", "--allow", "steps")
    assert code == 0 and says(out, "theirs", "60 questions"), out + errors
    assert command("eval", theirs, *ways, "--base")[0] == 0
    code, out, errors = command("compare", theirs)
    assert code == 0 and says(out, "base", "theirs"), out + errors
    assert command("report", theirs)[0] == 0 and Path("runs/theirs/report/report.html").is_file()
    assert imports == [Path("named"), Path("runs/theirs")]


def test_verify_scores_peft_folder_first(command, theirs):
    """Both models are scored on built-in questions, in the run that the folder becomes, and once."""
    ways = ("--tasks", "obqa", "--limit", "12", "--json")
    code, out, errors = command("verify", theirs, "--server", "http://127.0.0.1:9", *ways)
    assert code == 1 and says(errors, "no server there"), errors
    of_theirs = {"run": open_target("runs/theirs"), "base": open_target("runs/theirs", base=True)}
    scored = []
    for verdict, target in of_theirs.items():
        with serving(Pretended(load_model(target), tokenizer_of(target))) as address:
            code, out, errors = command("verify", theirs, "--server", address, *ways)
        assert json.loads(out)["verdict"] == verdict and code == (verdict != "run"), errors
        scored.append(errors.count("before verifying"))
    assert scored == [2, 0]


def test_other_adapter_of_the_same_name_gets_its_own_run(command, imports, theirs, tmp_path):
    other = tmp_path / "other" / "theirs"
    other.mkdir(parents=True)
    for name, content in contents(theirs).items():
        (other / name).write_bytes(content.replace(b'"lora_alpha": 5', b'"lora_alpha": 7'))
    for folder in (theirs, other, theirs, other):
        command("merge", folder, "--dtype", "float32")
    assert imports[0] == Path("runs/theirs") and imports[1].name.startswith("theirs-") and len(imports) == 2
    assert [Run(place).recipe.adapter.alpha for place in imports] == [5, 7]


FAULTS = ("rank_pattern", "another kind", "a base that is gone")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *((name, "no weights") for name in ("merge", "eval", "ask", "export", "report", "compare", "verify")),
        *itertools.product(("merge", "verify"), FAULTS),
    ],
)
def test_refusal_writes_nothing(name, fault, command, world, tmp_path):
    alter, said = REFUSED.get(fault, (lambda config, state: None, "adapter_model.safetensors"))
    folder = altered_source(tmp_path / "theirs", world, alter)
    if fault == "no weights":
        (folder / "adapter_model.bin").unlink()
    elif fault == "a base that is gone":
        said = "--base MODEL"
    options = {"verify": ["--server", "http://localhost:1"], "ask": ["--question", "Is it so?"]}.get(name, [])
    code, _, errors = command(name, folder, *options)
    assert code == 2 and said in errors and len(errors.splitlines()) == 1, errors
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_wrong_option_is_refused_before_the_import(command, imports, theirs, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for words in (
        "merge --out full",
        "export --out full",
        "eval --tasks obqaa",
        "eval --out full",
        "eval --model x",
        "ask --question why --option a",
    ):
        name, *options = words.split()
        assert command(name, theirs, *options)[0] == 2
    assert not imports and [path.name for path in tmp_path.iterdir()] == ["full"]


def test_imported_run_is_used_for_its_folder(command, imports, world, tmp_path):
    alter, _ = REFUSED["a base that is gone"]
    folder = altered_source(tmp_path / "theirs", world, alter)
    assert command("import", folder, "--base", world / "model", "--dtype", "float32")[0] == 0
    assert command("merge", folder)[0] == 0 and (tmp_path / "runs/theirs/merged/config.json").is_file()
    with pytest.raises(UsageError, match="moslora import"):
        load_model(open_target(str(folder)))
