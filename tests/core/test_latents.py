import numpy as np
import pytest
import torch
from PIL import Image

from customdiff_core import sampling
from customdiff_core.config import Runtime
from customdiff_core.finetuning.components import load_vae
from customdiff_core.latents import batch_of, draw, encode_latents, load_latents, save_latents, to_pixels
from customdiff_core.progress import silent
from customdiff_core.sampling import decode_latents
from customdiff_core.seeding import torch_generator


def test_draws_have_the_posteriors_mean_and_deviation():
    mean = torch.tensor([-1.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 200, 200)
    logvar = torch.tensor([0.25, 4.0]).log().view(1, 2, 1, 1).expand(1, 2, 200, 200)
    drawn = draw(mean, logvar, 0.5, torch_generator("draws"))
    assert drawn.mean(dim=(0, 2, 3)).tolist() == pytest.approx([-0.5, 1.0], abs=0.02)
    assert drawn.std(dim=(0, 2, 3)).tolist() == pytest.approx([0.5 * 0.5, 2.0 * 0.5], rel=0.02)


def test_draws_repeat_for_a_name_and_differ_for_another():
    mean, logvar = torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)
    one = draw(mean, logvar, 1.0, torch_generator("a", 1))
    assert torch.equal(draw(mean, logvar, 1.0, torch_generator("a", 1)), one)
    assert not torch.equal(draw(mean, logvar, 1.0, torch_generator("a", 2)), one)


def test_pixels_run_from_minus_one_to_one():
    picture = Image.new("RGB", (8, 6), (0, 127, 255))
    pixels = to_pixels([picture, picture])
    assert pixels.shape == (2, 3, 6, 8)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([-1, -1 / 255, 1])


def test_encoding_is_the_vaes_posterior_whatever_the_batch(openmoji, cat):
    from customdiff_core import images

    pictures = [images.decode(cat.read(one), one.name).resize((64, 64)) for one in cat.images] * 3
    said: list[tuple[int, int]] = []
    mean, logvar = encode_latents(
        pictures, openmoji.model, Runtime(device="cpu"), lambda done, total, note="": said.append((done, total))
    )
    assert mean.shape == logvar.shape == (18, 6, 16, 16)
    assert mean.dtype == np.float32
    assert said == [(16, 18), (18, 18)]
    vae = load_vae(openmoji.model)
    with torch.inference_mode():
        posterior = vae.encode(to_pixels(pictures[:1])).latent_dist
    np.testing.assert_allclose(mean[0], posterior.mean[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(logvar[0], posterior.logvar[0].numpy(), atol=1e-3)
    np.testing.assert_allclose(mean[:6], mean[12:], atol=1e-4)


def test_encoding_then_decoding_gives_the_picture_back(openmoji, cat):
    from customdiff_core import images

    picture = images.decode(cat.read(cat.images[0]), "cat").resize((64, 64))
    mean, _ = encode_latents([picture], openmoji.model, Runtime(device="cpu"), silent)
    vae = load_vae(openmoji.model)

    def error(latents: torch.Tensor) -> float:
        back = decode_latents(vae, latents)[0]
        return float(np.abs(np.asarray(back).astype(int) - np.asarray(picture).astype(int)).mean())

    assert error(torch.from_numpy(mean) * vae.config.scaling_factor) < 16
    assert error(torch.from_numpy(mean)) > 22  # the scale is taken off again


def test_latents_are_kept_exactly(tmp_path):
    rng = np.random.default_rng(0)
    mean, logvar, mask = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4, 2, 2), (3, 4, 2, 2), (3, 1, 2, 2))
    )
    wide = tuple(np.repeat(one, 2, axis=-1) for one in (mean, logvar, mask))
    save_latents(tmp_path / "x.safetensors", {(8, 8): (mean, logvar, mask), (16, 8): wide})
    square, other = load_latents(tmp_path / "x.safetensors", [(8, 8, 2), (16, 8, 0)])
    for found, whole in zip(square, (mean, logvar, mask), strict=True):
        assert np.array_equal(found.numpy(), whole[2])
    for found, whole in zip(other, wide, strict=True):
        assert np.array_equal(found.numpy(), whole[0])


@pytest.mark.parametrize(("side", "batch"), [(64, 16), (512, 16), (768, 7), (1024, 4), (4096, 1)])
def test_large_pictures_are_read_a_few_at_a_time(side: int, batch: int):
    """As many as fit the memory that the profiles ask for."""
    assert batch_of(side, side) == batch


def test_large_latents_are_decoded_a_few_at_a_time(openmoji, monkeypatch: pytest.MonkeyPatch):
    vae = load_vae(openmoji.model)
    latents = torch.randn(3, vae.config.latent_channels, 16, 16, generator=torch_generator("decoded"))
    with torch.inference_mode():
        whole = decode_latents(vae, latents)
        seen: list[int] = []
        real = vae.decode
        monkeypatch.setattr(vae, "decode", lambda part: seen.append(len(part)) or real(part))
        monkeypatch.setattr(sampling, "PIXELS", 2 * whole[0].width * whole[0].height)
        parts = decode_latents(vae, latents)
    assert seen == [2, 1]
    for one, other in zip(whole, parts, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1
