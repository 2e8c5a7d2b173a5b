"""Wrong turns: a run trained again, a report."""

import shutil

from wrong_turns.scene import Turn, a_run, both, file

REPORTS = {
    "report: no such run": Turn("report runs/none", 2, "runs/none: no such run"),
    "report: nothing there": Turn("report .", 2, ".: no runs here"),
    "report: out in use": Turn("report {run} --out notes", 2, "notes: not empty", file("notes/diary", "x")),
    "report: no such evaluation": Turn("report {run} --evaluation x --out page", 2, "not evaluated as x"),
    "reproduce: unfinished": Turn(
        "reproduce runs/one",
        2,
        "unfinished; finish it first: moslora train runs/one --resume",
        lambda scene: shutil.rmtree(a_run(scene) / "adapter"),
    ),
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
