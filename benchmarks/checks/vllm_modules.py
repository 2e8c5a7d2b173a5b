"""Writes the table of the modules to which vLLM applies an adapter, `src/moslora/convert/vllm_modules.json`.

    python -m benchmarks.checks.vllm_modules models FOLDER                 # small configs of all families, with names
    .venv-vllm/bin/python -m benchmarks.checks.vllm_modules table FOLDER   # what vLLM makes of them; PYTHONPATH=src

A module is asked by the name that transformers gives it as a causal model and as a multimodal one, and by its name in
the files. A family that vLLM cannot build on a CPU without weights is left out. Experts are left out, which an adapter
of linear layers does not have.
"""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import ROOT
from moslora.errors import first_line

NAMES = "names.json"
FIRST = "qwen3_moe"
"""vLLM makes the process group of experts for its first model, if that has some."""


def write_models(folder: Path) -> None:
    """A small config for each family and class, and the names that its linear layers may have in an adapter."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from moslora.base.load import stored_names
    from moslora.base.twin import small_config

    sys.path.append(str(ROOT / "tests" / "kits"))
    from families_kit import CONFIGS, SMALL

    for family in CONFIG_MAPPING:
        names = set()
        classes = set()
        kind: Any
        for kind in (AutoModelForCausalLM, AutoModelForImageTextToText):
            try:
                config = small_config(CONFIG_MAPPING[family](**CONFIGS.get(family, {})), **SMALL.get(family, {}))
                with torch.device("meta"):
                    model = kind.from_config(config)
                stored = stored_names(model)
            except Exception as fault:  # of another kind, or its sizes do not fit each other
                print(f"{family}: {first_line(fault)}")
                continue
            classes.add(kind._model_mapping[type(config)].__name__)
            for name, module in model.named_modules():
                if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
                    names |= {name, stored.get(f"{name}.weight", name).removesuffix(".weight")}
        for name in classes:
            config.architectures = [name]
            config.save_pretrained(folder / f"{family}+{name}")
            (folder / f"{family}+{name}" / NAMES).write_text(json.dumps(sorted(names)))


def write_table(folder: Path) -> None:
    """Asks vLLM for each of these models which names it applies."""
    import vllm
    from vllm.lora import model_manager
    from vllm.model_executor.layers.fused_moe import MoERunner
    from vllm.model_executor.models import registry

    from moslora.verify.vllm_loader import applies, manager_of

    def inspect(self: Any, *_: Any) -> Any:
        """In this process: in one of its own it takes 40 seconds."""
        return registry._ModelInfo.from_model_cls(self.load_model_cls())

    def is_supported(own: Callable[..., bool], name: str, module: Any, names: list[str]) -> bool:
        return not isinstance(module, MoERunner) and own(name, module, names)

    registry._LazyRegisteredModel.inspect_model_cls = inspect
    model_manager.is_supported_lora_module = partial(is_supported, model_manager.is_supported_lora_module)
    known = registry.ModelRegistry.get_supported_archs()
    found: dict[str, set[str]] = {}
    for model in sorted(folder.iterdir(), key=lambda path: (not path.name.startswith(FIRST), path.name)):
        architecture = model.name.partition("+")[2]
        if architecture not in known:
            continue
        patterns = found.setdefault(architecture, set())
        try:
            with TemporaryDirectory() as scratch:
                manager = manager_of(model, Path(scratch))
        except Exception as fault:
            print(f"{model.name}: {first_line(fault)}")
            if "is not supported for LoRA" not in str(fault) and not patterns:
                del found[architecture]
            continue
        for name in json.loads((model / NAMES).read_text()):
            if applies(manager, name):
                patterns.add(re.sub(r"(?<=\.)\d+(?=\.)", "*", name))
    lines = [f"  {json.dumps(name)}: {json.dumps(sorted(found[name]))}" for name in sorted(found)]
    table = ",\n".join(lines)
    out = ROOT / "src" / "moslora" / "convert" / "vllm_modules.json"
    out.write_text(f'{{"version": "{vllm.__version__}", "architectures": {{\n{table}\n}}}}\n')


if __name__ == "__main__":
    {"models": write_models, "table": write_table}[sys.argv[1]](Path(sys.argv[2]))
