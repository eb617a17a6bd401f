"""Every sample's draw comes from (seed, step, sample index) alone."""

from __future__ import annotations

from dataclasses import replace

from fakes import recipe

from dual_process.distillation import Question
from dual_process.distillation.draws import draw_batch, draw_questions


def samples(draw):
    columns = (draw.prompt_indices, draw.noise_seeds, draw.sampler_steps, draw.renoise_times, draw.renoise_seeds)
    return list(zip(*columns, strict=True))


def test_batching_does_not_change_a_sample():
    def drawn(batch_size, first):
        return samples(draw_batch(recipe(batch_size=batch_size, timesteps="renoise"), 3, first, 5, 7))

    assert drawn(4, 0) == drawn(2, 0) + drawn(2, 2) == [drawn(1, i)[0] for i in range(4)]
    assert len({*drawn(4, 0)}) == 4


def test_both_kinds_of_timesteps_see_the_same_noise():
    sampler, renoise = (draw_batch(recipe(timesteps=t), 3, 0, 5, 7) for t in ("sampler", "renoise"))
    assert (sampler.prompt_indices, sampler.noise_seeds) == (renoise.prompt_indices, renoise.noise_seeds)
    assert sampler.renoise_seeds is None


def test_seed_step_and_sample_each_matter():
    one = recipe(batch_size=1)
    draws = [
        draw_batch(one, 0, 0, 5, 7),
        draw_batch(one, 1, 0, 5, 7),
        draw_batch(one, 0, 1, 5, 7),
        draw_batch(recipe(batch_size=1, seed=1), 0, 0, 5, 7),
    ]
    assert len({d.noise_seeds for d in draws}) == 4


def test_every_prompt_and_sampler_step_is_drawn():
    draws = [draw_batch(recipe(), step, 0, 3, 4) for step in range(60)]
    assert {p for d in draws for p in d.prompt_indices} == {0, 1, 2}
    assert {s for d in draws for s in d.sampler_steps} == {0, 1, 2, 3}


def test_renoise_times():
    draws = [draw_batch(recipe(timesteps="renoise"), step, 0, 3, 4) for step in range(60)]
    times = [t for d in draws for t in d.renoise_times]
    assert 0 < min(times) < 0.1
    assert 0.9 < max(times) <= 1
    assert draw_batch(recipe(), 0, 0, 3, 4).renoise_times is None


WORDED = (Question("a", paraphrases=("b", "c")), Question("d", "No", paraphrases=("e", "f")), Question("g"))


def test_a_step_asks_one_wording_of_each_question():
    settings = recipe(*WORDED)
    asked = [draw_questions(settings, step) for step in range(200)]
    assert all(q.paraphrases == () for questions in asked for q in questions)
    texts = [tuple(q.text for q in questions) for questions in asked]
    assert {*texts} == {(one, other, "g") for one in "abc" for other in "def"}  # each question draws for itself
    assert all(40 < sum(row[0] == text for row in texts) < 95 for text in "abc")
    assert [q.answer for q in asked[0]] == ["Yes", "No", "Yes"]
    assert texts[50:60] == [tuple(q.text for q in draw_questions(settings, step)) for step in range(50, 60)]
    other = [tuple(q.text for q in draw_questions(replace(settings, seed=1), step)) for step in range(200)]
    assert other != texts


def test_averaged_wordings_are_asked_as_they_are():
    settings = recipe(*WORDED, wordings="averaged")
    assert draw_questions(settings, 3) == settings.questions
