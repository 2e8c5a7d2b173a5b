"""Wrong turns: output folders and disks."""

import torch

from wrong_turns.scene import HERE, NO_ROOM, READ_ONLY, Turn, a_run, both, file, limited, locked, raising

OUTPUT = {
    "out holds another run": Turn(
        "train {world}/recipe.yaml --out runs/one", 2, "runs/one: not empty; resume that run with --resume", a_run
    ),
    "out is a file": Turn(HERE, 2, "run: File exists", file("run", "")),
    "out below a file": Turn("train {world}/recipe.yaml --out f/run", 2, "f/run: Not a directory", file("f", "")),
    "out on a read-only disk": Turn(
        HERE, 2, "run/.lock: Read-only file system", raising("moslora.files.FileLock.acquire", READ_ONLY)
    ),
    "out is being written": Turn(HERE, 2, "run: another process", locked("run/.lock")),
    "resumed while it runs": Turn(
        "train runs/one --resume", 2, "runs/one: another process", both(a_run, locked("runs/one/.lock"))
    ),
    "out of GPU memory": Turn(
        HERE,
        1,
        "training.micro_batch_tokens",
        raising("moslora.training.loop.accumulate", torch.OutOfMemoryError),
        leaves=True,
    ),
    "no room for the base": Turn(
        HERE,
        1,
        "use a recipe with model.quantization=nf4 (4 bits), training.strategy=fsdp on several GPUs, a smaller model",
        raising("moslora.training.prepare.load_base", torch.OutOfMemoryError),
    ),
    "disk full at the start": Turn(
        HERE, 1, "run/recipe.yaml: File too large", limited("moslora.training.prepare.adapt", size=500)
    ),
    "disk full in a checkpoint": Turn(
        HERE,
        1,
        "run/checkpoints/step-8: File too large; free some space there, then resume: moslora train run --resume",
        limited("moslora.training.run.save_checkpoint", size=9_000, after=1),
        leaves=True,
    ),
    "merge into what is used": Turn("merge {run} --out m", 2, "m: not empty", file("m/mine.txt", "x")),
    "merge, disk full": Turn(
        "merge {run} --out m", 1, "m: File too large", limited("moslora.convert.merge._write_weights", size=50_000)
    ),
    "merge, no space": Turn(
        "merge {run} --out m", 1, "m: No space left on device", raising("moslora.convert.merge.save_file", NO_ROOM)
    ),
    "export, disk full": Turn(
        "export {run} --out m", 1, "m: File too large", limited("moslora.convert.export.new_folder", size=1_000)
    ),
    "quickstart into what is used": Turn("quickstart --out q", 2, "q: not empty", file("q/mine.txt", "x")),
    "quickstart into another run": Turn(
        "quickstart --out runs/one", 2, "runs/one: holds a run of recipe small; choose", a_run
    ),
}
