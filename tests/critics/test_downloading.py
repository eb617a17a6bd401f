"""Fetching a model folder from a hub, here one on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest

from dual_process.critics.downloading import check_repository, download_folder
from dual_process.distillation import CriticError

REPOSITORY, COMMIT = "someone/tiny-vlm", "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """As much of Hugging Face's interface as a download needs."""

    def __init__(self, files):
        self.files, self.asked = files, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.reply(send_body=False)

            def do_GET(self):
                self.reply(send_body=True)

            def reply(self, send_body):
                if self.path.startswith(f"/api/models/{REPOSITORY}"):
                    rows = [{"rfilename": name, "size": len(data)} for name, data in hub.files.items()]
                    return self.send(json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": rows}).encode(), {})
                prefix = f"/{REPOSITORY}/resolve/{COMMIT}/"
                name = self.path.removeprefix(prefix)
                if not self.path.startswith(prefix) or name not in hub.files:
                    return self.send(b"", {"X-Error-Code": "RepoNotFound"}, 404)
                data = hub.files[name]
                etag = hashlib.sha256(data).hexdigest()
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
                start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
                if send_body:
                    hub.asked.append((name, start))
                return self.send(data[start:], headers, 206 if start else 200, send_body)

            def send(self, body, headers, status=200, send_body=True):
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if send_body:
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(monkeypatch):
    files = {
        "config.json": b"{}",
        "model.safetensors": bytes(range(256)) * 4096,
        "tokenizer.json": b"{}",
        "consolidated.safetensors": b"the same again",
        "original/params.json": b"{}",
        "README.md": b"words",
        "pytorch_model.bin": b"a pickle",
    }
    hub = Hub(files)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    files_at = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files_at)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield hub
    hub.server.shutdown()


def test_fetches_what_a_critic_needs_and_tells_how_far_it_is(hub, tmp_path):
    seen = []
    download_folder(REPOSITORY, tmp_path / "model", any_model, lambda done, total: seen.append((done, total)))
    names = {p.name for p in (tmp_path / "model").iterdir() if p.is_file()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    total = sum(len(hub.files[name]) for name in names)
    assert {t for _, t in seen} == {total}
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert seen[-1] == (total, total)


def any_model(_):
    return True


class Cancelled(Exception):
    pass


def test_a_cancelled_download_goes_on_where_it_stopped(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)

    def stop(done, total):
        if done > total // 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        download_folder(REPOSITORY, tmp_path, any_model, stop)
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "config.json").exists()  # by which it would be taken for a model
    hub.asked.clear()
    seen = []
    download_folder(REPOSITORY, tmp_path, any_model, lambda done, total: seen.append(done))
    resumed = [start for name, start in hub.asked if name == "model.safetensors"]
    assert resumed
    assert resumed[0] >= 1 << 16
    assert "config.json" not in [name for name, _ in hub.asked]
    assert (tmp_path / "config.json").read_bytes() == hub.files["config.json"]
    assert (tmp_path / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert seen[-1] == max(seen)


def test_a_model_that_is_not_wanted_is_not_fetched(hub, tmp_path):
    with pytest.raises(CriticError, match="'someone/tiny-vlm' is no vision-language model"):
        download_folder(REPOSITORY, tmp_path, lambda settings: "vision_config" in settings, lambda *_: None)
    assert {name for name, _ in hub.asked} == {"config.json"}


def test_what_cannot_be_fetched(hub, tmp_path, monkeypatch):
    with pytest.raises(CriticError, match="Could not download 'someone/else'"):
        download_folder("someone/else", tmp_path, any_model, lambda *_: None)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    with pytest.raises(CriticError, match="run again to go on"):
        download_folder(REPOSITORY, tmp_path, any_model, lambda *_: None)


@pytest.mark.parametrize("name", ["", "model", "../../etc", "a/../b", "/a/b", "https://huggingface.co/a/b", "a/b/c"])
def test_what_is_no_repository(name):
    with pytest.raises(CriticError, match="Hugging Face id such as"):
        check_repository(name)
