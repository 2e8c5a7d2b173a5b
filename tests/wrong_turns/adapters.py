"""Wrong turns: runs and adapter folders."""

import json
import shutil

import torch

from wrong_turns.scene import Turn, a_run, another_tensor, cut, edited, file, flipped, folder, in_run, own_base, weights

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
    "a run's name, merged": Turn("merge one", 2, "one: no such run; runs here: runs/one", a_run),
    "the folder of all runs, merged": Turn("merge .", 2, "(no manifest.json); runs here: runs/one", a_run),
    "a checkpoint that was dropped, merged": Turn(
        "merge runs/one/checkpoints/step-4", 2, "runs/one/checkpoints/step-4: no such run", a_run
    ),
    "an adapter of a run that is not there, merged": Turn(
        "merge runs/none/adapter", 2, "runs/none/adapter: no such run; runs here: runs/one", a_run
    ),
    "onto what is not quantised": Turn("merge {run} --onto dequantized --out m", 2, "--onto dequantized: "),
    "onto what is unknown": Turn("merge {run} --onto quantized --out m", 2, "quantized"),
    "merged in an unknown dtype": Turn("merge {run} --dtype float8 --out m", 2, "float8"),
    "exported to an unknown format": Turn("export {run} --format gguf --out m", 2, "gguf"),
    "a model, resumed": Turn("train {world}/model --resume", 2, "model: a model without an adapter"),
    "a model, merged": Turn("merge {world}/model", 2, "model: a model without an adapter"),
    "a model, exported": Turn("export {world}/model", 2, "model: a model without an adapter"),
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
    "binary manifest": Turn(
        "merge runs/one",
        1,
        "manifest.json: not a manifest",
        in_run(lambda adapter: (adapter / "manifest.json").write_bytes(b"\xff\x00")),
    ),
    "altered manifest": Turn("merge runs/one", 1, "manifest.json: altered", in_run(edited('"step": 21', '"step": 12'))),
    "manifest without its hash": Turn(
        "merge runs/one", 1, "manifest.json: not a manifest", in_run(edited('"manifest_sha256"', '"x"'))
    ),
    "manifest with no hash": Turn(
        "merge runs/one",
        1,
        "manifest.json: altered",
        in_run(
            lambda adapter: (adapter / "manifest.json").write_text(
                json.dumps({**json.loads((adapter / "manifest.json").read_text()), "manifest_sha256": None})
            )
        ),
    ),
    "newer format": Turn("merge runs/one", 2, "written in format 9", in_run(edited('"format": 2', '"format": 9'))),
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
    "another base, evaluated": Turn("eval runs/one", 2, "with fingerprint", own_base(another_tensor)),
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
    "resumed with another recipe": Turn(
        "train runs/one --resume seed=5", 2, "runs/one: made with another recipe (seed was 3, is 5)", a_run
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
