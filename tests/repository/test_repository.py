"""Files that others read: the hosting site's workflows and forms, git's hooks, the package's index."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import moslora

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(" ".join(re.findall(r"^([a-z][a-z -]*):", MAKEFILE, re.M)).split())


def parsed(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def combinations(job):
    """What a job's matrix has: the variables of each of its runs."""
    return job.get("strategy", {"matrix": {"include": [{}]}})["matrix"]["include"]


@pytest.mark.parametrize("name", ["ci", "release", "weekly"])
def test_workflows_call_what_is_there_and_may_only_read(name):
    workflow = parsed(f".github/workflows/{name}.yml")
    assert workflow["permissions"] == {"contents": "read"}
    targets = set()
    scripts = set()
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert re.search(r"@(v\d+|release/v\d+)$", step.get("uses", "@v1")), "a major version is named"
            for variables in combinations(job):
                command = step.get("run", "")
                for variable, value in variables.items():
                    command = command.replace(f"${{{{ matrix.{variable} }}}}", value)
                targets |= set(re.findall(r"^make (.+)$", command, re.M))
                scripts |= set(re.findall(r"^\.ci/\S+", command, re.M))
    assert {target.split()[0] for target in targets} <= TARGETS
    for script in scripts:
        assert os.access(ROOT / script, os.X_OK), script
    assert "dist" in targets or name == "weekly"
    if name == "weekly":
        assert {"test-lowest", "test-newest", "test-pre", "blame"} <= {target.split()[0] for target in targets}
    if name == "ci":
        assert {"test-fast", "test-lowest", "test-newest"} <= targets and ".ci/run" in scripts


def test_only_the_job_that_publishes_has_an_identity_and_only_after_the_wheel_was_tried():
    jobs = parsed(".github/workflows/release.yml")["jobs"]
    assert {name: job["permissions"] for name, job in jobs.items() if "permissions" in job} == {
        "publish": {"id-token": "write"}
    }
    assert jobs["publish"]["needs"] == "dist" and jobs["publish"]["environment"] == "pypi"


def test_a_tag_is_compared_with_the_version_before_anything_is_installed():
    """As the job reads it: by Python alone, without this package's requirements."""
    steps = parsed(".github/workflows/release.yml")["jobs"]["dist"]["steps"]
    (script,) = (step["run"] for step in steps if "GITHUB_REF_NAME" in step.get("run", ""))
    (reads,) = re.findall(r"^version=\$\(python (-c '.*')\)$", script, re.M)
    read = subprocess.run(
        [sys.executable, "-IS", *shlex.split(reads)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert read.stdout.strip() == moslora.__version__


def test_every_python_that_the_package_names_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)]
    tested = set()
    for job in parsed(".github/workflows/ci.yml")["jobs"].values():
        for variables in combinations(job):
            for step in job["steps"]:
                version = str(step.get("with", {}).get("python-version", ""))
                if version.startswith("$"):
                    version = variables["python"]
                tested.add(version)
    assert len(named) > 3 and named == sorted(tested - {""})
    assert project["requires-python"] == f">={named[0]}"


def test_hooks_are_those_of_make_lint():
    (hooks,) = (repo["hooks"] for repo in parsed(".pre-commit-config.yaml")["repos"])
    tools = {hook["entry"].split()[0] for hook in hooks if hook["language"] == "system"}
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.M)
    assert {f".venv/bin/{tool}" for tool in re.findall(r"\$\(BIN\)/(\S+)", lint)} == tools


def test_one_version_everywhere():
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert first and first[1] == moslora.__version__
    assert parsed("CITATION.cff")["version"] == moslora.__version__


def test_pinned_versions_are_within_the_ranges_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    pins = [Requirement(line) for line in lines]
    assert not any(re.search(r"\+|^nvidia|^cuda|^triton", line) for line in lines), "for any build of torch"
    for line in project["dependencies"] + project["optional-dependencies"]["dev"]:
        needed = Requirement(line)
        versions = [
            next(iter(pin.specifier)).version
            for pin in pins
            if canonicalize_name(pin.name) == canonicalize_name(needed.name)
        ]
        assert versions and all(needed.specifier.contains(version) for version in versions), line
