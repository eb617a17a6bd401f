"""The second world's weights: small, safe, in standard formats, and good at what they are for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderTiny, FluxPipeline
from transformers import AutoModelForImageTextToText

from dual_process import demo, overlays
from dual_process.demo import strokes
from dual_process.demo.strokes import controls
from dual_process.demo.strokes.captions import caption, parse_prompt
from dual_process.demo.strokes.questions import DESCRIBE, THING
from dual_process.demo.strokes.reader import read_scenes, same_scene
from dual_process.demo.strokes.training.critic_data import stretch
from dual_process.demo.strokes.training.exercises import Stretched
from dual_process.demo.strokes.world import (
    Thing,
    Words,
    build_scenes,
    foot_at,
    noise_statistics,
    random_uniforms,
    render,
    with_line_weight,
    without_objects,
)
from dual_process.distillation import Question, overlay_questions
from dual_process.generators.noise import draw_noise

PAIR = Words((Thing("house", "blue"), Thing("tree", "green")), "day")


@pytest.fixture(scope="module")
def models():
    return strokes.load()


def pictures(words, count=16, seed=21):
    return build_scenes([words] * count, random_uniforms(count, torch.Generator().manual_seed(seed)))


@torch.no_grad()
def probability(critic, images, question):
    return critic.log_likelihood(images, [question]).exp()


def test_all_weights_together_take_at_most_32_2_megabytes():
    folders = (demo.WEIGHTS, demo.WEIGHTS.parent / "loras", strokes.WEIGHTS)
    files = [p for folder in folders for p in folder.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 32_200_000
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".txt", ".jinja"}


def test_formats_are_the_standard_ones():
    assert json.loads((strokes.WEIGHTS / "pipeline" / "model_index.json").read_text())["_class_name"] == "FluxPipeline"
    AutoModelForImageTextToText.from_pretrained(strokes.WEIGHTS / "critic")
    AutoencoderTiny.from_pretrained(strokes.WEIGHTS / "pipeline", subfolder="vae")


def test_the_plain_pipeline_paints_the_scene_that_the_noise_names():
    """FluxPipeline itself, one step, for the prompts that the controls hold out."""
    pipeline = FluxPipeline.from_pretrained(strokes.WEIGHTS / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    prompts = list(controls.line_weight_control().held_out) * 4
    noise = draw_noise(range(len(prompts)), *controls.NOISE_SHAPE)
    images = pipeline(
        prompts,
        height=128,
        width=128,
        num_inference_steps=1,
        guidance_scale=0.0,
        latents=FluxPipeline._pack_latents(noise, *noise.shape),
        max_sequence_length=28,
        output_type="pt",
    ).images
    truth = build_scenes([parse_prompt(p) for p in prompts], noise_statistics(noise))
    seen = read_scenes(images)
    assert controls.as_prompted(seen, prompts).float().mean() >= 0.9
    assert same_scene(seen, truth).float().mean() >= 0.9
    assert (seen.line_weight - truth.line_weight).abs().nanmean() < 0.5


@pytest.mark.parametrize("thickness", [1.0, 2.5, 4.0])
def test_the_critic_prefers_the_true_line_weight(models, thickness):
    _, critic = models
    overlay = overlays.line_weight(thickness / 128, y=controls.BAR)
    (question, *_) = overlay_questions(overlay)
    scenes = pictures(PAIR)
    p = {
        off: probability(critic, overlay.apply(render(with_line_weight(scenes, thickness + off))), question).mean()
        for off in (-3.0, -1.5, 0.0, 1.5, 3.0)
        if 1 <= thickness + off <= 5
    }
    assert p[0.0] > 0.7
    assert max(p.get(off, 0.0) for off in (-1.5, 1.5)) < p[0.0] - 0.15
    assert max(p.get(off, 0.0) for off in (-3.0, 3.0)) < 0.35


@pytest.mark.parametrize("nearer", ["left", "right"])
def test_the_critic_tells_near_from_far(models, nearer):
    _, critic = models
    control = controls.depth_control(nearer)
    scenes = pictures(PAIR, 64)
    gap = scenes.depth[:, 1] - scenes.depth[:, 0]
    gap = gap if nearer == "right" else -gap
    (question, *_) = control.asked
    yes = probability(critic, question.overlay.apply(render(scenes)), question)
    assert yes[gap > 0.3].mean() > 0.75
    assert yes[gap < -0.3].mean() < 0.25


def test_the_critic_prefers_the_true_composition(models):
    _, critic = models
    control = controls.composition_control()
    (question, *_) = control.asked
    scenes = pictures(PAIR)
    right = controls.with_places(scenes, controls.DEFAULT_PLACES)
    wrong = controls.with_places(scenes, ((16.0, 0.85), (112.0, 0.15)))
    near, far = (probability(critic, question.overlay.apply(render(s)), question).mean() for s in (right, wrong))
    assert near > 0.6
    assert far < 0.1


def test_the_critic_knows_facts(models):
    _, critic = models
    images = render(pictures(PAIR))
    for name, there in (("a blue house", True), ("a green tree", True), ("a white ball", False), ("a tree", True)):
        yes = probability(critic, images, Question(THING[0].format(name))).mean()
        assert (yes > 0.8) if there else (yes < 0.2), name


def test_the_critic_describes_pictures_in_the_words_of_prompts(models):
    _, critic = models
    words = replace(PAIR, things=(Thing("house", "blue", (0, 0)), Thing("tree", "green", (2, 1))))
    replies = critic.answer(render(pictures(words, 8)), DESCRIBE, max_new_tokens=28)
    assert replies.count(caption(words)) >= 6


def test_the_critic_sees_no_object_in_what_is_spoilt(models):
    """Half a tree is no house, nor is one that is drawn twice; one that is too high may be one."""
    words = Words((Thing("house", "blue"),), "day")
    scenes = pictures(words)
    whole = render(scenes)
    question = Question(THING[0].format("a blue house"))
    half = (whole + render(replace(scenes, kind=torch.full_like(scenes.kind, 1).where(scenes.kind >= 0, -1)))) / 2
    shifted = replace(scenes, depth=(scenes.depth + 0.4).clamp(max=1))
    twice = (render(replace(scenes, depth=(scenes.depth - 0.4).clamp(min=0))) + render(shifted)) / 2
    rest = without_objects(scenes)
    bare = render(rest)
    places = zip(scenes.x[:, 0].tolist(), foot_at(scenes.depth[:, 0]).tolist(), strict=True)
    taller = [Stretched(rest, x, foot, 1.0, 1.6) for x, foot in places]
    high = bare + torch.cat([stretch(thing[None], how) for thing, how in zip(whole - bare, taller, strict=True)])
    shown = torch.stack([whole, half, twice, high.clamp(0, 1)])
    sure, hybrid, double, stretched = (float(probability(models[1], some, question).mean()) for some in shown)
    assert sure > 0.8
    assert max(hybrid, double) < 0.4
    assert stretched < 0.7
