"""Wrong turns: recipes and the command line."""

from wrong_turns.scene import BOMB, DENIED, Turn, a_run, both, file, folder, limited, newer, raising

RECIPES = {
    "missing recipe": Turn("train none.yaml", 2, "none.yaml: is neither"),
    "empty recipe": Turn("train r.yaml", 2, "r.yaml: is empty", file("r.yaml", "")),
    "malformed recipe": Turn("train r.yaml", 2, "r.yaml: is not YAML: line 2, column 1", file("r.yaml", "a: [\n}")),
    "a list": Turn("train r.yaml", 2, "holds a list", file("r.yaml", "- a")),
    "extends itself": Turn("train r.yaml", 2, "r.yaml -> r.yaml", file("r.yaml", "extends: r.yaml")),
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
    "a Python object": Turn(
        "train r.yaml", 2, "line 1, column 7", file("r.yaml", "seed: !!python/object/apply:os.getpid []")
    ),
    "aliases of aliases": Turn("train r.yaml", 2, "r.yaml: is not YAML: line 1", file("r.yaml", BOMB)),
    "an alias to itself": Turn("train r.yaml", 2, "r.yaml: is not YAML: line 1", file("r.yaml", "data: &d {rows: *d}")),
    "deep nesting": Turn("train r.yaml", 2, "r.yaml: is not YAML: ", file("r.yaml", "a: " + "[" * 3000)),
    "a binary file": Turn("train r.yaml", 2, "r.yaml: is not YAML", file("r.yaml", b"\x7fELF\x00\x01\xff")),
    "not UTF-8": Turn("train r.yaml", 2, "r.yaml: is not YAML: 'utf-8'", file("r.yaml", "name: é".encode("latin-1"))),
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
    "unknown section": Turn("train llama3-8b learning_rate=1", 2, "did you mean training.learning_rate?"),
    "unknown mixer": Turn("train llama3-8b adapter.mixer.kind=dens", 2, "adapter.mixer.kind = 'dens': "),
    "unknown task": Turn("train llama3-8b data.source=hub data.tasks=[boolk]", 2, "did you mean boolq?"),
    "unknown protocol": Turn("train llama3-8b evaluation.protocol=rnk", 2, "evaluation.protocol = 'rnk': "),
    "protocol of another format": Turn(
        "train llama3-8b evaluation.protocol=cloze", 2, "evaluation.protocol = 'cloze': "
    ),
    "rank not divisible": Turn(
        "train llama3-8b adapter.rank=15 adapter.mixer.kind=butterfly", 2, "adapter.rank = 15: "
    ),
    "B and M both zero": Turn(
        "train llama3-8b adapter.mixer.init=zeros adapter.mixer.train=frozen", 2, "adapter.mixer.init = 'zeros': "
    ),
    "a rectangular identity": Turn(
        "train llama3-8b adapter.mixer.kind=identity adapter.rank_out=8", 2, "adapter.rank_out = 8: "
    ),
    "no end": Turn("train llama3-8b training.epochs=null", 2, "training.epochs = None: "),
    "override without =": Turn("train llama3-8b training.epochs", 2, "override 'training.epochs': "),
    "a method as an override": Turn("train smollm2-135m methods/dora", 2, "extends: [smollm2-135m, methods/dora]"),
    "override without a key": Turn("train llama3-8b =3", 2, "override '=3': "),
    "override is no YAML": Turn("train llama3-8b seed=[", 2, "override 'seed=[': "),
    "several faults": Turn("train llama3-8b seed=-1 training.epochs=no", 2, "training.epochs = False: "),
    "newer run, resumed": Turn(
        "train runs/one --resume", 2, "runs/one/recipe.yaml: written by moslora 9.0, this is", newer
    ),
    "newer run, evaluated": Turn("eval runs/one", 2, "written by moslora 9.0, this is", newer),
    "no argument": Turn("train", 2, "Missing argument"),
    "no such command": Turn("trian llama3-8b", 2, "No such command 'trian'"),
    "copy of what is missing": Turn("recipes copy lama3-8b", 2, "did you mean llama3-8b?"),
    "copy over a file": Turn("recipes copy llama3-8b r.yaml", 2, "r.yaml: ", file("r.yaml", "mine")),
    "copy below a file": Turn("recipes copy llama3-8b f/r.yaml", 2, "File exists", file("f", "")),
    "copy to a full disk": Turn(
        "recipes copy llama3-8b r.yaml",
        1,
        "r.yaml: File too large",
        limited("moslora.recipe.load.read_layers", size=100),
    ),
}
