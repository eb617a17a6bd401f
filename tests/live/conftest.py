from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from live_server import BROWSER, PATIENCE, RENDERER, Server, open_page


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.close()


@pytest.fixture
def page(server: Server) -> Iterator[Any]:
    """ComfyUI's frontend with an open workflow, and no dialog before it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(server.address)
        page.wait_for_function("window.app?.extensionManager?.workflow.activeWorkflow?.changeTracker")
        page.wait_for_timeout(3000)  # the dialog of templates opens by itself on the very first start
        page.keyboard.press("Escape")
        yield page
        browser.close()


@pytest.fixture(params=["classic", "nodes2"])
def context(server: Server, request: Any) -> Iterator[Any]:
    """A browser in which every page has one of the two renderers."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1600, "height": 1000})
        context.set_default_timeout(1000 * PATIENCE)
        page = open_page(server, context)
        page.evaluate(RENDERER, request.param == "nodes2")
        page.close()
        yield context
        browser.close()
