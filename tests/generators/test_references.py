"""A picture beside the noise: the network reads it as Flux Kontext reads its reference."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from tiny_flux import PROMPTS, build_pipeline

from dual_process.core.errors import GeneratorError
from dual_process.core.protocols import Draw
from dual_process.generators import load_generator

SIZE = {"height": 64, "width": 96, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def kontext() -> FluxKontextPipeline:
    parts = {name: part for name, part in build_pipeline("dev").components.items() if part is not None}
    pipeline = FluxKontextPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def editor(kontext):
    return load_generator(kontext, PROMPTS, "cpu", **SIZE)


def pictures_of(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def shown(editor) -> None:
    editor.show_references(editor.encode(pictures_of(editor.num_prompts)).split(1))


def test_pictures_are_kontexts_own(editor, kontext):
    shown(editor)
    noise = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(4))
    (expected,) = kontext(
        image=pictures_of(editor.num_prompts)[1:2],
        prompt=PROMPTS[1],
        height=64,
        width=96,
        max_area=64 * 96,
        _auto_resize=False,
        num_inference_steps=3,
        guidance_scale=3.5,
        max_sequence_length=12,
        latents=FluxPipeline._pack_latents(noise, 1, 16, 8, 12),
        output_type="pt",
    ).images
    torch.testing.assert_close(editor.sample([1], [4])[0], expected, atol=1e-5, rtol=0)


def test_each_prompt_sees_its_own_until_they_are_taken_away(editor):
    plain = editor.sample([0, 1], [4, 4])
    shown(editor)
    seen = editor.sample([0, 1], [4, 4])
    assert (seen - plain).abs().mean(dim=(1, 2, 3)).min() > 1e-4
    other = list(editor.encode(pictures_of(editor.num_prompts)).split(1))
    other[1] = torch.zeros_like(other[1])
    editor.show_references(other)
    torch.testing.assert_close(editor.sample([0, 1], [4, 4])[0], seen[0])
    assert (editor.sample([1], [4])[0] - seen[1]).abs().mean() > 1e-5
    editor.show_references(None)
    assert torch.equal(editor.sample([0, 1], [4, 4]), plain)


def test_a_lora_learns_beside_a_reference(editor):
    shown(editor)
    editor.add_lora(2, 2.0, seed=0)
    with editor.training():
        editor.estimate(Draw((0, 1), (4, 5), (0, 2))).image.sum().backward()
    assert all(p.grad.abs().max() > 0 for n, p in editor.lora_parameters().items() if n.endswith("to_q.lora_B"))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda latents: latents[:1],
        lambda latents: [latents[0], torch.zeros(1, 16, 8, 8), *latents[2:]],
        lambda latents: [torch.zeros(1, 3, 64, 96) for _ in latents],
        lambda latents: [torch.zeros(1, 16, 7, 12) for _ in latents],
    ],
)
def test_others_are_refused(editor, wrong):
    latents = [torch.zeros(1, 16, 8, 12) for _ in range(editor.num_prompts)]
    before = editor.sample([0], [4])
    with pytest.raises(GeneratorError, match=r"reference for each of .* latents \[1, 16, h, w\] .*by `encode`"):
        editor.show_references(wrong(latents))
    assert torch.equal(editor.sample([0], [4]), before)
