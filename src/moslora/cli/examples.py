"""Examples at the end of each main command's ``--help``."""


def _examples(*lines: str) -> str:
    """The epilog of a command; ``\\b`` keeps its lines as they are."""
    return "\n".join(["\b", "Examples:", *[f"  {line}" for line in lines]])


FIRST_STEPS = """\
moslora train smollm2-135m             # train an adapter into runs/smollm2-135m
moslora eval runs/smollm2-135m         # score it on the commonsense sets
moslora eval runs/smollm2-135m --base  # score its base on the same questions
moslora compare runs/smollm2-135m      # is the gain more than chance?
moslora merge runs/smollm2-135m        # write a plain Hugging Face model

All of this in minutes: moslora quickstart
Other recipes: moslora recipes. All commands: moslora --help"""
"""What ``moslora`` alone prints."""

TRAIN = _examples(
    "moslora train smollm2-135m                       # built-in recipe",
    "moslora train smollm2-135m extends=methods/lora  # another method",
    "moslora train mine.yaml training.learning_rate=2e-4 --out runs/mine",
    "moslora train runs/mine --resume                 # after an interruption",
)
PLAN = _examples(
    "moslora plan llama3-8b --gpu-memory 80GB",
    "moslora plan llama3-8b model.quantization=nf4 --gpu-memory 24GB",
    "moslora plan smollm2-135m --probe                # time on this machine",
)
CHECK = _examples(
    "moslora check                                    # this machine's device",
    "moslora check meta-llama/Meta-Llama-3-8B         # in this model's shapes",
    "moslora check smollm2-135m                       # also a real step",
)
EVAL = _examples(
    "moslora eval                                     # the newest run",
    "moslora eval runs/mine --base                    # its base, for compare",
    "moslora eval runs/mine --tasks boolq,piqa --limit 100",
    "moslora eval HuggingFaceTB/SmolLM2-135M --protocol cloze",
    "moslora eval runs/mine --server http://localhost:8000",
)
ASK = _examples(
    'moslora ask runs/mine --question "Is ice cold?" --option yes --option no',
    "moslora ask runs/mine                            # type it, or talk",
    'moslora ask runs/mine --question "Why is ice cold?" --system "Be brief."',
)
PREDICT = _examples(
    "moslora predict runs/mine new.csv               # writes new-predicted.csv",
    "moslora predict runs/mine new.jsonl --bad-rows skip --out labelled.jsonl",
    "moslora predict HuggingFaceTB/SmolLM2-135M new.csv --task triage.yaml",
)
MERGE = _examples(
    "moslora merge runs/mine",
    "moslora merge runs/mine/checkpoints/step-400 --out runs/merged-400",
    "moslora merge outputs/lora                       # PEFT's",
)
STRENGTH = _examples(
    "moslora strength runs/mine                       # measure, and recommend",
    "moslora strength runs/mine --out runs/weaker     # write what is recommended",
    "moslora strength runs/mine --set 0.8 --out runs/mine-0.8",
)
EXPORT = _examples(
    "moslora export runs/mine",
    "moslora export runs/mine --for vllm --out adapter",
    "moslora export runs/mine --format gguf --llama-cpp ~/llama.cpp",
)
IMPORT = _examples("moslora import outputs/lora --base HuggingFaceTB/SmolLM2-135M --out runs/new")
VERIFY = _examples(
    "moslora verify runs/mine --server http://localhost:8000",
    "moslora verify runs/mine --server http://localhost:8000 --limit all --json",
    "moslora verify outputs/lora --for vllm",
)
QUICKSTART = _examples(
    "moslora quickstart",
    "moslora quickstart --size full                   # all rows",
)
EXPERIMENT = _examples(
    "moslora experiment                               # list the built-in ones",
    "moslora experiment mixer-ablation all            # run every arm",
    "moslora experiment mixer-ablation --table        # results so far",
    "moslora experiment runs/mixer-ablation --power  # what more seeds would show",
)
COMPARE = _examples(
    "moslora compare runs/mine                        # against its base",
    "moslora compare runs/lora runs/mine              # against each other",
    "moslora compare runs/mine --outcome log_probability",
    "moslora compare runs/lora runs/mine --margin 20% # a share of LoRA's gain",
    "moslora compare logs/base logs/tuned             # of lm-eval, or of Inspect",
    "moslora compare a.csv b.csv --require not-worse --margin 1  # for CI",
)
REPORT = _examples(
    "moslora report runs/mine",
    "moslora report runs/lora runs/mine --out report",
)
REPRODUCE = _examples("moslora reproduce runs/mine")
DATA_SHOW = _examples(
    "moslora data show obqa --format llm-adapters",
    "moslora data show mine.yaml --row 3",
)
