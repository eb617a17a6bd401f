"""Dual-Process Image Generation: teach an image generator new controls by asking a vision-language model."""
