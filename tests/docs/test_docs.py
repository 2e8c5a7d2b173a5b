"""The documents' code runs, and what they show is what comes out."""

import json
import re
import shlex
import shutil
from itertools import dropwhile
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import compare_kit
import moslora
from cli_kit import run
from data_kit import COUNTED
from moslora.adapters import MIXERS, adapter_state_dict, named_adapters
from moslora.compare.arms import Arm
from moslora.compare.comparison import compare_arms
from moslora.compare.conclusion import lines
from moslora.compare.display import tables
from moslora.data.local import read_file
from moslora.prompts.formats import FORMATS
from moslora.recipe import AdapterSection, load_recipe
from reference import perturb

ROOT = Path(__file__).parents[2]


def test_the_library_page_trains_with_the_trainer_of_transformers(world, tmp_path, monkeypatch, capsys):
    """Every block of docs/library.md, one after the other, on the small model."""
    (tmp_path / "model").symlink_to(world / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MIXERS, "scalar", MIXERS["identity"])  # the page's own, which goes afterwards
    names = {}
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    sections = {title: text for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.S | re.M)}
    assert len(sections) == 5
    sections["above the first heading"] = page.partition("\n## ")[0]

    def run_section(title, *, old="", new=""):
        text = sections[title]
        if old:
            text = text.replace(old, new)
        for kind, block in re.findall(r"```(python|bash)\n(.*?)```", text, re.S):
            if kind == "python":
                exec(block, names)
                continue
            for line in block.splitlines():
                code, _, _ = run(capsys, *shlex.split(line)[1:])
                assert code == 0, line

    run_section("above the first heading")
    assert len(dict(named_adapters(moslora.load("adapted")[0]))) == 4
    run_section("A loop of your own")
    start = dict(named_adapters(names["adapted"](mixer={"kind": "dense"})))
    for name, layer in named_adapters(names["model"]):
        assert layer.lora_b.abs().max() > 1e-3 and layer.base.weight.equal(start[name].base.weight)
        assert not layer.mixer.weight.equal(start[name].mixer.weight), "M was trained"

    run_section("The Trainer of transformers")
    ended = adapter_state_dict(names["trainer"].model)
    assert load_file("out/checkpoint-4/model.safetensors").keys() == ended.keys()
    assert all(value.equal(ended[key]) for key, value in adapter_state_dict(names["model"]).items())
    shutil.rmtree("out/checkpoint-4")
    again = "trainer.train(resume_from_checkpoint=True)"
    run_section("The Trainer of transformers", old="trainer.train()", new=again)
    for key, value in adapter_state_dict(names["trainer"].model).items():
        torch.testing.assert_close(value, ended[key], rtol=1e-5, atol=1e-6)

    run_section("To the commands and back")
    ids = names["batch"]["input_ids"][:1]
    logits = [names[name].eval()(input_ids=ids).logits for name in ("model", "merged")]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)

    run_section("Questions answered in words")
    assert names["results"].tasks["capitals"].n == 1 and isinstance(names["results"].predictions[0].text, str)
    run_section("A mixer of your own")
    folded, _ = moslora.load("folded")
    torch.testing.assert_close(
        names["model"].eval()(input_ids=ids).logits, folded(input_ids=ids).logits, rtol=0, atol=1e-4
    )


DATA_PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_data_pages_commands_run(tmp_path, monkeypatch, capsys):
    """All of them; on one set where the page takes eight."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    blocks = re.findall(r"```json\n(.*?)```", DATA_PAGE, re.S)
    for name, rows in zip(("mine", "talks"), blocks, strict=True):
        different = (rows.replace("planet", f"planet {n}") for n in range(1_000))
        (tmp_path / f"{name}.jsonl").write_text("".join(different), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moslora.plan.plan.on_this_cpu", lambda *_: 1e7)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    blocks = re.findall(r"```bash\n(.*?)```", DATA_PAGE, re.S)
    lines = "".join(blocks).splitlines()
    assert len(lines) == 10
    for line in lines:
        command = shlex.split(line, comments=True)[1:]
        if "audit" in command:
            command = ["data", "audit", "obqa", *dropwhile(lambda word: word[0] != "-", command)]
        elif "fetch" in command:
            command += ["--tasks", "obqa"]
        elif "train" in command:
            command.append("--dry-run")
        code, _, err = run(capsys, *command)
        assert code == 0, (line, err)


def test_the_data_pages_formats_are_the_formats():
    (example,) = (e for e in read_file(ROOT / "data" / "sample.jsonl", "train") if "door from slamming" in e.question)
    (section,) = re.findall(r"^## Formats\n(.*?)^## ", DATA_PAGE, re.S | re.M)
    shown = re.findall(r"```text\n(.*?)\n```", section, re.S)
    for name, text in zip(("label", "llm-adapters", "cloze"), shown, strict=True):
        option = FORMATS[name].train(example)
        assert text == option.prompt + option.answer


def test_the_data_pages_table_has_the_counts():
    for task, counts in COUNTED.items():
        (line,) = (line for line in DATA_PAGE.splitlines() if line.startswith(f"{task} "))
        _, train, test, _, _, _, *overlaps = line.replace(",", "").split()
        assert tuple(map(int, (train, test, *overlaps))) == counts


COMING = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_adapter_and_rows_of_others_come_in_as_the_page_says(world, tmp_path, monkeypatch, capsys):
    """Its commands, with a LoRA of PEFT's own and rows in Alpaca's columns."""
    monkeypatch.chdir(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(world / "model", dtype="float32")
    # As `llama3.2-1b extends=methods/lora`, which continues it.
    options = load_recipe("llama3.2-1b", ["extends=methods/lora"]).adapter
    assert isinstance(options, AdapterSection)
    shape = {"r": options.rank, "lora_alpha": options.alpha, "target_modules": [*options.target_modules]}
    theirs = peft.get_peft_model(base, peft.LoraConfig(**shape, task_type="CAUSAL_LM"))
    perturb(weight for name, weight in theirs.named_parameters() if "lora_" in name)
    theirs.save_pretrained("outputs/lora-out")
    rows = [{"instruction": f"Name planet {n}.", "input": "Briefly." * (n % 2), "output": "Mars"} for n in range(60)]
    Path("alpaca.json").write_text(json.dumps(rows), encoding="utf-8")
    for block in re.findall(r"```bash\n(.*?)```", COMING, re.S):
        for line in block.splitlines():
            command = shlex.split(line)[1:]
            if "wheel" in command:
                command[command.index("wheel")] = str(world / "data")
            if "train" in command:
                command += ["--dry-run", f"model.name={world / 'model'}"]
            code, _, err = run(capsys, *command)
            assert code == 0, (line, err)
    assert peft.LoraConfig.from_pretrained("runs/theirs/peft").r == options.rank


def test_the_readme_shows_what_a_comparison_prints():
    """The columns and the conclusion of its first block, whatever the numbers are."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    ((header, rows, concluded),) = re.findall(r"```\n(task .*?)\n(.*?)^(tuned answers .*?)\n```", text, re.S | re.M)
    compared = compare_arms(
        [Arm("base", {None: compare_kit.base()}), Arm("tuned", {0: compare_kit.drawn(0, gain=0.4)})], outcome="accuracy"
    )
    columns, *_, macro, _micro = tables(compared)[-1]
    assert re.split(r"  +", header) == columns
    assert macro[0] in rows
    said, printed = (re.sub(r"[\d,]+\.?\d*", "0", text).split() for text in (concluded, lines(compared)[-1]))
    assert said == printed


def test_the_readme_names_every_module_and_the_index_every_document():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"src/moslora/\n(.*?)^tests/", text, re.S | re.M)
    for path in (ROOT / "src" / "moslora").iterdir():
        name = path.name
        if path.is_dir():
            name = f"{name}/"
        module = name.endswith(("/", ".py")) and not name.startswith("__")
        assert re.search(rf"(?<![\w.]){re.escape(name)}", tree) or not module, name
    index = ROOT / "docs" / "README.md"
    linked = [index.parent / link for link in re.findall(r"^\| \[[^\]]+\]\(([^)]+)\)", index.read_text("utf-8"), re.M)]
    pages = []
    for folder in (".", "docs", "recipes", "data"):
        pages += (ROOT / folder).glob("*.md")
    assert sorted(path.resolve() for path in [*linked, index]) == sorted(path.resolve() for path in pages)


def test_contributing_names_files_and_classes_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = [name for name in re.findall(r"`([\w./-]+\.(?:py|yaml|md|jsonl))`", text) if "/" in name]
    assert len(files) > 15 and all((ROOT / name).is_file() for name in files)
    source = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    for name in re.findall(r"`(_?[A-Z]\w+)`", text):
        assert name in source or name in ("UsageError", "MosloraError"), name
