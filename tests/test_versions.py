"""The versions that were tested, and what is said of others and of broken packages."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from cli_kit import run
from message_kit import says
from moslora import versions
from moslora.processes.devices import say_device
from moslora.versions import Package, import_fault

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pins(tmp_path, monkeypatch):
    """Writes another constraints.txt."""

    def write(*lines):
        path = tmp_path / "constraints.txt"
        path.write_text("\n".join(["# header", *lines]), encoding="utf-8")
        monkeypatch.setattr(versions, "carried", lambda name: tmp_path / name)
        clear()

    def clear():
        versions._newest.cache_clear()
        versions.tested.cache_clear()
        say_device.cache_clear()

    yield write
    monkeypatch.undo()
    clear()


@pytest.mark.parametrize(
    "installed", ["2.10.9", "2.11", "2.11.0", "2.12rc1", "2.13.0", "2.13.0+cpu", "2.13.1", "2.14.dev1", "10.0"]
)
def test_outside_is_before_the_first_and_after_the_last_public_version(installed):
    public = Version(Version(installed).public)
    assert Package("x", installed, "2.11", "2.13.0").outside == (not Version("2.11") <= public <= Version("2.13.0"))


def test_tested_versions_are_those_of_the_two_files():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = {}
    for requirement in map(Requirement, project["dependencies"] + project["optional-dependencies"]["bench"]):
        (floors[requirement.name],) = (it.version for it in requirement.specifier if it.operator == ">=")
    packages = {package.name: package for package in versions.tested()}
    assert {"torch", "transformers", "accelerate", "peft", "datasets"} < packages.keys() and "pytest" not in packages
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for name in ("torch", "transformers", "peft"):
        package = packages[name]
        assert package.lowest == floors[name] and package.installed == version(name)
        assert f"{name}=={package.newest}" in lines


def test_a_pin_counts_where_its_marker_does(pins):
    pins("numpy==1.0 ; python_full_version < '3'", "numpy==3.0 ; python_full_version >= '3'")
    (numpy,) = (package for package in versions.tested() if package.name == "numpy")
    assert numpy.newest == "3.0" and not numpy.outside


def test_untested_versions_are_named_once_where_something_computes(pins, capsys):
    pins("torch==2.11", "rich==13.0")
    say_device("cpu")
    say_device("cpu")
    said = capsys.readouterr().out
    assert said.count("note: ") == 1 and says(said, "torch", torch.__version__, "2.11 to 2.11") and "rich" not in said
    pins(f"torch=={Version(torch.__version__).public}")
    say_device("cpu")
    assert "tested" not in capsys.readouterr().out


def test_env_prints_what_a_report_needs(capsys, pins):
    pins("transformers==5.17")
    code, said, _ = run(capsys, "env")
    facts = dict(line.split(": ", 1) for line in said.splitlines())
    assert code == 0 and facts["moslora"] == version("moslora")
    assert facts["torch"] == torch.__version__ and str(torch.get_num_threads()) in facts["threads"]
    assert says(facts["transformers"], version("transformers"), "tested: 5.17 to 5.17")
    assert torch.backends.cpu.get_cpu_capability() in facts["instruction sets"]


BROKEN = {
    "a name that another file lacks": "from accelerate.state import Gone",
    "a name of its own": "Gone",
    "a file that is not there": "import accelerate.gone",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_files_of_two_versions_end_in_the_command_that_helps(fault, tmp_path):
    package = tmp_path / "accelerate"
    package.mkdir()
    (package / "__init__.py").write_text(BROKEN[fault], encoding="utf-8")
    (package / "state.py").touch()
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from moslora.cli import main; main()"
    ran = subprocess.run([sys.executable, "-c", program, "env"], capture_output=True, text=True)
    (newest,) = (package.newest for package in versions.tested() if package.name == "accelerate")
    assert ran.returncode == 1 and ran.stderr.count("\n") == 1
    assert ran.stderr.startswith("error: accelerate cannot be used: ") and "torch: " in ran.stdout
    assert ran.stderr.endswith(f" -m pip install --force-reinstall accelerate=={newest}\n")


def raised(program, name):
    with pytest.raises(Exception) as error:
        exec(compile(program, "x.py", "exec"), {"__name__": name})
    return error.value


def test_faults_of_our_own_and_of_a_models_code_are_no_faults_of_a_package():
    of_torch = import_fault(raised("import torch; torch.gone", "moslora.x"))
    assert of_torch and says(str(of_torch), "torch cannot be used", "gone", "--force-reinstall torch==")
    assert import_fault(raised("import torch; torch.gone", "transformers_modules.x.modeling_x")) is None
    assert import_fault(raised("from moslora import gone", "moslora.x")) is None
    assert import_fault(raised("raise ValueError", "moslora.x")) is None
    assert import_fault(raised("import email.gone", "moslora.x")) is None
