"""Wrong turns: evaluation."""

import huggingface_hub
import torch

from moslora.evaluation.target import evaluate_target, open_target
from wrong_turns.scene import Turn, a_run, both, file, hub_says, limited, raising

ASKED = "ask {run} --question why --option a --option b"

EVALUATION = {
    "predictions that are none": Turn(
        "eval runs/one --limit 2",
        1,
        "predictions.jsonl:1: not a prediction",
        lambda scene: [
            scene.copy(scene.run, "runs/one"),
            evaluate_target(open_target("runs/one"), limit=2),
            scene.write("runs/one/eval/rank-label-float32/predictions.jsonl", "[]\n"),
        ],
    ),
    "damaged results, merged": Turn(
        "merge runs/one",
        1,
        "runs/one/eval/x/results.json: not",
        both(a_run, file("runs/one/eval/x/results.json", "[]")),
    ),
    "out of GPU memory": Turn(
        "eval {run} --limit 2 --out e",
        1,
        "--batch-tokens",
        raising("moslora.evaluation.run._scored", torch.OutOfMemoryError),
        leaves=True,
    ),
    "no runs yet": Turn("eval", 2, "no finished run"),
    "results into a run": Turn("eval {run} --out {run}", 2, "not empty"),
    "protocol and format": Turn("eval {run} --protocol cloze --format label", 2, "--protocol rank or generate"),
    "an unknown task, before a download": Turn(
        "eval some/model --tasks boolk", 2, "did you mean boolq?", hub_says("LocalEntryNotFoundError")
    ),
    "no such source, before the weights": Turn(
        "eval some/model --source ./none",
        2,
        "source './none': ",
        both(
            lambda scene: scene.patch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: "config.json"),
            raising("huggingface_hub.snapshot_download", lambda: AssertionError("asked for the weights")),
        ),
    ),
    "one option, before a download": Turn(
        "ask some/model --question why --option a", 2, "1 option given", hub_says("LocalEntryNotFoundError")
    ),
    "tasks that are none": Turn("eval {run} --tasks ", 2, "task"),
    "source that is none": Turn("eval {run} --source ", 2, "source '': "),
    "no room for the model": Turn(
        ASKED,
        1,
        "does not fit into the GPU's memory; use a recipe with model.quantization=nf4 (4 bits), ",
        raising("moslora.evaluation.target.load_adapted", torch.OutOfMemoryError),
    ),
    "no room for a question": Turn(
        ASKED,
        1,
        "out of GPU memory for this question",
        raising("moslora.evaluation.rank.Rank.score", torch.OutOfMemoryError),
    ),
    "compared without a base": Turn(
        "compare runs/one",
        2,
        "runs/one/eval/rank-label-float32-base: not there",
        lambda scene: [scene.copy(scene.run, "runs/one"), evaluate_target(open_target("runs/one"), limit=2)],
    ),
    "compared before it is evaluated": Turn(
        "compare runs/one runs/two", 2, "runs/one: not evaluated; moslora eval runs/one does it", a_run
    ),
    "compared under other limits": Turn(
        "compare runs/one",
        2,
        "questions of obqa: 3 (",
        lambda scene: [
            scene.copy(scene.run, "runs/one"),
            evaluate_target(open_target("runs/one"), limit=2),
            evaluate_target(open_target("runs/one", base=True), limit=3),
        ],
    ),
    "contrast that is none": Turn("compare {run} --contrast one", 2, "--contrast one: must be two arms"),
    "limit that is none": Turn("eval {run} --limit some", 2, "--limit some"),
    "other settings": Turn(
        "eval runs/one --limit 2 --batch-tokens 400",
        2,
        "batch_tokens was 2048, is 400",
        lambda scene: [scene.copy(scene.run, "runs/one"), evaluate_target(open_target("runs/one"), limit=2)],
    ),
    "damaged settings": Turn(
        "eval runs/one --limit 2",
        1,
        "settings.json: not an evaluation's settings",
        both(a_run, file("runs/one/eval/rank-label-float32/settings.json", "{")),
    ),
    "predictions without settings": Turn(
        "eval runs/one --limit 2",
        2,
        "runs/one/eval/rank-label-float32: not empty",
        both(a_run, file("runs/one/eval/rank-label-float32/predictions.jsonl", "{}\n")),
    ),
    "out in a place of the system's": Turn(
        "train {world}/recipe.yaml --out /proc/x", 2, "/proc/x: No such file or directory"
    ),
    "out is a file": Turn("eval {run} --out f", 2, "f: Not a directory", file("f", "")),
    "disk full": Turn(
        "eval {run} --limit 2 --out e",
        1,
        "e/predictions.jsonl: File too large",
        limited("moslora.evaluation.journal.Journal.append", size=100),
        leaves=True,
    ),
}
