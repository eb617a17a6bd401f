"""The demo's models as ComfyUI loads them."""
