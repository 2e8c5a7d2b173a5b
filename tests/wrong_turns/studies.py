"""Wrong turns: experiments, and lists of runs."""

import sys

from wrong_turns.scene import Maker, Turn, file, folder, locked

GOOD = """
recipe: {recipe}
arms:
  lora: methods/lora
  learned: methods/moslora
learning_rates: [1e-3, 2e-3]
rate_seeds: [7]
seeds: [0, 1]
contrast: [lora, learned]
outcome: log_probability
"""


def changed(old: str = "", new: str = "", *, recipe: str = "smollm2-135m") -> Maker:
    """An experiment that would go well, but for one thing."""
    text = GOOD.format(recipe=recipe)
    assert old in text
    return file("e.yaml", text.replace(old, new, 1) if old else text)


def turn(says: str, old: str = "", new: str = "", *, command: str = "experiment e.yaml", **options: str) -> Turn:
    return Turn(command, 2, says, changed(old, new, **options))


ROWS = "{extends: smollm2-135m, data: {validation_rows: 0}}"
GENERATED = "{extends: llama3-8b, evaluation: {protocol: generate}}"

STUDIES = {
    "no such experiment": Turn("experiment mixer-ablatoin", 2, "did you mean mixer-ablation?"),
    "an experiment that is a recipe": Turn(
        "experiment r.yaml", 2, "r.yaml: arms: is missing", file("r.yaml", "extends: llama3-8b")
    ),
    "an empty experiment": Turn("experiment e.yaml", 2, "e.yaml: must be a mapping", file("e.yaml", "")),
    "an experiment that is no YAML": Turn("experiment e.yaml", 2, "e.yaml: is not YAML: line 2", file("e.yaml", "[\n")),
    "a key that no experiment has": turn(
        "e.yaml: seed: unknown key; must be one of recipe", "\nseeds:", "\nseed: 1\nseeds:"
    ),
    "an arm that is a number": turn("e.yaml: arms.lora: must be a recipe's name", "lora: methods/lora", "lora: 3"),
    "an arm of an unknown method": turn(
        "e.yaml: arms.lora: extends = methods/lroa", ": methods/lora", ": methods/lroa"
    ),
    "an arm with an unknown key": turn(
        "e.yaml: arms.lora: adapter.rnk = 3: unknown key", ": methods/lora", ": {adapter: {rnk: 3}}"
    ),
    "an arm with a name that is no folder's": turn("e.yaml: arms.a/b", "  lora:", "  a/b:"),
    "a contrast with an unknown arm": turn("contrast: lroa is not an arm", "[lora, learned]", "[lroa, learned]"),
    "a contrast with itself": turn("contrast: lora against itself", "[lora, learned]", "[lora, lora]"),
    "a contrast of three": turn("e.yaml: contrast", "[lora, learned]", "[lora, learned, lora]"),
    "first, an unknown arm": turn("first: other is not an arm", "\nseeds:", "\nfirst: [other]\nseeds:"),
    "an arm that changes nothing": turn(
        "arms.learned: changes nothing that arm lora does not change",
        "methods/moslora",
        "{adapter: {mixer: {kind: identity}}}",
    ),
    "an arm with other rows": turn(
        "arms.learned: changes data, which all arms share", "methods/moslora", "{data: {rows: 10}}"
    ),
    "an arm with its own seed and rate": turn(
        "arms.learned: changes seed, training.learning_rate, which",
        "methods/moslora",
        "{seed: 3, training: {learning_rate: 1}}",
    ),
    "a rate twice": turn("would share a folder with another, such as lora-0.001-7", "2e-3", "0.001"),
    "arms that differ in case": turn("such as lora-0.001-7", "  learned:", "  LoRA:"),
    "a rate chosen with the seeds compared": turn("rate_seeds: 1 is also among the seeds", "[7]", "[1]"),
    "several rates, no seeds for them": turn("rate_seeds: is missing", "rate_seeds: [7]\n"),
    "several rates, no validation rows": turn("data.validation_rows = 0", recipe=ROWS),
    "a seed out of range": turn("e.yaml: seeds.1", "[0, 1]", "[0, -1]"),
    "an outcome that is none": turn("e.yaml: outcome", ": log_probability", ": loss"),
    "an outcome of another protocol": turn("outcome: log_probability does not exist under", recipe=GENERATED),
    "an experiment over a method": turn("e.yaml: recipe: model.name: is missing", recipe="methods/lora"),
    "an unknown arm asked for": turn("lroa: no such arm; must be all, or among lora", command="experiment e.yaml lroa"),
    "a result that is none": Turn(
        "experiment e.yaml --table",
        1,
        "lora-0.001-7.json: not a result of an experiment",
        lambda scene: [changed()(scene), scene.write("runs/e/rates/lora-0.001-7.json", "[]")],
    ),
    "two of one experiment at once": Turn(
        "experiment e.yaml",
        2,
        "runs/e: another process is writing here",
        lambda scene: [changed()(scene), locked("runs/e/.lock")(scene)],
    ),
    "an experiment on Ray, which is not installed": Turn(
        "experiment e.yaml --on ray",
        2,
        "--on ray: ray is not installed; pip install ray",
        lambda scene: [changed()(scene), scene.patch.setitem(sys.modules, "ray", None)],
    ),
    "runs where there are none": Turn("runs f", 2, "f: no runs here", folder("f")),
    "runs of no folder": Turn("runs f", 2, "f: no such folder"),
}
