"""Wrong turns: base models."""

import huggingface_hub
import torch

from wrong_turns.scene import (
    BAD_CONFIGS,
    HERE,
    Turn,
    a_model,
    a_peft_adapter,
    a_run,
    both,
    cut,
    environment,
    file,
    folder,
    gpus,
    hub_error,
    hub_says,
    no_network,
    on_a_gpu,
    quantised,
    raising,
    tensors,
    without_bitsandbytes,
)

MODELS = {
    "no such folder": Turn("eval ./none", 2, "model.name = ./none: no such folder"),
    "no safetensors": Turn(
        "eval model --tasks obqa",
        2,
        "model: no safetensors weights",
        a_model(lambda model: (model / "model.safetensors").unlink()),
    ),
    "offline mode": Turn(
        f"{HERE} model.name=some/model", 1, "the hub cannot be reached", hub_says("OfflineModeIsEnabled")
    ),
    "a folder without a model": Turn(
        "train {world}/recipe.yaml model.name=f", 2, "f: not a Hugging Face model folder", folder("f")
    ),
    "an index that is none": Turn(
        "eval model --tasks obqa",
        1,
        "model.safetensors.index.json: not an index of weights",
        both(
            a_model(lambda model: (model / "model.safetensors").unlink()),
            file("model/model.safetensors.index.json", "[]"),
        ),
    ),
    "a shard that is missing": Turn(
        "eval model --tasks obqa",
        1,
        "model.safetensors.index.json: lists a.safetensors",
        both(
            a_model(lambda model: (model / "model.safetensors").unlink()),
            file("model/model.safetensors.index.json", '{"weight_map": {"lm_head.weight": "a.safetensors"}}'),
        ),
    ),
    "truncated weights": Turn(
        "eval model --tasks obqa", 1, "model.safetensors: cannot be read", a_model(cut("model.safetensors"))
    ),
    **{
        f"{what}, {command}": Turn(line, 1, says, both(a_peft_adapter, a_model(change)))
        for what, change, says in BAD_CONFIGS
        for command, line in (
            ("trained", f"{HERE} model.name=model"),
            ("counted", "train {world}/recipe.yaml --dry-run model.name=model"),
            ("evaluated", "eval model --tasks obqa --source {world}/data --out e"),
            ("imported onto", "import peft --base model --out r"),
        )
    },
    "a tensor of another shape": Turn(
        "eval model --tasks obqa --source {world}/data --out e",
        1,
        "model.norm.weight has shape (3,), the model (48,)",
        a_model(tensors(lambda found: found.update({"model.norm.weight": torch.ones(3)}))),
    ),
    "missing tensors": Turn(
        f"{HERE} model.name=model",
        1,
        "model.layers.0.self_attn.q_proj.weight is missing; model.norm.weight is missing",
        a_model(
            tensors(
                lambda found: [
                    found.pop(key) for key in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight")
                ]
            )
        ),
    ),
    "a tokenizer that is none": Turn(
        "eval model --tasks obqa --source {world}/data --out e",
        1,
        "model.name = model: its tokenizer cannot be loaded: KeyError",
        a_model(lambda model: (model / "tokenizer.json").write_text("{}")),
    ),
    "no target module": Turn(
        f"{HERE} adapter.target_modules=[q_prj]",
        2,
        "no linear layer matches q_prj; this model has down_proj, gate_proj, k_proj",
    ),
    "gated": Turn(
        f"{HERE} model.name=some/model",
        1,
        "gated; accept its terms at https://huggingface.co/some/model",
        hub_says("GatedRepoError"),
    ),
    "absent from the hub": Turn(
        f"{HERE} model.name=some/model", 2, "some/model: neither a local folder", hub_says("RepositoryNotFoundError")
    ),
    "no such revision": Turn(
        f"{HERE} model.name=some/model model.revision=v9",
        2,
        "model.revision = v9: neither a local folder",
        hub_says("RevisionNotFoundError"),
    ),
    "not in the cache": Turn(
        f"{HERE} model.name=some/model", 1, "some/model: the hub cannot be reached", hub_says("LocalEntryNotFoundError")
    ),
    "no network": Turn("eval some/model --tasks obqa", 1, "the hub cannot be reached", no_network),
    "no network in the middle": Turn(
        "eval some/model --tasks obqa",
        1,
        "its weights cannot be downloaded (no)",
        both(
            lambda scene: scene.patch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: "config.json"),
            raising("huggingface_hub.snapshot_download", hub_error("LocalEntryNotFoundError")),
        ),
    ),
    "a run's name without its folder": Turn("eval one", 2, "did you mean runs/one?", a_run),
    "neither folder nor id": Turn("eval some/model/x --tasks obqa", 2, "some/model/x: neither a local folder"),
    "no bfloat16": Turn(f"{HERE} model.dtype=bfloat16", 2, "model.dtype = bfloat16: ", on_a_gpu),
    "4 bits without bitsandbytes": Turn(f"{HERE} model.quantization=nf4", 2, "-m pip install", without_bitsandbytes),
    "4 bits of odd widths on a CPU": Turn(f"{HERE} model.quantization=nf4", 2, "has 48 inputs, not a multiple of 64"),
    "quantised already": Turn(
        f"{HERE} model.name=model", 2, "model.name = model: its weights are already quantised", a_model(quantised)
    ),
    "more processes than GPUs": Turn(
        HERE,
        2,
        "4 processes on this machine, but 2 GPUs; start 2",
        both(gpus(2), environment(RANK="0", WORLD_SIZE="4")),
    ),
}
