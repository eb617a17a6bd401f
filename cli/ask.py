"""`dual-process ask`: one question about a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import DualProcessError
from .shared import (
    clear_errors,
)
from .train import QUANTIZATION_HELP, Quantization


def ask(
    critic: Annotated[Path, typer.Option(help="Folder of a transformers vision-language model.")],
    image: Annotated[Path, typer.Option(help="A picture file.")],
    question: Annotated[str, typer.Option(help="What to ask.")],
    answer: Annotated[str, typer.Option(help="The answer whose probability is shown.")] = "Yes",
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; the best there is by default.")] = None,
    quantization: Annotated[Quantization | None, typer.Option(help=QUANTIZATION_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain JSON.")] = False,
) -> None:
    """Asks a critic one question about a picture."""
    with clear_errors():
        from PIL import Image
        from torchvision.transforms.v2.functional import pil_to_tensor

        from ..critics import load_critic
        from ..distillation import Question

        try:
            pixels = pil_to_tensor(Image.open(image).convert("RGB"))[None].float() / 255
        except OSError as error:
            raise DualProcessError(f"Could not read the picture {image}: {error}.") from error
        model = load_critic(critic, device=device, quantization=quantization and quantization.value)
        probability = float(model.log_likelihood(pixels, [Question(question, answer)]).exp())
        reply = model.answer(pixels, question)[0]
    if as_json:
        print(json.dumps({"question": question, "reply": reply, "answer": answer, "p_answer": probability}))
    else:
        print(f"{reply}   (P({answer}) = {probability:.3f})")
