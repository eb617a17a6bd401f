"""For tests: how far the nodes of the present run are, and of how much, at GET /test/progress, by node id."""

from aiohttp import web
from comfy_execution.progress import get_progress_state
from server import PromptServer

NODE_CLASS_MAPPINGS = {}


@PromptServer.instance.routes.get("/test/progress")
async def progress(_: web.Request) -> web.Response:
    entries = dict(get_progress_state().nodes).items()
    return web.json_response({key: (entry["value"], entry["max"]) for key, entry in entries})
