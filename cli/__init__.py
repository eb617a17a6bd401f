"""The command line: `dual-process demo`, `train`, `plan`, `ask`, `paint`, `convert`, `inspect`."""

import typer

from .ask import ask
from .demo import ControlName, demo
from .files import convert, inspect
from .memory import plan
from .paint import paint
from .train import train

__all__ = ["ControlName", "app", "main"]

app = typer.Typer(
    help="Teach an image generator new controls by asking a vision-language model about its pictures.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
for command in (demo, train, plan, ask, paint, convert, inspect):
    app.command()(command)


def main() -> None:
    """Entry point of `dual-process`."""
    app()
