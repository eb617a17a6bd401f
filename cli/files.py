"""`dual-process convert` and `inspect`: LoRA files."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.errors import LoraFileError
from .shared import (
    clear_errors,
    console,
)


class LoraFormat(str, Enum):
    """Key names of a LoRA file."""

    diffusers = "diffusers"
    comfyui = "comfyui"
    kohya = "kohya"


def convert(
    file: Annotated[Path, typer.Argument(help="A LoRA of this pack or of another trainer, a safetensors file.")],
    to: Annotated[LoraFormat, typer.Option(help="Whose key names to write.")],
    output: Annotated[Path | None, typer.Option(help="The new file; by default beside the old one.")] = None,
) -> None:
    """Writes a LoRA under another tool's key names, of one with a slider both files; numbers and metadata stay."""
    with clear_errors():
        from ..core.tensor_file import read_tensors, write_tensors
        from ..distillation.slider import slider_path
        from ..generators.interchange import architecture_of, converted

        target = output or file.with_name(f"{file.stem}.{to.value}.safetensors")
        pairs = {file: target, slider_path(file): slider_path(target)}
        found = {source: target for source, target in pairs.items() if source == file or source.is_file()}
        if there := [target for target in found.values() if target.exists()]:
            raise LoraFileError(f"{there[0]} is there already. Choose another name with --output.")
        for source, target in found.items():
            tensors, metadata = read_tensors(source)
            write_tensors(target, converted(tensors, to.value, architecture_of(metadata)), metadata)
            console.print(f"Wrote {target}", soft_wrap=True)


def inspect(file: Annotated[Path, typer.Argument(help="A LoRA, a safetensors file.")]) -> None:
    """Shows what a LoRA controls, how it was made, which model it is for, and what became of the pictures."""
    with clear_errors():
        from ..core.tensor_file import read_tensors
        from ..generators.inspection import facts

        table = Table(show_header=False, box=None)
        for name, value in facts(*read_tensors(file)):
            table.add_row(Text(name, style="bold"), Text(value))
        Console(markup=False, emoji=False).print(table)
