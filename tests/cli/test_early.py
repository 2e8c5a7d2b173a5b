"""A mistake is told before torch is loaded, which takes seconds."""

import json
import shutil
import subprocess
import sys

MISTAKES = """
train cap.yaml
train caps
train caps.yaml training.learning_rat=1e-4
train caps.yaml data.tasks=[obqaa]
train caps.yaml data.source=caps.jsonl
train caps.yaml model.name=./none
train caps.yaml model.name=runs/caps
train caps.yaml name=caps
train runs/caps
train runs/cpas --resume
train llama3-8 --dry-run
train caps.yaml data.source=caps.jsonl --dry-run
train caps.yaml --proceses 2
plan cap.yaml
plan caps.yaml --gpu-memory much
train --recipe caps.yaml
eval runs/cpas
eval run/caps
eval ./none
eval empty
eval runs/caps --tasks obqaa
eval runs/caps --tasks none.yaml
eval runs/caps --protocol rank
eval runs/caps --format cloze --protocol choice
eval runs/caps --beams 4
eval runs/caps --limit x
eval runs/caps --source nowhere
eval runs/caps --tasks passages --source weel
eval runs/caps --out full
ask runs/cpas
ask runs/caps --question why --option a
ask runs/caps --question why --option a --option b --task obqaa
merge runs/cpas
merge empty
merge runs/caps --out full
export runs/cpas
export runs/caps --format gguf
export runs/caps --out full
import nothing
import empty
import runs/caps
import source --out full
compare runs/cpas
compare run/caps
compare runs/caps
compare runs/caps --contrast a
report runs/cpas
report runs/caps --out full
experiment none.yaml
experiment caps.yaml
experiment e.yaml nosuch
reproduce runs/cpas
reproduce runs/caps --out full
runs nowhere
data show obqaa
data show none.yaml
data show obqa --source nowhere
data show obqa --model ./none
data audit obqaa
data audit --model ./none
data fetch --source nowhere
quickstart --out full
recipes show cap.yaml
recipes copy cap.yaml
recipe
""".strip().splitlines()

EXPERIMENT = """
recipe: caps.yaml
arms: {one: {}, other: {adapter: {mixer: {kind: identity}}}}
learning_rates: [3e-4]
seeds: [0]
outcome: accuracy
"""

ALL_IN_ONE_PROCESS = """
import io, json, shlex, sys
from contextlib import redirect_stderr
from moslora.cli import main

for mistake in json.load(sys.stdin):
    sys.argv, code = ["moslora", *shlex.split(mistake)], 0
    with redirect_stderr(io.StringIO()) as errors:
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    loaded = sorted({"torch", "transformers", "accelerate", "datasets"} & {*sys.modules})
    print(json.dumps([mistake, code, errors.getvalue(), loaded]))
    if loaded:
        break
"""


def test_mistakes_are_refused_without_torch(world, trained, tmp_path):
    """In one process, since nothing of one mistake is left to the next."""
    shutil.copy(world / "recipe.yaml", tmp_path / "caps.yaml")
    shutil.copytree(trained, tmp_path / "runs/caps")
    for path in ("full/x", "source/adapter_config.json", "source/adapter_model.bin"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "e.yaml").write_text(EXPERIMENT, encoding="utf-8")
    command = [sys.executable, "-c", ALL_IN_ONE_PROCESS]
    ran = subprocess.run(
        command, cwd=tmp_path, input=json.dumps(MISTAKES), capture_output=True, encoding="utf-8", check=True
    )
    told = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [mistake for mistake, *_ in told] == MISTAKES, told[-1]
    for mistake, code, errors, loaded in told:
        assert (code, loaded) == (2, []), (mistake, errors)
        assert all(line.startswith("error: ") for line in errors.splitlines()), (mistake, errors)
        assert errors and "\n\n" not in errors, mistake
