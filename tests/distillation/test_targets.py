"""Targets: whose samples they are for, what they add to the loss by hand, and that they survive files and resumes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from fakes import SIZE, FakeCritic, FakeGenerator, recipe

from dual_process import overlays
from dual_process.core.picture import Picture
from dual_process.core.tensor_file import read_tensors
from dual_process.distillation import Draw, Question, Recipe, RecipeError, Target, distill
from dual_process.distillation.draws import draw_batch
from dual_process.distillation.penalties import PENALTIES
from dual_process.distillation.targets import Aims, target_seeds


def picture(seed: int, size: int = SIZE) -> Picture:
    return Picture.from_tensor(torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed)))


def half() -> Picture:
    """White at the left."""
    mask = torch.zeros(1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 1
    return Picture.from_tensor(mask)


def aimed(*targets, **changes):
    return recipe(Question("a"), targets=targets, **{"penalties": {"targets": 2.0}, **changes})


def test_a_prompts_samples_have_the_noises_of_its_targets():
    settings = aimed(Target(picture(1), prompts=(0,), seeds=(7, 5)), Target(picture(2), prompts=(0,), seeds=(9,)))
    assert target_seeds(settings.targets, 0) == (5, 7, 9)
    assert target_seeds(settings.targets, 1) == ()
    plain = replace(settings, targets=(), penalties={})
    drawn = [(draw_batch(settings, step, 0, 2, 3), draw_batch(plain, step, 0, 2, 3)) for step in range(40)]
    own = {p: set() for p in (0, 1)}
    for with_targets, without in drawn:
        assert replace(with_targets, noise_seeds=without.noise_seeds) == without  # everything else is as it was
        for prompt, seed, usual in zip(
            without.prompt_indices, with_targets.noise_seeds, without.noise_seeds, strict=True
        ):
            own[prompt].add(seed)
            assert prompt == 0 or seed == usual
    assert own[0] == {5, 7, 9}


def test_the_distance_is_that_of_the_formula():
    targets = (Target(picture(1), half(), (0,), (7,)), Target(picture(2), prompts=(1,)))
    draw = Draw((0, 0, 1), (7, 8, 3), (0, 0, 0))
    image = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    aims = Aims.of(targets, draw, image)
    assert aims.rows.tolist() == [0, 2]
    first = (half().tensor()[:1] * (image[0] - picture(1).tensor()) ** 2).mean()
    third = ((image[2] - picture(2).tensor()) ** 2).mean()
    assert PENALTIES["targets"].call(image, aims).item() == pytest.approx(float(first + third) / 3, rel=1e-6)
    none = Aims.of(targets[:1], Draw((1,), (7,), (0,)), image[:1])
    assert PENALTIES["targets"].call(image[:1], none) == 0


def test_a_model_learns_its_targets_with_the_report_of_it():
    target = Target(Picture.from_tensor(FakeGenerator().sample([1], [11])[0]), prompts=(0,), seeds=(5,))
    settings = aimed(target, prompts=("sea",), penalties={"targets": 500.0}, train_steps=80, rank=4, learning_rate=0.02)
    generator = FakeGenerator()
    result = distill(generator, FakeCritic(), settings)
    far = (generator.sample([0], [5], lora_scale=0.0) - target.image.tensor()).square().mean()
    near = (generator.sample([0], [5]) - target.image.tensor()).square().mean()
    assert near < 0.1 * far
    assert result.history[0].penalties["targets"] > 5 * result.history[-1].penalties["targets"]


def test_accumulation_equals_a_larger_batch_and_turns_change_nothing():
    settings = aimed(Target(picture(1), prompts=(0,), seeds=(5, 6)), Target(picture(2), half()), batch_size=4)
    whole = distill(FakeGenerator(), FakeCritic(), settings)
    halves = replace(settings, batch_size=2, gradient_accumulation=2)
    for other in (
        distill(FakeGenerator(), FakeCritic(), halves),
        distill(FakeGenerator(), FakeCritic(), settings, take_turns=True),
    ):
        assert [r.grad_norm for r in other.history] == pytest.approx([r.grad_norm for r in whole.history], rel=1e-4)
        for one, two in zip(whole.history, other.history, strict=True):
            assert two.penalties == pytest.approx(one.penalties, rel=1e-5)


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_files_metadata_and_resume(tmp_path, suffix):
    big = picture(4, 64)
    settings = aimed(Target(picture(1), half(), (0,), (5, 2**63)), Target(big), Target(big, prompts=(1,)))
    settings.save(tmp_path / f"recipe{suffix}")
    assert Recipe.load(tmp_path / f"recipe{suffix}") == settings
    assert len(settings.to_dict()["pictures"]) == 1  # written once; the small ones stay in place
    fitting = replace(settings, targets=settings.targets[:1], train_steps=6)
    straight = distill(FakeGenerator(), FakeCritic(), fitting)
    _, metadata = read_tensors(straight.save(tmp_path / "lora.safetensors"))
    assert Recipe.from_dict(json.loads(metadata["dual_process.recipe"])) == fitting
    path = distill(FakeGenerator(), FakeCritic(), replace(fitting, train_steps=3)).save_checkpoint(
        tmp_path / "c.safetensors"
    )
    resumed = distill(FakeGenerator(), FakeCritic(), fitting, resume_from=path)
    for name, tensor in straight.checkpoint.tensors.items():
        assert torch.equal(tensor, resumed.checkpoint.tensors[name])


def test_pictures_are_read_from_files_beside_the_recipe(tmp_path):
    (tmp_path / "y.png").write_bytes(picture(1).png)
    (tmp_path / "mask.png").write_bytes(half().png)
    (tmp_path / "recipe.toml").write_text(
        '[penalties]\ntargets = 1.0\n[[questions]]\ntext = "a"\n'
        '[[targets]]\nimage = { file = "y.png" }\nmask = { file = "mask.png" }\n'
    )
    (target,) = Recipe.load(tmp_path / "recipe.toml").targets
    assert torch.equal(target.image.tensor(), picture(1).tensor())
    assert torch.equal(target.mask.tensor(), half().tensor())


def test_recipes_without_targets_are_written_as_before():
    assert "targets" not in recipe().to_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aimed(Target(picture(1)), penalties={}), "give the penalty 'targets' a weight"),
        (lambda: aimed(), "has no targets"),
        (lambda: aimed(picture(1)), "Target objects"),
        (lambda: Target(picture(1), mask=picture(2, 8)), "mask of its picture's size, 4 × 4, got 8 × 8"),
        (lambda: Target(picture(1), mask=Picture.from_tensor(torch.zeros(1, SIZE, SIZE))), "black everywhere"),
        (lambda: Target(picture(1), seeds=()), "seeds to be a list"),
        (lambda: Target(picture(1), prompts=(-1,)), "prompts to be a whole number"),
        (lambda: Target(picture(1), seeds=(2**64,)), "seeds to be a whole number"),
        (lambda: Target("y.png"), "Expected a picture"),
        (lambda: Recipe.from_dict({"questions": [{"text": "a"}], "targets": [{"mask": {}}]}), "each with an image"),
        (lambda: Recipe.from_dict({"questions": [{"text": "a"}], "targets": [{"image": {}, "weight": 1}]}), "weight"),
    ],
)
def test_bad_targets_are_named(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_too_large_a_set_is_refused_before_training(monkeypatch):
    monkeypatch.setattr("dual_process.distillation.targets.MOST_BYTES", len(picture(1, 64).png))
    aimed(Target(picture(1, 64)), Target(picture(1, 64), prompts=(0,)))  # one picture twice is one
    with pytest.raises(RecipeError, match="would not fit into a LoRA's header"):
        aimed(Target(picture(1, 64)), Target(picture(2, 64)))


def test_what_does_not_fit_the_run_is_named():
    with pytest.raises(RecipeError, match=r"Target 1 is for the prompts \(2,\), but only 0 to 1 exist"):
        distill(FakeGenerator(), FakeCritic(), aimed(Target(picture(1), prompts=(2,))))
    with pytest.raises(RecipeError, match="trained pictures' size, 4 × 4, got 8 × 8"):
        distill(FakeGenerator(), FakeCritic(), aimed(Target(picture(1, 8))))
    line = Question("a", overlay=overlays.between(overlays.horizon(0.3), overlays.horizon(0.7)))
    with pytest.raises(RecipeError, match="no value"):
        distill(FakeGenerator(), FakeCritic(), replace(aimed(Target(picture(1))), questions=(line,)))
