"""Wrong turns: experiments, and runs trained again."""

import fcntl
import shutil
import sys
from pathlib import Path

import pytest

GOOD = """
recipe: smollm2-135m
arms:
  lora: methods/lora
  learned: methods/moslora
learning_rates: [1e-3, 2e-3]
rate_seeds: [7]
seeds: [0, 1]
contrast: [lora, learned]
outcome: log_probability
"""

CHANGES = (
    ("\nseeds:", "\nseed: 1\nseeds:", "seed: ", "recipe"),
    ("lora: methods/lora", "lora: 3", "arms.lora"),
    ("lora: methods/lora", "lora: methods/lroa", "arms.lora: extends = methods/lroa", "methods/lora"),
    ("lora: methods/lora", "lora: {adapter: {rnk: 3}}", "arms.lora: adapter.rnk = 3", "rank"),
    ("  lora:", "  a/b:", "arms.a/b"),
    ("[lora, learned]", "[lroa, learned]", "contrast or against: lroa", "lora, learned"),
    ("[lora, learned]", "[lora, lora]", "contrast: lora"),
    ("[lora, learned]", "[lora, learned, lora]", "contrast: "),
    ("contrast: [lora, learned]", "against: lroa", "contrast or against: lroa", "lora, learned"),
    ("contrast: [lora, learned]\n", "", "contrast: ", "contrasts", "against"),
    ("[1e-3, 2e-3]", "{lroa: [1e-3], others: [2e-3]}", "learning_rates: lroa", "lora, learned"),
    ("[1e-3, 2e-3]", "{lora: [1e-3]}", "learning_rates: ", "learned", "others"),
    ("[1e-3, 2e-3]", "[]", "learning_rates: ", "at least one"),
    ("[1e-3, 2e-3]", "1e-3", "learning_rates: ", "a list"),
    ("[1e-3, 2e-3]", "[1e-3, -1]", "learning_rates.1: "),
    ("\nseeds:", "\nfirst: [other]\nseeds:", "first: other", "lora, learned"),
    ("methods/moslora", "{data: {rows: 10}}", "arms.learned", "data"),
    ("methods/moslora", "{seed: 3, training: {learning_rate: 1}}", "arms.learned", "seed, training.learning_rate"),
    ("2e-3", "0.001", "lora-0.001-7"),
    ("  learned:", "  LoRA:", "lora-0.001-7"),
    ("rate_seeds: [7]", "rate_seeds: [1]", "lora-0.001-1", "rate_seeds"),
    ("rate_seeds: [7]\n", "", "rate_seeds: ", "learning_rates"),
    ("rate_seeds: [7]", "rate_seeds: 7", "rate_seeds: must be a list"),
    ("rate_seeds: [7]", "rate_seeds: {every_rate: [7]}", "rate_seeds: must be a list"),
    ("rate_seeds: [7]", "rate_seeds: [7, 7]", "lora-0.001-7"),
    ("smollm2-135m", "{extends: smollm2-135m, data: {validation_rows: 0}}", "data.validation_rows = 0"),
    ("[0, 1]", "[0, -1]", "seeds.1"),
    (": log_probability", ": loss", "outcome: "),
    (": log_probability", ": nats_per_byte", "outcome: nats_per_byte", "passages"),
    (": log_probability", ": accuracy\nalso: [nats_per_byte]", "outcome: nats_per_byte", "passages"),
    (": log_probability", ": log_probability\nmargin: a fifth", "margin: ", "0.01", "20%"),
    ("[0, 1]", "[0]\nalso: [validation_loss]", "outcome: validation_loss", "seeds"),
    ("smollm2-135m", "{extends: llama3-8b}\nalso: [log_probability_summed]", "log_probability_summed", "choice"),
    ("smollm2-135m", "{extends: smollm2-135m, evaluation: {tasks: [passages]}}", "outcome: ", "questions"),
    ("smollm2-135m", "{extends: llama3-8b, evaluation: {protocol: generate}}", "outcome: log_probability", "generate"),
    ("smollm2-135m", "methods/lora", "recipe: model.name"),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[1].strip())
def test_an_experiment_that_would_go_well_but_for_one_thing(refused, here, change):
    old, new, *names = change
    assert old in GOOD
    (here / "e.yaml").write_text(GOOD.replace(old, new, 1))
    refused("experiment e.yaml", "e.yaml: ", *names)


def test_an_experiment_that_cannot_run(refused, here, monkeypatch):
    for text, named in (("extends: llama3-8b", "extends"), ("", "arms")):
        (here / "e.yaml").write_text(text)
        refused("experiment e.yaml", "e.yaml: ", named)
    (here / "e.yaml").write_text(GOOD)
    refused("experiment e.yaml lroa", "lroa", "lora, learned")
    monkeypatch.setitem(sys.modules, "ray", None)
    refused("experiment e.yaml --on ray", "--on ray", "pip install ray")
    run = Path("runs/e/runs/lora-0.001-7")
    run.mkdir(parents=True)
    with Path("runs/e/.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused("experiment e.yaml", "runs/e: ", "--out")
    (run / "run.json").write_text("[]")
    refused("experiment e.yaml", "runs/e: lora-0.001-7", "--out")


def test_a_run_that_cannot_be_trained_again(refused, here, a_run, monkeypatch):
    again = here / "runs/one-again"
    again.mkdir()
    (again / "notes").touch()
    refused("reproduce runs/one", "runs/one-again: ", "notes")
    with monkeypatch.context() as there:
        there.chdir(a_run)
        refused("reproduce .", "runs/one-again: ", "notes")
    other = (a_run / "recipe.yaml").read_text().replace("seed: ", "seed: 9")
    (again / "notes").rename(again / "recipe.yaml").write_text(other)
    refused("reproduce runs/one", "runs/one-again: ", "--out")
    shutil.rmtree(a_run / "adapter")
    refused("reproduce runs/one", "runs/one: ", "moslora train runs/one --resume")
