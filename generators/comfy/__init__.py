"""Image generators made of ComfyUI's MODEL, VAE and CONDITIONINGs."""
