"""A real ComfyUI server with this pack in its custom_nodes, driven through its HTTP API."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfyui

PACK = "dual-process-image-generation"
BROWSER = "/usr/bin/chromium"  # Debian's
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)
RENDERERS = ("classic", "nodes2")
PATIENCE = 600  # seconds; a bound for what hangs, on machines that are busy with other things


class Server:
    """Runs `main.py --cpu` on a free port, with a base directory of its own, until `close`; again after `kill`."""

    def __init__(self, base: Path) -> None:
        self.base = base
        for name in ("custom_nodes", "models/loras", "models/VLM", "models/text_encoders", "input", "output", "temp"):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / PACK).symlink_to(comfyui.ROOT)
        for helper in (Path(__file__).parent / "custom_nodes").glob("*.py"):
            (base / "custom_nodes" / helper.name).symlink_to(helper)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.log_file = base / "server.log"
        self.start()

    def start(self) -> None:
        base = self.base
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "main.py", "--cpu", "--port", str(self.port)),
                    *("--base-directory", str(base), "--database-url", f"sqlite:///{base}/comfyui.db"),
                    "--disable-api-nodes",
                ],
                cwd=comfyui.folder(),
                env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.wait(self._is_up, "start")

    def _is_up(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"ComfyUI ended with {self.process.returncode}:\n{self.log()[-4000:]}")
        try:
            return bool(self.get("/system_stats"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def wait(self, done: Any, what: str, seconds: float = PATIENCE) -> Any:
        """Polls until `done()` is true; its value."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := done():
                return value
            time.sleep(0.05)
        raise AssertionError(f"ComfyUI did not {what} in {seconds:g} s. Its log ends:\n{self.log()[-4000:]}")

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or b"null")

    def post(self, path: str, data: Any) -> Any:
        request = urllib.request.Request(
            self.address + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def draw_with(self, renderer: str) -> None:
        """Which renderer a page has that is opened after this: one of RENDERERS. The server remembers it."""
        chosen = json.dumps(renderer == "nodes2").encode()
        urllib.request.urlopen(f"{self.address}/settings/Comfy.VueNodes.Enabled", chosen, PATIENCE).close()

    def free(self) -> None:
        """Asks for all memory back, as the frontend's "Free model and node cache" does, and waits for it.

        Asks again and again: ComfyUI sets its flags one after the other, and its worker, woken by the first or
        busy with the last prompt, does not see the second before the next prompt.
        """
        sizes = [0]
        while len(sizes) < 10 or sizes[-1] < max(sizes[-10:]):  # falling within the last ten seconds
            self.post("/free", {"free_memory": True})  # and unloads models
            time.sleep(1)
            sizes.append(self.resident_bytes())

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queues an API-format prompt; its id. AssertionError if the server's validation refuses it."""
        answer = self.post("/prompt", {"prompt": prompt})
        assert "prompt_id" in answer, answer
        return answer["prompt_id"]

    def finish(self, prompt_id: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """The history entry of a prompt once it has run."""

        def entry() -> Any:
            return self.get(f"/history/{prompt_id}").get(prompt_id)

        return self.wait(entry, f"finish prompt {prompt_id}", seconds)

    def run(self, prompt: dict[str, Any], seconds: float = PATIENCE) -> dict[str, Any]:
        """Queues a prompt and waits; its outputs by node id. AssertionError with ComfyUI's message if it failed."""
        entry = self.finish(self.queue(prompt), seconds)
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
        return entry["outputs"]

    def error(self, prompt: dict[str, Any]) -> str:
        """Queues a prompt that must fail; the message that the user reads in the node."""
        answer = self.post("/prompt", {"prompt": prompt})
        if "prompt_id" not in answer:
            return json.dumps(answer)
        if answer["node_errors"]:  # some outputs are refused, the others run
            self.finish(answer["prompt_id"])
            return json.dumps(answer)
        status = self.finish(answer["prompt_id"])["status"]
        assert status["status_str"] == "error", status
        return next(data["exception_message"] for name, data in status["messages"] if name == "execution_error")

    def picture(self, image: dict[str, str]) -> Path:
        """The file of one entry of a node's images."""
        folder = "temp" if image["type"] == "temp" else image["type"]
        return self.base / folder / image["subfolder"] / image["filename"]

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def kill(self) -> None:
        """As a crash or a full memory does: nothing is put in order."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()


@contextmanager
def browser_context(server: Server, renderer: str, width: int = 1600) -> Iterator[Any]:
    """A browser's context for pages with a renderer, of `width` by 1000 pixels."""
    from playwright.sync_api import sync_playwright

    server.draw_with(renderer)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        context = browser.new_context(viewport={"width": width, "height": 1000})
        context.set_default_timeout(1000 * PATIENCE)
        yield context
        browser.close()


def open_page(server: Server, context: Any) -> Any:
    page = context.new_page()
    page.goto(server.address)
    page.wait_for_function("window.app && window.app.extensionManager")
    page.wait_for_timeout(3000)  # the dialog of templates opens by itself on the very first start
    page.keyboard.press("Escape")
    return page
