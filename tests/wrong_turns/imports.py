"""Wrong turns: adapters of others."""

from pathlib import Path

import importing_kit
from wrong_turns.scene import (
    NO_SPACE,
    SETTINGS,
    Turn,
    a_model,
    a_run,
    both,
    file,
    hub_says,
    imported,
    quantised,
    raising,
    source,
)

IMPORTS = {
    **{
        f"an import, {how}": Turn(f"train {command} --resume", 2, "runs/source: an imported adapter", imported)
        for how, command in (("resumed", "runs/source"), ("trained over", "runs/source/recipe.yaml --out runs/source"))
    },
    "an id of the hub": Turn("import me/adapter", 2, "me/adapter: no such folder; if it is on the hub, "),
    "a run of ours": Turn("import runs/one", 2, "runs/one: not a LoRA adapter", a_run),
    "a base that cannot be reached": Turn(
        "import source",
        1,
        "error: some/model: the hub cannot be reached",
        both(source(importing_kit.setting(base_model_name_or_path="some/model")), hub_says("LocalEntryNotFoundError")),
    ),
    "no room for the base": Turn(
        "import source --base some/model",
        1,
        "hub: No space left on device",
        both(source(), raising("huggingface_hub.hf_hub_download", NO_SPACE)),
    ),
    "no settings": Turn(
        "import source",
        2,
        "source: no adapter_config.json",
        both(source(), lambda scene: (scene.here / "source" / "adapter_config.json").unlink()),
    ),
    "settings that are no JSON": Turn(
        "import source", 1, "adapter_config.json: cannot be read", both(source(), file(SETTINGS, "{"))
    ),
    "code among the weights": Turn(
        "import source",
        1,
        "adapter_model.bin: not a file of tensors",
        source(lambda config, state: state.update(trap=importing_kit.Trap(Path("ran")))),  # type: ignore[arg-type]
    ),
    "weights that are no numbers": Turn(
        "import source --out m",
        1,
        "above the tolerance",
        source(importing_kit.weight("lora_AB", lambda m: m * float("nan"))),
    ),
    "a quantised base": Turn(
        "import source --base model", 2, "model: its weights are already quantised", both(source(), a_model(quantised))
    ),
    "into what is used": Turn("import source --out source", 2, "source: not empty", source()),
    **{
        name: Turn("import source --out m", 2, message, source(alter))
        for name, (alter, message) in importing_kit.REFUSED.items()
    },
}
