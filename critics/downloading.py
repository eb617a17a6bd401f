"""Fetches a model folder from Hugging Face, only ever because the user asked for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

from ..core.errors import CriticError
from ..core.model_folder import is_other_format
from .loading import MODEL_FILES

CONFIG = "config.json"
# With those of the library by which huggingface_hub speaks, which has changed over time:
NETWORK_ERRORS: Any = (OSError, ValueError, *HfHubHTTPError.__bases__)
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_repository(repository: str) -> None:
    """Raises CriticError unless this is a Hugging Face id."""
    if not REPOSITORY.fullmatch(repository):
        raise CriticError(f"Expected a Hugging Face id such as 'Qwen/Qwen2.5-VL-3B-Instruct', got {repository!r}.")


def download_folder(
    repository: str,
    folder: Path,
    is_wanted: Callable[[dict[str, Any]], bool],
    on_progress: Callable[[int, int], None],
) -> None:
    """Fetches the newest version's weights, configuration and tokenizer; what an earlier attempt has left is used.

    config.json, by which a folder is known as a model's, gets its name when all else is there.

    Args:
        repository: a Hugging Face id.
        folder: where the files go.
        is_wanted: told the contents of config.json before anything else is fetched.
        on_progress: called with the bytes so far and all bytes; what it raises stops the download.

    Raises:
        CriticError: no such model, one that is not wanted, or the network failed; the files so far stay for the next
            attempt.
    """
    check_repository(repository)
    try:
        hub = HfApi()
        model = hub.model_info(repository, files_metadata=True)
        files = [f for f in model.siblings or [] if _is_needed(f.rfilename)]
        files.sort(key=lambda f: f.rfilename != CONFIG)
        total, done = sum(f.size or 0 for f in files), 0
        folder.mkdir(parents=True, exist_ok=True)
        early = folder / f"{CONFIG}.incomplete"
        for file in files:
            target = early if file.rfilename == CONFIG else folder / file.rfilename
            url = hf_hub_url(repository, file.rfilename, revision=model.sha)
            _fetch(url, target, _bar(lambda n, before=done: on_progress(before + n, total)))
            if target == early and not is_wanted(json.loads(early.read_text(encoding="utf-8"))):
                raise CriticError(f"{repository!r} is no vision-language model that answers in text. Choose another.")
            done += file.size or 0
            on_progress(done, total)
        early.replace(folder / CONFIG)
    except CriticError:
        raise
    except NETWORK_ERRORS as error:
        raise CriticError(
            f"Could not download {repository!r}: {error}. What has arrived stays in {folder}; run again to go on."
        ) from error


def _fetch(url: str, target: Path, bar: type[tqdm[Any]]) -> None:
    """One file. hf_hub_download would start a file that was broken off from its beginning."""
    metadata = get_hf_file_metadata(url)
    if target.is_file() and target.stat().st_size == metadata.size:
        return
    headers = build_hf_headers()
    if urlsplit(metadata.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the user's token is for the hub alone
    partial = target.with_name(f"{target.name}.{(metadata.etag or '')[:16]}.incomplete")
    with partial.open("ab") as file:
        http_get(
            metadata.location, file, resume_size=file.tell(), headers=headers, expected_size=metadata.size,
            tqdm_class=bar,
        )  # fmt: skip
    partial.replace(target)


def _is_needed(name: str) -> bool:
    """Whether a repository's file is one of the model's own; those in folders are other programs'."""
    return "/" not in name and any(fnmatch(name, p) for p in MODEL_FILES) and not is_other_format(name)


def _bar(on_bytes: Callable[[int], None]) -> type[tqdm[Any]]:
    """A progress bar that prints nothing and tells the bytes of one file so far, those of earlier attempts included."""

    class Bar(tqdm):
        def __init__(self, *args: Any, initial: int = 0, **kwargs: Any) -> None:
            self._so_far = initial
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self._so_far += int(n or 0)
            on_bytes(self._so_far)

    return Bar
