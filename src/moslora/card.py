"""The model card that goes with what is given away: base, method, data, protocol, results."""

import json
from pathlib import Path
from typing import Any

from moslora.checkpoint import AdapterFolder, run_folder
from moslora.recipe import Recipe


def write_card(out: Path, folder: AdapterFolder, *, kind: str, use: str, proof: str) -> None:
    """Writes ``out/README.md``.

    Args:
        out: the exported folder.
        folder: the adapter it was made from.
        kind: what it is, for the first sentence.
        use: Python lines that load it.
        proof: what was measured on it.
    """
    recipe = folder.recipe
    base = folder.manifest["base"]
    lines = [
        "---",
        f"base_model: {base['name']}",
        *(["library_name: peft"] if (out / "adapter_config.json").exists() else ["library_name: transformers"]),
        "tags: [lora, moslora]",
        "---",
        f"# {recipe.name}",
        "",
        f"{kind} of `{base['name']}`{_revision(base)}, fine-tuned with {_method(recipe)}.",
        "",
        "```python",
        use,
        "```",
        "",
        "## Training",
        "",
        *_training(folder),
        "",
        "## Evaluation",
        "",
        *_evaluation(run_folder(folder.path)),
        "",
        "## Check of this folder",
        "",
        proof,
        "",
    ]
    (out / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _method(recipe: Recipe) -> str:
    adapter = recipe.adapter
    return (
        f"ΔW = s · B · M · A (mixer `{adapter.mixer.kind}`, rank {adapter.rank}, s = {adapter.alpha:g}/{adapter.rank})"
    )


def _revision(base: dict[str, Any]) -> str:
    return f" at revision `{base['revision']}`" if base["revision"] else ""


def _training(folder: AdapterFolder) -> list[str]:
    recipe, manifest = folder.recipe, folder.manifest
    training = recipe.training
    return [
        f"- data: {', '.join(recipe.data.tasks)} from `{recipe.data.source}`, format `{recipe.data.format}`,"
        f" {manifest['trained_rows']:,} rows, sha256 `{manifest['data']['sha256']}`",
        *(f"- {note}" for note in manifest["data"]["notes"]),
        f"- {manifest['step']:,} steps of {training.global_batch_size} rows, learning rate"
        f" {training.learning_rate:g} ({training.schedule}), loss on {recipe.data.loss_on}, seed {recipe.seed}",
        f"- moslora {manifest['moslora']}; the whole recipe:",
        "",
        "```yaml",
        recipe.to_yaml().rstrip(),
        "```",
    ]


def _evaluation(run: Path) -> list[str]:
    found = sorted(run.glob("eval/*/results.json"))
    if not found:
        return ["Not evaluated yet (`moslora eval`)."]
    lines: list[str] = []
    for path in found:
        results = json.loads(path.read_text(encoding="utf-8"))
        settings = results["settings"]
        metric = settings["primary"]
        lines += [
            f"Protocol `{settings['protocol']}`, format `{settings['format']}`, metric {metric.replace('_', ' ')}"
            f" ({path.parent.name}):",
            "",
            "| task | n | majority class | score |",
            "|---|---|---|---|",
        ]
        rows = {**results["tasks"], "macro average": results["macro"]}
        lines += [
            f"| {task} | {score['n']:,} | {100 * score['majority_class']:.1f} % | {100 * score[metric]:.1f} % |"
            for task, score in rows.items()
        ]
        lines.append("")
    return lines[:-1]
