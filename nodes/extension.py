"""Everything that the pack gives to ComfyUI."""

from __future__ import annotations

import logging
from importlib import import_module

from comfy_api.latest import ComfyExtension, io
from server import PromptServer

from .folders import register_folders
from .view import add_routes

MODULES = (
    *("critics", "demo", "prompts", "questions", "overlays", "ask", "distill", "checkpoints", "saving", "sliders"),
    *("favourites", "distill_sockets", "annotations", "painters", "planning", "painting", "steering", "inspecting"),
    *("trajectories", "supervising"),
)
log = logging.getLogger(__name__)


class DualProcessExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_folders()
        if getattr(PromptServer, "instance", None) is not None:
            add_routes()
            await offer_replacement()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for name in MODULES for node in nodes_of(name)]


async def offer_replacement() -> None:
    """Does without, and logs it, where a module cannot be loaded or ComfyUI knows no replacements: nodes come first."""
    try:
        from comfy_api.latest import ComfyAPI

        await ComfyAPI().node_replacement.register(replacement())
    except Exception as error:
        log.warning("There is no replacement for Distill LoRA of version 0.1 (%s: %s).", type(error).__name__, error)


def replacement() -> io.NodeReplace:
    """What Distill LoRA of version 0.1 becomes where ComfyUI is asked to replace it: its prompts want a new node."""
    from .distill import Distill
    from .distill_sockets import DistillLoRA

    old, new = (node.GET_SCHEMA() for node in (DistillLoRA, Distill))
    inputs = {i.id for i in new.inputs} & {i.id for i in old.inputs} - {"prompts"}
    outputs = [o.display_name for o in new.outputs]
    widgets: list[str] = []  # by their places in workflow files
    for widget in old.inputs:
        if isinstance(widget, io.WidgetInput):
            widgets += [widget.id, "control_after_generate"] if widget.id == "seed" else [widget.id]
    return io.NodeReplace(
        new_node_id=new.node_id,
        old_node_id=old.node_id,
        old_widget_ids=widgets,
        input_mapping=[{"new_id": name, "old_id": name} for name in sorted(inputs)],
        output_mapping=[
            {"old_idx": index, "new_idx": outputs.index(o.display_name)} for index, o in enumerate(old.outputs)
        ],
    )


def nodes_of(name: str) -> list[type[io.ComfyNode]]:
    """The nodes of one module; none, and an error in the log, where it cannot be loaded, so that the others appear."""
    try:
        nodes = import_module(f".{name}", __package__).NODES
        for node in nodes:
            node.GET_SCHEMA()  # imports more; ComfyUI would give up all nodes for one that fails
    except Exception as error:
        log.exception(
            "The Dual-Process nodes of nodes/%s.py could not be loaded (%s: %s); the others are there. Install what "
            "requirements.txt names into ComfyUI's Python, see that the pack and ComfyUI are up to date, and start "
            "ComfyUI again.",
            *(name, type(error).__name__, error),
        )
        return []
    return nodes
