"""The commands that exchange adapters with PEFT: ``export`` and ``import``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from moslora import choices
from moslora.cli import examples, options
from moslora.cli.following import say_next
from moslora.cli.peft_folder import adapter_to_convert
from moslora.files import refuse_used
from moslora.runs import RUNS

app = typer.Typer()


@app.command(epilog=examples.EXPORT)
def export(
    run: options.Run,
    format: Annotated[
        Literal["peft"],
        typer.Option(
            help="peft: a plain LoRA with the mixer folded in, which llama.cpp can convert to GGUF (docs/serving.md)."
        ),
    ] = "peft",
    program: Annotated[
        Literal["vllm"] | None,
        typer.Option("--for", help="Write the module names that this program reads. [default: PEFT's]"),
    ] = None,
    task: options.Task = None,
    out: options.Out = None,
    trust: options.Trust = False,
) -> None:
    """Export an adapter as a plain LoRA for PEFT.

    The mixer is folded into A. Writes RUN/peft or RUN/peft-TASK.
    """
    adapter, out = adapter_to_convert(run, out, task, name="peft", doing="exporting", trust=trust)
    from moslora.convert.card import how_to_use
    from moslora.convert.export import export_peft

    export_peft(adapter, out=out, task=task, for_vllm=program is not None, trust_remote_code=trust)
    print(how_to_use(out, adapter))


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
