"""Rounds of marked pictures: what is asked, what is learnt, what is kept in the file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import SIZE, FakeCritic, FakeGenerator, recipe

from dual_process.core.errors import LoraFileError, RecipeError
from dual_process.core.picture import Picture
from dual_process.distillation import Question
from dual_process.distillation.favourites import LIKENESS, Favourites, Picks


class Comparing(FakeCritic):
    """Grades by the distance to the reference: P of the grades is a softmax around it."""

    def log_likelihood(self, images, questions):
        columns = []
        for question in questions:
            if not question.references:
                columns.append(super().log_likelihood(images, [question])[:, 0])
                continue
            (reference,) = question.references
            far = (images - reference.tensor()).square().flatten(1).mean(dim=1)
            grade = 1 + 4 / (1 + 10 * far)
            columns.append(-((grade - float(question.answer)) ** 2))
        return torch.stack(columns, dim=1)


def rounds(critic=None, generator=None, **changes):
    settings = {"train_steps": 8, "learning_rate": 0.05, "prompts": ("sea",), **changes}
    plan = recipe(LIKENESS, Question("kept?", role="keep", weight=1e-4), **settings)
    return Favourites(generator or FakeGenerator(("sea", "sand", "grass")), critic or Comparing(), plan, shown=4)


def distance(images, picture):
    return float((images - picture).square().mean())


def test_candidates_are_held_out_prompts_with_new_noises_each_round():
    one = rounds()
    first = one.candidates()
    assert first.shape == (4, 3, SIZE, SIZE)
    assert torch.equal(first, one.candidates())
    assert len({tuple(picture.flatten().tolist()) for picture in first}) == 4
    assert one.prompt_indices(0) == [1, 2, 1, 2]
    one.pick(Picks((0,)))
    assert not torch.equal(first, one.candidates())
    assert torch.equal(first, rounds().candidates())  # the same seed shows the same


def test_favourites_are_asked_for_and_rejected_ones_against():
    one = rounds()
    questions = one.questions(Picks((0, 2), (1,)))
    told = [(q.answer, q.weight, len(q.references), q.grades) for q in questions[:3]]
    assert told == [("5", 1 / 3, 1, ("1", "2", "3", "4", "5"))] * 2 + [("1", 1 / 3, 1, ("1", "2", "3", "4", "5"))]
    shown = one.candidates()
    for question, number in zip(questions, (0, 2, 1), strict=False):
        assert (question.references[0].tensor() - shown[number]).abs().max() <= 0.51 / 255
    assert questions[3].text == "kept?"


def test_pictures_come_nearer_to_what_is_liked_round_by_round():
    one = rounds(generator=FakeGenerator(("sea",)), train_steps=30, batch_size=8)
    wanted = one.candidates()[1]
    distances = [distance(one.candidates(), wanted)]
    for _ in range(3):
        shown = one.candidates()
        near = [distance(picture, wanted) for picture in shown]
        one.pick(Picks((near.index(min(near)),)))
        distances.append(distance(one.candidates(), wanted))
    assert distances[-1] < 0.6 * distances[0]
    assert len(one.questions(Picks((0, 1, 2), (3,)))) == 6 + 1  # the newest marks


def test_an_undone_round_can_be_ended_otherwise():
    one = rounds()
    one.pick(Picks((0,)))
    second, first_lora = one.candidates(), one.rounds[0].lora
    one.pick(Picks((1,)))
    one.pick(Picks((2,)))
    one.undo(2)
    assert torch.equal(one.candidates(), second)
    assert all(torch.equal(p, first_lora[name]) for name, p in one.generator.lora_parameters().items())
    again = rounds()
    again.pick(Picks((0,)))
    for session in (one, again):
        session.pick(Picks((3,)))
    assert torch.equal(one.candidates(), again.candidates())
    for wrong in (0, 3):
        with pytest.raises(RecipeError, match="1 to 2 rounds to undo"):
            one.undo(wrong)


def test_a_saved_session_goes_on_as_if_it_had_never_stopped(tmp_path):
    one = rounds()
    one.pick(Picks((0,), (2,)))
    one.pick(Picks((1,)))
    path = one.save(tmp_path / "favourites.safetensors")
    other = Favourites.load(path, FakeGenerator(("sea", "sand", "grass")), Comparing())
    assert [past.picks for past in other.rounds] == [Picks((0,), (2,)), Picks((1,))]
    assert torch.equal(other.rounds[0].pictures, one.rounds[0].pictures)
    assert torch.equal(other.candidates(), one.candidates())
    for session in (one, other):
        session.pick(Picks((2,), (3,)))
    assert torch.equal(one.candidates(), other.candidates())
    with pytest.raises(LoraFileError, match="another base model"):
        Favourites.load(path, FakeGenerator(sha="1" * 64), Comparing())
    lora = one.pick(Picks((0,))).save(tmp_path / "lora.safetensors")
    with pytest.raises(LoraFileError, match="no rounds of favourites"):
        Favourites.load(lora, FakeGenerator(), Comparing())


@pytest.mark.parametrize(
    "first", [Question("a"), replace(LIKENESS, references=(Picture.from_tensor(torch.zeros(3, 4, 4)),))]
)
def test_a_recipe_without_a_comparison_is_refused(first):
    with pytest.raises(RecipeError, match="first question is graded and has no references yet"):
        Favourites(FakeGenerator(), Comparing(), recipe(first))
    with pytest.raises(RecipeError, match="at least 2 candidates"):
        Favourites(FakeGenerator(), Comparing(), recipe(LIKENESS), shown=1)


@pytest.mark.parametrize(
    ("picks", "message"),
    [
        (Picks(()), "No picture is marked"),
        (Picks((0, 1, 2, 3)), "Every picture has the same mark"),
        (Picks((), (0, 1, 2, 3)), "Every picture has the same mark"),
        (Picks((0, 1), (1,)), "Marked as favourite and as rejected at once: picture 2"),
        (Picks((4,)), "marks of 4 pictures, got one of picture 5"),
        (Picks((-1,)), "marks of 4 pictures, got one of picture 0"),
    ],
)
def test_picks_that_say_nothing_are_refused_and_nothing_is_lost(picks, message):
    one = rounds()
    one.pick(Picks((0,)))
    shown = one.candidates()
    with pytest.raises(RecipeError, match=message):
        one.pick(picks)
    assert len(one.rounds) == 1
    assert torch.equal(one.candidates(), shown)


def test_picks_are_read_from_lines_that_count_from_one():
    assert Picks.parse(" 1 4, -6 4 ") == Picks((0, 3), (5,))
    assert Picks.parse("") == Picks(())
    for wrong in ("1 x", "0 2", "1.5"):
        with pytest.raises(RecipeError, match="such as '1 4 -6', got"):
            Picks.parse(wrong)


def test_rounds_that_were_marked_otherwise_are_undone():
    one = rounds()
    first, second, other = Picks((0,)), Picks((1,)), Picks((2,))
    assert one.keep([first, second]) == [first, second]
    one.pick(first)
    one.pick(second)
    shown = one.candidates()
    assert one.keep([first, second, other]) == [other]
    assert torch.equal(one.candidates(), shown)
    assert one.keep([first, other]) == [other]
    assert len(one.rounds) == 1
    assert one.keep([]) == []
    assert len(one.rounds) == 0


def test_a_training_that_fails_leaves_the_rounds_as_they_are():
    one = rounds()
    one.pick(Picks((0,)))
    lora = one.rounds[0].lora
    broken = replace(one.recipe, questions=(LIKENESS, Question("a", critic="nobody")))
    working, one.recipe = one.recipe, broken
    with pytest.raises(RecipeError, match="nobody"):
        one.pick(Picks((1,)))
    one.recipe = working
    assert len(one.rounds) == 1
    assert one.rounds[0].lora is lora
    one.pick(Picks((1,)))
    assert len(one.rounds) == 2
