import pytest
import torch
from diffusers import DDPMScheduler

from customdiff_core.config import FinetuneConfig
from customdiff_core.errors import ConfigError
from customdiff_core.finetuning.loss import instance_loss, prior_loss, target_of, timestep_weights

ONES = torch.ones(3)


@pytest.fixture
def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)


def masks() -> torch.Tensor:
    mask = torch.zeros(3, 1, 8, 8)
    mask[0], mask[1, :, 2:5, 2:6], mask[2, :, 7, 7] = 1, 1, 1
    return mask


def test_what_lies_outside_the_mask_does_not_count(tensors):
    prediction, target = tensors
    before = instance_loss(prediction, target, masks(), ONES)
    changed = torch.where(masks().bool(), prediction, prediction + 100)
    assert torch.equal(instance_loss(changed, target, masks(), ONES), before)
    assert instance_loss(torch.where(masks().bool(), prediction + 1, prediction), target, masks(), ONES) != before


def test_every_view_counts_alike_however_small_its_mask(tensors):
    prediction, target = tensors
    error, mask = (prediction - target).square(), masks()
    means = [error[view][:, mask[view, 0].bool()].mean() for view in range(3)]
    torch.testing.assert_close(instance_loss(prediction, target, mask, ONES), torch.stack(means).mean())


def test_with_a_full_mask_it_is_the_plain_mean(tensors):
    prediction, target = tensors
    torch.testing.assert_close(
        instance_loss(prediction, target, torch.ones(3, 1, 8, 8), ONES), prior_loss(prediction, target, ONES)
    )
    torch.testing.assert_close(prior_loss(prediction, target, ONES), (prediction - target).square().mean())


def test_the_default_weight_is_the_released_codes_mask_without_channels(tensors):
    """There: ((prediction - target)^2 * mask).sum() / mask.sum() with a mask of (B, 1, h, w), so 4 channels add up."""
    prediction, target = tensors
    mask = masks()
    per_view = [(((prediction - target).square() * mask)[view].sum() / mask[view].sum()) for view in range(3)]
    config = FinetuneConfig(steps=1, learning_rate=1, modifier_learning_rate=1)
    ours = config.instance_weight * instance_loss(prediction, target, mask, ONES)
    torch.testing.assert_close(ours, torch.stack(per_view).mean())
    assert config.instance_weight / config.prior_weight == 4


def scheduler(kind: str) -> DDPMScheduler:
    return DDPMScheduler(prediction_type=kind, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def test_epsilon_is_the_noise(tensors):
    latents, noise = tensors
    assert torch.equal(target_of(scheduler("epsilon"), latents, noise, torch.tensor([0, 500, 999])), noise)


def test_v_is_the_velocity(tensors):
    latents, noise = tensors
    times = torch.tensor([0, 500, 999])
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)[times].view(3, 1, 1, 1)
    expected = (alphas.sqrt() * noise - (1 - alphas).sqrt() * latents).float()
    torch.testing.assert_close(
        target_of(scheduler("v_prediction"), latents, noise, times), expected, atol=1e-5, rtol=1e-5
    )


def test_another_prediction_is_refused(tensors):
    with pytest.raises(ConfigError) as error:
        target_of(scheduler("sample"), *tensors, torch.tensor([0, 1, 2]))
    assert str(error.value) == (
        "noise schedule: found prediction_type 'sample', need epsilon or v_prediction; use another model"
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weighs_every_timestep_as_published(kind: str):
    """Hang et al., equation 11, and the same loss on the image when v is predicted: both from the schedule's alphas."""
    times = torch.arange(0, 1000, 37)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)[times]
    snr = alphas / (1 - alphas)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr if kind == "epsilon" else snr + 1)
    found = timestep_weights(scheduler(kind), times, 5.0)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-3)
    assert torch.equal(timestep_weights(scheduler(kind), times, None), torch.ones(len(times)))


def test_a_timestep_of_weight_0_does_not_count(tensors):
    prediction, target = tensors
    weights = torch.tensor([1.0, 0, 1])
    changed = prediction.clone()
    changed[1] += 100
    assert torch.equal(instance_loss(changed, target, masks(), weights), instance_loss(*tensors, masks(), weights))
    assert torch.equal(prior_loss(changed, target, weights), prior_loss(*tensors, weights))
