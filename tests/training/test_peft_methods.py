"""Methods of PEFT on the small world: trained, scored, merged, exported; one arm among others. They resume:
test_resume.py."""

import shutil

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from methods_kit import IDS, PEFT_METHODS, recipe_of
from moslora.convert.export import export_peft
from moslora.convert.merge import merge
from moslora.errors import MosloraError, UsageError
from moslora.evaluation.ask import ask
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.run import Run
from moslora.training import train_recipe
from training_kit import adapter, in_processes, losses_logged, same_bits


@pytest.mark.slow
@pytest.mark.parametrize("method", PEFT_METHODS)
def test_it_trains_and_is_scored_merged_and_exported(finished, method, world, tmp_path):
    out = shutil.copytree(finished(method).out, tmp_path / "run")
    assert [row["step"] for row in losses_logged(out)] == [1, 2, 3, 4]

    run_of_it = Run(out)
    base = AutoModelForCausalLM.from_pretrained(world / "model")
    model = load_adapted(open_adapter(run_of_it.result))
    assert run_of_it.facts["trainable_parameters"] == model.get_nb_trainable_parameters()[0]
    assert run_of_it.facts["versions"]["peft"] == peft.__version__
    exported = export_peft(run_of_it.result, out=tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(base, str(exported)).eval()
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        torch.testing.assert_close(theirs(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)
        assert not expected.allclose(AutoModelForCausalLM.from_pretrained(world / "model")(IDS).logits, atol=1e-3)
    proof = merge(run_of_it.result, out=tmp_path / "merged")
    assert proof.mean_error < 1e-5 < 1e-3 < proof.effect
    results, _ = evaluate_target(open_target(str(out)), tasks="boolq", limit=4)
    assert results.tasks["boolq"].n == 4


@pytest.fixture(scope="module")
def trained_miss(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("miss")
    train_recipe(recipe_of("peft/miss", world, folder), out=folder / "run")
    return folder / "run"


def test_every_protocol_and_ask_read_it(trained_miss):
    for protocol, format in (("choice", "label"), ("cloze", "cloze"), ("generate", "label")):
        target = open_target(str(trained_miss))
        results, _ = evaluate_target(target, tasks="obqa", limit=4, protocol=protocol, format=format)
        assert results.tasks["obqa"].n == 4
    answers = ask(open_target(str(trained_miss)), question="Which is it?", options=["this", "that"])
    assert sum(answer.probability for answer in answers.options) == pytest.approx(1)


@pytest.mark.slow
def test_sharding_the_base_gives_the_same_bits(world, tmp_path):
    """DoRA reads the base's weights, which each of two processes has a half of."""
    for strategy in ("ddp", "fsdp"):
        recipe = recipe_of("peft/dora", world, tmp_path, f"training.strategy={strategy}")
        (tmp_path / f"{strategy}.yaml").write_text(recipe.to_yaml())
        in_processes("-m", "moslora", "train", tmp_path / f"{strategy}.yaml", "--out", tmp_path / strategy)
    assert Run(tmp_path / "fsdp").facts["strategy"] == "fsdp" and Run(tmp_path / "fsdp").facts["frozen_share"] < 0.9
    assert same_bits(adapter(tmp_path / "ddp"), adapter(tmp_path / "fsdp"))


@pytest.mark.parametrize("setting", ["lora_plus_ratio=2", "mixer_rate_ratio=2", "rank_budget={target_rank: 2}"])
def test_settings_of_our_adapters_are_refused(setting, world, tmp_path):
    with pytest.raises(UsageError, match=f"training.{setting.partition('=')[0]}.*PEFT"):
        recipe_of("peft/miss", world, tmp_path, f"training.{setting}")


def test_what_is_written_is_the_merged_weight_rounded_once(trained_miss, tmp_path, monkeypatch):
    monkeypatch.setattr("moslora.convert.merge._cast", lambda tensor, dtype: (1 + 1e-5) * tensor.to(dtype))
    with pytest.raises(MosloraError, match="worse than rounding"):
        merge(trained_miss / "adapter", out=tmp_path / "merged")
