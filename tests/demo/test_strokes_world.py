"""The second demo world: its language, its pictures, the reader of its pictures, and what its critic is taught."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from dual_process.demo.strokes import controls
from dual_process.demo.strokes.captions import EMPTY, PROMPT_WORDS, caption, parse_prompt, relation_caption
from dual_process.demo.strokes.models import build_critic, build_processor, prompt_tokenizer
from dual_process.demo.strokes.reader import read_scenes, same_scene
from dual_process.demo.strokes.training.critic import text_loss
from dual_process.demo.strokes.training.critic_data import HEADS, TEXTS, YES_NO, Lesson, make_lesson, stretch
from dual_process.demo.strokes.training.exercises import (
    Stretched,
    layout_exercise,
    next_step,
    scene_words,
    spoilt_exercise,
)
from dual_process.demo.strokes.training.pictures import Pool
from dual_process.demo.strokes.training.words import numpy_generator, random_change, random_prompt
from dual_process.demo.strokes.world import (
    TIMES,
    Thing,
    Words,
    build_scenes,
    couple_noise,
    foot_at,
    noise_statistics,
    random_uniforms,
    render,
    with_line_weight,
    without_objects,
)
from dual_process.demo.training.attention import attend_at_once
from dual_process.demo.training.critic import CriticWithHeads
from dual_process.demo.training.critic_data import LOGIT


def draw(count: int, seed: int = 0):
    """Words and scenes of prompts of every form."""
    generator = torch.Generator().manual_seed(seed)
    random = numpy_generator(generator)
    words = [random_prompt(random)[1] for _ in range(count)]
    return words, build_scenes(words, random_uniforms(count, generator))


def test_captions_say_what_their_words_say():
    random = numpy_generator(torch.Generator().manual_seed(1))
    for _ in range(300):
        prompt, words = random_prompt(random)
        assert parse_prompt(prompt) == words, prompt


@pytest.mark.parametrize(
    ("prompt", "things"),
    [
        ("a house", [Thing("house", "white")]),
        ("Two trees and a BLUE ball by night!", [Thing("tree", "green")] * 2 + [Thing("ball", "blue")]),
        ("a ball right of a house", [Thing("house", "white"), Thing("ball", "yellow")]),
        ("a ball behind a house", [Thing("ball", "yellow", (1, 0)), Thing("house", "white", (1, 1))]),
        ("a white tree near middle", [Thing("tree", "white", (1, 1))]),
        (EMPTY, []),
        ("", []),
        ("four houses and four trees", [Thing("house", "white")] * 4),
    ],
)
def test_prompts_are_read(prompt, things):
    assert list(parse_prompt(prompt).things) == things


def test_relations_put_the_first_of_the_words_left_or_behind():
    words = Words((Thing("house", "blue"), Thing("tree", "green")))
    assert relation_caption(words, "left of") == "a blue house left of a tree"
    assert relation_caption(words, "right of") == "a tree right of a blue house"


def test_the_tokenizer_knows_every_word_and_every_prompt_fits():
    tokenizer, random = prompt_tokenizer(), numpy_generator(torch.Generator().manual_seed(2))
    assert len(set(PROMPT_WORDS)) == len(PROMPT_WORDS)
    texts = [random_prompt(random)[0] for _ in range(300)] + [random_change(random).instruction for _ in range(300)]
    for text in texts:
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids, text
        assert len(ids) <= tokenizer.model_max_length, text


def test_noise_names_the_scene():
    generator = torch.Generator().manual_seed(3)
    uniforms = random_uniforms(64, generator)
    noise = couple_noise(torch.randn(64, 16, 16, 16, generator=generator), uniforms)
    for name, value in noise_statistics(noise).items():
        assert torch.allclose(value, uniforms[name].clamp(1e-4, 1 - 1e-4), atol=1e-3), name
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02


def test_objects_of_a_scene_are_apart():
    """Each stands on pixels of its own, a pixel or more from the next."""
    _, scenes = draw(64, seed=4)
    boxes, grow = scenes.boxes(), scenes.line_weight[:, None] / 2
    for i in range(len(scenes)):
        there = boxes[i][scenes.kind[i] >= 0]
        for a in range(len(there)):
            for b in range(a):
                apart = torch.maximum(there[a, :2] - there[b, 2:], there[b, :2] - there[a, 2:]).max()
                assert apart > 2 * grow[i] + 1


def test_the_reader_reads_what_was_drawn():
    words, scenes = draw(48, seed=5)
    reading = read_scenes(render(scenes))
    assert same_scene(reading, scenes).all()
    off = (reading.line_weight - scenes.line_weight).abs()
    assert off[~off.isnan()].max() < 0.15
    prompts = [caption(w) for w in words]
    assert controls.as_prompted(reading, prompts).all()


def test_the_reader_is_not_fooled():
    _, scenes = draw(16, seed=6)
    there = (scenes.kind >= 0).any(dim=1)
    assert not same_scene(read_scenes(render(without_objects(scenes))), scenes)[there].any()
    assert not same_scene(read_scenes(torch.rand(16, 3, 128, 128)), scenes).any()
    moved = replace(scenes, x=(scenes.x + 30).clamp(max=112))
    changed = (moved.x - scenes.x > 20) & (scenes.kind >= 0)
    assert not same_scene(read_scenes(render(moved)), scenes)[changed.any(dim=1)].any()
    painted = render(scenes).clone()
    painted[:, :, 4:16, 40:90] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    assert (read_scenes(painted).strays > 0).all()


def test_changes_do_what_they_say():
    """The instruction leads from one scene to the other, which differ in what it names."""
    random = numpy_generator(torch.Generator().manual_seed(7))
    for _ in range(200):
        change = random_change(random)
        if change.instruction.startswith("make it"):
            assert change.before.things == change.after.things
            assert change.instruction == f"make it {change.after.time}"
            continue
        assert change.before.time == change.after.time
        gone, new = (
            set(change.before.things) - set(change.after.things),
            set(change.after.things) - set(change.before.things),
        )
        assert (len(gone), len(new)) in {(0, 1), (1, 0), (1, 1), (0, 0)}
        for thing in new:
            assert (
                thing.color in change.instruction
                or thing.color == {"house": "white", "tree": "green", "ball": "yellow"}[thing.kind]
            )


def test_the_next_step_leads_to_what_is_wanted():
    blue, tree = Thing("house", "blue", (0, 0)), Thing("tree", "green", (2, 1))
    assert next_step([], [blue, tree]) == "add a blue house far left"
    assert next_step([blue], [blue, tree]) == "add a tree near right"
    assert next_step([replace(blue, color="white")], [blue]) == "make the house far left blue"
    assert next_step([Thing("ball", "blue", (0, 0))], [blue]) == "change the blue ball far left to a blue house"
    assert next_step([blue, tree], [blue]) == "remove the tree near right"
    assert next_step([blue, tree], [tree, blue]) == "nothing"


def make_pool(count: int) -> Pool:
    words, scenes = draw(count, seed=8)
    others = build_scenes(words, random_uniforms(count, torch.Generator().manual_seed(9)))
    return Pool((render(scenes) * 255).round().byte(), scenes, others)


@pytest.mark.parametrize("hardened", [False, True])
def test_lessons_are_written_in_words_that_the_critic_knows(hardened):
    tokenizer, pool = build_processor().tokenizer, make_pool(64)
    generator = torch.Generator().manual_seed(10)
    for _ in range(3):
        lesson = make_lesson(pool, generator, hardened)
        assert lesson.images.shape == (YES_NO + TEXTS, 3, 128, 128)
        assert ((lesson.yes > 0) & (lesson.yes < 1)).all()
        for text in [*lesson.questions, *lesson.texts]:
            assert tokenizer.unk_token_id not in tokenizer(text).input_ids, text
        for name, target in lesson.heads.items():
            assert ((target == -100) | ((target >= 0) & (target < HEADS[name]))).all(), name


def test_a_stretched_object_grows_about_the_middle_of_its_foot():
    words = Words((Thing("house", "blue"),), "day")
    scenes = build_scenes([words], random_uniforms(1, torch.Generator().manual_seed(4)))
    rest = without_objects(scenes)
    thing = render(scenes) - render(rest)
    x, foot = float(scenes.x[0, 0]), float(foot_at(scenes.depth[0, 0]))
    left, top, right, bottom = box_of(thing)
    wider = box_of(stretch(thing, Stretched(rest, x, foot, 1.25, 1.5)))
    assert wider[3] == pytest.approx(foot + 1.5 * (bottom - foot), abs=1.5)
    assert wider[1] == pytest.approx(foot - 1.5 * (foot - top), abs=1.5)
    assert wider[2] - wider[0] == pytest.approx(1.25 * (right - left), abs=2)
    assert torch.allclose(stretch(thing, Stretched(rest, x, foot, 1.0, 1.0)), thing, atol=1e-5)


def box_of(picture):
    there = picture[0].abs().amax(dim=0) > 0.1
    rows, columns = there.any(dim=1).nonzero()[:, 0].tolist(), there.any(dim=0).nonzero()[:, 0].tolist()
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def test_the_more_an_object_is_spoilt_the_less_it_is_there():
    pool, random = make_pool(64), numpy_generator(torch.Generator().manual_seed(12))
    rows = [row for i in range(64) if (row := spoilt_exercise(pool, i, random))]
    ways = [[bool(r.smeared), bool(r.stretched), bool(r.other)].count(True) for r in rows]
    assert set(ways) == {0, 1}
    assert all(row.logit == LOGIT for row, spoilt in zip(rows, ways, strict=True) if not spoilt)
    stretched = [(row, row.stretched) for row in rows if row.stretched]
    by_change = sorted(stretched, key=lambda pair: math.hypot(math.log(pair[1].width), math.log(pair[1].height)))
    assert all(a[0].logit >= b[0].logit for a, b in pairwise(by_change))
    assert by_change[0][0].logit > 0 > by_change[-1][0].logit


def test_a_layout_is_no_match_by_what_is_stretched_into_it():
    pool, random = make_pool(64), numpy_generator(torch.Generator().manual_seed(13))
    rows = [row for i in 8 * list(range(64)) if (row := layout_exercise(pool, i, random, hardened=True))]
    before = [row for i in range(64) if (row := layout_exercise(pool, i, random, hardened=False))]
    fitted = [(row, row.stretched) for row in rows if row.stretched and row.heads["layout"] == 0]
    assert not any(row.other for row, _ in fitted)
    badly = [row.logit for row, how in fitted if math.hypot(math.log(how.width), math.log(how.height)) > math.log(1.5)]
    whole = [row.logit for row in rows if not row.stretched and row.heads["layout"] == 0]
    assert len(badly) > 3
    assert max(badly) < 0 < min(whole)
    assert not any(row.stretched for row in before)


def test_a_description_is_a_prompt_of_the_same_things():
    words, scenes = draw(32, seed=11)
    for i, said in enumerate(words):
        seen = scene_words(scenes, i)
        assert sorted((t.kind, t.color) for t in seen.things) == sorted((t.kind, t.color) for t in said.things)
        assert parse_prompt(caption(seen)) == seen


@pytest.fixture(scope="module")
def critic():
    torch.manual_seed(0)
    return CriticWithHeads(build_processor(), build_critic, HEADS).eval()


def lesson_of(count: int) -> Lesson:
    questions = ["Is it night?", "Is there a tree in the image?"] * count
    texts = ["a ball far right and a green ball near left by dusk", "nothing"] * count
    generator = torch.Generator().manual_seed(12)
    return Lesson(torch.rand(2 * count, 3, 128, 128, generator=generator), questions, torch.rand(2 * count), texts, {})


@torch.no_grad()
def test_the_loss_of_texts_is_that_of_each_alone(critic):
    lesson = lesson_of(1)
    tokenizer = critic.processor.tokenizer
    lengths = [len(tokenizer(t).input_ids) + 1 for t in lesson.texts]
    alone = [
        text_loss(critic, Lesson(lesson.images[i : i + 1], [lesson.questions[i]], lesson.yes, [lesson.texts[i]], {}))
        for i in range(2)
    ]
    wanted = sum(loss * n for loss, n in zip(alone, lengths, strict=True)) / sum(lengths)
    assert text_loss(critic, lesson) == pytest.approx(float(wanted), abs=1e-4)


@torch.no_grad()
def test_attention_over_all_pictures_at_once_is_the_same(critic):
    lesson = lesson_of(2)
    said = ["Yes", "No"] * 2
    before, _ = critic.reply(lesson, said)
    attend_at_once(critic)
    after, _ = critic.reply(lesson, said)
    assert torch.allclose(before, after, atol=1e-5)


def test_measures_of_the_controls_on_drawings():
    words = [Words((Thing("house", "blue"), Thing("tree", "green")))] * 8
    scenes = build_scenes(words, random_uniforms(8, torch.Generator().manual_seed(13)))
    thick = read_scenes(render(with_line_weight(scenes, 4.0)))
    assert controls.line_weight_error(thick, 4.0).max() < 0.1
    assert controls.line_weight_error(thick, 1.0).min() > 2.8
    assert controls.line_weight_error(read_scenes(render(without_objects(scenes))), 4.0).eq(5).all()

    places = controls.DEFAULT_PLACES
    regions = [controls.region_at(*place) for place in places]
    laid_out = read_scenes(render(controls.with_places(scenes, places)))
    assert controls.layout_iou(laid_out, regions).min() > 0.9
    assert controls.order_accuracy(laid_out, "right") == 1.0
    assert controls.order_accuracy(laid_out, "left") == 0.0
    swapped = read_scenes(render(controls.with_places(scenes, ((16.0, 0.85), (112.0, 0.15)))))
    assert controls.layout_iou(swapped, regions).max() < 0.2
    nothing = read_scenes(render(without_objects(scenes)))
    assert controls.layout_iou(nothing, regions).eq(0).all()
    assert controls.order_accuracy(nothing, "right") == 0.0


def test_a_colour_that_faded_is_measured_though_the_other_is_right():
    words = [Words((Thing("house", "blue"), Thing("tree", "green")), time) for time in TIMES]
    scenes = build_scenes(words, random_uniforms(3, torch.Generator().manual_seed(13)))
    pictures = render(scenes)
    assert controls.color_error(read_scenes(pictures)) < 1
    blue = (pictures[:, 2] > pictures[:, 0] + 0.3)[:, None]  # more so than the sky
    faded = torch.where(blue, torch.lerp(pictures, torch.ones(()), 0.25), pictures)
    reading = read_scenes(faded)
    assert controls.as_prompted(reading, [caption(said) for said in words]).all()
    assert controls.color_error(reading) > 7
    assert controls.color_error(read_scenes(render(without_objects(scenes)))) == 100


@pytest.mark.parametrize("name", controls.CONTROLS)
def test_controls_ask_what_the_critic_knows(name):
    control = controls.CONTROLS[name]()
    tokenizer = build_processor().tokenizer
    assert not set(control.held_out) & set(control.recipe.prompts)
    for question in control.recipe.questions:
        assert tokenizer.unk_token_id not in tokenizer(question.text).input_ids, question.text
