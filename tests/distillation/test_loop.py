"""The loop against a plain one written down here, and its promises: resume, stop, diverge, report."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from fakes import SIZE, FakeCritic, FakeGenerator, recipe
from torch.nn import functional as F

from dual_process import overlays
from dual_process.distillation import (
    CriticError,
    DistillationDiverged,
    DistillationFailed,
    LoraFileError,
    Question,
    RecipeError,
    Run,
    Sampling,
    StopRequested,
    distill,
)
from dual_process.distillation.checkpoint import Checkpoint
from dual_process.distillation.draws import draw_batch

LINE = overlays.horizon(0.4, thickness=0.3)
QUESTIONS = (Question("a", overlay=LINE), Question("b", weight=0.5))
WORDED = (Question("a", overlay=LINE, paraphrases=("c", "d")), Question("b", weight=0.5, paraphrases=("e",)))


def lora(result):
    return {k: v.clone() for k, v in result.lora_state_dict().items()}


def same(one, other, tolerance=0.0):
    return all(torch.allclose(one[k], other[k], rtol=0, atol=tolerance) for k in one | other)


def plain_trajectory(settings, steps):
    """Loss and gradient norm of each step by a loop that shares only the random draws with the engine."""
    generator = FakeGenerator()
    generator.add_lora(settings.rank, settings.lora_alpha, settings.seed)
    parameters = [generator.a, generator.b]
    betas = (0.9, settings.adam_beta2)
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=betas, weight_decay=0.0)
    rows = []
    for step in range(steps):
        draw = draw_batch(settings, step, 0, 2, 3)
        noise = [torch.randn(6, generator=torch.Generator().manual_seed(s)) for s in draw.noise_seeds]
        z = torch.stack(noise) + generator.shift[list(draw.prompt_indices)]
        base = 0.25 * z @ generator.weight.T.detach()
        velocity = base + 0.25 * z @ (settings.lora_alpha / settings.rank * generator.b @ generator.a).T
        image = (velocity + 0.5).reshape(-1, 3, SIZE, SIZE)
        visible = image.clamp(0, 1)
        a = F.logsigmoid(LINE.apply(visible).flatten(1) @ FakeCritic.direction("a"))
        b = F.logsigmoid(visible.flatten(1) @ FakeCritic.direction("b"))
        loss = -(a + 0.5 * b).mean() / 1.5
        outside = 5 * ((image - 1).clamp(min=0) + (-image).clamp(min=0)).mean()
        weights = settings.penalties
        total = loss + weights.get("velocity", 0.0) * (velocity - base).square().mean()
        total = total + weights.get("range", 0.0) * outside
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        rows.append((loss.item(), norm.item()))
    return rows


@pytest.mark.parametrize(
    "changes", [{"seed": 3}, {"adam_beta2": 0.9}, {"penalties": {"velocity": 0.7, "range": 2.0}, "max_grad_norm": 0.05}]
)
def test_ten_steps_equal_a_plain_loop(changes):
    settings = recipe(*QUESTIONS, train_steps=10, **changes)
    result = distill(FakeGenerator(), FakeCritic(), settings)
    ours = [(r.loss, r.grad_norm) for r in result.history]
    assert torch.allclose(torch.tensor(ours), torch.tensor(plain_trajectory(settings, 10)), rtol=1e-5, atol=1e-7)
    assert ours[-1][0] != ours[0][0]


def test_ten_steps_are_pinned():
    """Numbers of the plain loop above: a change of the random draws or of the defaults shows here."""
    settings = recipe(*QUESTIONS, train_steps=10, penalties={"velocity": 0.7, "range": 2.0})
    history = distill(FakeGenerator(), FakeCritic(), settings).history
    losses = [0.936536, 0.855784, 0.991997, 0.727292, 0.807943, 0.983154, 1.154688, 1.099958, 0.967099, 0.897704]
    norms = [0.819005, 1.887663, 1.802592, 0.940903, 1.284929, 1.467412, 1.747531, 4.445473, 1.821407, 2.090892]
    assert [r.loss for r in history] == pytest.approx(losses, rel=1e-4)
    assert [r.grad_norm for r in history] == pytest.approx(norms, rel=1e-4)


def test_the_first_step_sees_the_base_model():
    settings = recipe(Question("a"), penalties={"velocity": 1.0})
    generator = FakeGenerator()
    first = distill(generator, FakeCritic(), settings).history[0]
    draw = generator.draws[0]
    base = generator.sample(draw.prompt_indices, draw.noise_seeds, lora_scale=0.0)
    wanted = -F.logsigmoid(base.flatten(1) @ FakeCritic.direction("a")).mean()
    assert first.loss == pytest.approx(wanted.item(), rel=1e-6)
    assert first.penalties == {"velocity": 0.0}
    assert first.step == 1


def test_only_the_lora_gets_gradients_and_the_model_comes_back():
    generator = FakeGenerator()
    before = generator.weight.detach().clone()
    distill(generator, FakeCritic(), recipe())
    assert generator.weight.grad is None
    assert generator.weight.requires_grad
    assert torch.equal(generator.weight, before)
    assert generator.a.grad is not None


def test_accumulation_equals_a_larger_batch():
    questions = (Question("a", overlay=LINE), Question("b", prompts=(1,)))
    settings = recipe(*questions, batch_size=4, penalties={"velocity": 0.3, "range": 0.3})
    whole = distill(FakeGenerator(), FakeCritic(), settings)
    parts = distill(FakeGenerator(), FakeCritic(), replace(settings, batch_size=2, gradient_accumulation=2))
    assert same(lora(whole), lora(parts), 1e-6)
    assert [r.loss for r in parts.history] == pytest.approx([r.loss for r in whole.history], rel=1e-5)
    # NaN stands for a step in which the question was for none of the samples.
    for one, other in zip(whole.history, parts.history, strict=True):
        assert one.p_answer == pytest.approx(other.p_answer, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("wordings", ["sampled", "averaged"])
def test_paraphrases_train_and_resume_and_accumulate_exactly(tmp_path, wordings):
    settings = recipe(*WORDED, train_steps=9, wordings=wordings, batch_size=2)
    critic = FakeCritic()
    whole = distill(FakeGenerator(), critic, settings)
    assert {text for call in critic.calls for text in call} == {*"abcde"}
    assert all(len(report.p_answer) == 2 for report in whole.history)
    path = interrupted_at(4, settings).save_checkpoint(tmp_path / "c.safetensors")
    other = FakeCritic()
    resumed = distill(FakeGenerator(), other, settings, resume_from=path)
    assert other.calls == critic.calls[8:]  # two overlays, so two calls a step
    assert same(lora(resumed), lora(whole))
    assert timeless(resumed.history) == timeless(whole.history)
    parts = distill(FakeGenerator(), FakeCritic(), replace(settings, batch_size=1, gradient_accumulation=2))
    assert same(lora(whole), lora(parts), 1e-6)
    assert [r.loss for r in parts.history] == pytest.approx([r.loss for r in whole.history], rel=1e-5)


def interrupted_at(step, settings, **kwargs):
    seen = []
    return distill(
        FakeGenerator(), FakeCritic(), settings, lambda r, _: seen.append(r), lambda: len(seen) >= step, **kwargs
    )


def timeless(history):
    return [replace(report, seconds=0.0) for report in history]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_resume_is_bit_exact(tmp_path, schedule):
    settings = recipe(*QUESTIONS, train_steps=9, lr_schedule=schedule)
    whole = distill(FakeGenerator(), FakeCritic(), settings)
    part = interrupted_at(4, settings)
    assert (part.stop_reason, part.steps) == ("interrupted", 4)
    path = part.save_checkpoint(tmp_path / "c.safetensors")
    resumed = distill(FakeGenerator(), FakeCritic(), settings, resume_from=path)
    assert same(lora(resumed), lora(whole))
    assert timeless(resumed.history) == timeless(whole.history)


def test_checkpoints_are_written_on_the_way(tmp_path):
    settings = recipe(*QUESTIONS, train_steps=9)
    path = tmp_path / "c.safetensors"
    interrupted_at(7, settings, checkpoint_path=path, checkpoint_every=3)
    generator = FakeGenerator()
    resumed = distill(generator, FakeCritic(), settings, resume_from=path)
    whole = distill(FakeGenerator(), FakeCritic(), settings)
    assert generator.estimates == 9 - 6
    assert same(lora(resumed), lora(whole))
    assert timeless(resumed.history) == timeless(whole.history)


def test_checkpoints_tell_whether_their_run_has_steps_left(tmp_path):
    def is_unfinished(result):
        return Checkpoint.load(result.save_checkpoint(tmp_path / "c.safetensors")).is_unfinished

    assert is_unfinished(interrupted_at(4, recipe(train_steps=9)))
    assert not is_unfinished(distill(FakeGenerator(), FakeCritic(), recipe(train_steps=3)))
    early = distill(FakeGenerator(), FakeCritic(), recipe(train_steps=9, stop_probability=1e-9, stop_steps=2))
    assert (early.stop_reason, early.steps) == ("early_stop", 2)
    assert not is_unfinished(early)
    path = tmp_path / "on the way.safetensors"
    interrupted_at(4, recipe(train_steps=9), checkpoint_path=path, checkpoint_every=3)
    assert Checkpoint.load(path).is_unfinished


def test_more_steps_may_be_asked_for_than_at_first(tmp_path):
    short = distill(FakeGenerator(), FakeCritic(), recipe(train_steps=3))
    path = short.save_checkpoint(tmp_path / "c.safetensors")
    longer = distill(FakeGenerator(), FakeCritic(), recipe(train_steps=8), resume_from=path)
    assert same(lora(longer), lora(distill(FakeGenerator(), FakeCritic(), recipe(train_steps=8))))


class OtherLayer(FakeGenerator):
    def lora_parameters(self):
        return {name.replace("layer", "other"): p for name, p in super().lora_parameters().items()}


def test_a_decaying_schedule_cannot_be_stretched(tmp_path):
    short = distill(FakeGenerator(), FakeCritic(), recipe(train_steps=3, lr_schedule="cosine"))
    path = short.save_checkpoint(tmp_path / "c.safetensors")
    with pytest.raises(LoraFileError, match=r"\['train_steps'\]"):
        distill(FakeGenerator(), FakeCritic(), recipe(train_steps=8, lr_schedule="cosine"), resume_from=path)


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    result = distill(FakeGenerator(), FakeCritic(), recipe())
    path = result.save_checkpoint(tmp_path / "c.safetensors")

    def resume(generator=None, file=path, **changes):
        distill(generator or FakeGenerator(), FakeCritic(), recipe(**changes), resume_from=file)

    with pytest.raises(LoraFileError, match=r"\['learning_rate'\]"):
        resume(learning_rate=0.02)
    with pytest.raises(LoraFileError, match="holds 6 steps, but the recipe asks for 5"):
        resume(train_steps=5)
    with pytest.raises(LoraFileError, match="does not fit this model"):
        resume(OtherLayer())
    with pytest.raises(LoraFileError, match="another base model"):
        resume(FakeGenerator(sha="2" * 64))
    with pytest.raises(LoraFileError, match="not a checkpoint"):
        resume(file=result.save(tmp_path / "lora.safetensors"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(LoraFileError, match="truncated"):
        resume()


def test_stop_before_the_first_step():
    result = distill(FakeGenerator(), FakeCritic(), recipe(), should_stop=lambda: True)
    assert (result.stop_reason, result.steps) == ("interrupted", 0)
    assert torch.count_nonzero(lora(result)["layer.lora_B"]) == 0


def test_a_stop_within_a_step_keeps_the_lora_of_the_step_before():
    asked = []
    settings = recipe(batch_size=1, gradient_accumulation=3)
    result = distill(FakeGenerator(), FakeCritic(), settings, should_stop=lambda: asked.append(0) or len(asked) == 8)
    assert (result.stop_reason, result.steps) == ("interrupted", 2)  # 3 + 3 passes, then the second of the third step
    assert same(lora(result), lora(distill(FakeGenerator(), FakeCritic(), replace(settings, train_steps=2))))


def test_a_result_never_hands_out_another_runs_lora(tmp_path):
    generator = FakeGenerator()
    first = distill(generator, FakeCritic(), recipe())
    path = first.save(tmp_path / "first.safetensors")
    distill(generator, FakeCritic(), recipe(seed=1))
    before = path.read_bytes()
    with pytest.raises(LoraFileError, match="another LoRA since"):
        first.save(path)
    assert path.read_bytes() == before
    again = distill(generator, FakeCritic(), recipe(), resume_from=first.save_checkpoint(tmp_path / "c.safetensors"))
    assert same(lora(again), lora(distill(FakeGenerator(), FakeCritic(), recipe())))


def test_a_result_notices_a_lora_changed_in_place():
    generator = FakeGenerator()
    result = distill(generator, FakeCritic(), recipe())
    with torch.no_grad():
        generator.b.add_(1.0)
    with pytest.raises(LoraFileError, match="another LoRA since"):
        result.lora_state_dict()


def test_no_early_stop_while_a_question_has_not_been_asked():
    questions = (Question("a"), Question("b", prompts=(0,)))
    settings = recipe(*questions, train_steps=12, batch_size=1, stop_probability=1e-6, stop_steps=1)
    generator = FakeGenerator()
    result = distill(generator, FakeCritic(), settings)
    assert result.stop_reason == "early_stop"
    asked = [draw.prompt_indices == (0,) for draw in generator.draws]
    assert asked == [False] * (len(asked) - 1) + [True]
    assert len(asked) > 1


def test_early_stop():
    settings = recipe(train_steps=50, stop_probability=0.01, stop_steps=3)
    result = distill(FakeGenerator(), FakeCritic(), settings)
    assert (result.stop_reason, result.steps) == ("early_stop", 3)
    assert distill(FakeGenerator(), FakeCritic(), replace(settings, train_steps=5, stop_probability=1.0)).steps == 5


def test_early_stop_looks_at_every_one_of_the_last_steps():
    settings = recipe(train_steps=30)
    values = [r.p_answer[0] for r in distill(FakeGenerator(), FakeCritic(), settings).history]
    threshold = sorted(values)[15]
    wanted = next(n for n in range(3, 31) if min(values[n - 3 : n]) > threshold)
    assert max(values[: wanted - 3]) > threshold  # single steps were above it before
    result = distill(FakeGenerator(), FakeCritic(), replace(settings, stop_probability=threshold, stop_steps=3))
    assert (result.stop_reason, result.steps) == ("early_stop", wanted)


@pytest.mark.parametrize("poisoned", ["critic", "generator"])
def test_not_a_number_keeps_the_last_good_lora(poisoned, tmp_path):
    generator, critic = FakeGenerator(), FakeCritic(nan_at=3 if poisoned == "critic" else None)
    generator.poison_seed_at = 3 if poisoned == "generator" else None
    with pytest.raises(DistillationDiverged, match="step 4") as caught:
        distill(generator, critic, recipe())
    assert caught.value.step == 4
    assert caught.value.result.steps == 3
    good = distill(FakeGenerator(), FakeCritic(), recipe(train_steps=3))
    assert same(lora(caught.value.result), lora(good))
    path = caught.value.result.save_checkpoint(tmp_path / "c.safetensors")
    resumed = distill(FakeGenerator(), FakeCritic(), recipe(), resume_from=path)
    assert same(lora(resumed), lora(distill(FakeGenerator(), FakeCritic(), recipe())))


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("kind", [MemoryError, CriticError])
def test_a_step_that_fails_keeps_the_lora(step, kind):
    class Failing(FakeCritic):
        def log_likelihood(self, images, questions):
            if len(self.calls) == step - 1:
                raise kind("no room")
            return super().log_likelihood(images, questions)

    if step == 1:  # nothing to keep
        with pytest.raises(kind, match="no room"):
            distill(FakeGenerator(), Failing(), recipe())
        return
    with pytest.raises(DistillationFailed, match=r"Step 4 failed \(\w+Error: no room\).*step 3 is kept") as caught:
        distill(FakeGenerator(), Failing(), recipe())
    assert isinstance(caught.value.__cause__, kind)
    partial = caught.value.result
    assert (partial.steps, partial.stop_reason) == (3, "failed")
    wanted = distill(FakeGenerator(), FakeCritic(), recipe(train_steps=3)).generator.lora_state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in partial.generator.lora_state_dict().items())


def test_not_a_number_in_the_gradient_alone():
    class Spiky(FakeCritic):
        def log_likelihood(self, images, questions):
            return super().log_likelihood(images, questions) + (images.sum() * 0).sqrt()  # 0, slope infinite

    with pytest.raises(DistillationDiverged, match="gradient of step 1"):
        distill(FakeGenerator(), Spiky(), recipe())


def test_reports_and_previews():
    seen = []
    result = distill(FakeGenerator(), FakeCritic(), recipe(*QUESTIONS), lambda *args: seen.append(args))
    assert [report for report, _ in seen] == list(result.history)
    assert [r.step for r in result.history] == [1, 2, 3, 4, 5, 6]
    assert all(len(r.p_answer) == 2 and 0 < min(r.p_answer) < max(r.p_answer) < 1 for r in result.history)
    preview = seen[-1][1]
    assert preview.image.shape == (2, 3, SIZE, SIZE)
    assert 0 <= preview.image.min() <= preview.image.max() <= 1
    assert not preview.image.requires_grad


def test_p_answer_of_a_question_that_no_sample_was_asked_is_nan():
    settings = recipe(Question("a"), Question("b", prompts=(1,)), batch_size=1, train_steps=12)
    generator = FakeGenerator()
    history = distill(generator, FakeCritic(), settings).history
    asked = [draw.prompt_indices == (1,) for draw in generator.draws]
    assert {*asked} == {True, False}
    assert [not math.isnan(r.p_answer[1]) for r in history] == asked


def test_several_critics():
    critics = {"one": FakeCritic(), "two": FakeCritic()}
    result = distill(FakeGenerator(), critics, recipe(Question("a", critic="one"), Question("b", critic="two")))
    assert result.steps == len(critics["one"].calls) == len(critics["two"].calls)
    assert set(result.critics) == {"one", "two"}
    alone = distill(FakeGenerator(), FakeCritic(), recipe(Question("a"), Question("b")))
    assert same(lora(result), lora(alone), 1e-6)
    assert [r.loss for r in result.history] == pytest.approx([r.loss for r in alone.history], rel=1e-5)


def test_the_recipe_reaches_the_generator():
    generator = FakeGenerator()
    distill(generator, FakeCritic(), recipe(prompts=("sea",), height=8, width=16, guidance=2.0, num_inference_steps=2))
    for draw in generator.draws:
        assert set(draw.prompt_indices) == {0}
        assert max(draw.sampler_steps) < 2
        assert draw.sampling == Sampling(2, 2.0, 8, 16)


@pytest.mark.parametrize("prompts", [("sand",), ("sea", "sand", "grass")])
def test_prompts_must_be_the_generators_first(prompts):
    with pytest.raises(RecipeError, match="load it with the recipe's prompts"):
        distill(FakeGenerator(), FakeCritic(), recipe(prompts=prompts))


def test_cosine_schedule_reaches_the_optimizer():
    rates = [r.learning_rate for r in distill(FakeGenerator(), FakeCritic(), recipe(lr_schedule="cosine")).history]
    assert rates == pytest.approx([0.01 * 0.5 * (1 + math.cos(math.pi * s / 6)) for s in range(6)])
    constant = lora(distill(FakeGenerator(), FakeCritic(), recipe()))
    assert not same(constant, lora(distill(FakeGenerator(), FakeCritic(), recipe(lr_schedule="cosine"))))


def test_those_who_watch_cannot_end_a_run(tmp_path, caplog):
    def broken(report, preview):
        raise OSError("no display")

    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    result = distill(
        FakeGenerator(), FakeCritic(), recipe(), broken, checkpoint_path=blocked / "c.safetensors", checkpoint_every=2
    )
    assert (result.stop_reason, result.steps) == ("completed", 6)
    assert same(lora(result), lora(distill(FakeGenerator(), FakeCritic(), recipe())))
    assert caplog.text.count("no display") == 6
    assert caplog.text.count("Could not write") == 3


def test_a_host_can_drive_a_run_itself():
    with Run(FakeGenerator(), FakeCritic(), recipe(), take_turns=True) as run:
        losses = []
        while not run.finished:
            losses.append(run.step()[0].loss)
    assert losses == [r.loss for r in distill(FakeGenerator(), FakeCritic(), recipe()).history]
    assert run.result("completed").steps == 6


def test_cudnn_computes_no_attention_in_a_step():
    """On some cards its gradients are not numbers."""
    allowed = torch.backends.cuda.cudnn_sdp_enabled
    seen = []

    class Watching(FakeCritic):
        def log_likelihood(self, images, questions):
            scores = super().log_likelihood(images, questions)
            scores.register_hook(lambda _: seen.append(allowed()))
            seen.append(allowed())
            return scores

    assert allowed()
    distill(FakeGenerator(), Watching(), recipe(train_steps=1))
    assert seen == [False, False]
    assert allowed()


def test_a_checkpoint_every_no_steps_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="checkpoint_every"):
        distill(FakeGenerator(), FakeCritic(), recipe(), checkpoint_path=tmp_path / "c", checkpoint_every=0)


def test_a_host_that_stops_its_model_within_a_step_gets_the_steps_before():
    generator, reference = FakeGenerator(), FakeGenerator()
    estimate = generator.estimate

    def interrupted(draw, needs):
        if generator.estimates == 3:
            raise StopRequested
        return estimate(draw, needs)

    generator.estimate = interrupted
    result = distill(generator, FakeCritic(), recipe(train_steps=9))
    assert (result.stop_reason, result.steps) == ("interrupted", 3)
    wanted = distill(reference, FakeCritic(), recipe(train_steps=9), should_stop=lambda: reference.estimates == 3)
    assert torch.equal(result.lora_state_dict()["layer.lora_B"], wanted.lora_state_dict()["layer.lora_B"])


def test_a_host_that_stops_its_model_as_training_is_left_gets_the_steps_before():
    class Interrupt(BaseException):
        """What a host raises from inside a model, as ComfyUI does."""

    class Hosted(FakeGenerator):
        @contextmanager
        def training(self, in_turns=False):
            with super().training():
                try:
                    yield
                except Interrupt as error:
                    raise StopRequested from error

        def estimate(self, draw, needs):
            if self.estimates == 3:
                raise Interrupt
            return super().estimate(draw, needs)

    for take_turns in (False, True):
        result = distill(Hosted(), FakeCritic(), recipe(train_steps=9), take_turns=take_turns)
        assert (result.stop_reason, result.steps) == ("interrupted", 1 if take_turns else 3)


def test_a_run_starts_from_a_given_lora():
    first = distill(FakeGenerator(), FakeCritic(), recipe(*QUESTIONS, train_steps=3))
    weights = {name: p.detach().clone() for name, p in first.generator.lora_parameters().items()}
    still = distill(
        FakeGenerator(), FakeCritic(), recipe(*QUESTIONS, train_steps=1, learning_rate=1e-12), initial_lora=weights
    )
    assert same(lora(still), lora(first), 1e-9)
    with pytest.raises(RecipeError, match=r"1 of 2 tensors differ, such as a .*Start from one of this model and rank"):
        distill(FakeGenerator(), FakeCritic(), recipe(*QUESTIONS), initial_lora={**weights, "a": torch.zeros(3, 3)})


def test_two_answers_to_one_question_are_refused():
    for other in (Question("a", "No"), Question("b", "No", paraphrases=("a",))):
        with pytest.raises(RecipeError, match="'a' is to be answered 'Yes' and 'No' at once"):
            distill(FakeGenerator(), FakeCritic(), recipe(Question("a", "Yes"), other))
    apart = (Question("a", "Yes", prompts=(0,)), Question("a", "No", prompts=(1,)), Question("a", "No", overlay=LINE))
    assert distill(FakeGenerator(), FakeCritic(), recipe(*apart, train_steps=1)).steps == 1
