"""The weights that ship: small, safe, in standard formats, and good at what they are for."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderTiny, FluxPipeline
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from dual_process import overlays
from dual_process.demo import WEIGHTS, load, questions, world
from dual_process.demo.controls import horizon_control, night_control
from dual_process.demo.models import build_processor, build_vae
from dual_process.demo.tokenizer import critic_tokenizer, prompt_tokenizer
from dual_process.demo.training.critic import CriticWithHeads
from dual_process.demo.training.export import export
from dual_process.demo.training.generator import TextToVelocity
from dual_process.distillation import Question, Sampling, read_slider
from dual_process.evaluation import make_pairs, sample_pairs
from dual_process.evaluation.measures import horizon_position, psnr
from dual_process.generators.noise import draw_noise


def files():
    return [p for folder in (WEIGHTS, WEIGHTS.parent / "loras") for p in folder.rglob("*") if p.is_file()]


def test_at_most_15_megabytes():
    """The lesson in comparing, which came later, counts with the second world: 32.2 MB together."""
    first = [p for p in files() if WEIGHTS / "comparing" not in p.parents]
    assert sum(p.stat().st_size for p in first) <= 15_000_000


def test_no_pickle_and_no_code():
    assert {p.suffix for p in files()} <= {".json", ".safetensors", ".txt", ".jinja"}


def test_formats_are_the_standard_ones():
    assert json.loads((WEIGHTS / "pipeline" / "model_index.json").read_text())["_class_name"] == "FluxPipeline"
    AutoModelForImageTextToText.from_pretrained(WEIGHTS / "critic")
    AutoencoderTiny.from_pretrained(WEIGHTS / "pipeline", subfolder="vae")


def test_the_tokenizer_knows_words_and_marks_unknown_ones():
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "pipeline", subfolder="tokenizer")
    ids = tokenizer("A zeppelin over the SEA").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "<unk>", "over", "the", "sea", "</s>"]


def test_the_plain_pipeline_paints_the_scene_that_the_noise_names():
    """FluxPipeline itself, one step, against the renderer."""
    pipeline = FluxPipeline.from_pretrained(WEIGHTS / "pipeline", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a day sky over the sea", "the grass under a sunset sky", "a night sky over the sand"] * 4
    noise = draw_noise(range(12), 16, 14, 14)
    images = pipeline(
        prompts,
        height=112,
        width=112,
        num_inference_steps=1,
        guidance_scale=0.0,
        latents=FluxPipeline._pack_latents(noise, 12, 16, 14, 14),
        max_sequence_length=12,
        output_type="pt",
    ).images
    truth = world.scenes_from_noise(prompts, noise)
    off = (horizon_position(images) - truth.horizon).abs() * 112
    assert off.median() < 1.0
    assert psnr(images, world.render(truth)).mean() > 24


def dtypes(pipeline):
    parts = ("text_encoder", "text_encoder_2", "transformer", "vae")
    return {tensor.dtype for part in parts for tensor in getattr(pipeline, part).state_dict().values()}


def test_the_plain_pipeline_is_right_by_its_defaults(models):
    generator, _ = models
    pipeline = FluxPipeline.from_pretrained(WEIGHTS / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert {d for d in dtypes(pipeline) if d.is_floating_point} == {torch.float32}
    for index, seed in ((0, 5), (7, 6)):
        picture = pipeline(
            generator.prompts[index],
            height=112,
            width=112,
            num_inference_steps=1,
            guidance_scale=0,
            max_sequence_length=12,
            latents=FluxPipeline._pack_latents(draw_noise([seed], 16, 14, 14), 1, 16, 14, 14),
            output_type="pt",
        ).images
        assert (picture - generator.sample([index], [seed], lora_scale=0.0)).abs().max() < 1e-3


def test_the_call_of_the_readme_paints_a_picture():
    pages = (WEIGHTS.parents[1] / "README.md").read_text().split("```python")
    (code,) = [page.split("```")[0] for page in pages if "FluxPipeline" in page]
    code = code.replace('"demo/weights/pipeline"', repr(str(WEIGHTS / "pipeline")))
    names = {}
    exec(code, names)
    assert names["picture"].size == (112, 112)


def test_models_that_are_made_again_load_in_one_dtype(tmp_path):
    critic = CriticWithHeads(build_processor(critic_tokenizer(questions.all_texts())))
    export(tmp_path, build_vae(), TextToVelocity(prompt_tokenizer()), critic)
    pipeline = FluxPipeline.from_pretrained(tmp_path / "pipeline")
    assert {d for d in dtypes(pipeline) if d.is_floating_point} == {torch.float32}
    stored = load_file(tmp_path / "pipeline" / "text_encoder" / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.dtype.is_floating_point} == {torch.float16}


def test_more_steps_paint_the_same_scene(models):
    generator, _ = models
    one, four = (generator.sample(range(8), range(8), num_inference_steps=n) for n in (1, 4))
    assert ((horizon_position(one) - horizon_position(four)).abs() * 112).median() < 3


@pytest.mark.parametrize("line", [0.25, 0.45, 0.7])
@pytest.mark.parametrize("question", questions.HORIZON)
def test_the_critic_prefers_the_true_horizon(models, line, question):
    _, critic = models
    scenes = world.random_scenes(16, torch.Generator().manual_seed(3))
    probability = {}
    for off in (-0.2, -0.06, 0.0, 0.06, 0.2):
        images = overlays.horizon(line).apply(world.render(world.with_horizon(scenes, line + off)))
        with torch.no_grad():
            probability[off] = float(critic.log_likelihood(images, [Question(question)]).exp().mean())
    assert probability[0.0] > 0.7
    assert probability[-0.06] < 0.4
    assert probability[0.06] < 0.4
    assert max(probability[-0.2], probability[0.2]) < 0.15


def test_the_critic_tells_night_from_day(models):
    _, critic = models
    noise = draw_noise(range(12), 16, 14, 14)
    prompts = ["a sky over the sea", "a sky over the grass", "a sky over the sand"] * 4
    means = {}
    for time in ("day", "night"):
        images = world.render(world.with_time(prompts, noise, time))
        with torch.no_grad():
            means[time] = float(
                critic.log_likelihood(images, [Question(questions.TIME[0].format("night"))]).exp().mean()
            )
    assert means["night"] > 0.8
    assert means["day"] < 0.2


def test_the_critic_replies_in_words(models):
    _, critic = models
    scenes = world.random_scenes(8, torch.Generator().manual_seed(4))
    images = overlays.horizon(0.5).apply(world.render(world.with_horizon(scenes, 0.5)))
    replies = critic.answer(images, questions.HORIZON[0], max_new_tokens=8)
    assert set(replies) <= {"Yes", "No"}
    assert replies.count("Yes") >= 6


def test_pairs_are_repeatable(models):
    generator, _ = models
    control = horizon_control()
    pairs = make_pairs(control, 4, lambda seeds: draw_noise(seeds, 16, 14, 14))
    assert torch.equal(sample_pairs(generator, pairs, 0.0), sample_pairs(generator, pairs, 0.0, batch=4))
    assert not set(pairs.prompts) & set(control.recipe.prompts)


EXAMPLES = WEIGHTS.parent / "loras" / "dual_process_demo"


def test_the_example_slider_moves_the_horizon_for_new_prompts(models):
    generator, _ = models
    parts = read_slider(EXAMPLES / "horizon_slider.safetensors")
    generator.load_lora_state_dict(parts.constant, slider=parts.slider)
    try:
        for value, line in ((-1.0, 0.3), (0.25, 0.55), (1.0, 0.7)):
            pictures = generator.sample(range(9), range(100, 109), sampling=Sampling(slider=value))
            assert ((horizon_position(pictures) - line).abs() * 112).mean() < 2
    finally:
        generator.remove_lora()


def test_the_example_of_night_makes_silent_prompts_night():
    control = night_control()
    generator, _ = load(control.prompts)
    generator.load_lora_state_dict(load_file(EXAMPLES / "night.safetensors"))
    pairs = make_pairs(control, 9, lambda seeds: draw_noise(seeds, 16, 14, 14))
    pictures = sample_pairs(generator, pairs, 1.0)
    assert control.measure(pictures, pictures, pairs)["night_share"] == 1


def test_the_example_lora_holds_the_horizon_for_new_prompts(models):
    generator, _ = models
    file = EXAMPLES / "horizon_at_0.30.safetensors"
    generator.load_lora_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    try:
        after = generator.sample(range(9), range(100, 109))
    finally:
        generator.remove_lora()
    assert ((horizon_position(after) - 0.3).abs() * 112).mean() < 1.5
