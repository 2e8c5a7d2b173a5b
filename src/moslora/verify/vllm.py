"""Find out without a server which modules of an adapter vLLM applies.

vLLM loads an adapter with module names that it does not know, and then serves the base (vllm-project/vllm#34186). If
vLLM is installed, its own loader decides; otherwise the table of `moslora.convert.vllm_names`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import safe_open

from moslora.base.resolve import locate
from moslora.base.shapes import read_config
from moslora.convert.export import export_peft
from moslora.convert.vllm_names import pattern, patterns_of, version
from moslora.errors import UsageError, some
from moslora.recipe import ModelSection
from moslora.runs.peft_files import CONFIG, WEIGHTS
from moslora.runs.run import locate_adapter
from moslora.verify.vllm_loader import load

REFUSED_SETTINGS = (
    *("use_dora", "lora_bias", "modules_to_save", "alora_invocation_tokens", "layer_replication", "use_bdlora"),
    "use_qalora",
)
"""Settings of PEFT that make vLLM refuse an adapter."""

PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of ``init_lora_weights`` that leave the base as it is."""


@dataclass(frozen=True)
class AppliedModules:
    """Modules of an adapter that vLLM applies, and modules that it ignores.

    Attributes:
        architecture: class of the base, by its ``config.json``.
        decided_by: vLLM's own loader, or the table, with its version.
        applied: modules of the adapter that change the answers.
        ignored: modules of the adapter that do not.
        refusal: why vLLM does not load the adapter; empty if it does.
    """

    architecture: str
    decided_by: str
    applied: Sequence[str]
    ignored: Sequence[str]
    refusal: str

    @property
    def passed(self) -> bool:
        """Whether vLLM applies the whole adapter."""
        return bool(self.applied) and not self.ignored and not self.refusal

    @property
    def verdict(self) -> str:
        """One sentence that says what vLLM applies, with the fix."""
        count = len(self.applied) + len(self.ignored)
        if self.refusal:
            return f"vLLM refuses this adapter: {self.refusal}"
        if self.passed:
            return f"vLLM applies all {count} modules"
        serves = "vLLM may refuse this adapter" if self.applied else "vLLM serves the base"
        fix = "moslora export RUN --for vllm writes the names that vLLM knows"
        return f"{serves}: it applies {len(self.applied)} of {count} modules, not {some(self.ignored)}; {fix}"

    @property
    def printed(self) -> list[str]:
        """Printed lines, the verdict last."""
        return [f"{self.architecture}, by {self.decided_by}", self.verdict]

    def to_json(self) -> str:
        """All facts as JSON, for a program."""
        return json.dumps({**asdict(self), "says": self.verdict, "passed": self.passed}, indent=2) + "\n"


def applied_modules(path: Path, *, trust_remote_code: bool = False) -> AppliedModules:
    """Return which modules of PEFT's adapter folder, or of the export of a run, vLLM applies.

    Raises:
        UsageError: there is no adapter at ``path``.
        MosloraError: vLLM is not installed, and moslora's table of vLLM's architectures lacks the base's.
    """
    if (path / CONFIG).is_file():
        return _applied_of_peft(path, trust_remote_code=trust_remote_code)
    with TemporaryDirectory() as scratch:
        exported = export_peft(locate_adapter(path), out=Path(scratch) / "peft", trust_remote_code=trust_remote_code)
        return _applied_of_peft(exported, trust_remote_code=trust_remote_code)


def _applied_of_peft(folder: Path, *, trust_remote_code: bool) -> AppliedModules:
    """Return which modules vLLM applies of an adapter in PEFT's format."""
    weights = folder / WEIGHTS[0]
    if not weights.is_file():
        raise UsageError(f"{folder}: no {weights.name}; save the adapter again with PEFT")
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    base = ModelSection(
        name=settings["base_model_name_or_path"],
        revision=settings.get("revision"),
        trust_remote_code=trust_remote_code,
    )
    config = read_config(base)
    architecture = (config.architectures or ["no architecture"])[0]
    with safe_open(weights, framework="pt") as tensors:
        keys = [*tensors.keys()]
    modules = sorted({re.sub(r"\.lora_\w+(\.weight)?$", "", key).removeprefix("base_model.model.") for key in keys})
    if find_spec("vllm"):
        loader, applied, refusal = load(folder, modules, locate(base.name, revision=base.revision))
        decided_by = f"the loader of vLLM {loader}"
    else:
        decided_by = f"a table of vLLM {version()}"
        patterns = patterns_of(config)
        layers = config.get_text_config(decoder=True).num_hidden_layers
        applied = [name for name in modules if pattern(name) in patterns and _layer(name) < layers]
        refusal = "it has no LoRA for this architecture" if not patterns else _refusal(keys, settings)
    ignored = [name for name in modules if name not in applied]
    return AppliedModules(architecture, decided_by, applied, ignored, refusal)


def _layer(module: str) -> int:
    """Number of a module's layer, the first number in its name; 0 for a module outside the layers."""
    return int(re.search(r"\.(\d+)\.|$", module)[1] or 0)  # type: ignore[index]


def _refusal(keys: Sequence[str], settings: dict[str, Any]) -> str:
    """Reason why vLLM does not load an adapter with these weights and settings of PEFT; empty if it does."""
    faults = [f"{name} is set" for name in REFUSED_SETTINGS if settings.get(name)]
    if settings.get("peft_type") != "LORA":
        faults.append(f"peft_type is {settings.get('peft_type')}, not LORA")
    if settings.get("bias", "none") != "none":
        faults.append(f"bias is {settings['bias']}")
    start = settings.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        faults.append(f"init_lora_weights is {start}")
    unknown = [key for key in keys if not re.search(r"\.lora_(A\.weight|B\.weight|embedding_A|embedding_B)$", key)]
    if unknown:
        faults.append(f"{some(unknown)} is no weight of a LoRA")
    return "; ".join(faults)
