"""Dual-Process Image Generation: a ComfyUI node pack and a library.

ComfyUI finds the nodes through `comfy_entrypoint`; Python code imports `dual_process.distillation` and its siblings.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's V3 entry point; the nodes are imported only here, where ComfyUI is."""
    import logging

    try:
        from .nodes.extension import DualProcessExtension

        return DualProcessExtension()
    except Exception:
        logging.getLogger(__name__).exception("The Dual-Process nodes could not be loaded")
        raise
