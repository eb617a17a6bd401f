import json

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel

from dual_process.core.errors import GeneratorError
from dual_process.core.protocols import Draw
from dual_process.generators import DiffusersGenerator, load_generator

DRAW = Draw((0,), (1,), (0,))


def test_keeps_prompts_and_lets_the_text_encoders_go(generator, flavour):
    assert isinstance(generator, DiffusersGenerator)
    assert generator.prompts == ("a red house", "a tree with blue sky")
    assert generator.num_prompts == 2
    held = {type(value).__name__ for value in vars(generator).values()}
    assert held.isdisjoint({"CLIPTextModel", "T5EncoderModel", "PreTrainedTokenizerFast", "FluxPipeline"})
    assert generator.info.name == f"tiny-{flavour}"
    assert generator.info.architecture == f"flux-1-{flavour}"
    assert generator.info.dtype == "float32"


def test_a_loaded_model_is_frozen(generator):
    assert not any(p.requires_grad for p in (*generator.network.parameters(), *generator.vae.parameters()))


def test_a_pipeline_and_its_folder_give_the_same_generator(generator, pipeline):
    other = load_generator(pipeline, generator.prompts, height=64, width=96, num_inference_steps=3)
    assert torch.equal(other.sample([1], [2]), generator.sample([1], [2]))
    assert other.info.weights_sha256 == generator.info.weights_sha256


def test_the_users_pipeline_stays_as_it_was(pipeline, run_pipeline, randomize_lora):
    before = run_pipeline(pipeline, [3])
    parameters = {name: (id(p), p.requires_grad) for name, p in pipeline.transformer.named_parameters()}
    pipeline.transformer.train()
    generator = load_generator(
        pipeline, ["a sea"], height=64, width=96, num_inference_steps=3, gradient_checkpointing=True
    )
    generator.add_lora(4, 8.0, seed=0)
    randomize_lora(generator)
    with generator.training():
        generator.estimate(DRAW).image.sum().backward()
    assert {name: (id(p), p.requires_grad) for name, p in pipeline.transformer.named_parameters()} == parameters
    assert all(p.grad is None for p in pipeline.transformer.parameters())
    assert pipeline.transformer.training
    assert not pipeline.transformer.gradient_checkpointing
    assert not generator.network.training
    assert pipeline.text_encoder is not None
    assert torch.equal(run_pipeline(pipeline, [3]), before)


def test_weights_are_shared_unless_converted(pipeline):
    shared = load_generator(pipeline, ["a sea"], height=64, width=96)
    assert shared.network.proj_out.weight is pipeline.transformer.proj_out.weight
    converted = load_generator(pipeline, ["a sea"], dtype=torch.bfloat16, height=64, width=96)
    assert converted.network.proj_out.weight.dtype == torch.bfloat16
    assert pipeline.transformer.proj_out.weight.dtype == torch.float32


def test_training_freezes_and_restores(pipeline):
    generator = load_generator(pipeline, ["a sea"], height=64, width=96)
    generator.add_lora(4, 8.0, seed=0)
    pipeline.transformer.x_embedder.requires_grad_(False)

    def flags():
        return {name: p.requires_grad for name, p in generator.network.named_parameters()}

    def fail():
        assert {name for name, flag in flags().items() if flag} == {name for name in before if ".lora_" in name}
        assert not any(p.requires_grad for p in generator.vae.parameters())
        raise KeyError

    before = flags()
    with pytest.raises(KeyError), generator.training():
        fail()
    assert flags() == before
    assert before["proj_out.weight"]
    assert all(p.requires_grad for p in generator.vae.parameters())


@pytest.mark.parametrize("prompts", [[], "a red house", [1], [None, "a sea"], None])
def test_refuses_bad_prompts(folders, prompts):
    with pytest.raises(GeneratorError, match="Expected"):
        load_generator(folders["schnell"], prompts)


@pytest.mark.parametrize("path", ["/no/such/folder", "someone/a-model-that-is-not-here", 7])
def test_refuses_what_is_not_there_without_the_network(path):
    with pytest.raises(GeneratorError, match="Expected a folder"):
        load_generator(path, ["a sea"])


def test_refuses_a_folder_without_an_index(tmp_path):
    with pytest.raises(GeneratorError, match=r"model_index\.json"):
        load_generator(tmp_path, ["a sea"])


def test_names_the_supported_pipelines(tmp_path):
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    with pytest.raises(GeneratorError, match=r"FluxPipeline.*got DDPMPipeline"):
        load_generator(DDPMPipeline(unet, DDPMScheduler()), ["a sea"])
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    with pytest.raises(GeneratorError, match=r"FluxPipeline.*got KandinskyPipeline"):
        load_generator(tmp_path, ["a sea"])


def test_refuses_a_pipeline_without_encoders(pipeline):
    pipeline.text_encoder_2 = None
    with pytest.raises(GeneratorError, match="text_encoder_2 is missing"):
        load_generator(pipeline, ["a sea"])


def test_refuses_another_sampler(pipeline):
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with pytest.raises(GeneratorError, match="FlowMatchEulerDiscreteScheduler"):
        load_generator(pipeline, ["a sea"])


@pytest.mark.parametrize(
    "settings", [{"height": 100}, {"width": 0}, {"num_inference_steps": 0}, {"num_inference_steps": 2.5}]
)
def test_refuses_bad_settings(folders, settings):
    with pytest.raises(GeneratorError, match="Expected"):
        load_generator(folders["schnell"], ["a sea"], "cpu", **settings)


def test_long_prompts_are_cut(folders):
    generator = load_generator(folders["schnell"], ["a red house with a blue tree and a sea " * 9], "cpu", height=64)
    assert generator._prompts.conditions[0]["sequence"].shape == (1, 12, 32)
