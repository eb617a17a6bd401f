"""What the comfy/ folders of critics, generators and painters share of ComfyUI: its weights, and its inference mode."""
