"""Painters made of ComfyUI's MODEL, CLIP and VAE."""

from .painter import INPAINT, MODES, QWEN_EDIT, QWEN_EDIT_PLUS, REFERENCE, ComfyPainter

__all__ = ["INPAINT", "MODES", "QWEN_EDIT", "QWEN_EDIT_PLUS", "REFERENCE", "ComfyPainter"]
