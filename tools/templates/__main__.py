from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from live_server import BROWSER, RENDERERS, Server
from playwright.sync_api import sync_playwright

from . import SUBGRAPHS, TEMPLATES
from .frontend import write, write_blueprint


def open_page(browser: Any, server: Server, renderer: str) -> Any:
    server.draw_with(renderer)
    page = browser.new_context(viewport={"width": 1600, "height": 1000}).new_page()
    page.set_default_timeout(600_000)
    page.goto(server.address)
    page.wait_for_function("window.app && window.app.extensionManager")
    return page


def main() -> None:
    server = Server(Path(tempfile.mkdtemp()))
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
            pages = tuple(open_page(browser, server, renderer) for renderer in RENDERERS)
            for name, template in sorted(TEMPLATES.items()):
                write(pages, name, template)
            for name, blueprint in SUBGRAPHS.items():
                write_blueprint(pages[0], name, blueprint)
            browser.close()
    finally:
        server.close()


if __name__ == "__main__":
    main()
