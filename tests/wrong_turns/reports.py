"""Wrong turns: a run trained again, a report."""

import shutil

from wrong_turns.scene import Turn, a_run, both, file

REPORTS = {
    "reproduce: no such run": Turn("reproduce runs/none", 2, "runs/none: no such run"),
    "reproduce: unfinished": Turn(
        "reproduce runs/one",
        2,
        "unfinished; finish it first: moslora train runs/one --resume",
        lambda scene: shutil.rmtree(a_run(scene) / "adapter"),
    ),
    "reproduce: an adapter folder": Turn("reproduce {run}/adapter", 2, "not a run folder"),
    "reproduce: out in use": Turn(
        "reproduce runs/one", 2, "runs/one-again: not empty", both(a_run, file("runs/one-again/notes", "x"))
    ),
    "reproduce: out holds another run": Turn(
        "reproduce runs/one",
        2,
        "runs/one-again: holds a run of another recipe",
        both(a_run, file("runs/one-again/recipe.yaml", "name: other\n")),
    ),
}
