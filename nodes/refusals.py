"""What a node refuses before anything runs, said where the user looks.

ComfyUI's frontend tells of a refused input in words of its own ("… rejected the value for question"). The sentence goes
to the browser beside it, where `web/errors.js` shows it.
"""

from __future__ import annotations

from comfy_api.latest import io
from server import PromptServer

EVENT = "dual_process.refused"


def refused(node: type[io.ComfyNode], sentence: str) -> str:
    """For a node's `validate_inputs`, which returns the sentence; the node declares the hidden `unique_id`."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        told = {"node_id": node.hidden.unique_id, "type": node.SCHEMA.node_id, "message": sentence}
        server.send_sync(EVENT, told)
    return sentence
