"""Vision-language models as critics: how likely an answer is, differentiable in the image."""

from .transformers_critic import TransformersCritic, load_critic

__all__ = ["TransformersCritic", "load_critic"]
