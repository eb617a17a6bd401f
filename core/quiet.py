"""Loading without the libraries' progress bars and notes; errors still come through."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("diffusers.utils.logging", "transformers.utils.logging")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """While entered, diffusers and transformers say only errors, as far as imported; then both are as they were."""
    logs = [sys.modules[name] for name in LIBRARIES if name in sys.modules]
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
