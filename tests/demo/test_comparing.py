"""The comparing critic of the demo: what it has learnt, what it has kept, and what a person's marks teach by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from dual_process import demo
from dual_process.core.picture import Picture
from dual_process.critics import load_critic
from dual_process.demo.comparing import load_comparing_critic
from dual_process.demo.questions import HORIZON, STYLE, TIME
from dual_process.demo.tastes import TASTES, taste_recipe
from dual_process.demo.training.common import Run
from dual_process.demo.training.comparing import grade_shares, likeness, related, style_logit, train_comparing
from dual_process.demo.training.export import export_adapter
from dual_process.demo.world import random_scenes, render
from dual_process.distillation import Question
from dual_process.distillation.favourites import LIKENESS, Favourites, Picks

COUNT = 48


@pytest.fixture(scope="module")
def critic():
    return load_comparing_critic()


@pytest.fixture(scope="module")
def scenes():
    random = torch.Generator().manual_seed(5)
    judged = random_scenes(COUNT, random)
    return judged, related(judged, random)


def ask(critic, scenes, *answers, text):
    """log P of answers about each scene beside its reference, [COUNT, answers]."""
    pairs = zip(*(render(part) for part in scenes), strict=True)
    rows = []
    for judged, shown in pairs:
        questions = [Question(text, answer, references=(Picture.from_tensor(shown),)) for answer in answers]
        rows.append(critic.log_likelihood(judged[None], [question.worded(text) for question in questions])[0])
    return torch.stack(rows)


def together(a, b):
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def test_it_grades_how_alike_two_landscapes_are(critic, scenes):
    shares = ask(critic, scenes, *LIKENESS.grades, text=LIKENESS.text).softmax(dim=1)
    grade = (shares * torch.arange(5)).sum(dim=1) / 4
    alike = likeness(*scenes)
    assert together(grade, alike) > 0.93
    assert (grade - alike).abs().mean() < 0.08


def test_it_knows_style_as_colours(critic, scenes):
    p = ask(critic, scenes, "Yes", text=STYLE[0])[:, 0].exp()
    assert together(p, style_logit(*scenes).sigmoid()) > 0.95


def test_it_still_answers_what_the_critic_knew_and_the_critic_is_as_it_was(critic):
    old = load_critic(demo.WEIGHTS / "critic", device="cpu")
    pictures = render(random_scenes(COUNT, torch.Generator().manual_seed(6)))
    for text in (TIME[0].format("night"), "Is there a tree in the image?"):
        asked = [Question(text).worded(text)]
        assert (
            together(
                critic.log_likelihood(pictures, asked)[:, 0].exp(), old.log_likelihood(pictures, asked)[:, 0].exp()
            )
            > 0.9
        )
    assert critic.unknown_words(HORIZON[0]) == []
    assert old.unknown_words(LIKENESS.text) != []


def test_grades_are_shared_by_neighbours():
    shares = grade_shares(torch.tensor([0.0, 0.3, 1.0]))
    assert torch.allclose(shares.sum(dim=1), torch.ones(3))
    assert torch.allclose((shares * torch.arange(5)).sum(dim=1) / 4, torch.tensor([0.0, 0.3, 1.0]))


def test_a_person_marks_by_taste():
    pictures = render(random_scenes(64, torch.Generator().manual_seed(7)))
    for taste in TASTES.values():
        picks = taste.picks(pictures)
        scores = taste.score(pictures)
        assert 1 <= len(picks.liked) <= 2
        assert len(picks.rejected) == 1
        assert scores[list(picks.liked)].min() > scores[list(picks.rejected)].max()
        assert 0.05 < taste.share(pictures) < 0.95
    night = TASTES["night"]
    dark = pictures[night.score(pictures) >= night.enough]
    assert night.picks(dark).rejected == ()  # nothing is against the taste


def test_two_rounds_of_marks_make_it_night():
    taste = TASTES["night"]
    recipe, held_out = taste_recipe(40)
    generator, _ = demo.load([*recipe.prompts, *held_out])
    session = Favourites(generator, load_comparing_critic(), recipe)
    before = taste.share(session.candidates())
    for _ in range(2):
        session.pick(taste.picks(session.candidates()))
    assert isinstance(session.rounds[0].picks, Picks)
    assert taste.share(session.candidates()) >= before + 0.25


def test_the_lesson_runs_from_end_to_end_and_goes_on(tmp_path: Path, monkeypatch):
    from diffusers import AutoencoderTiny

    from dual_process.demo.training import comparing

    monkeypatch.setattr(comparing, "RELATED", 1)
    vae = AutoencoderTiny.from_pretrained(demo.WEIGHTS / "pipeline", subfolder="vae", torch_dtype=torch.float32)
    run = Run(tmp_path, effort=0.001)
    model = train_comparing(run, demo.WEIGHTS / "critic", vae)
    assert isinstance(model, PeftModel)
    again = train_comparing(run, demo.WEIGHTS / "critic", vae)  # from its checkpoint, without a step
    assert all(torch.equal(p, again.state_dict()[name]) for name, p in model.state_dict().items())
    export_adapter(tmp_path / "comparing", model)
    (tmp_path / "critic").symlink_to(demo.WEIGHTS / "critic")
    critic = load_comparing_critic(tmp_path)
    assert critic.unknown_words(LIKENESS.text) == []
    assert sorted(p.name for p in (tmp_path / "comparing").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
