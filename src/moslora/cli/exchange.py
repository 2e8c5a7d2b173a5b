"""The commands that exchange adapters with PEFT and llama.cpp: ``export`` and ``import``."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from moslora import choices
from moslora.cli import examples, options
from moslora.cli.following import say_next
from moslora.cli.peft_folder import adapter_to_convert
from moslora.errors import UsageError
from moslora.files import refuse_used
from moslora.runs import RUNS

app = typer.Typer()

CONVERTER = "convert_lora_to_gguf.py"


@app.command(epilog=examples.EXPORT)
def export(
    run: options.Run,
    format: Annotated[
        Literal["peft", "gguf"],
        typer.Option(
            help="peft: a plain LoRA with the mixer folded in; gguf: the same, and adapter.gguf for llama.cpp."
        ),
    ] = "peft",
    program: Annotated[
        Literal["vllm"] | None,
        typer.Option("--for", help="Write the module names that this program reads. [default: PEFT's]"),
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option(
            help="Clone of llama.cpp, for --format gguf. [default: its converter on PATH]", envvar="LLAMA_CPP"
        ),
    ] = None,
    task: options.Task = None,
    out: options.Out = None,
    trust: options.Trust = False,
) -> None:
    """Export an adapter as a plain LoRA for PEFT, vLLM or llama.cpp.

    The mixer is folded into A. Writes RUN/peft or RUN/gguf; with a task, RUN/peft-TASK or RUN/gguf-TASK.
    """
    converter = _converter(llama_cpp) if format == "gguf" else None
    adapter, out = adapter_to_convert(run, out, task, name=format, doing="exporting", trust=trust)
    from moslora.convert.card import how_to_use
    from moslora.convert.export import export_peft

    for_vllm = program is not None
    export_peft(adapter, out=out, task=task, for_vllm=for_vllm, converter=converter, trust_remote_code=trust)
    print(how_to_use(out, adapter))


def _converter(clone: Path | None) -> Path:
    """Path of llama.cpp's converter for adapters, in ``clone`` or on PATH."""
    for folder in [clone] if clone else map(Path, os.get_exec_path()):
        if (folder / CONVERTER).is_file():
            return folder / CONVERTER
    raise UsageError(
        f"--format gguf: no {CONVERTER} in {clone or 'PATH'}; git clone --depth 1"
        " https://github.com/ggml-org/llama.cpp, and name the clone: --llama-cpp llama.cpp"
    )


@app.command("import", epilog=examples.IMPORT)
def import_(
    source: Annotated[Path, typer.Argument(help="Folder with adapter_config.json and adapter_model.*.")],
    base: Annotated[str | None, typer.Option(help="Base model. [default: the base that the folder names]")] = None,
    dtype: Annotated[choices.DType, typer.Option(help="Precision in which the run loads its base.")] = "bfloat16",
    out: options.Out = None,
    trust: options.Trust = False,
) -> None:
    """Import a LoRA from PEFT or the MoSLoRA repository as a run.

    Checkpoints of the Trainer (pytorch_model.bin) work too. The result is compared with the source's own equations. If
    a feature is not supported, nothing is written; docs/merging.md lists the supported ones.
    """
    from moslora.runs.peft_files import adapter_files

    adapter_files(source)
    out = out or RUNS / source.resolve().name
    refuse_used(out)
    from moslora.convert.importing import import_adapter

    print(import_adapter(source, out=out, base=base, dtype=dtype, trust_remote_code=trust))
    print(f"written to {out}")
    say_next("eval", str(out))
