"""Wrong turns: runs and adapter folders."""

import json
import shutil

import torch

from moslora.runs.manifest import with_own_hash
from wrong_turns.scene import Turn, a_run, another_tensor, cut, file, flipped, folder, in_run, own_base, weights

ADAPTERS = {
    f"{what}, {command}": Turn(line.format(path), 2, says, make)
    for what, path, make, says in (
        ("no such run", "runs/none", a_run, "runs/none: no such run; runs here: runs/one"),
        ("a PEFT adapter", "peft", file("peft/adapter_config.json", "{}"), "peft: a PEFT adapter"),
        ("an empty folder", "f", folder("f"), "f: not a run or an adapter folder"),
        ("a file", "f", file("f", ""), "f"),
    )
    for command, line in (
        ("resumed", "train {} --resume"),
        ("evaluated", "eval {}"),
        ("merged", "merge {}"),
        ("exported", "export {}"),
    )
} | {
    "the folder of all runs, merged": Turn("merge .", 2, "(no manifest.json); runs here: runs/one", a_run),
    "onto what is not quantised": Turn("merge {run} --onto dequantized --out m", 2, "--onto dequantized: "),
    "a model, merged": Turn("merge {world}/model", 2, "model: a model without an adapter"),
    "an adapter, resumed": Turn("train runs/one/adapter --resume", 2, "runs/one/adapter: not a run folder", a_run),
    "a run without its recipe": Turn(
        "train runs/one --resume",
        2,
        "runs/one: not a run folder",
        lambda scene: (a_run(scene) / "recipe.yaml").unlink(),
    ),
    "a run without a checkpoint": Turn(
        "merge runs/one",
        2,
        "runs/one: this run has no checkpoint yet",
        lambda scene: [shutil.rmtree(run / name) for run in [a_run(scene)] for name in ("checkpoints", "adapter")],
    ),
    "truncated weights": Turn(
        "merge runs/one", 1, "adapter.safetensors: altered or truncated", in_run(cut("adapter.safetensors"))
    ),
    "altered weights": Turn(
        "eval runs/one", 1, "adapter.safetensors: altered or truncated", in_run(flipped("adapter.safetensors"))
    ),
    "no weights": Turn(
        "export runs/one",
        1,
        "adapter.safetensors: missing",
        in_run(lambda adapter: (adapter / "adapter.safetensors").unlink()),
    ),
    "altered recipe": Turn("merge runs/one", 1, "recipe.yaml: altered or truncated", in_run(flipped("recipe.yaml"))),
    "malformed manifest": Turn("merge runs/one", 1, "manifest.json: not a manifest", in_run(cut("manifest.json"))),
    "newer format": Turn(
        "merge runs/one",
        2,
        "written in format 9",
        in_run(lambda adapter: (adapter / "manifest.json").write_text(json.dumps(with_own_hash({"format": 9})))),
    ),
    "missing key": Turn(
        "merge runs/one",
        1,
        "layers.0.self_attn.q_proj.lora_a: missing",
        in_run(weights(lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.lora_a"))),
    ),
    "surplus key": Turn(
        "export runs/one",
        1,
        "more.lora_a: unexpected",
        in_run(weights(lambda tensors: tensors.update({"more.lora_a": torch.ones(2)}))),
    ),
    "other shape": Turn(
        "eval runs/one",
        1,
        "q_proj.lora_a: shape (2, 48), the model has (4, 48)",
        in_run(weights(lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.lora_a": torch.ones(2, 48)}))),
    ),
    "another base": Turn("merge runs/one", 2, "with fingerprint", own_base(another_tensor)),
    "base gone": Turn("merge runs/one", 2, "no such folder", own_base(lambda model: shutil.rmtree(model))),
    "all checkpoints damaged": Turn(
        "train runs/one --resume",
        1,
        "no intact checkpoint",
        lambda scene: [
            flipped("recipe.yaml")(path)
            for run in [a_run(scene)]
            for path in (run / "adapter", *(run / "checkpoints").iterdir())
        ],
    ),
    "resumed with its recipe edited": Turn(
        "train runs/one --resume",
        2,
        "runs/one/adapter: made with another recipe (adapter.rank was 4, is 8)",
        lambda scene: [
            path.write_text(path.read_text().replace("rank: 4", "rank: 8")) for path in [a_run(scene) / "recipe.yaml"]
        ],
    ),
}
