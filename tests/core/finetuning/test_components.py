import torch

from customdiff_core.finetuning.components import latent_scale, load_vae
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
