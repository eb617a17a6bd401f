"""Critics out of ComfyUI's CLIPs: the numbers of transformers on the same weights, and what they leave behind."""

from __future__ import annotations

import gc
import json
import weakref
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_clips import build_qwen35

from dual_process.core.errors import CriticError, StopRequested
from dual_process.core.picture import Picture
from dual_process.core.protocols import Resident

pytestmark = pytest.mark.comfyui


def gradient_of(critic, images, questions):
    images = images.clone().requires_grad_()
    value = critic.log_likelihood(images, questions)
    value.sum().backward()
    return value.detach(), images.grad


def error(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def assert_same(critic, reference, images, questions):
    (ours, ours_gradient), (theirs, theirs_gradient) = (gradient_of(c, images, questions) for c in (critic, reference))
    print(f"log P {error(ours, theirs):.1e}, gradient {error(ours_gradient, theirs_gradient):.1e}")
    assert ours.shape == (len(images), len(questions))
    assert error(ours, theirs) < 1e-4
    assert error(ours_gradient, theirs_gradient) < 1e-4


# The numbers


def test_qwen_is_transformers_qwen(make_critic, qwen, qwen_reference, images, questions):
    assert_same(make_critic(qwen), qwen_reference, images, questions)


@pytest.mark.parametrize("tied", [True, False], ids=["as up to 4B", "as from 9B on"])
def test_qwen35_is_transformers_qwen35(make_critic, load_qwen35, make_qwen35_reference, images, questions, tied):
    model = build_qwen35(tied)
    assert_same(make_critic(load_qwen35(model)), make_qwen35_reference(model), images, questions)


def test_gemma_is_transformers_gemma(make_critic, gemma, images, questions):
    clip, reference = gemma
    assert_same(make_critic(clip), reference, images[:1], questions)


def with_references(questions):
    def picture(height, width):
        return Picture.from_tensor(torch.rand(3, height, width, generator=torch.Generator().manual_seed(height)))

    return [replace(question, references=(picture(256, 320), picture(320, 224))) for question in questions]


def test_qwen_sees_references_as_transformers_does(make_critic, qwen, qwen_reference, images, questions):
    assert_same(make_critic(qwen), qwen_reference, images, with_references(questions))


def test_qwen35_sees_references_as_transformers_does(make_critic, qwen35, make_qwen35_reference, images, questions):
    assert_same(make_critic(qwen35), make_qwen35_reference(build_qwen35()), images, with_references(questions))


def test_gemma_sees_references_as_transformers_does(make_critic, gemma, images, questions):
    clip, reference = gemma
    assert_same(make_critic(clip), reference, images[:1], with_references(questions))


def test_the_gradient_with_references_is_that_of_finite_differences(make_critic, each_clip, images, questions):
    images = images[:1] * 0.8 + 0.1
    measured, computed = finite_difference(make_critic(each_clip), images, with_references(questions), 0.01)
    assert measured == pytest.approx(computed, rel=0.01)


def test_replies_see_references(make_critic, each_clip, images, questions):
    critic = make_critic(each_clip)
    (question,) = with_references(questions[:1])
    assert isinstance(critic.answer(images[:1], question.text, 4, question.references)[0], str)


@pytest.mark.parametrize("size", [(96, 320), (300, 200), (64, 64), (1300, 1000)])
def test_pictures_of_other_sizes_are_resized_as_transformers_does(make_critic, qwen, qwen_reference, questions, size):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(2))
    assert_same(make_critic(qwen), qwen_reference, image, questions[:1])


@pytest.mark.parametrize("size", [(300, 200), (64, 64)])
def test_pictures_of_other_sizes_are_resized_as_for_qwen35(make_critic, qwen35, make_qwen35_reference, questions, size):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(2))
    assert_same(make_critic(qwen35), make_qwen35_reference(build_qwen35()), image, questions[:1])


@pytest.mark.parametrize("size", [(96, 320), (64, 64), (900, 1000), (8, 700), (700, 8), (2, 900)])
def test_sizes_of_gemma_are_those_of_transformers(make_critic, gemma, size):
    clip, reference = gemma
    critic = make_critic(clip)
    pixels = reference.processor.image_processor(images=[torch.rand(3, *size)], do_rescale=False, return_tensors="pt")
    height, width = critic._family.size(critic._model, *size, 0)
    assert height * width // 48**2 == int(pixels["num_soft_tokens_per_image"][0])
    positions = pixels["image_position_ids"][0].amax(0) + 1
    assert width / height == pytest.approx(float(positions[0] / positions[1]))


def test_max_pixels(make_critic, qwen, questions):
    critic = make_critic(qwen, max_pixels=256 * 256)
    image = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(2))
    small = torch.nn.functional.interpolate(image, (256, 256), mode="bicubic", antialias=True)
    asked = questions[:1]
    assert torch.equal(critic.log_likelihood(image, asked), critic.log_likelihood(small.clamp(0, 1), asked))
    for wrong in (1000, 10**8):
        with pytest.raises(CriticError, match="max_pixels"):
            make_critic(qwen, max_pixels=wrong)


def finite_difference(critic, images, questions, step):
    """Steps are large, for what float32 rounds, and shorter where log P would change by more than .1."""
    _, gradient = gradient_of(critic, images, questions)
    direction, step = gradient / gradient.norm(), min(step, 0.1 / float(gradient.norm()))
    with torch.no_grad():
        above, below = (
            critic.log_likelihood((images + side * step * direction).clamp(0, 1), questions).sum() for side in (1, -1)
        )
    return float((above - below) / (2 * step)), float(gradient.norm())


def test_gradient_of_qwen_is_that_of_finite_differences(make_critic, qwen, images, questions):
    images = images[:1] * 0.8 + 0.1  # so that a step stays within [0, 1]
    measured, computed = finite_difference(make_critic(qwen), images, questions, 0.002)
    print(measured, computed)
    assert measured == pytest.approx(computed, rel=0.01)


def test_gradient_of_qwen35_is_that_of_finite_differences(make_critic, qwen35, images, questions):
    images = images[:1] * 0.8 + 0.1
    measured, computed = finite_difference(make_critic(qwen35), images, questions, 0.002)
    print(measured, computed)
    assert measured == pytest.approx(computed, rel=0.01)


def test_gradient_of_gemma_is_that_of_finite_differences(make_critic, gemma, images, questions):
    images = images[:1] * 0.8 + 0.1
    measured, computed = finite_difference(make_critic(gemma[0]), images, questions, 0.002)
    print(measured, computed)
    assert measured == pytest.approx(computed, rel=0.01)


def test_questions_at_once_are_as_one_by_one(make_critic, each_clip, images, many_questions):
    critic, image = make_critic(each_clip), images[:1].clone().requires_grad_()
    together = critic.log_likelihood(image, many_questions)[0]
    errors = []
    for value, question in zip(together, many_questions, strict=True):
        (gradient,) = torch.autograd.grad(value, image, retain_graph=True)
        alone, gradient_alone = gradient_of(critic, image.detach(), [question])
        errors.append((error(value.detach(), alone), error(gradient, gradient_alone)))
    print("log P and gradient", *(f"{a:.1e} {b:.1e}" for a, b in errors), sep="\n")
    assert max(max(pair) for pair in errors) < 1e-4


def test_nothing_left_of_a_question_behind_what_is_shared(make_critic, qwen35, images, questions):
    """All of the first prompt is the beginning of the second."""
    asked = [questions[0], type(questions[0])(questions[0].text, "No, it does not")]
    critic = make_critic(qwen35)
    alone = [critic.log_likelihood(images[:1], [question])[0, 0] for question in asked]
    assert torch.allclose(critic.log_likelihood(images[:1], asked)[0], torch.stack(alone), rtol=1e-5)


def test_an_image_is_looked_at_and_thought_about_once(make_critic, each_clip, images, many_questions):
    critic = make_critic(each_clip)
    model, runs = critic._model, Counter()
    parts = {"vision": critic._family.vision_output(model), "language": model.model}
    parts |= {f"layer {index}": layer for index, layer in enumerate(model.model.layers)}
    handles = [
        module.register_forward_hook(lambda *_, name=name: runs.update([name])) for name, module in parts.items()
    ]
    critic.log_likelihood(images, many_questions)
    for handle in handles:
        handle.remove()
    assert runs == dict.fromkeys(parts, len(images))


def test_several_images_and_questions_at_once(make_critic, clip, images, questions):
    critic = make_critic(clip)
    together = critic.log_likelihood(images, questions)
    alone = [critic.log_likelihood(image[None], [question]) for image in images for question in questions]
    assert torch.allclose(together, torch.cat(alone).view_as(together), rtol=1e-4, atol=0)


def test_replies_are_those_of_transformers(make_critic, qwen, qwen_reference, images):
    ours = make_critic(qwen).answer(images, "What is it?", 6)
    assert ours == qwen_reference.answer(images, "What is it?", 6)
    assert all(ours)


def test_replies_of_qwen35_are_those_of_transformers(make_critic, qwen35, make_qwen35_reference, images):
    ours = make_critic(qwen35).answer(images, "What is it?", 6)
    assert ours == make_qwen35_reference(build_qwen35()).answer(images, "What is it?", 6)
    assert all(ours)


def test_replies_of_gemma_are_those_of_transformers(make_critic, gemma, images):
    clip, reference = gemma
    critic = make_critic(clip)
    tokens = []
    critic._decode = lambda ids: tokens.append(ids) or ""
    critic.answer(images[:1], "What is it?", 4)
    reference.processor.tokenizer.batch_decode = lambda ids, **_: tokens.append(ids[0].tolist()) or [""]
    reference.answer(images[:1], "What is it?", 4)
    assert tokens[0] == tokens[1]


def test_without_gradient_and_in_a_node(make_critic, qwen, images, questions):
    critic = make_critic(qwen)
    wanted = critic.log_likelihood(images, questions)
    with torch.no_grad():
        assert torch.allclose(critic.log_likelihood(images, questions), wanted, atol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(critic.log_likelihood(images, questions), wanted, atol=1e-5)
    assert critic.log_likelihood(images.double(), questions).dtype == torch.float32


def test_amid_the_training_of_a_model_that_overwrites_saved_tensors(make_critic, clip, images, questions):
    critic = make_critic(clip)
    wanted = gradient_of(critic, images[:1], questions)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():  # as generators/comfy/gradients.py enters
        ours = gradient_of(critic, images[:1] * 1.0, questions)
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


def test_dropping_the_critic_frees_the_clip(make_critic, qwen, images, questions):
    critic = make_critic(qwen)
    critic.log_likelihood(images[:1], questions)
    kept = weakref.ref(critic)
    gc.disable()
    try:
        del critic
        assert kept() is None
    finally:
        gc.enable()


# Weights of other precisions


def test_half_precision_weights_leave_no_copies_behind(make_critic, load_qwen, qwen_state, images, questions):
    clip = load_qwen({name: tensor.bfloat16() for name, tensor in qwen_state.items()})
    critic = make_critic(clip)
    layers = {id(p): tuple(p.shape) for block in critic._family.blocks(critic._model) for p in block.parameters()}
    shapes = {shape for shape in layers.values() if len(shape) == 2}
    saved = []

    def keep(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = critic.log_likelihood(images[:1].clone().requires_grad_(), questions[:1])
    assert value.requires_grad
    assert not [shape for shape in saved if shape in shapes or shape[::-1] in shapes]
    rounded = {name: tensor.bfloat16().float() for name, tensor in qwen_state.items()}
    exact = make_critic(load_qwen(rounded))
    for ours, theirs in zip(*(gradient_of(c, images[:1], questions[:1]) for c in (critic, exact)), strict=True):
        assert error(ours, theirs) < 1e-3


@pytest.mark.parametrize("name", ["Qwen3-VL", "Qwen3.5", "large"])
def test_in_half_precision_as_on_a_gpu(make_critic, load_each, images, questions, monkeypatch, name):
    critic = make_critic(load_each(name))
    (exact, exact_gradient) = gradient_of(critic, images[:1], questions)
    monkeypatch.setattr("comfy.model_management.should_use_bf16", lambda *_, **__: True)
    (rough, rough_gradient) = gradient_of(critic, images[:1], questions)
    cosine = torch.nn.functional.cosine_similarity(rough_gradient.flatten(), exact_gradient.flatten(), dim=0)
    print(f"log P {error(rough, exact):.1e}, cosine of the gradients {cosine:.4f}")
    assert 0 < error(rough, exact) < 0.02
    assert cosine > 0.95
    assert len(critic.answer(images[:1], "What is it?", 2)) == 1


def test_quantised_weights_judge_as_their_numbers(make_critic, load_qwen, qwen_state, images, questions):
    from comfy.quant_ops import QuantizedTensor

    config = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    stored, plain = dict(qwen_state), dict(qwen_state)
    for name, weight in qwen_state.items():
        if ".layers." in name and name.endswith("proj.weight"):
            layer, scale = name.removesuffix("weight"), weight.abs().max() / 448
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored |= {f"{layer}weight_scale": scale.float(), f"{layer}comfy_quant": config.clone()}
            plain[name] = stored[name].float() * scale
    critics = [make_critic(load_qwen(state)) for state in (stored, plain)]
    assert sum(isinstance(p.data, QuantizedTensor) for p in critics[0]._model.parameters()) == 21
    before = snapshot(critics[0].patcher.model)
    assert_same(*critics, images[:1], questions)
    assert snapshot(critics[0].patcher.model) == before


def test_a_lora_of_the_user_counts(make_critic, load_qwen, qwen_state, images, questions):
    name = "model.layers.1.mlp.down_proj.weight"
    change = torch.randn(32, 48, generator=torch.Generator().manual_seed(4))
    clip = load_qwen()
    with torch.inference_mode():
        theirs = clip.clone()
        assert theirs.add_patches({f"qwen3vl_8b.transformer.{name}": (change,)}, 0.5)
    stored = f"model.language_{name}"
    merged = make_critic(load_qwen({**qwen_state, stored: qwen_state[stored] + 0.5 * change}))
    critic = make_critic(theirs)
    assert_same(critic, merged, images[:1], questions)
    assert critic.info == make_critic(clip).info


# What is left behind


def snapshot(model):
    """Everything about a module's tensors and attributes that somebody could have changed."""
    tensors = [
        (name, id(tensor), tensor.is_inference(), tensor.requires_grad)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    ]
    hooks = [(name, len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in model.named_modules()]
    attributes = [(name, sorted(module.__dict__)) for name, module in model.named_modules()]
    return tensors, hooks, attributes


def values(model):
    """Bit by bit; a Gemma's file leaves weights out that are never used."""
    return {name: tensor.detach().numpy().tobytes() for name, tensor in model.state_dict().items()}


def test_the_clip_is_as_before(make_critic, clip, images, questions):
    model = clip.cond_stage_model
    clip.load_model()
    with torch.inference_mode():
        encoded = clip.encode_from_tokens(clip.tokenize("a red house"))
    before, weights, attributes = snapshot(model), values(model), dict(vars(clip))
    critic = make_critic(clip)
    gradient_of(critic, images[:1], questions[:1])
    critic.answer(images[:1], "What is it?", 2)
    assert snapshot(model) == before
    assert values(model) == weights
    assert vars(clip) == attributes
    assert not torch.is_inference_mode_enabled()
    with torch.inference_mode():
        assert torch.equal(clip.encode_from_tokens(clip.tokenize("a red house")), encoded)


@pytest.mark.parametrize(
    "ask",
    [
        lambda critic, images, questions: critic.log_likelihood(images.clone().requires_grad_(), questions),
        lambda critic, images, questions: critic.answer(images, questions[0].text),
    ],
    ids=["log_likelihood", "answer"],
)
def test_the_clip_is_as_before_a_cancel(make_critic, clip, images, questions, ask):
    import comfy.model_management

    critic = make_critic(clip)
    critic._load()
    before = snapshot(clip.cond_stage_model)
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        ask(critic, images, questions)
    assert snapshot(clip.cond_stage_model) == before


def test_a_cancel_amid_training_ends_it(make_critic, qwen, images, questions):
    import comfy.model_management

    critic = make_critic(qwen)
    assert isinstance(critic, Resident)
    with critic.resident():
        value = critic.log_likelihood(images.clone().requires_grad_(), questions)
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(StopRequested), critic.resident():
        value.sum().backward()


def test_an_error_in_a_late_block_leaves_nothing(make_critic, clip, images, questions, monkeypatch):
    critic = make_critic(clip)
    critic._load()
    last = critic._model.model.layers[-1].mlp
    monkeypatch.setattr(type(last), "forward", lambda self, x: x if self is not last else 1 / 0)
    before = snapshot(clip.cond_stage_model)
    with pytest.raises(ZeroDivisionError):
        critic.log_likelihood(images.clone().requires_grad_(), questions)
    assert snapshot(clip.cond_stage_model) == before


def test_an_error_in_the_backward_pass_leaves_nothing(make_critic, clip, images, questions, monkeypatch):
    critic = make_critic(clip)
    critic._load()
    before = snapshot(clip.cond_stage_model)
    value = critic.log_likelihood(images[:1].clone().requires_grad_(), questions[:1])
    monkeypatch.setattr(type(critic._model.model.layers[-1].mlp), "forward", lambda self, x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        value.sum().backward()
    assert snapshot(clip.cond_stage_model) == before


def test_the_backward_pass_may_come_after_the_clip_was_moved_or_changed(make_critic, clip, images, questions):
    critic = make_critic(clip)
    wanted = gradient_of(critic, images[:1], questions[:1])[1]
    image = images[:1].clone().requires_grad_()
    value = critic.log_likelihood(image, questions[:1])
    with torch.no_grad():
        for parameter in critic._model.parameters():
            parameter.data = torch.zeros_like(parameter)  # as when ComfyUI puts the weights elsewhere
    value.sum().backward()
    assert torch.equal(image.grad, wanted)


def test_it_is_loaded_once_by_comfyui_s_model_management(make_critic, qwen, images, questions, monkeypatch):
    import comfy.model_management as management

    critic = make_critic(qwen)
    critic.log_likelihood(images[:1], questions[:1])
    assert qwen.patcher in management.loaded_models()
    monkeypatch.setattr(management, "load_models_gpu", lambda *_, **__: pytest.fail("loaded again"))
    critic.log_likelihood(images[:1], questions[:1])
    critic.answer(images[:1], "What is it?", 1)


def test_a_model_that_does_not_fit_is_refused(make_critic, qwen, images, questions, monkeypatch):
    critic = make_critic(qwen)
    monkeypatch.setattr(critic.patcher, "load_device", torch.device("meta"))
    monkeypatch.setattr("comfy.model_management.load_models_gpu", lambda *_, **__: None)
    with pytest.raises(CriticError, match="does not fit into the memory"):
        critic.log_likelihood(images, questions)


def test_info(make_critic, qwen, load_qwen, qwen_state):
    info = make_critic(qwen).info
    assert (info.name, info.architecture, info.dtype) == ("tiny-qwen3vl", "Qwen3-VL", "float32")
    assert make_critic(load_qwen()).info == info
    other = {name: tensor + 0.5 if name.endswith("norm.weight") else tensor for name, tensor in qwen_state.items()}
    assert make_critic(load_qwen(other)).info.weights_sha256 != info.weights_sha256


# What it refuses


@pytest.mark.parametrize("clip_type", ["BOOGU", "IDEOGRAM4", "JOYIMAGE", "QWEN_IMAGE"])
def test_other_types_of_the_same_file(make_critic, load_qwen, qwen_reference, images, questions, clip_type):
    """Encoders of prompts for several image models, one and the same vision-language model."""
    assert_same(make_critic(load_qwen(clip_type=clip_type)), qwen_reference, images[:1], questions[:1])


def test_a_tied_head(make_critic, load_qwen, qwen_state, images, questions, qwen_reference):
    state = {name: tensor for name, tensor in qwen_state.items() if name != "lm_head.weight"}
    tied = load_qwen({**state, "model.language_model.embed_tokens.weight": qwen_state["lm_head.weight"]}, lm_head=False)
    assert make_critic(tied).log_likelihood(images[:1], questions).isfinite().all()


def test_a_missing_head_is_refused(make_critic, load_qwen, qwen_state):
    state = {name: tensor for name, tensor in qwen_state.items() if name != "lm_head.weight"}
    clip = load_qwen(state)
    with torch.inference_mode():
        clip.cond_stage_model.qwen3vl_8b.transformer.model.lm_head.weight.zero_()  # as fresh memory mostly is
    with pytest.raises(CriticError, match="lacks the weights of its language head"):
        make_critic(clip)


def test_a_model_cut_off_is_refused(make_critic, load_qwen):
    with pytest.raises(CriticError, match="cut off"):
        make_critic(load_qwen(final_norm=False))


def test_a_clip_without_vision_is_refused(make_critic, comfy):
    import comfy.sd
    import comfy.sd1_clip
    import comfy.text_encoders.flux as flux

    class Target:
        params: dict = {}  # noqa: RUF012
        clip = comfy.sd1_clip.SD1ClipModel
        tokenizer = comfy.sd1_clip.SD1Tokenizer

    with pytest.raises(CriticError, match="got CLIPTextModel, which has no vision"):
        make_critic(comfy.sd.CLIP(Target()))
    model = flux.FluxClipModel.__new__(flux.FluxClipModel)
    with pytest.raises(CriticError, match="got FluxClipModel, which has no vision"):
        make_critic(type("Clip", (), {"cond_stage_model": model})())
    with pytest.raises(CriticError, match="got NoneType"):
        make_critic(None)


@pytest.mark.parametrize(
    ("module", "name", "reason"),
    [
        ("llama", "Qwen25_7BVLI", "without its language head"),
        ("llama", "Gemma3_4B_Vision", "the middle only"),
        ("llama", "Gemma3_12B", "the middle only"),
        ("llama", "Qwen3_8B", "Qwen3_8B, which has no vision"),
    ],
)
def test_other_families_are_refused_with_the_reason(make_critic, comfy, module, name, reason):
    import importlib

    kind = getattr(importlib.import_module(f"comfy.text_encoders.{module}"), name)
    inner = type("Inner", (), {"transformer": kind.__new__(kind)})()
    encoder = type("Encoder", (), {"clip": "x", "x": inner})()
    with pytest.raises(CriticError, match=f"{reason}.*Load VLM Critic"):
        make_critic(type("Clip", (), {"cond_stage_model": encoder})())


def test_gemma_in_versions_that_know_no_images_seen_both_ways(comfy):
    """ComfyUI 0.26 to 0.28 mask images like text, which is right for the small models: nothing is to be corrected."""
    from dual_process.critics.comfy.families import Gemma4

    layers = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    for layer, window in zip(layers, (64, False), strict=True):
        layer.sliding_attention = window

    def corrected(**config):
        model = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(**config), layers=layers))
        with Gemma4().corrected(model):
            return [len(layer._forward_pre_hooks) for layer in layers]

    assert corrected() == corrected(vision_bidirectional=False) == [0, 0]
    assert corrected(vision_bidirectional=True) == [0, 1]


def test_a_large_gemma_without_its_scales_is_refused(make_critic, load_gemma):
    """So ComfyUI 0.26 to 0.28 load it."""
    clip, _ = load_gemma("large")
    for layer in clip.cond_stage_model.gemma4.transformer.model.layers:
        layer.layer_scalar = None
    with pytest.raises(CriticError, match=r"before version 0\.29 .*Update ComfyUI"):
        make_critic(clip)


def test_bad_questions_and_images_are_refused(make_critic, qwen, images, questions):
    critic = make_critic(qwen)
    question = type(questions[0])
    for asked, reason in (
        ([], "at least one question"),
        ([question(" ", "Yes")], "question of at least one word"),
        ([question("Is it?", "")], "answer of at least one word"),
        ([question("Is it <|image_pad|>?", "Yes")], "a mark that stands for an image"),
    ):
        with pytest.raises(CriticError, match=reason):
            critic.log_likelihood(images, asked)
    for wrong in (images[0], images * 2, images[:, :2], (images * 255).byte()):
        with pytest.raises(CriticError, match="Expected images"):
            critic.log_likelihood(wrong, questions)
        with pytest.raises(CriticError, match="Expected images"):
            critic.answer(wrong, "What is it?")
    with pytest.raises(CriticError, match="max_new_tokens"):
        critic.answer(images, "What is it?", 0)
    with pytest.raises(CriticError, match="question of at least one word"):
        critic.answer(images, "")
