"""What a generator does when its caller does not say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..core.errors import GeneratorError
from ..core.streaming import Offload, check_offload


@dataclass(frozen=True)
class GeneratorSettings:
    """Defaults of one generator; None leaves the choice to the architecture."""

    height: int | None = field(default=None, metadata={"help": "Image height in pixels."})
    width: int | None = field(default=None, metadata={"help": "Image width in pixels."})
    num_inference_steps: int | None = field(default=None, metadata={"help": "Sampler steps of a whole picture."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations in the backward pass: less memory, same gradient."}
    )
    offload: Offload = field(
        default=False,
        metadata={
            "help": "Keep the weights in main memory except while the generator works; 'blocks': while the block works."
        },
    )
    tiny_decoder: Any = field(
        default=None, metadata={"help": "An AutoencoderTiny that makes the pictures of which only the gradient counts."}
    )
    compile: bool = field(
        default=False, metadata={"help": "torch.compile the network's blocks for the pass with gradient."}
    )

    def __post_init__(self) -> None:
        if self.compile and self.offload == "blocks":
            raise GeneratorError("Expected compile or offload='blocks', got both: choose one of them.")
        for name in ("height", "width", "num_inference_steps"):
            check_positive(name, getattr(self, name))
        check_offload(self.offload, GeneratorError)


def check_positive(name: str, value: int | None) -> None:
    """Raises GeneratorError unless `value` is None or an integer of at least 1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise GeneratorError(f"Expected {name} as a whole number of at least 1, got {value!r}.")
