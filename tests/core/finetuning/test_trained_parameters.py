import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from customdiff_core.finetuning.cross_attention import KEYS_AND_VALUES
from customdiff_core.finetuning.trained_parameters import matching_parameters, train_parameters

STABLE_DIFFUSION_1 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "layers_per_block": 2,
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 64,
}


def test_on_stable_diffusion_1_they_are_the_papers_32_matrices():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**STABLE_DIFFUSION_1)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    trained = train_parameters(unet, KEYS_AND_VALUES, detach_bos=True)
    assert len(trained) == 32
    assert sum(weight.numel() for weight in trained.values()) == 19_169_280
    assert {weight.shape[1] for weight in trained.values()} == {768}
    assert {weight.shape[0] for weight in trained.values()} == {320, 640, 1280}
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight" in trained
    parameters = dict(unet.named_parameters())
    assert all(parameters[name] is weight for name, weight in trained.items())
    assert {name for name, one in parameters.items() if not one.requires_grad} == set()  # it only unfreezes


def test_on_the_embedded_model_only_they_have_a_gradient(components):
    trained = train_parameters(components.unet, KEYS_AND_VALUES, detach_bos=True)
    having = {name for name, parameter in components.unet.named_parameters() if parameter.requires_grad}
    assert having == set(trained)
    assert all(name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")) for name in having)
    crossing = [name for name, module in components.unet.named_modules() if name.endswith(".attn2")]
    assert len(trained) == 2 * len(crossing) == len(matching_parameters(components.unet, KEYS_AND_VALUES))


class Layer(nn.Module):
    """The names of one cross-attention layer beside a self-attention one."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("attn1", "attn2"):
            attention = nn.Module()
            for part in ("to_q", "to_k", "to_v"):
                attention.add_module(part, nn.Linear(4, 6, bias=False))
            self.add_module(name, attention)
        self.requires_grad_(False)


def gradient(*, detach_bos: bool, part: str = "to_k") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients with respect to the text features and to the weight, and the output."""
    torch.manual_seed(0)
    layer = Layer()
    trained = train_parameters(layer, KEYS_AND_VALUES, detach_bos=detach_bos)
    features = torch.randn(2, 5, 4, requires_grad=True)
    output = layer.get_submodule(f"attn2.{part}")(features)
    output.square().sum().backward()
    weight = trained[f"attn2.{part}.weight"].grad
    assert features.grad is not None
    assert weight is not None
    return features.grad, weight, output


@pytest.mark.parametrize("part", ["to_k", "to_v"])
def test_detaching_bos_stops_the_gradient_of_position_0_and_of_no_other(part: str):
    features, weight, output = gradient(detach_bos=True, part=part)
    plain_features, plain_weight, plain_output = gradient(detach_bos=False, part=part)
    assert torch.equal(output, plain_output)
    assert (features[:, 0] == 0).all()
    assert (plain_features[:, 0] != 0).any()
    assert torch.equal(features[:, 1:], plain_features[:, 1:])
    assert not torch.allclose(weight, plain_weight)
    # The weight's gradient is that of positions 1 and later.
    torch.manual_seed(0)
    layer = Layer()
    train_parameters(layer, KEYS_AND_VALUES, detach_bos=False)
    projection = layer.get_submodule(f"attn2.{part}")
    projection(torch.randn(2, 5, 4)[:, 1:]).square().sum().backward()
    torch.testing.assert_close(weight, projection.weight.grad)


def test_self_attention_and_queries_stay_frozen():
    layer = Layer()
    assert set(train_parameters(layer, KEYS_AND_VALUES, detach_bos=True)) == {"attn2.to_k.weight", "attn2.to_v.weight"}
    assert {name for name, one in layer.named_parameters() if one.requires_grad} == {
        "attn2.to_k.weight",
        "attn2.to_v.weight",
    }
