"""Prompts that share a forward pass in ComfyUI, and those that may not."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from comfy_models import LENGTH, SIZE, TEXT, conditionings, write_files

from dual_process.core.protocols import Draw

pytestmark = pytest.mark.comfyui
EMPTY = {"samples": torch.zeros(1, 16, SIZE // 8, SIZE // 8)}


@pytest.fixture(scope="module")
def models(comfy):
    unet, _ = write_files(comfy / "models", "dev")
    import nodes

    with torch.inference_mode():
        return nodes.UNETLoader().load_unet(unet.name, "default")[0], nodes.VAELoader().load_vae(
            "tiny-vae.safetensors"
        )[0]


@pytest.fixture
def make(models):
    from dual_process.generators.comfy.generator import ComfyGenerator

    def build(positives, **changes):
        return ComfyGenerator(*models, positives, latent=EMPTY, steps=4, **changes)

    return build


@contextmanager
def counted(generator):
    """Batch sizes of the network's forward passes."""
    sizes = []
    handle = generator._network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    try:
        yield sizes
    finally:
        handle.remove()


def predictions(generator, prompts):
    """Of one sample each, at noise levels of their own."""
    seeds, levels = tuple(range(3, 3 + len(prompts))), tuple(i % 4 for i in range(len(prompts)))
    draw = Draw(prompts, seeds, levels, renoise_times=(0.9, 0.5, 0.7, 0.2)[: len(prompts)], renoise_seeds=seeds)
    with generator.training(), torch.no_grad():
        with counted(generator) as sizes:
            whole = generator.estimate(draw, ["prediction"]).prediction
        alone = [
            generator.estimate(
                Draw((p,), (s,), (0,), renoise_times=(t,), renoise_seeds=(s,)), ["prediction"]
            ).prediction
            for p, s, t in zip(prompts, seeds, draw.renoise_times, strict=True)
        ]
    return whole, torch.cat(alone), sizes


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_prompts_of_one_shape_share_a_pass(make, cfg):
    generator = make(conditionings(), cfg=cfg, negative=None if cfg == 1 else conditionings()[1])
    together, alone, sizes = predictions(generator, (0, 1, 0, 1))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert (alone[0] - alone[2]).norm() > 0.1 * alone[0].norm()
    assert sizes == [4 if cfg == 1 else 8] * 5  # four steps of the sampler and the one that is asked for


def area(cond, **changes):
    return [[cond[0][0], {**cond[0][1], **changes}]]


APART = {
    "area": lambda c: area(c, area=(4, 4, 0, 0)),
    "mask": lambda c: area(c, mask=torch.ones(1, SIZE, SIZE), mask_strength=1.0, set_area_to_bounds=False),
    "time": lambda c: area(c, start_percent=0.0, end_percent=1.0),
    "guidance": lambda c: area(c, guidance=1.0),
    "two in one": lambda c: [*c, *conditionings()[0]],
    "longer": lambda c: [[torch.cat([c[0][0], c[0][0]], 1), c[0][1]]],
    "in a batch": lambda c: [[torch.cat([c[0][0], c[0][0]]), c[0][1]]],
    "reference": lambda c: area(c, reference_latents=[torch.ones(1, 16, SIZE // 8, SIZE // 8)]),
    "unknown words": lambda c: area(c, of_another_pack="this"),
}


@pytest.mark.parametrize("kind", APART)
def test_what_is_not_plain_has_a_pass_of_its_own(make, kind):
    plain, other = conditionings()
    generator = make([plain, APART[kind](other)])
    together, alone, sizes = predictions(generator, (0, 1, 0))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert max(sizes) == 2


def test_a_lora_learns_beside_a_reference_latent(make):
    """As core's ReferenceLatent adds it to a prompt of Flux Kontext."""
    plain, _ = conditionings()
    random = torch.Generator().manual_seed(1)
    shown = [area(plain, reference_latents=[torch.randn(1, 16, SIZE // 8, SIZE // 8, generator=random)]) for _ in "ab"]
    generator = make([plain, *shown])
    seen = generator.sample([0, 1, 2], [4, 4, 4])
    assert all((seen[i] - seen[j]).norm() > 1e-3 * seen[i].norm() for i, j in ((0, 1), (0, 2), (1, 2)))
    generator.add_lora(2, 2.0, seed=0)
    with generator.training():
        generator.estimate(Draw((1,), (3,), (2,)), ["image"]).image.sum().backward()
    assert all(p.grad is not None for name, p in generator.lora_parameters().items() if name.endswith("lora_B"))


def test_another_negative_area_keeps_all_apart(make):
    negative = area(conditionings()[0], area=(4, 4, 0, 0))
    generator = make(conditionings(), cfg=3.0, negative=negative)
    together, alone, sizes = predictions(generator, (0, 1))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert max(sizes) == 2  # one prompt's, within its area and beyond


def test_the_encodings_are_those_of_the_prompts(make):
    """A prompt's own encoding reaches its sample, in whatever order they are asked for."""
    random = torch.Generator().manual_seed(2)
    encodings = torch.randn(3, LENGTH, TEXT, generator=random)
    plain = conditionings()[0][0][1]
    generator = make([[[row[None].clone(), dict(plain)]] for row in encodings])
    there, alone, sizes = predictions(generator, (2, 0, 1))
    assert sizes[-1] == 3
    torch.testing.assert_close(there, alone, atol=1e-5, rtol=1e-5)
