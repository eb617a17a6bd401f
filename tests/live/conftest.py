from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from live_server import RENDERERS, Server, browser_context, open_page


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.close()


@pytest.fixture
def page(server: Server) -> Iterator[Any]:
    """ComfyUI's frontend with an open workflow, and no dialog before it."""
    with browser_context(server, "classic") as context:
        page = open_page(server, context)
        page.wait_for_function("window.app.extensionManager.workflow.activeWorkflow?.changeTracker")
        yield page


@pytest.fixture(params=RENDERERS)
def context(server: Server, request: Any) -> Iterator[Any]:
    """A browser in which every page has one of the two renderers."""
    with browser_context(server, request.param) as context:
        yield context
