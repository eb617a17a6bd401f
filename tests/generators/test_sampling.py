import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline

from dual_process.core.errors import GeneratorError
from dual_process.core.protocols import Draw, Sampling
from dual_process.generators import load_generator
from dual_process.generators.architectures.packing import pack, token_positions, unpack
from dual_process.generators.architectures.paths import flow_sigmas


def test_sample_equals_the_pipeline(generator, pipeline, run_pipeline):
    expected = run_pipeline(pipeline, [4, 5])
    pictures = generator.sample([0, 0], [4, 5])
    assert pictures.shape == (2, 3, 64, 96)
    assert pictures.dtype == torch.float32
    assert expected.std() > 0.01
    torch.testing.assert_close(pictures, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width", "steps"), [(96, 64, 1), (112, 112, 5)])
def test_sample_equals_the_pipeline_at_other_sizes_and_steps(generator, pipeline, run_pipeline, height, width, steps):
    expected = run_pipeline(pipeline, [9], steps, height, width, prompt=1)
    pictures = generator.sample([1], [9], steps, sampling=Sampling(height=height, width=width))
    torch.testing.assert_close(pictures, expected, atol=1e-5, rtol=0)


def test_a_full_vae_serves_as_well(pipeline, run_pipeline):
    torch.manual_seed(3)
    pipeline.vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    ).eval()
    generator = load_generator(
        pipeline, ["a red house"], height=64, width=96, num_inference_steps=3, gradient_checkpointing=True
    )
    torch.testing.assert_close(generator.sample([0], [4]), run_pipeline(pipeline, [4]), atol=1e-5, rtol=0)
    generator.add_lora(2, 2.0, seed=0)
    with generator.training():
        generator.estimate(Draw((0,), (4,), (2,))).image.sum().backward()
    assert generator.lora_parameters()["transformer_blocks.0.attn.to_q.lora_B"].grad.abs().max() > 0


def test_guidance_is_heard_by_dev_and_refused_by_schnell(generator, pipeline, run_pipeline, flavour):
    strong = Sampling(guidance=9.0)
    if flavour == "schnell":
        with pytest.raises(GeneratorError, match=r"flux-1-schnell is distilled .* guidance of 9"):
            generator.sample([0], [4], sampling=strong)
        return
    usual, pictures = generator.sample([0], [4]), generator.sample([0], [4], sampling=strong)
    torch.testing.assert_close(pictures, run_pipeline(pipeline, [4], guidance_scale=9.0), atol=1e-5, rtol=0)
    assert not torch.equal(usual, pictures)


def test_pictures_come_in_order_whatever_the_batch(generator):
    together = generator.sample([1, 0, 1], [7, 8, 9])
    apart = torch.cat([generator.sample([1], [7]), generator.sample([0], [8]), generator.sample([1], [9])])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    assert (together[0] - together[2]).abs().max() > 1e-3


def test_prompts_matter(generator):
    assert (generator.sample([0], [7]) - generator.sample([1], [7])).abs().max() > 1e-4


def test_packing_equals_fluxs_and_is_undone():
    latents = torch.randn(2, 16, 8, 12)
    tokens = pack(latents)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, 2, 16, 8, 12))
    assert torch.equal(unpack(tokens, 8, 12), latents)
    assert torch.equal(token_positions(8, 12), FluxPipeline._prepare_latent_image_ids(1, 4, 6, "cpu", torch.float32))


def test_sigmas_of_schnell_fall_evenly():
    sigmas = flow_sigmas(FlowMatchEulerDiscreteScheduler(), 4, mu=0.5)
    torch.testing.assert_close(sigmas, torch.tensor([1, 0.75, 0.5, 0.25, 0]))


def test_defaults_follow_the_model(folder, flavour):
    generator = load_generator(folder, ["a sea"], "cpu")
    assert generator.num_inference_steps == {"schnell": 4, "dev": 28}[flavour]
    assert generator.sample([0], [1], 1).shape == (1, 3, 512, 512)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([2], [1]), "prompt indices from 0 to 1"),
        (([-1], [1]), "prompt indices from 0 to 1"),
        (([0], [1, 2]), "one seed for each"),
        (([], []), "one seed for each"),
        (([0], [1], 0), "num_inference_steps"),
        (([0], [1], 2.5), "num_inference_steps"),
    ],
)
def test_refuses_a_bad_batch(schnell, arguments, message):
    with pytest.raises(GeneratorError, match=message):
        schnell.sample(*arguments)


@pytest.mark.parametrize(("height", "width"), [(65, 64), (64, 8), (0, 64), (64, -16)])
def test_refuses_a_size_off_the_grid(schnell, height, width):
    with pytest.raises(GeneratorError, match="Expected"):
        schnell.sample([0], [1], sampling=Sampling(height=height, width=width))
