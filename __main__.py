"""`python -m dual_process`."""

from .cli import main

main()
