"""What the comfy/ folders of critics and generators share of ComfyUI: its weights, and its inference mode."""
