import torch

from customdiff_core import text
from customdiff_core.devices import autocast
from customdiff_core.finetuning.components import hold_frozen, latent_scale, load_components, load_vae
from customdiff_core.weights import model_digest


def test_everything_is_frozen_float32_and_in_evaluation_mode(components, openmoji):
    for network in (components.unet, components.text_encoder, load_vae(openmoji.model)):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert components.digest == model_digest(openmoji.model)
    assert components.device == torch.device("cpu")


def test_the_schedule_is_the_models_own(components):
    config = components.noise_scheduler.config
    assert (config.prediction_type, config.beta_schedule, config.num_train_timesteps) == (
        "v_prediction",
        "scaled_linear",
        1000,
    )


def test_the_latent_scale_is_the_vaes(openmoji):
    assert latent_scale(openmoji.model) == load_vae(openmoji.model).config.scaling_factor
    assert latent_scale(openmoji.model) != 0.18215


def test_weights_held_in_the_precision_of_the_product_change_no_bit(openmoji):
    components = load_components(openmoji.model)
    kept = "mid_block.attentions.0.proj_in.weight"
    trained = components.unet.get_parameter("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    trained.requires_grad_(True)
    noise = torch.randn(2, 6, 16, 16, generator=torch.Generator().manual_seed(0))

    def predicted() -> torch.Tensor:
        condition = text.encode(components, ["a cat", "a red car"])
        with torch.no_grad(), autocast(components.device, "bf16"):
            return components.predict(noise, torch.tensor([10, 700]), condition)

    before = predicted()
    hold_frozen(components.unet, "bf16", but={kept})
    assert torch.equal(predicted(), before)
    assert trained.dtype == components.unet.get_parameter(kept).dtype == torch.float32
    types = [parameter.dtype for parameter in components.unet.parameters()]
    assert types.count(torch.bfloat16) > len(types) / 2
    norms = [module for module in components.unet.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {module.weight.dtype for module in norms} == {torch.float32}
