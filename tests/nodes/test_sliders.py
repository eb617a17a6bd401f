"""A slider trained, saved and used in the graph."""

from __future__ import annotations

import json

import pytest
import torch
from node_inputs import EMPTY, QUESTION

pytestmark = pytest.mark.comfyui


def horizon(run, position, **changes):
    return run("HorizonOverlay", **{"position": position, "color": "#ff0000", "thickness": 0.02, **changes})[0]


@pytest.fixture
def distilled(run, distil, demo_models):
    """A LoRA with a slider after three steps."""
    ranged = run("OverlayRange", first=horizon(run, 0.3), last=horizon(run, 0.7))[0]
    question = run("VLMQuestion", question=QUESTION, answer="Yes", weight=1.0, overlay=ranged)[0]
    loss = run("VQALoss", critic=demo_models[3], questions={"question0": question})[0]
    return distil(loss=loss)


def picture(model, vae, positive):
    import nodes as core

    with torch.inference_mode():
        (latent,) = core.KSampler().sample(model, 1, 1, 1.0, "euler", "simple", positive, positive, EMPTY)
        return core.VAEDecode().decode(vae, latent)[0]


def test_the_node_and_two_lora_loaders_make_the_same_picture(run, distilled, demo_models, encode):
    import nodes as core

    model, clip, vae, _ = demo_models
    sea = encode("a day sky over the sea")
    name = run("SaveDistilledLoRA", lora=distilled[0], name="slider/horizon", format="diffusers")[0]
    beside = name.replace(".safetensors", ".slider.safetensors")
    for value, said in ((-1.0, "horizon at 30 %"), (0.5, "horizon at 60 %")):
        with torch.inference_mode():
            loaded, _ = core.LoraLoader().load_lora(model, clip, name, 1.0, 1.0)
            loaded, _ = core.LoraLoader().load_lora(loaded, clip, beside, value, 1.0)
        expected = picture(loaded, vae, sea)
        by_file = run("Slider", model=model, lora_name=name, value=value)
        by_wire = run("Slider", model=model, lora_name="(the connected LoRA)", value=value, lora=distilled[0])
        for applied in (by_file, by_wire):
            assert applied[1] == said
            assert torch.allclose(picture(applied[0], vae, sea), expected, atol=1e-4)
    assert not torch.allclose(expected, picture(model, vae, sea), atol=1e-3)


def test_pictures_of_the_training_stand_at_values_from_end_to_end(distilled, demo_models, encode, run):
    _, _, _, after, _ = distilled.args
    applied = run("Slider", model=demo_models[0], lora_name="(the connected LoRA)", value=-1.0, lora=distilled[0])[0]
    assert torch.allclose(after[0], picture(applied, demo_models[2], encode("a day sky over the sea"))[0], atol=1e-4)


def test_saved_files_say_how_they_are_used(run, distilled, comfy):
    from dual_process.core.tensor_file import read_tensors

    name = run("SaveDistilledLoRA", lora=distilled[0], name="slider/said", format="comfyui")[0]
    folder = comfy / "models" / "loras"
    for file, part, hint in (
        (name, "constant", "strength 1.0"),
        (name.replace(".safetensors", ".slider.safetensors"), "slider", "-1 to 1"),
    ):
        _, metadata = read_tensors(folder / file)
        said = json.loads(metadata["dual_process.slider"])
        assert said["part"] == part
        assert said["ends"] == ["horizon at 30 %", "horizon at 70 %"]
        assert hint in metadata["modelspec.usage_hint"]
        assert "workflow" in metadata


def test_only_sliders_are_listed_and_each_once(run, distilled, distil, nodes):
    saved = [run("SaveDistilledLoRA", lora=distil()[0], name="slider/plain", format="comfyui")[0]]
    saved += [run("SaveDistilledLoRA", lora=distilled[0], name="slider/listed", format="comfyui")[0]]
    options = next(i for i in nodes["DualProcessSlider"].define_schema().inputs if i.id == "lora_name").options
    assert saved[1] in options
    assert saved[0] not in options
    assert not [name for name in options if ".slider." in name]


def test_two_sliders_of_one_control_are_refused(run, distilled, demo_models):
    model = run("Slider", model=demo_models[0], lora_name="(the connected LoRA)", value=0.2, lora=distilled[0])[0]
    with pytest.raises(Exception, match="a slider for horizon already"):
        run("Slider", model=model, lora_name="(the connected LoRA)", value=-0.2, lora=distilled[0])


def test_a_slider_file_without_its_constant_part_or_the_other_way_round_is_refused(run, distilled, comfy, demo_models):
    name = run("SaveDistilledLoRA", lora=distilled[0], name="slider/lonely", format="comfyui")[0]
    other = run("SaveDistilledLoRA", lora=distilled[0], name="slider/lonely", format="comfyui")[0]
    folder = comfy / "models" / "loras"
    beside = name.replace(".safetensors", ".slider.safetensors")
    with pytest.raises(Exception, match=r"slider part.*constant part is wanted"):
        run("Slider", model=demo_models[0], lora_name=beside, value=0.0)
    (folder / beside).unlink()
    with pytest.raises(Exception, match="Copy both files"):
        run("Slider", model=demo_models[0], lora_name=name, value=0.0)
    with pytest.raises(Exception, match="No LoRA with a slider is chosen"):
        run("Slider", model=demo_models[0], lora_name="(the connected LoRA)", value=0.0)
    assert (folder / other).is_file()


def test_parts_of_two_trainings_are_refused(run, distil, distilled, comfy, demo_models):
    first = run("SaveDistilledLoRA", lora=distilled[0], name="slider/one", format="comfyui")[0]
    for tensor in distilled[0].values():
        tensor.mul_(2)
    second = run("SaveDistilledLoRA", lora=distilled[0], name="slider/two", format="comfyui")[0]
    folder = comfy / "models" / "loras"
    one, two = (folder / name.replace(".safetensors", ".slider.safetensors") for name in (first, second))
    one.write_bytes(two.read_bytes())
    with pytest.raises(Exception, match="belongs to another constant part"):
        run("Slider", model=demo_models[0], lora_name=first, value=0.0)


def test_a_plain_lora_has_no_slider(run, distil, demo_models):
    lora = distil()[0]
    with pytest.raises(Exception, match="Overlay Range to the VLM Question"):
        run("Slider", model=demo_models[0], lora_name="(the connected LoRA)", value=0.0, lora=lora)
    name = run("SaveDistilledLoRA", lora=lora, name="slider/none", format="comfyui")[0]
    with pytest.raises(Exception, match="is no LoRA with a slider"):
        run("Slider", model=demo_models[0], lora_name=name, value=0.0)


def test_ranges_that_are_none_are_refused(run):
    with pytest.raises(Exception, match="both ends are the same"):
        run("OverlayRange", first=horizon(run, 0.3), last=horizon(run, 0.3))
    with pytest.raises(Exception, match="same kinds of layers"):
        run("OverlayRange", first=horizon(run, 0.3), last=run("PaletteOverlay", colors=["#000", "#fff"], height=0.1)[0])
    turned = run("OverlayRange", first=horizon(run, 0.7), last=horizon(run, 0.3))[0]
    assert turned.describe(-1.0) == "horizon at 70 %"
