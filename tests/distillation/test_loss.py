"""The VQA loss against numbers computed another way."""

from __future__ import annotations

import pytest
import torch
from fakes import SIZE, FakeCritic
from torch.nn import functional as F

from dual_process import overlays
from dual_process.core.picture import Picture
from dual_process.distillation import Question, RecipeError
from dual_process.distillation.asking import Samples, answers_before, check_questions, score
from dual_process.distillation.loss import question_weights
from dual_process.distillation.loss import vqa_loss as vqa_loss_of
from dual_process.distillation.penalties import PENALTIES

IMAGE = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def vqa_loss(critics, images, questions, prompt_indices, prompts=None, before=None):
    return vqa_loss_of(critics, Samples(images, prompt_indices, prompts), questions, before)


def log_p(text, images):
    return F.logsigmoid(images.flatten(1) @ FakeCritic.direction(text))


def test_weighted_mean_over_questions():
    questions = [Question("a", weight=3.0), Question("b", weight=1.0)]
    result = vqa_loss({"default": FakeCritic()}, IMAGE, questions, [0, 0])
    wanted = -(0.75 * log_p("a", IMAGE) + 0.25 * log_p("b", IMAGE)).mean()
    assert result.loss == pytest.approx(float(wanted), rel=1e-6)
    assert torch.allclose(result.log_likelihood, torch.stack([log_p("a", IMAGE), log_p("b", IMAGE)], 1))


def test_gradient_is_that_of_one_joint_graph():
    line, other = overlays.horizon(0.4, thickness=0.3), overlays.palette(["green"], height=0.5)
    questions = [Question("a", overlay=line), Question("b", weight=2.0, critic="x", overlay=other), Question("c")]
    image = (IMAGE * 0.8 + 0.1).requires_grad_()
    joint = -(log_p("a", line.apply(image)) + 2 * log_p("b", other.apply(image)) + log_p("c", image)).mean() / 4
    joint.backward()
    result = vqa_loss({"default": FakeCritic(), "x": FakeCritic()}, image, questions, [0, 0])
    assert result.loss == pytest.approx(joint.item(), rel=1e-6)
    assert torch.allclose(result.image_gradient, image.grad, atol=1e-7)


def test_one_call_for_each_critic_and_overlay():
    critics = {"default": FakeCritic(), "x": FakeCritic()}
    questions = [
        Question("a", overlay=overlays.horizon(0.3)),
        Question("b"),
        Question("c", overlay=overlays.horizon(0.3)),
        Question("d", critic="x"),
        Question("e", overlay=overlays.horizon(0.4)),
    ]
    vqa_loss(critics, IMAGE, questions, [0, 0])
    assert critics["default"].calls == [["a", "c"], ["b"], ["e"]]
    assert critics["x"].calls == [["d"]]


def test_averaged_wordings_are_the_mean_of_the_single_ones():
    line = overlays.horizon(0.4, thickness=0.3)
    several = Question("a", overlay=line, weight=3.0, paraphrases=("b", "c"))
    other = Question("d", prompts=(1,))
    critic = FakeCritic()
    result = vqa_loss({"default": critic}, IMAGE, [several, other], [0, 1])
    each = [vqa_loss({"default": FakeCritic()}, IMAGE, [several.worded(t), other], [0, 1]) for t in "abc"]
    assert result.loss == pytest.approx(sum(r.loss for r in each) / 3, rel=1e-6)
    assert torch.allclose(result.image_gradient, sum(r.image_gradient for r in each) / 3, atol=1e-7)
    told = torch.stack([r.log_likelihood.exp() for r in each]).mean(dim=0)
    assert torch.allclose(result.log_likelihood.exp(), told, equal_nan=True)
    assert critic.calls == [["a", "b", "c"], ["d"]]  # one composite, one call
    samples = Samples(IMAGE, [0, 1], None)
    assert torch.allclose(score({"default": critic}, samples, [several, other]).exp(), told, equal_nan=True)


def test_all_wordings_keep_the_answer_about_the_base_picture():
    question = Question("a", answer="as before", paraphrases=("b",))
    critic = CriticOfAnswers()
    result = vqa_loss({"default": critic}, IMAGE, [question], [0, 0], before={0: ["Yes", "No"]})
    wanted = [(log_p(f"a{a}", IMAGE)[i] + log_p(f"b{a}", IMAGE)[i]) / 2 for i, a in enumerate(("Yes", "No"))]
    assert result.loss == pytest.approx(-float(sum(wanted)) / 2, rel=1e-6)


class CriticOfAnswers(FakeCritic):
    """Has a direction for each answer, too."""

    def log_likelihood(self, images, questions):
        return super().log_likelihood(images, [Question(q.text + q.answer) for q in questions])


def test_a_contrast_is_pushed_away():
    critic = CriticOfAnswers()
    questions = [Question("a", "Yes"), Question("b", "Yes", weight=3.0, contrast="No")]
    image = IMAGE.clone().requires_grad_()
    lead = log_p("bYes", image) - log_p("bNo", image)
    joint = -(0.25 * log_p("aYes", image) + 0.75 * lead).mean()
    joint.backward()
    result = vqa_loss({"default": critic}, IMAGE, questions, [0, 0])
    assert result.loss == pytest.approx(joint.item(), rel=1e-6)
    assert torch.allclose(result.image_gradient, image.grad, atol=1e-7)
    assert torch.allclose(result.log_likelihood, torch.stack([log_p("aYes", IMAGE), log_p("bYes", IMAGE)], 1))
    assert critic.calls == [["aYes", "bYes", "bNo"]]  # in one call


@pytest.mark.parametrize(("answer", "shares"), [("5", (0, 0.25, 0.5, 0.75, 1)), ("1", (1, 0.75, 0.5, 0.25, 0))])
def test_a_graded_question_counts_its_expected_grade(answer, shares):
    critic = CriticOfAnswers()
    graded = Question("a", answer, grades=("1", "2", "3", "4", "5"))
    other = Question("b", "Yes", weight=3.0)
    image = (IMAGE * 0.8 + 0.1).requires_grad_()
    each = torch.stack([log_p(f"a{grade}", image) for grade in graded.grades], dim=1)
    expected = (each.softmax(dim=1) * torch.tensor(shares)).sum(dim=1).log()
    joint = -(0.25 * expected + 0.75 * log_p("bYes", image)).mean()
    joint.backward()
    result = vqa_loss({"default": critic}, image, [graded, other], [0, 0])
    assert result.loss == pytest.approx(joint.item(), rel=1e-5)
    assert torch.allclose(result.image_gradient, image.grad, atol=1e-7)
    assert torch.allclose(result.log_likelihood[:, 0], expected.detach(), atol=1e-6)
    assert len(critic.calls) == 1


def test_a_graded_question_for_some_prompts():
    graded = Question("a", "5", grades=("1", "5"), prompts=(1,))
    result = vqa_loss({"default": CriticOfAnswers()}, IMAGE, [graded, Question("b")], [0, 1])
    assert result.log_likelihood[0, 0].isnan()
    both = torch.stack([log_p("a1", IMAGE), log_p("a5", IMAGE)], dim=1)[1]
    assert result.log_likelihood[1, 0] == pytest.approx(float(both.log_softmax(dim=0)[1]), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grades": ("1", "2"), "answer": "Yes"}, "the answer of a graded question"),
        ({"grades": ("5",), "answer": "5"}, "at least two different texts"),
        ({"grades": ("1", "1"), "answer": "1"}, "at least two different texts"),
        ({"grades": "12345", "answer": "5"}, "at least two different texts"),
        ({"grades": ("1", ""), "answer": "1"}, "at least two different texts"),
        ({"grades": ("1", "5"), "answer": "5", "contrast": "1"}, "the contrast of a graded question"),
        ({"grades": ("1", "5"), "answer": "as before"}, "the answer of a graded question"),
        ({"references": "style.png"}, "a list of pictures"),
        ({"references": ({"png": "?"},)}, "base64"),
        ({"references": ({"file": "/nowhere.png"},)}, "Could not read the picture"),
    ],
)
def test_questions_that_are_none(changes, message):
    with pytest.raises(RecipeError, match=message):
        Question("a", **changes)


def test_questions_with_other_references_are_asked_apart():
    one, other = (Picture.from_tensor(torch.full((3, 4, 4), value)) for value in (0.2, 0.8))
    critic = FakeCritic()
    questions = [
        Question("a", references=(one,)),
        Question("b", references=(other,)),
        Question("c", references=(one,)),
        Question("a", "No", references=(other,)),  # no contradiction: it is asked beside another picture
    ]
    vqa_loss({"default": critic}, IMAGE, questions, [0, 0])
    assert critic.calls == [["a", "c"], ["b", "a"]]
    check_questions(questions, {"default": critic}, 1)


def test_questions_for_some_prompts():
    questions = [Question("a"), Question("b", prompts=(1,))]
    result = vqa_loss({"default": FakeCritic()}, IMAGE, questions, [0, 1])
    a, b = log_p("a", IMAGE), log_p("b", IMAGE)
    assert result.loss == pytest.approx(-float(a[0] + (a[1] + b[1]) / 2) / 2, rel=1e-6)
    assert result.log_likelihood[0, 1].isnan()
    assert result.log_likelihood[1, 1] == pytest.approx(float(b[1]))
    assert question_weights(questions, [0, 1]).tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_a_critic_sees_only_the_pictures_that_it_is_asked_about():
    critics = {"default": FakeCritic(), "x": FakeCritic()}
    questions = [Question("a"), Question("b", prompts=(1,), critic="x"), Question("c", prompts=(2,), critic="x")]
    seen = []
    log_likelihood = critics["x"].log_likelihood
    critics["x"].log_likelihood = lambda images, asked: seen.append(images) or log_likelihood(images, asked)
    result = vqa_loss(critics, IMAGE, questions, [0, 1])
    assert torch.equal(torch.cat(seen), IMAGE[1:])
    assert torch.isclose(result.log_likelihood[1, 1], log_p("b", IMAGE)[1])
    assert result.log_likelihood[1, 2].isnan()
    vqa_loss(critics, IMAGE, questions, [0, 0])
    assert len(seen) == 1  # not asked at all the second time


def test_no_gradient_past_saturation():
    image = IMAGE.clone()
    image[0, 0, 0, 0], image[0, 1, 0, 0] = 1.5, -0.2
    gradient = vqa_loss({"default": FakeCritic()}, image, [Question("a")], [0, 0]).image_gradient
    assert gradient[0, 0, 0, 0] == 0
    assert gradient[0, 1, 0, 0] == 0
    assert gradient[1].abs().min() > 0


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question("a", critic="x"), "asks the critic 'x'"),
        (Question("a", overlay={"kind": "horizon", "position": 0.3}), "plain data"),
        (Question("a", prompts=(2,)), "only 0 to 1 exist"),
        (Question("Is it {prompt}?"), "carry no words"),
        (Question("Is it?", paraphrases=("Is it {prompt}?",)), "carry no words"),
        (Question("a", prompts=(0,)), r"No question is for the prompts \[1\]"),
    ],
)
def test_questions_that_cannot_be_asked(question, message):
    with pytest.raises(RecipeError, match=message):
        check_questions([question], {"default": FakeCritic()}, 2)


def test_penalties_by_hand():
    assert PENALTIES["velocity"].call(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])) == pytest.approx((1 + 4) / 2)
    assert PENALTIES["range"].call(torch.tensor([0.0, 1.0, 1.5, -0.1])) == pytest.approx(5 * (0.5 + 0.1) / 4)


def test_structure_sees_lines_and_no_colours():
    distance = PENALTIES["structure"].call
    picture = torch.zeros(1, 3, 32, 32)
    picture[:, 0, 12:], picture[:, 2, :12] = 0.8, 0.6  # red ground, blue sky
    recolored = 0.2 + 0.5 * picture.flip(1)
    moved = picture.roll(6, dims=2)
    moved[:, :, :6] = picture[:, :, :6]
    assert distance(picture, picture) == pytest.approx(0, abs=1e-6)
    assert distance(recolored, picture) < 0.001
    assert distance(moved, picture) > 0.3
    flat = torch.full((1, 3, 32, 32), 0.5, requires_grad=True)
    (slope,) = torch.autograd.grad(distance(flat, picture), flat)
    assert slope.isfinite().all()


def test_words_of_the_prompt_are_filled_in_for_each_sample():
    critic = CriticOfAnswers()
    questions = [Question("a"), Question("{prompt}?", weight=3.0)]
    result = vqa_loss({"default": critic}, IMAGE, questions, [1, 0], prompts=["sea", "sand"])
    assert critic.calls == [["aYes", "sand?Yes", "sea?Yes"]]  # in one call
    own = torch.stack([log_p("sand?Yes", IMAGE)[0], log_p("sea?Yes", IMAGE)[1]])
    assert torch.allclose(result.log_likelihood[:, 1], own)
    assert result.loss == pytest.approx(-float((0.25 * log_p("aYes", IMAGE) + 0.75 * own).mean()), rel=1e-6)


def test_as_before_asks_for_the_answer_about_the_base_picture():
    base = torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    images = IMAGE[:1].expand(6, -1, -1, -1)
    line = overlays.horizon(0.4, thickness=0.3)
    questions = [Question("a"), Question("b", answer="as before", overlay=line, choices=("Red", "Blue", "Grey"))]
    critics = {"default": CriticOfAnswers()}
    before = answers_before(critics, Samples(base, [0] * 6, None), questions)
    wanted = []
    for picture in line.apply(base):
        scores = {c: float(log_p("b" + c, picture[None])) for c in ("Red", "Blue", "Grey")}
        wanted.append(max(scores, key=scores.__getitem__))
    assert before == {1: wanted}
    assert len({*wanted}) > 1
    result = vqa_loss(critics, images, questions, [0] * 6, before=before)
    seen = line.apply(images)
    for row, answer in enumerate(wanted):
        assert result.log_likelihood[row, 1] == pytest.approx(float(log_p("b" + answer, seen)[row]), rel=1e-5)
