"""End to end on the embedded default: controls are learnt, hacking is called by its name, files hold what they say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from dual_process import demo, overlays
from dual_process.core.tensor_file import read_tensors
from dual_process.demo import WEIGHTS
from dual_process.demo.controls import CONTROLS, horizon_control
from dual_process.demo.runner import run_control
from dual_process.distillation import Anchors, Recipe, distill, guard_questions, overlay_questions
from dual_process.generators.noise import draw_noise


@pytest.fixture(scope="module")
def horizon_run(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("horizon")
    control = horizon_control(0.3)
    return run_control(control, *models, folder), folder


def test_the_horizon_moves_to_the_line(horizon_run):
    run, _ = horizon_run
    before, after = run.report["before"], run.report["after"]
    assert run.report["pairs"] >= 64
    assert before["horizon_error_px"]["mean"] > 10
    assert after["horizon_error_px"]["mean"] <= 1
    assert after["within_3pct_height"] >= 0.98
    assert after["palette_accuracy"] >= 0.97
    assert after["psnr_counterfactual"] >= 25
    assert before["object_presence"] > 0.85
    assert after["object_presence"] >= 0.7
    assert run.verdict.outcome == "learned", run.verdict.text
    assert run.report["lost"] == []


def test_the_run_leaves_its_files(horizon_run):
    run, folder = horizon_run
    assert json.loads((folder / "report.json").read_text())["after"] == run.report["after"]
    for name in ("before_after.png", "progress.png"):
        assert min(Image.open(folder / name).size) > 300
    tensors, metadata = read_tensors(folder / "lora.safetensors")
    assert any(name.endswith(".alpha") for name in tensors)
    verdict = json.loads(metadata["dual_process.verdict"])
    assert {name: run.report[name] for name in verdict} == verdict
    assert len(json.loads(metadata["dual_process.anchors"])) >= 16
    recipe = Recipe.from_dict(json.loads(metadata["dual_process.recipe"]), overlays.build)
    assert recipe == horizon_control(0.3).recipe


def test_diffusers_loads_the_lora_and_makes_the_same_pictures(horizon_run, models):
    _, folder = horizon_run
    generator, _ = models
    prompts = list(generator.prompts[-4:])
    seeds = [11, 12, 13, 14]
    ours = generator.sample(range(generator.num_prompts - 4, generator.num_prompts), seeds)
    pipeline = FluxPipeline.from_pretrained(WEIGHTS / "pipeline", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def paint():
        return pipeline(
            prompts,
            height=112,
            width=112,
            num_inference_steps=1,
            guidance_scale=0.0,
            latents=FluxPipeline._pack_latents(draw_noise(seeds, 16, 14, 14), 4, 16, 14, 14),
            max_sequence_length=12,
            output_type="pt",
        ).images

    bare = paint()
    pipeline.load_lora_weights(folder / "lora.safetensors")
    assert (paint() - ours).abs().max() < 1e-4
    assert (bare - ours).abs().max() > 0.1


def test_reward_hacking_is_called_by_its_name(tmp_path):
    control = horizon_control(0.3, learning_rate=1e-3, penalties={}, questions=horizon_control(0.3).asked)
    run = run_control(control, *demo.load(control.prompts), tmp_path)
    assert run.verdict.outcome == "hacked"
    assert run.report["after"]["psnr_counterfactual"] < run.report["before"]["psnr_counterfactual"]
    assert "the pictures went away from the true ones" in run.report["verdict"]


@pytest.mark.parametrize("name", ["palette", "night"])
def test_the_other_controls_are_learned_and_keep_the_structure(tmp_path, name):
    control = CONTROLS[name]()
    run = run_control(control, *demo.load(control.prompts), tmp_path)
    before, after = run.report["before"], run.report["after"]
    assert run.verdict.outcome == "learned", run.verdict.text
    assert after["object_presence"] >= 0.8
    assert after["horizon_shift_px"]["median"] < 5
    assert after["p_answer"] > before["p_answer"] + 0.3
    if name == "night":
        assert after["night_share"] > 0.85
        assert after["brightness"] < before["brightness"] - 0.05
        assert after["psnr_counterfactual"] >= 25
    else:
        distance = "palette_error_ciede2000"
        assert after[distance]["mean"] <= 0.45 * before[distance]["mean"]


def test_a_control_may_ask_the_overlays_own_wordings_and_guards(models, tmp_path):
    plain, line = (
        horizon_control(0.3, train_steps=2, batch_size=2, anchors=Anchors(pool=4, least=2)),
        overlays.horizon(0.3),
    )
    asked = (*overlay_questions(line), *guard_questions(line), *plain.recipe.questions[1:])
    control = replace(plain, recipe=replace(plain.recipe, questions=asked), asked=asked[:1])
    run = run_control(control, *models, tmp_path, pairs=4)
    assert run.report["recipe"]["questions"][0]["paraphrases"] == [*line.questions()[1:]]
    assert all(len(report.p_answer) == len(asked) for report in run.result.history)
    assert Recipe.from_dict(run.report["recipe"], overlays.build) == control.recipe


def test_resuming_on_the_real_generator_is_bit_exact(models, tmp_path):
    generator, critic = models
    recipe = horizon_control(0.3, train_steps=4, batch_size=2).recipe
    whole = distill(generator, critic, recipe).lora_state_dict()
    done = []
    part = distill(generator, critic, recipe, lambda report, _: done.append(report), lambda: len(done) == 2)
    assert part.stop_reason == "interrupted"
    path = part.save_checkpoint(tmp_path / "checkpoint.safetensors")
    resumed = distill(generator, critic, recipe, resume_from=path)
    assert resumed.steps == 4
    for name, tensor in resumed.lora_state_dict().items():
        assert torch.equal(tensor, whole[name]), name


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_prompts_of_the_evaluation_are_held_out(name):
    control = CONTROLS[name]()
    assert len(set(control.held_out)) >= 8
    assert not set(control.held_out) & set(control.recipe.prompts)
