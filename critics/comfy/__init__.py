"""Critics whose weights ComfyUI holds."""
