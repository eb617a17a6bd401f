from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from live_server import BROWSER, RENDERER, Server
from playwright.sync_api import sync_playwright

from . import SUBGRAPHS, TEMPLATES
from .frontend import write, write_blueprint


def open_page(browser: Any, server: Server) -> Any:
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
            pages = (open_page(browser, server), open_page(browser, server))
            for page, vue in zip(pages, (False, True), strict=True):
                page.evaluate(RENDERER, vue)
            for name, template in sorted(TEMPLATES.items()):
                write(pages, name, template)
            for name, blueprint in SUBGRAPHS.items():
                write_blueprint(pages[0], name, blueprint)
            browser.close()
    finally:
        server.close()


if __name__ == "__main__":
    main()
