"""Wrong turns: arguments."""

WRONG_TURNS = {  # run with many more in test_wrong_turns.py
    "no such recipe": (["train", "lama3-8b"], "did you mean llama3-8b?"),
    "unknown key": (["train", "llama3-8b", "training.learning_rat=1"], "learning_rate"),
    "wrong type": (["train", "llama3-8b", "training.epochs=many"], "training.epochs = 'many': "),
    "no such run": (["eval", "runs/none"], "runs/none: no such run"),
    "no such model folder": (["eval", "./none"], "model.name = ./none: no such folder"),
    "unknown dtype": (["eval", "{run}", "--dtype", "bf16"], "'--dtype'"),
    "results into a run": (["eval", "{run}", "--out", "{run}"], "not empty"),
    "seed out of range": (["train", "llama3-8b", "seed=5000000000"], "seed = 5000000000"),
    "output layer": (["train", "{world}/recipe.yaml", "adapter.target_modules=[lm_head]"], "output layer"),
    "no such run to merge": (["merge", "runs/none"], "runs/none: no such run"),
    "unknown task": (["eval", "{run}", "--tasks", "boolk"], "boolq"),
    "unknown protocol": (["eval", "{run}", "--protocol", "rnk"], "'--protocol'"),
    "protocol and format": (
        ["eval", "{run}", "--protocol", "cloze", "--format", "label"],
        "--protocol rank or generate",
    ),
    "export to what": (["export", "{run}", "--format", "gguf"], "gguf"),
    "import of what": (["import", "none"], "none: no such folder"),
    "import of a run": (["import", "{run}"], "not a LoRA adapter"),
    "import into what": (["import", "none", "--dtype", "int8"], "'int8' is not one of"),
    "no runs yet": (["eval"], "no finished run"),
    "unknown option": (["eval", "--tusks", "boolq"], "--tusks"),
    "no layer matches": (
        ["train", "{world}/recipe.yaml", "adapter.target_modules=[q_prj]"],
        "no linear layer matches q_prj; this model has",
    ),
    "names as one text": (
        ["train", "{world}/recipe.yaml", "adapter.target_modules=q_proj,v_proj"],
        "matches the regular expression q_proj,v_proj as a whole (names are a list, such as [q_proj, v_proj]); this",
    ),
}
