"""Wrong turns: recipes and the command line."""

from wrong_turns.scene import BOMB, DENIED, Turn, a_run, both, file, folder, limited, newer, raising

RECIPES = {
    "missing recipe": Turn("train none.yaml", 2, "none.yaml: is neither"),
    "malformed recipe": Turn("train r.yaml", 2, "r.yaml: is not YAML: line 2, column 1", file("r.yaml", "a: [\n}")),
    "extends in a circle": Turn(
        "train a.yaml",
        2,
        "a.yaml -> b.yaml -> a.yaml",
        both(file("a.yaml", "extends: b.yaml"), file("b.yaml", "extends: a.yaml")),
    ),
    "extends what is missing": Turn(
        "train r.yaml", 2, "r.yaml: extends = methods/lra: ", file("r.yaml", "extends: methods/lra")
    ),
    "extends a folder": Turn(
        "train r.yaml", 2, "r.yaml: extends = f: ", both(folder("f"), file("r.yaml", "extends: f"))
    ),
    "a key twice": Turn("train r.yaml", 2, "line 2, column 1: the key 'seed'", file("r.yaml", "seed: 1\nseed: 2")),
    "aliases of aliases": Turn("train r.yaml", 2, "r.yaml: is not YAML: line 1", file("r.yaml", BOMB)),
    "a binary file": Turn("train r.yaml", 2, "r.yaml: is not YAML", file("r.yaml", b"\x7fELF\x00\x01\xff")),
    "a folder": Turn("train f", 2, "f: is neither", folder("f")),
    "a run": Turn("train runs/one", 2, "runs/one: is a run", a_run),
    "unreadable": Turn(
        "train r.yaml",
        2,
        "r.yaml: cannot be read",
        both(file("r.yaml", "a: b"), raising("moslora.recipe.layers.parse", DENIED)),
    ),
    "no model": Turn("train methods/lora", 2, "model.name: is missing"),
    "unknown key": Turn("train llama3-8b training.rat=1", 2, "override: training.rat = 1: unknown key"),
    "protocol of another format": Turn(
        "train llama3-8b evaluation.protocol=cloze", 2, "evaluation.protocol = 'cloze': "
    ),
    "no end": Turn("train llama3-8b training.epochs=null", 2, "training.epochs = None: "),
    "override without =": Turn("train llama3-8b training.epochs", 2, "override 'training.epochs': "),
    "a method as an override": Turn("train smollm2-135m methods/dora", 2, "extends: [smollm2-135m, methods/dora]"),
    "override is no YAML": Turn("train llama3-8b seed=[", 2, "override 'seed=[': "),
    "several faults": Turn("train llama3-8b seed=-1 training.epochs=no", 2, "training.epochs = False: "),
    "newer run, evaluated": Turn("eval runs/one", 2, "written by moslora 9.0, this is", newer),
    "no argument": Turn("train", 2, "Missing argument"),
    "unknown option": Turn("eval --tusks boolq", 2, "--tusks"),
    "unknown dtype": Turn("eval {run} --dtype bf16", 2, "'--dtype'"),
    "export to what": Turn("export {run} --format gguf", 2, "gguf"),
    "output layer": Turn("train {world}/recipe.yaml adapter.target_modules=[lm_head]", 2, "output layer"),
    "names as one text": Turn(
        "train {world}/recipe.yaml adapter.target_modules=q_proj,v_proj",
        2,
        "matches the regular expression q_proj,v_proj as a whole (names are a list, such as [q_proj, v_proj]); this",
    ),
    "no such command": Turn("trian llama3-8b", 2, "No such command 'trian'"),
    "copy of what is missing": Turn("recipes copy lama3-8b", 2, "did you mean llama3-8b?"),
    "copy over a file": Turn("recipes copy llama3-8b r.yaml", 2, "r.yaml: ", file("r.yaml", "mine")),
    "copy to a full disk": Turn(
        "recipes copy llama3-8b r.yaml",
        1,
        "r.yaml: File too large",
        limited("moslora.recipe.load.read_layers", size=100),
    ),
}
