"""Adapters of others as runs of ours: computed as by their own equations and libraries, or refused whole."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from moslora.cli.completion import runs
from moslora.convert import importing
from moslora.convert.export import export_peft
from moslora.convert.importing import import_adapter
from moslora.convert.merge import merge
from moslora.errors import MosloraError, UsageError
from moslora.evaluation.target import evaluate_target, open_target
from moslora.runs.adapter_folder import load_adapted, open_adapter
from moslora.runs.find import locate_adapter, newest_run
from reference import OfficialLayer, perturb, token_batch
from test_cli import run as cli

RANK, ALPHA, TARGETS = 4, 6, ["q_proj", "v_proj", "down_proj"]

OFFICIAL = {
    "base_model_name_or_path": None,
    "bias": "none",
    "enable_lora": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_alpha": ALPHA,
    "lora_dropout": 0.05,
    "lora_use_mixer": True,
    "merge_weights": False,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": RANK,
    "target_modules": TARGETS,
    "task_type": "CAUSAL_LM",
}
"""Every setting of the repository's LoraConfig (``commonsense_reasoning/peft/src/peft/tuners/lora.py``)."""

Altered = Callable[[dict[str, Any], dict[str, Tensor]], object]


def fresh(world: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32).eval()


def official_model(world: Path) -> tuple[LlamaForCausalLM, dict[str, Tensor]]:
    """The base with the repository's layers in it, M far from symmetric, and the weights as its PEFT names them."""
    model = fresh(world)
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, base in list(model.named_modules()):
        if not name.endswith(tuple(TARGETS)):
            continue
        assert isinstance(base, nn.Linear)
        shapes = {"a": (RANK, base.in_features), "m": (RANK, RANK), "b": (base.out_features, RANK)}
        factors = {key: torch.randn(shape, generator=generator) / shape[1] ** 0.5 for key, shape in shapes.items()}
        layer = OfficialLayer(base, **factors, scaling=ALPHA / RANK)
        perturb([layer.lora_A.weight, layer.lora_AB.weight, layer.lora_B.weight])
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
        for part in ("lora_A", "lora_AB", "lora_B"):
            weight = layer.get_submodule(part).weight
            state[f"base_model.model.{name}.{part}.weight"] = weight.detach().clone()
    assert len(state) == 18
    return model, state


def write_source(
    folder: Path, config: dict[str, Any], state: dict[str, Tensor], *, file: str = "adapter_model.bin"
) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save = save_file if file.endswith(".safetensors") else torch.save
    save(state, folder / file)
    return folder


@torch.inference_mode()
def logits(model: nn.Module) -> Tensor:
    return model(token_batch(model)).logits  # type: ignore[arg-type]


def close(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max() / other.abs().max()) <= 1e-5


@pytest.mark.parametrize("file", ["adapter_model.bin", "adapter_model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("default", [False, True], ids=["peft-0.3", "named-default"])
def test_an_official_checkpoint_computes_what_its_layers_do(
    world: Path, tmp_path: Path, file: str, default: bool
) -> None:
    model, state = official_model(world)
    if default:
        state = {key.replace(".weight", ".default.weight"): value for key, value in state.items()}
    source = write_source(tmp_path / "source", OFFICIAL, state, file=file)
    if file == "pytorch_model.bin":  # a trainer's checkpoint: its settings lie in the folder above
        (source / "checkpoint-200").mkdir()
        shutil.move(source / file, source / "checkpoint-200")
        source = source / "checkpoint-200"
    run = tmp_path / "run"
    proof = import_adapter(source, out=run, base=str(world / "model"))
    assert proof.layers == 6 and proof.error <= 1e-5 and proof.effect > 0.05
    folder = open_adapter(locate_adapter(run))
    expected = logits(model)
    assert close(logits(load_adapted(folder, dtype="float32")), expected)
    assert not close(logits(fresh(world)), expected)
    recipe = folder.recipe
    assert (recipe.name, recipe.data.format, recipe.evaluation.protocol) == (source.name, "llm-adapters", "rank")
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.dropout) == (RANK, ALPHA, 0.05)
    assert recipe.adapter.mixer.kind == "dense" and set(recipe.adapter.target_modules) == set(TARGETS)


def test_an_import_is_a_run_wherever_runs_are_named(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_source(tmp_path / "theirs", OFFICIAL, official_model(world)[1])
    assert cli(capsys, "import", source, "--base", world / "model", "--dtype", "float32")[0] == 0
    assert [name for name, _ in runs("")] == ["runs/theirs"] and newest_run(Path("runs")) == Path("runs/theirs")
    assert "runs/theirs" in cli(capsys, "eval", "runs/x")[2]
    code, said, _ = cli(capsys, "recipes", "show", "runs/theirs")
    assert code == 0 and re.search(r"^adapter\.mixer\.kind +dense +runs/theirs/recipe.yaml$", said, re.M)
    shown = Path("runs/theirs/recipe.yaml").read_bytes()
    assert shown == Path("runs/theirs/adapter/recipe.yaml").read_bytes()


def test_the_import_merges_exports_and_is_scored(world: Path, tmp_path: Path) -> None:
    model, state = official_model(world)
    source = write_source(tmp_path / "source", {**OFFICIAL, "base_model_name_or_path": str(world / "model")}, state)
    run = tmp_path / "runs" / "run"
    import_adapter(source, out=run, dtype="float32")
    expected = logits(model)
    merge(run / "adapter", out=run / "merged")
    assert close(logits(AutoModelForCausalLM.from_pretrained(run / "merged", dtype=torch.float32).eval()), expected)
    export_peft(run / "adapter", out=run / "peft")
    assert close(logits(peft.PeftModel.from_pretrained(fresh(world), run / "peft").eval()), expected)
    for folder in ("merged", "peft"):
        assert "Imported from MoSLoRA's format: `adapter_config.json`" in (run / folder / "README.md").read_text()
    target = open_target(str(run), runs=tmp_path / "runs")
    results, where = evaluate_target(target, tasks=("obqa",), source=str(world / "data"))
    assert results.tasks["obqa"].n == 20 and where == run / "eval" / "rank-llm-adapters-float32"
    import_adapter(run / "peft", out=tmp_path / "again")
    assert close(logits(load_adapted(open_adapter(tmp_path / "again" / "adapter"), dtype="float32")), expected)


PEFT = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "longer names": {"target_modules": ["layers.1.self_attn.k_proj", "mlp.up_proj", "not_there"]},
}


@pytest.mark.parametrize("safetensors", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("kind", PEFT)
def test_a_stock_peft_adapter_computes_what_peft_does(
    world: Path, tmp_path: Path, kind: str, safetensors: bool
) -> None:
    config = peft.LoraConfig(
        **{"target_modules": TARGETS, **PEFT[kind]}, r=3, lora_alpha=5, lora_dropout=0.1, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(fresh(world), config)
    perturb(p for name, p in theirs.named_parameters() if "lora_" in name)
    theirs.save_pretrained(tmp_path / "source")
    if not safetensors:
        file = tmp_path / "source" / "adapter_model.safetensors"
        torch.save(load_file(file), tmp_path / "source" / "adapter_model.bin")
        file.unlink()
    import_adapter(tmp_path / "source", out=tmp_path / "run")
    folder = open_adapter(tmp_path / "run" / "adapter")
    expected = logits(theirs.eval())
    assert close(logits(load_adapted(folder, dtype="float32")), expected)
    assert not close(logits(fresh(world)), expected)
    assert folder.recipe.adapter.mixer.kind == "identity" and folder.recipe.data.format == "label"


LAYER = "base_model.model.model.layers.1.self_attn.q_proj"


def setting(**values: object) -> Altered:
    return lambda config, state: config.update(values)


def without(*parts: str, layer: str = LAYER) -> Altered:
    return lambda config, state: [state.pop(f"{layer}.{part}.weight") for part in parts]


def weight(part: str, change: Callable[[Tensor], Tensor]) -> Altered:
    return lambda config, state: state.update({f"{LAYER}.{part}.weight": change(state[f"{LAYER}.{part}.weight"])})


def no_mixer(config: dict[str, Any], state: dict[str, Tensor]) -> None:
    for key in [key for key in state if "lora_AB" in key]:
        del state[key]


def altered_source(folder: Path, world: Path, alter: Altered) -> Path:
    """A checkpoint of the repository's in ``folder``, over the small model, with something changed."""
    config, state = {**OFFICIAL, "base_model_name_or_path": str(world / "model")}, official_model(world)[1]
    alter(config, state)
    return write_source(folder, config, state)


REFUSED: dict[str, tuple[Altered, str]] = {
    "bias": (setting(bias="lora_only"), "bias = 'lora_only': not supported"),
    "modules_to_save": (setting(modules_to_save=["embed_tokens"]), "modules_to_save = ['embed_tokens']: not supported"),
    "dora": (setting(use_dora=True), "use_dora = True: not supported"),
    "rank_pattern": (setting(rank_pattern={"q_proj": 8}), "rank_pattern = {'q_proj': 8}: not supported"),
    "alpha_pattern": (setting(alpha_pattern={"q_proj": 8}), "alpha_pattern = {'q_proj': 8}: not supported"),
    "pissa": (setting(init_lora_weights="pissa"), "init_lora_weights = 'pissa': not supported"),
    "chosen layers": (setting(layers_to_transform=[1]), "layers_to_transform = [1]: not supported"),
    "all but": (setting(exclude_modules=["q_proj"]), "exclude_modules = ['q_proj']: not supported"),
    "a pattern": (setting(target_modules=r".*\.q_proj"), "target_modules = '.*\\\\.q_proj': "),
    "what is not known": (setting(use_magic=1), "use_magic = 1: not supported"),
    "another kind": (setting(peft_type="LOHA"), "peft_type = 'LOHA': "),
    "no rank": (setting(r=None), "r = None: "),
    "no alpha": (setting(lora_alpha=0), "lora_alpha = 0: "),
    "another rank": (setting(r=5), "q_proj: shapes [(4, 48), (4, 4), (48, 4)]"),
    "fewer targets": (
        setting(target_modules=["q_proj", "v_proj"]),
        "mlp.down_proj, which target_modules in",
    ),
    "more targets": (setting(target_modules=[*TARGETS, "k_proj"]), "k_proj: adapter_config.json adapts it"),
    "a mixer that is not said": (setting(lora_use_mixer=False), "lora_use_mixer"),
    "a mixer that is not there": (no_mixer, "lora_AB is missing on model.layers.0."),
    "A without B": (without("lora_B"), "lora_B is missing on model.layers.1.self_attn.q_proj"),
    "a layer without weights": (without("lora_A", "lora_AB", "lora_B"), "q_proj: adapter_config.json adapts it"),
    "a surplus key": (lambda c, s: s.update({"model.norm.weight": torch.ones(3)}), "model.norm.weight: unexpected"),
    "nan": (weight("lora_AB", lambda m: m * float("nan")), "q_proj.lora_AB.weight: holds NaN"),
    "an empty adapter": (lambda c, s: s.clear(), "contains no LoRA weights"),
    "no base": (setting(base_model_name_or_path=None), "names no base model"),
    "a base that is gone": (setting(base_model_name_or_path="/gone"), "/gone: no such folder"),
}
"""What is not understood, and so refused: see `wrong_turns.IMPORTS`."""


def test_the_output_layer_is_refused(world: Path, tmp_path: Path) -> None:
    theirs = peft.get_peft_model(fresh(world), peft.LoraConfig(target_modules=["lm_head"], task_type="CAUSAL_LM"))
    theirs.save_pretrained(tmp_path / "source", save_embedding_layers=False)
    with pytest.raises(UsageError, match="lm_head: not a linear layer"):
        import_adapter(tmp_path / "source", out=tmp_path / "run")


def test_all_faults_come_at_once(world: Path, tmp_path: Path) -> None:
    """Of the settings; then of the weights, which a setting that is not read may explain."""
    fits = {**OFFICIAL, "base_model_name_or_path": str(world / "model")}
    for config in ({**fits, "use_dora": True, "r": "4"}, fits):
        state = official_model(world)[1]
        without("lora_B")(config, state)
        weight("lora_A", lambda a: a * float("inf"))(config, state)
        source = write_source(tmp_path / f"source-{len(config)}", config, state)
        with pytest.raises(UsageError) as refused:
            import_adapter(source, out=tmp_path / "run")
        assert len(str(refused.value).splitlines()) == 2


class Trap:
    """A pickle that writes a file when it is opened by a reader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return Path.write_text, (self.path, "run")  # type: ignore[return-value]


def test_code_in_a_pickle_is_not_run(world: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    state = {**official_model(world)[1], "trap": Trap(ran)}
    config = {**OFFICIAL, "base_model_name_or_path": str(world / "model")}
    source = write_source(tmp_path / "source", config, state)  # type: ignore[arg-type]
    with pytest.raises(MosloraError, match=r"adapter_model\.bin: .*no code") as refused:
        import_adapter(source, out=tmp_path / "run")
    assert refused.value.exit_code == 1 and len(str(refused.value).splitlines()) == 1
    (source / "adapter_model.bin").write_bytes(pickle.dumps(Trap(ran)))  # not even torch's container
    with pytest.raises(MosloraError, match=r"adapter_model\.bin: .*no code"):
        import_adapter(source, out=tmp_path / "run")
    assert not ran.exists() and not (tmp_path / "run").exists()
    torch.load(write_source(tmp_path / "other", config, state) / "adapter_model.bin", weights_only=False)  # type: ignore[arg-type]
    assert ran.read_text() == "run", "the trap works"


def test_files_that_are_broken_are_named(world: Path, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", OFFICIAL, official_model(world)[1])
    weights = source / "adapter_model.bin"
    contents = [b"", b"PK\x03\x04 cut off", b"text", pickle.dumps([1, 2]), pickle.dumps({"model": {}})]
    for content in contents:
        weights.write_bytes(content)
        with pytest.raises(MosloraError, match=r"adapter_model\.bin: ") as refused:
            import_adapter(source, out=tmp_path / "run", base=str(world / "model"))
        assert len(str(refused.value).splitlines()) == 1


def transposed(state: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    return lambda layers: {k: v.T.contiguous() if "mixer" in k else v for k, v in state(layers).items()}


def test_a_wrong_import_is_refused_and_leaves_nothing(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M read as its transpose, which has the right shape: the proof sees it."""
    source = write_source(tmp_path / "source", OFFICIAL, official_model(world)[1])
    monkeypatch.setattr(importing, "_our_state", transposed(importing._our_state))
    with pytest.raises(MosloraError, match=f"{importing.TOLERANCE:g}"):
        import_adapter(source, out=tmp_path / "run", base=str(world / "model"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_float16_weights_are_kept_to_the_bit(world: Path, tmp_path: Path) -> None:
    state = {key: value.half() for key, value in official_model(world)[1].items()}
    source = write_source(tmp_path / "source", OFFICIAL, state)
    import_adapter(source, out=tmp_path / "run", base=str(world / "model"))
    weights = open_adapter(tmp_path / "run" / "adapter").weights()
    m = weights[f"{LAYER.removeprefix('base_model.model.')}.mixer.weight"]
    assert m.dtype == torch.float32 and m.equal(state[f"{LAYER}.lora_AB.weight"].float())
