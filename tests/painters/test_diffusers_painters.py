"""Flux of diffusers as a painter: tiny random models, and the second demo world, which follows instructions."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from tiny_flux import build_pipeline

from dual_process.core.errors import GeneratorError
from dual_process.core.protocols import ModelInfo
from dual_process.demo.strokes import WEIGHTS
from dual_process.demo.strokes.reader import read_scenes
from dual_process.demo.strokes.world import COLORS, KINDS
from dual_process.painters.diffusers import load_inpaint, load_kontext
from dual_process.process import Canvas, Fact, Plan, Region, Settings, Stroke, paint
from dual_process.process.files import load_painting, save_painting

SETTINGS = {"height": 64, "width": 96, "steps": 3, "max_sequence_length": 12}
LEFT = Region(0, 0, 0.5, 1)
HOUSE = Stroke("s", "add", "a red house", "a blue house", LEFT)
ANYWHERE = Stroke("s", "change", "a red house", "a blue house")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return build_pipeline("dev")


@pytest.fixture(params=[load_kontext, load_inpaint])
def painter(request, pipeline):
    return request.param(pipeline, **SETTINGS)


def test_a_stroke_leaves_what_lies_outside_its_region_bit_equal(painter):
    canvas = painter.draft("a tree", 1)
    after = painter.stroke(canvas, HOUSE, 2)
    assert canvas.picture.shape == after.picture.shape == (1, 3, 64, 96)
    assert torch.equal(after.latent[..., 6:], canvas.latent[..., 6:])
    assert (after.latent[..., :6] != canvas.latent[..., :6]).all()
    assert painter.keeps_outside


def test_a_stroke_depends_on_seed_prompt_and_canvas_alone(painter):
    canvas, other = painter.draft("a tree", 1), painter.draft("a sea", 1)
    for stroke in (HOUSE, ANYWHERE):
        first = painter.stroke(canvas, stroke, 2).latent
        assert torch.equal(painter.stroke(canvas, stroke, 2).latent, first)
        text = Stroke("s", "add", "a sea", "a sea", stroke.region)
        for changed in (
            painter.stroke(canvas, stroke, 3),
            painter.stroke(canvas, text, 2),
            painter.stroke(other, stroke, 2),
        ):
            assert (changed.latent - first)[..., :6].abs().mean() > 1e-3


def test_the_pipeline_is_left_as_it_was_and_never_encodes(painter, pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.vae, "encode", lambda *args, **kwargs: pytest.fail("latents are carried"))
    before = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    painter.stroke(painter.draft("a tree", 1), HOUSE, 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in pipeline.transformer.state_dict().items())


def test_an_instruction_is_the_pipelines_own_edit_of_the_latents(pipeline):
    painter = load_kontext(pipeline, **SETTINGS, guidance=3.0)
    canvas = painter.draft("a tree", 1)
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    noise = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(2))
    (picture,) = FluxKontextPipeline(**parts)(
        image=canvas.latent,
        prompt="a red house",
        height=64,
        width=96,
        max_area=64 * 96,
        num_inference_steps=3,
        guidance_scale=3.0,
        max_sequence_length=12,
        latents=FluxPipeline._pack_latents(noise, 1, 16, 8, 12),
        output_type="pt",
    ).images
    assert torch.allclose(painter.stroke(canvas, ANYWHERE, 2).picture[0], picture, atol=1e-5)


def test_a_whole_picture_is_painted_over_from_the_canvas(pipeline):
    distances = []
    for share in (0.3, 0.6, 1.0):
        painter = load_inpaint(pipeline, **SETTINGS, denoise_whole=share)
        canvas = painter.draft("a tree", 1)
        after = painter.stroke(canvas, ANYWHERE, 2)
        distances.append(float((after.latent - canvas.latent).abs().mean()))
    assert 0 < distances[0] < distances[1] < distances[2]
    assert torch.allclose(after.latent, painter.draft("a blue house", 2).latent, atol=1e-5)  # from noise alone


def test_half_precision_keeps_the_rest_too():
    painter = load_kontext(build_pipeline("schnell"), dtype=torch.bfloat16, **SETTINGS)
    canvas = painter.draft("a tree", 1)
    after = painter.stroke(canvas, HOUSE, 2)
    assert canvas.latent.dtype == torch.bfloat16
    assert torch.equal(after.latent[..., 6:], canvas.latent[..., 6:])
    assert after.picture.dtype == torch.float32


def test_a_painter_says_what_it_is(painter):
    info = painter.info
    assert info.architecture in ("flux-1-kontext", "flux-1-inpaint")
    assert (info.dtype, len(info.weights_sha256)) == ("float32", 64)
    assert "steps 3" in info.settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"height": 60}, "height that is a multiple of 16"),
        ({"steps": 0}, "steps of at least 1"),
        ({"denoise_whole": 0.0}, "denoise_whole above 0"),
    ],
)
def test_bad_settings_are_refused(pipeline, settings, words):
    with pytest.raises(GeneratorError, match=words):
        load_kontext(pipeline, **{**SETTINGS, **settings})


def test_bad_input_is_refused(painter, pipeline):
    canvas = painter.draft("a tree", 1)
    with pytest.raises(GeneratorError, match="prompt is empty"):
        painter.draft("  ", 1)
    for latent in (canvas.latent.repeat(2, 1, 1, 1), canvas.latent[:, :4], canvas.latent[:, :, None], "picture"):
        with pytest.raises(GeneratorError, match="canvas of this painter"):
            painter.stroke(Canvas(latent, canvas.picture), HOUSE, 2)
    lacking = build_pipeline("dev")
    lacking.text_encoder_2 = None
    with pytest.raises(GeneratorError, match="without text_encoder_2"):
        load_inpaint(lacking)


def test_offloaded_parts_paint_the_same(pipeline):
    settings = {**SETTINGS, "offload": True, "device": "cpu"}
    whole, offloaded = load_kontext(pipeline, **SETTINGS), load_kontext(build_pipeline("dev"), **settings)
    canvas = whole.draft("a tree", 1)
    assert torch.equal(offloaded.draft("a tree", 1).picture, canvas.picture)
    assert torch.equal(offloaded.stroke(canvas, HOUSE, 2).latent, whole.stroke(canvas, HOUSE, 2).latent)
    with pytest.raises(GeneratorError, match="offloads its parts itself"):
        load_inpaint(offloaded.pipeline)


def test_folders(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "tiny")
    loaded = load_inpaint(tmp_path / "tiny", "cpu", **SETTINGS)
    assert torch.equal(loaded.draft("a tree", 1).latent, load_inpaint(pipeline, **SETTINGS).draft("a tree", 1).latent)
    assert loaded.info.name == "tiny"
    index = tmp_path / "tiny" / "model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", "StableDiffusionPipeline"))
    with pytest.raises(GeneratorError, match="got a StableDiffusionPipeline"):
        load_kontext(tmp_path / "tiny", "cpu")
    with pytest.raises(GeneratorError, match="Could not load a painter from"):
        load_kontext(tmp_path / "nothing", "cpu")


@pytest.fixture(scope="module")
def demo():
    return load_kontext(WEIGHTS / "pipeline", height=128, width=128, steps=1, guidance=0.0, max_sequence_length=28)


@pytest.mark.parametrize("region", [None, Region(0, 0, 0.25, 0.5)])
def test_the_demo_adds_what_it_is_told_to(demo, region):
    empty = demo.draft("an empty field by day", 3)
    assert (read_scenes(empty.picture).kind < 0).all()
    stroke = Stroke("s", "add", "add a blue house far left", "a blue house", region)
    pictures = torch.cat([demo.stroke(empty, stroke, seed).picture for seed in range(4)])
    seen = read_scenes(pictures)
    assert (seen.kind[:, 0] == KINDS.index("house")).all()
    assert (seen.color[:, 0] == COLORS.index("blue")).all()
    assert (seen.kind[:, 1:] < 0).all()
    assert (seen.x[:, 0] - 16).abs().max() < 4
    assert seen.depth[:, 0].max() < 0.3
    if region is not None:
        error = (pictures - empty.picture)[..., 72:, :].square().mean()
        assert -10 * error.log10() >= 32


class SceneReader:
    """A thinker that knows the truth; facts are called "blue house"."""

    info = ModelInfo("reader", "none", "none", "")
    control = None

    def conflict(self, stroke, scene, prompt):
        return stroke.instruction

    def read(self, picture, facts):
        seen = read_scenes(picture)
        there = {f"{COLORS[c]} {KINDS[k]}" for c, k in zip(seen.color[0], seen.kind[0], strict=True) if k >= 0}
        return [0.95 if fact.id in there else 0.05 for fact in facts]

    def reflect(self, picture, failing, failed, prompt):
        return "missing", failed[-1]


def test_the_demo_paints_stroke_by_stroke(demo, tmp_path):
    """Each stroke comes out in its region, and all else stays; on the grid of 16 pixels the figures are about 44 dB."""
    things = {
        "blue house": ("far left", Region(0, 0.125, 0.25, 0.5)),
        "yellow ball": ("near right", Region(0.75, 0.625, 1, 1)),
    }
    plan = Plan(
        "a blue house and a ball",
        tuple(Fact(thing, f"Is there a {thing}?", stroke=thing) for thing in things),
        tuple(
            Stroke(thing, "add", f"add a {thing} {place}", region=region) for thing, (place, region) in things.items()
        ),
        background="an empty field",
    )
    painting = paint(plan, demo, SceneReader(), Settings(whole_draft=False), seed=1)
    _, *strokes = painting.trajectory.steps
    assert set(painting.trajectory.held) == set(things)
    assert painting.trajectory.passes == 3
    assert all(step.mask and step.keep_psnr >= 40 for step in strokes)
    begun = paint(plan, demo, SceneReader(), Settings(budget=2, whole_draft=False), seed=1)
    save_painting(begun, tmp_path)  # and on from its file, by the very latents
    settings = Settings(whole_draft=False)
    resumed = paint(plan, demo, SceneReader(), settings, seed=1, resume_from=load_painting(tmp_path))
    assert torch.equal(resumed.canvas.latent, painting.canvas.latent)
