"""The ComfyUI face of the pack: thin V3 nodes, one file per topic. Imported by ComfyUI's entry point only."""
