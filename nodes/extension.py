"""Everything that the pack gives to ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import ask, critics, demo, distill, overlays, questions, saving
from .folders import register_folders

MODULES = (critics, demo, questions, overlays, ask, distill, saving)


class DualProcessExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for module in MODULES for node in module.NODES]
