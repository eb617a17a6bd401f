"""How the command line says what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from .core.errors import DualProcessError

# Without markup: paths, questions and errors may hold square brackets ("[/INST]"); our own styles are Text objects.
console = Console(stderr=True, markup=False, emoji=False)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Shows the pack's own errors as one message without a traceback."""
    try:
        yield
    except DualProcessError as error:
        console.print(Text.assemble(("Error:", "bold red"), f" {error}"), highlight=False)
        raise typer.Exit(1) from error
