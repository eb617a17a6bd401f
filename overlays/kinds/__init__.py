"""The kinds of overlay, a file each. Importing a kind registers it; `overlays/__init__.py` imports them all."""
