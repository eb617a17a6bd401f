"""ComfyUI's painter on tiny models of each kind: against core's own nodes, and against its own promises."""

from __future__ import annotations

import pytest
import torch
from tiny_comfy import CASES

from dual_process.core.errors import GeneratorError
from dual_process.demo.strokes.reader import read_scenes
from dual_process.demo.strokes.world import COLORS, KINDS
from dual_process.process import Canvas, Region, Stroke

pytestmark = pytest.mark.comfyui
LEFT = Region(0, 0, 0.5, 1)
HOUSE = Stroke("s", "add", "add a blue house", "a blue house", LEFT)
ANYWHERE = Stroke("s", "add", "add a blue house", "a blue house")
SETTINGS = {"width": 96, "height": 64, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def built(comfy):
    """Models by how they are built, each made once."""
    made = {}

    def get(build):
        if build not in made:
            with torch.inference_mode():
                made[build] = build()
        return made[build]

    return get


@pytest.fixture
def make(built):
    from dual_process.painters.comfy import ComfyPainter

    def painter(name, parts=None, **changes):
        case = CASES[name]
        options = {**SETTINGS, "mode": case.mode, **case.options, **changes}
        return ComfyPainter(*(parts or built(case.build)), **options)

    return painter


@pytest.fixture(params=CASES)
def painter(request, make):
    return make(request.param)


def weights(painter):
    parts = painter.model.model, painter.vae.first_stage_model
    return [t.clone() for part in parts for t in (*part.parameters(), *part.buffers())]


def test_strokes(painter):
    """What is promised of each mode: outside bit-equal, by seed, text and canvas alone, and the models as before."""
    before, options = weights(painter), dict(painter.model.model_options)
    canvas = painter.draft("a tree", 1)
    assert canvas.picture.shape == (1, 3, 64, 96)
    assert painter.keeps_outside
    after = painter.stroke(canvas, HOUSE, 2)
    half = canvas.latent.shape[-1] // 2
    assert after.latent.shape == canvas.latent.shape
    assert torch.equal(after.latent[..., half:], canvas.latent[..., half:])
    assert (after.latent[..., :half] != canvas.latent[..., :half]).float().mean() > 0.9
    assert torch.equal(painter.stroke(canvas, HOUSE, 2).latent, after.latent)
    other = Stroke("s", "add", "add a white ball", "a white ball", LEFT)
    for changed in (
        painter.stroke(canvas, HOUSE, 3),
        painter.stroke(canvas, other, 2),
        painter.stroke(painter.draft("a ball", 5), HOUSE, 2),
    ):
        assert (changed.latent - after.latent)[..., :half].abs().max() > 1e-4
    whole = painter.stroke(canvas, ANYWHERE, 2)
    assert (whole.latent != canvas.latent).float().mean() > 0.9
    torch.testing.assert_close(weights(painter), before, rtol=0, atol=0, equal_nan=True)  # an encoder may lack weights
    assert painter.model.model_options == options
    assert not painter.model.patches


def cores(painter, canvas, prompt, seed, mask=None, denoise=1.0):
    """KSampler's samples of a CONDITIONING on a canvas, by core's own nodes."""
    import nodes

    latent = {"samples": canvas.latent}
    if mask is not None:
        (latent,) = nodes.SetLatentNoiseMask().set_mask(latent, mask)
    options = painter.steps, painter.cfg, painter.sampler_name, painter.scheduler
    return nodes.KSampler().sample(painter.model, seed, *options, *prompt, latent, denoise)[0]["samples"]


def encode(clip, text):
    import nodes

    return nodes.CLIPTextEncode().encode(clip, text)[0]


def reference(conditioning, canvas):
    from comfy_extras.nodes_edit_model import ReferenceLatent

    return ReferenceLatent.execute(conditioning, {"samples": canvas.latent}).args[0]


@pytest.mark.parametrize("name", ["demo, by reference", "FLUX.2", "Qwen-Image, by reference"])
@torch.inference_mode()
def test_a_reference_is_handed_on_as_core_does(make, name):
    painter = make(name)
    canvas = painter.draft("a tree", 1)
    prompt = reference(encode(painter.clip, ANYWHERE.instruction), canvas)
    expected = cores(painter, canvas, (prompt, prompt), 2)
    assert torch.equal(painter.stroke(canvas, ANYWHERE, 2).latent, expected)


@pytest.mark.parametrize("plus", [False, True])
@torch.inference_mode()
def test_qwen_sees_the_canvas_as_core_shows_it(make, plus):
    from comfy_extras import nodes_qwen

    painter = make(f"Qwen-Image-Edit{' plus' * plus}", cfg=2.5, negative="blur")
    canvas = painter.draft("a tree", 1)
    image, clip = canvas.picture.movedim(1, -1), painter.clip
    node = nodes_qwen.TextEncodeQwenImageEditPlus if plus else nodes_qwen.TextEncodeQwenImageEdit
    shown = {"image1" if plus else "image": image}
    prompts = [node.execute(clip, t, **shown).args[0] for t in (ANYWHERE.instruction, "blur")]
    expected = cores(painter, canvas, [reference(p, canvas) for p in prompts], 2)
    assert torch.equal(painter.stroke(canvas, ANYWHERE, 2).latent, expected)
    blank = Canvas(canvas.latent, torch.zeros_like(canvas.picture))
    assert not torch.equal(painter.stroke(blank, ANYWHERE, 2).latent, expected)


@pytest.mark.parametrize("name", ["demo, inpainting", "Stable Diffusion", "Qwen-Image"])
@torch.inference_mode()
def test_a_region_is_sampled_as_core_samples_a_mask(make, name):
    painter = make(name, negative="blur", denoise=0.8)
    canvas = painter.draft("a tree", 1)
    mask = torch.zeros(1, 64, 96)
    mask[..., :48] = 1
    prompts = [encode(painter.clip, text) for text in (HOUSE.local_prompt, "blur")]
    expected = cores(painter, canvas, prompts, 2, mask, denoise=0.8)
    assert torch.allclose(painter.stroke(canvas, HOUSE, 2).latent, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["Flux Fill", "Stable Diffusion, inpainting"])
@torch.inference_mode()
def test_an_inpaint_model_sees_the_masked_picture(make, name):
    import nodes

    painter = make(name)
    canvas = painter.draft("a tree", 1)
    mask = torch.zeros(1, 64, 96)
    mask[..., :48] = 1
    prompt = encode(painter.clip, HOUSE.local_prompt)
    image = canvas.picture.movedim(1, -1)
    prompt, _, _ = nodes.InpaintModelConditioning().encode(prompt, prompt, image, painter.vae, mask)
    prompt[0][1]["guidance"] = 30.0
    expected = cores(painter, canvas, (prompt, prompt), 2, mask)
    assert torch.allclose(painter.stroke(canvas, HOUSE, 2).latent, expected, atol=1e-5)
    blank = Canvas(canvas.latent, torch.zeros_like(canvas.picture))
    assert (painter.stroke(blank, HOUSE, 2).latent - expected).abs().max() > 1e-3


def test_a_stroke_without_a_region_paints_over_the_canvas(make):
    distances = []
    for share in (0.25, 0.5, 1.0):
        painter = make("demo, inpainting", steps=4, denoise_whole=share)
        canvas = painter.draft("a tree", 1)
        distances.append(float((painter.stroke(canvas, ANYWHERE, 2).latent - canvas.latent).abs().mean()))
    assert 0 < distances[0] < distances[1] < distances[2]


def test_the_demo_adds_what_it_is_told_to(make):
    painter = make("demo, by reference", width=128, height=128)
    empty = painter.draft("an empty field by day", 3)
    assert (read_scenes(empty.picture).kind < 0).all()
    for region in (None, Region(0, 0, 0.25, 0.5)):
        stroke = Stroke("s", "add", "add a blue house far left", "a blue house", region)
        pictures = torch.cat([painter.stroke(empty, stroke, seed).picture for seed in range(4)])
        seen = read_scenes(pictures)
        assert (seen.kind[:, 0] == KINDS.index("house")).all()
        assert (seen.color[:, 0] == COLORS.index("blue")).all()
        assert (seen.kind[:, 1:] < 0).all()
        assert (seen.x[:, 0] - 16).abs().max() < 4


def test_a_mask_limits_every_stroke(make):
    mask = torch.zeros(64, 96)
    mask[:32] = 1
    painter = make("demo, by reference", mask=mask)
    canvas = painter.draft("a tree", 1)
    rows, columns = canvas.latent.shape[-2] // 2, canvas.latent.shape[-1] // 2
    for stroke, width in ((ANYWHERE, 2 * columns), (HOUSE, columns)):
        same = (painter.stroke(canvas, stroke, 2).latent == canvas.latent).all(1)[0]
        assert same[rows:].all()
        assert same[:, width:].all()
        assert not same[:rows, :width].any()
    with pytest.raises(GeneratorError, match="outside the mask"):
        painter.stroke(canvas, Stroke("s", "add", "add a house", region=Region(0, 0.5, 1, 1)), 2)


def test_a_region_is_widened(make):
    painter = make("demo, by reference", grow=16)
    canvas = painter.draft("a tree", 1)
    region = Region(2 / 6, 1 / 4, 3 / 6, 2 / 4)
    same = (painter.stroke(canvas, Stroke("s", "add", "add a house", region=region), 2).latent == canvas.latent).all(1)
    assert not same[0, :6, 2:8].any()
    assert same.sum() == same.numel() - 36


def test_a_lora_of_the_users_counts(make, built):
    model, clip, vae = built(CASES["demo, by reference"].build)
    patched = model.clone()
    name = "diffusion_model.double_blocks.0.img_mlp.0.weight"
    weight = model.model.state_dict()[name]
    patched.add_patches({name: ("diff", (torch.full_like(weight, 0.05),))})
    plain, other = make("demo, by reference"), make("demo, by reference", (patched, clip, vae))
    canvas = plain.draft("a tree", 1)
    first = plain.stroke(canvas, HOUSE, 2).latent
    changed = other.stroke(canvas, HOUSE, 2).latent
    assert not torch.equal(changed, first)
    assert torch.equal(changed[..., 6:], canvas.latent[..., 6:])
    assert torch.equal(plain.stroke(canvas, HOUSE, 2).latent, first)
    assert other.info.weights_sha256 == plain.info.weights_sha256


@pytest.mark.parametrize("name", ["demo, by reference", "Qwen-Image"])
def test_canvases_of_latents_and_pictures(make, name):
    painter = make(name)
    canvas = painter.draft("a tree", 1)
    again = painter.canvas_of_latent({"samples": canvas.latent})
    assert torch.equal(again.latent, canvas.latent)
    assert torch.equal(again.picture, canvas.picture)
    encoded = painter.canvas_of_picture(torch.nn.functional.pad(canvas.picture, (0, 5, 0, 3)))
    assert encoded.latent.shape == canvas.latent.shape
    after = painter.stroke(encoded, HOUSE, 2)
    assert torch.equal(after.latent[..., 6:], encoded.latent[..., 6:])


def test_a_painter_says_what_it_is(painter):
    info = painter.info
    assert info.dtype == "float32"
    assert len(info.weights_sha256) == 64
    assert f"mode {painter.mode}, width 96, height 64, steps {painter.steps}" in info.settings


def test_a_painter_with_another_mask_is_another_one(make):
    half = torch.zeros(64, 96)
    half[:32] = 1
    masks = (None, half, half.flip(0))
    assert len({make("demo, by reference", mask=mask).info.settings for mask in masks}) == 3


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("Stable Diffusion", {"mode": "reference"}, "knows no reference latents"),
        ("Stable Diffusion", {"mode": "qwen edit"}, "knows no reference latents"),
        ("demo, by reference", {"mode": "qwen edit"}, "needs a Qwen-Image-Edit MODEL"),
        ("demo, by reference", {"mode": "draw"}, "Expected as mode one of inpaint"),
        ("demo, by reference", {"sampler_name": "eulr"}, "Expected as sampler one of"),
        ("demo, by reference", {"scheduler": "smple"}, "Expected as scheduler one of"),
        ("demo, by reference", {"width": 100}, "width that is a multiple of 16"),
        ("demo, by reference", {"steps": 0}, "steps of at least 1"),
        ("demo, by reference", {"denoise": 0.0}, "denoise above 0"),
        ("demo, by reference", {"cfg": float("nan")}, "cfg of at least 0"),
        ("demo, by reference", {"mask": torch.zeros(64, 96)}, "mask is empty"),
        ("demo, by reference", {"mask": torch.ones(96, 64)}, "canvas's size, 64 × 96"),
    ],
)
def test_bad_settings_are_refused(make, name, changes, words):
    with pytest.raises(GeneratorError, match=words):
        make(name, **changes)


def test_parts_that_do_not_fit_are_refused(make, built):
    model, clip, vae = built(CASES["Qwen-Image-Edit"].build)
    _, demo_clip, _ = built(CASES["demo, by reference"].build)
    _, _, sd_vae = built(CASES["Stable Diffusion"].build)
    for parts, words in (
        ((model, clip, sd_vae), "latents of 16 channels, but the VAE on 4"),
        ((model, demo_clip, vae), "this CLIP sees no pictures"),
        ((model, None, vae), "no text encoder"),
    ):
        with pytest.raises(GeneratorError, match=words):
            make("Qwen-Image-Edit", parts)


def test_bad_input_is_refused(painter):
    canvas = painter.draft("a tree", 1)
    with pytest.raises(GeneratorError, match="prompt is empty"):
        painter.draft(" ", 1)
    with pytest.raises(GeneratorError, match="is empty"):
        painter.stroke(canvas, Stroke("s", "add", " "), 1)
    batch = canvas.latent.repeat(2, *[1] * (canvas.latent.ndim - 1))
    few = canvas.latent[:, :3]
    video = canvas.latent.repeat(1, 1, 3, 1, 1) if canvas.latent.ndim == 5 else canvas.latent[:, :, None]
    for latent in (batch, few, video, "picture"):
        with pytest.raises(GeneratorError, match="latent of one picture for this MODEL"):
            painter.stroke(Canvas(latent, canvas.picture), HOUSE, 2)
        with pytest.raises(GeneratorError, match="latent of one picture for this MODEL"):
            painter.canvas_of_latent({"samples": latent})
    for picture, words in ((torch.rand(2, 3, 64, 96), "one picture"), (torch.rand(1, 3, 8, 96), "at least 16")):
        with pytest.raises(GeneratorError, match=words):
            painter.canvas_of_picture(picture)
