"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden file beside `path` to write into; after the block it takes its place, so that nobody reads half of it.

    Raises:
        OSError: it cannot be written. An older file at `path` is then untouched, as after an error in the block.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    beside.open("xb").close()
    try:
        # The system gives it the mode of any new file; the mask by which it does so can otherwise only be read by
        # setting it, which other threads would notice.
        usual_mode = stat.S_IMODE(beside.stat().st_mode)
        yield beside
        beside.chmod(usual_mode)  # some writers, such as safetensors, put a file for the user alone in its place
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
