"""Other programs' files: their layouts written by hand from their description, read, and written back bit for bit."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from customdiff_core import delta as deltas
from customdiff_core.artifacts import Store
from customdiff_core.config import CompressConfig, Runtime, SampleConfig, Stated
from customdiff_core.delta import Delta
from customdiff_core.errors import ConfigError, DeltaError
from customdiff_core.finetuning.components import load_components, load_vae
from customdiff_core.interop import lora
from customdiff_core.interop.content import Base, Parts, open_content
from customdiff_core.interop.formats import identify, read, write
from customdiff_core.interop.importing import import_delta, inspect
from customdiff_core.interop.ldm_names import UNET, renamed, unet_prefixes
from customdiff_core.lineage import Taught
from customdiff_core.merging.text_features import concept_targets
from customdiff_core.sampling import draw_images, load_model
from customdiff_core.seeding import torch_generator

from ...small_models import STABLE_DIFFUSION_1, STABLE_DIFFUSION_2, STABLE_DIFFUSION_XL, at_full_size

PROMPT = "a crying <teal-cat> cat"
DDIM = SampleConfig(sampler="ddim", steps=4, guidance_scale=4)


@pytest.fixture
def base(chain) -> Base:
    return Base(chain.profile.model)


@pytest.fixture
def trained(chain) -> Delta:
    """A delta that moved far enough to be seen in a picture."""
    delta = deltas.load(chain.store.path(chain.delta) / deltas.FILE)
    originals = Base(chain.profile.model).weights(delta.names)
    generator = torch.Generator().manual_seed(0)
    noise = {name: 0.02 * torch.randn(one.shape, generator=generator) for name, one in originals.items()}
    return dataclasses.replace(delta, weights={name: one + noise[name] for name, one in originals.items()})


def parts_of(path: Path, base: Base) -> Parts:
    found = read(identify(path), base)
    assert isinstance(found, Parts)
    return found


def assert_same(found: Parts | Delta, delta: Delta) -> None:
    assert set(found.weights) == set(delta.weights)
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in delta.weights.items())
    for token, rows in delta.tokens.items():
        assert all(torch.equal(found.tokens[token][encoder], row) for encoder, row in rows.items())


def assert_equal_files(one: Any, other: Any) -> None:
    """Nested dicts of tensors: the same names, types and bits."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal_files(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal_files(left, right)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


# diffusers


@pytest.mark.parametrize("kind", ["diffusers", "diffusers-bin"])
def test_diffusers_own_loader_draws_the_same_pictures(chain, trained: Delta, base: Base, tmp_path: Path, kind: str):
    """Its pipeline, its loader for weights, its loader for the token; the noise is ours."""
    write(tmp_path, trained, base, kind)
    suffix = ".bin" if kind.endswith("bin") else ".safetensors"
    pipeline = _pipeline(chain)
    pipeline.unet.load_attn_procs(
        str(tmp_path),
        weight_name=f"pytorch_custom_diffusion_weights{suffix}",
        _pipeline=pipeline,
        local_files_only=True,
    )
    pipeline.load_textual_inversion(str(tmp_path), weight_name=f"<teal-cat>{suffix}", local_files_only=True)
    theirs = _drawn(pipeline)

    components = load_components(chain.profile.model)
    deltas.apply(components, trained)
    ours = np.asarray(draw_images(components, load_vae(chain.profile.model), [PROMPT], (0,), DDIM)[0]).astype(int)
    assert np.abs(ours - theirs).max() <= 2
    plain = _drawn(_pipeline(chain), "a crying ktn cat")
    assert np.abs(ours - plain).max() > 50


def test_diffusers_layout_written_by_hand_is_read_and_written_bit_for_bit(trained: Delta, base: Base, tmp_path: Path):
    """From its description: <block>.attn2.processor.to_k_custom_diffusion.weight, placeholders, a file a token."""
    theirs: dict[str, Any] = {}
    for name, tensor in trained.weights.items():
        block, part = name.removesuffix(".weight").rsplit(".", 1)
        theirs[f"{block}.processor.{part}_custom_diffusion.weight"] = tensor
        theirs[block.replace("attn2", "attn1") + ".processor"] = {}
    torch.save(theirs, tmp_path / "pytorch_custom_diffusion_weights.bin")
    torch.save({"<teal-cat>": trained.tokens["<teal-cat>"]["text_encoder"]}, tmp_path / "<teal-cat>.bin")
    assert identify(tmp_path).format == "diffusers"
    assert_same(parts_of(tmp_path, base), trained)
    write(tmp_path / "again", trained, base, "diffusers-bin")
    for name in ("pytorch_custom_diffusion_weights.bin", "<teal-cat>.bin"):
        assert_equal_files(open_content(tmp_path / "again" / name), open_content(tmp_path / name))


def test_tokens_beside_the_weights_may_be_called_anything(
    trained: Delta, base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    write(tmp_path, trained, base, "diffusers")
    write(tmp_path, trained, base, "diffusers-bin")  # the same again
    row = torch.randn(192)
    torch.save({"sks-cat": row}, tmp_path / "sks-cat.bin")
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.bin")
    (tmp_path / "logs.bin").mkdir()
    found = parts_of(tmp_path, base)
    assert set(found.tokens) == {"<teal-cat>", "sks-cat"}
    assert torch.equal(found.tokens["sks-cat"]["text_encoder"], row)
    assert caplog.messages == [
        f"left out: {tmp_path}/optimizer.bin: found a file that holds state, param_groups, need one vector a token; export the "
        "token again"
    ]


def test_a_tokens_own_file_is_not_left_out(trained: Delta, base: Base, tmp_path: Path):
    write(tmp_path, trained, base, "diffusers")
    (tmp_path / "<new1>.bin").write_bytes(b"damaged")
    with pytest.raises(
        DeltaError, match=r"/<new1>.bin: found no readable pickle|/<new1>.bin: found a pickle with more"
    ):
        identify(tmp_path)


def test_two_files_of_one_token_must_agree(trained: Delta, base: Base, tmp_path: Path):
    write(tmp_path, trained, base, "diffusers")
    torch.save({"<teal-cat>": torch.randn(192)}, tmp_path / "<teal-cat>.bin")
    with pytest.raises(DeltaError) as caught:
        parts_of(tmp_path, base)
    assert str(caught.value) == (
        f"{tmp_path}/<teal-cat>.safetensors: found other rows of <teal-cat> than in <teal-cat>.bin, need one file a token; remove "
        "the older one"
    )


@pytest.mark.parametrize("kind", ["diffusers", "embedding"])
def test_a_folder_of_tokens_alone_is_read(chain, trained: Delta, base: Base, tmp_path: Path, kind: str):
    """As a textual inversion is written."""
    alone = dataclasses.replace(trained, weights={})
    write(tmp_path, alone, base, kind)
    found = inspect(tmp_path, chain.profile)
    assert (found.format, found.problem) == ("embedding", "")
    assert_same(found.delta, alone)


def test_queries_and_outputs_have_diffusers_names_too(base: Base, trained: Delta, tmp_path: Path):
    block = next(iter(trained.weights)).partition(".attn2.")[0]
    more = {f"{block}.attn2.to_q.weight": torch.randn(3, 3), f"{block}.attn2.to_out.0.bias": torch.randn(3)}
    write(tmp_path, dataclasses.replace(trained, weights={**trained.weights, **more}), base, "diffusers")
    names = set(load_file(tmp_path / "pytorch_custom_diffusion_weights.safetensors"))
    assert f"{block}.attn2.processor.to_q_custom_diffusion.weight" in names
    assert f"{block}.attn2.processor.to_out_custom_diffusion.0.bias" in names
    assert set(parts_of(tmp_path, base).weights) == {*trained.weights, *more}


# The authors'


def test_the_authors_delta_bin_is_read_and_written_bit_for_bit(trained: Delta, base: Base, tmp_path: Path):
    half = {name: tensor.half() for name, tensor in trained.weights.items()}  # whatever type it has
    theirs = {"unet": half, "modifier_token": {"<new1>": torch.randn(192)}}
    torch.save(theirs, tmp_path / "delta.bin")
    found = parts_of(tmp_path / "delta.bin", base)
    assert identify(tmp_path / "delta.bin").format == "authors"
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in half.items())
    write(
        tmp_path / "again.bin",
        dataclasses.replace(trained, weights=found.weights, tokens=found.tokens),
        base,
        "authors",
    )
    assert_equal_files(open_content(tmp_path / "again.bin"), open_content(tmp_path / "delta.bin"))


def test_what_a_delta_bin_holds_beside_is_said(
    trained: Delta, base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    theirs = {"unet": dict(trained.weights), "modifier_token": {}, "text_encoder": {"a": torch.ones(2)}}
    torch.save(theirs, tmp_path / "delta.bin")
    assert parts_of(tmp_path / "delta.bin", base).weights.keys() == trained.weights.keys()
    assert "found text_encoder, for which no delta has a place" in caplog.text


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"unet": {}}, {"modifier_token": {}}])
def test_a_file_with_nothing_in_it_is_refused(content: dict, openmoji, tmp_path: Path):
    torch.save(content, tmp_path / "delta.bin")
    with pytest.raises(DeltaError, match="found neither weights nor tokens in it, need what was trained"):
        inspect(tmp_path / "delta.bin", openmoji)


def test_sdxls_tokens_have_two_vectors(trained: Delta, base: Base, tmp_path: Path):
    theirs = {"unet": {}, "modifier_token": {"<new1>": [torch.randn(768), torch.randn(1280)]}}
    torch.save(theirs, tmp_path / "delta.bin")
    found = parts_of(tmp_path / "delta.bin", base)
    assert {name: len(row) for name, row in found.tokens["<new1>"].items()} == {
        "text_encoder": 768,
        "text_encoder_2": 1280,
    }
    write(tmp_path / "again.bin", dataclasses.replace(trained, weights={}, tokens=found.tokens), base, "authors")
    assert_equal_files(open_content(tmp_path / "again.bin"), open_content(tmp_path / "delta.bin"))
    write(tmp_path / "alone", dataclasses.replace(trained, weights={}, tokens=found.tokens), base, "embedding")
    sdxl = load_file(tmp_path / "alone" / "<new1>.safetensors")
    shapes = {name: tuple(row.shape) for name, row in sdxl.items()}
    assert shapes == {"clip_l": (1, 768), "clip_g": (1, 1280)}  # webui takes the first number for that of the vectors
    assert_equal_files(parts_of(tmp_path / "alone" / "<new1>.safetensors", base).tokens, dict(found.tokens))
    save_file({name: row[0].clone() for name, row in sdxl.items()}, tmp_path / "<new1>.safetensors")
    assert_equal_files(parts_of(tmp_path / "<new1>.safetensors", base).tokens, dict(found.tokens))


def test_compvis_delta_ckpt_is_read_and_written_bit_for_bit(trained: Delta, base: Base, tmp_path: Path):
    pairs = unet_prefixes(base.unet_config)
    state: dict[str, torch.Tensor] = {
        f"{UNET}{renamed(name, pairs)}": one for name, one in sorted(trained.weights.items())
    }
    assert any(
        name.startswith("model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k") for name in state
    )
    state["embed"] = torch.stack([torch.randn(192), torch.randn(192)])
    torch.save({"state_dict": state}, tmp_path / "delta_epoch.ckpt")
    assert identify(tmp_path / "delta_epoch.ckpt").format == "compvis"
    found = parts_of(tmp_path / "delta_epoch.ckpt", base)
    assert list(found.tokens) == ["<new1>", "<new2>"]
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in trained.weights.items())
    again = dataclasses.replace(trained, weights=found.weights, tokens=found.tokens)
    write(tmp_path / "again.ckpt", again, base, "compvis")
    assert_equal_files(open_content(tmp_path / "again.ckpt"), open_content(tmp_path / "delta_epoch.ckpt"))


def test_a_compvis_files_rows_come_in_the_order_in_which_the_concepts_were_taught(
    trained: Delta, base: Base, tmp_path: Path
):
    """It has no names for them."""
    rows = {token: {"text_encoder": torch.full((192,), float(n))} for n, token in enumerate(("<a>", "<b>", "<c>"))}
    taught = tuple(Taught(name=token.strip("<>"), modifier_token=token) for token in ("<c>", "<a>", "<b>"))
    lineage = trained.lineage.model_copy(update={"concepts": taught})
    write(tmp_path / "delta.ckpt", dataclasses.replace(trained, tokens=rows, lineage=lineage), base, "compvis")
    found = parts_of(tmp_path / "delta.ckpt", base).tokens
    assert list(found) == ["<new1>", "<new2>", "<new3>"]
    assert [float(row["text_encoder"][0]) for row in found.values()] == [2.0, 0.0, 1.0]


def test_what_is_in_a_delta_ckpt_of_another_base_model_is_said(chain, tmp_path: Path):
    layer = "input_blocks.99.1.transformer_blocks.0.attn2.to_k.weight"
    state = {f"{UNET}{layer}": torch.zeros(320, 768), "embed": torch.randn(1, 768)}
    torch.save({"state_dict": state}, tmp_path / "delta.ckpt")
    found = inspect(tmp_path / "delta.ckpt", chain.profile)
    assert found.problem == (
        f"delta: found {layer}, which the base model's UNet has not, need its layers; name the base it belongs to"
    )
    assert (found.format, set(found.delta.weights), set(found.delta.tokens)) == ("compvis", {layer}, {"<new1>"})


def test_compvis_names_are_stable_diffusion_1s():
    """Known by heart: the first cross-attention is input block 1, the last output block 11."""
    config = {
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    pairs = unet_prefixes(config)
    known = {
        "down_blocks.0.attentions.0.": "input_blocks.1.1.",
        "down_blocks.1.attentions.1.": "input_blocks.5.1.",
        "down_blocks.2.attentions.1.": "input_blocks.8.1.",
        "mid_block.attentions.0.": "middle_block.1.",
        "up_blocks.1.attentions.0.": "output_blocks.3.1.",
        "up_blocks.3.attentions.2.": "output_blocks.11.1.",
        "up_blocks.0.upsamplers.0.conv.": "output_blocks.2.1.conv.",
        "up_blocks.1.upsamplers.0.conv.": "output_blocks.5.2.conv.",
        "down_blocks.0.downsamplers.0.conv.": "input_blocks.3.0.op.",
    }
    assert known.items() <= dict(pairs).items()
    assert renamed("output_blocks.11.1.transformer_blocks.0.attn2.to_v.weight", pairs, back=True) == (
        "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v.weight"
    )


@pytest.mark.parametrize("config", [STABLE_DIFFUSION_1, STABLE_DIFFUSION_2, STABLE_DIFFUSION_XL])
def test_every_name_of_the_full_size_goes_to_compvis_and_back(config: dict[str, Any]):
    """A block without attention has its upsampler where others have attention."""
    unet = at_full_size(config)
    pairs, names = unet_prefixes(dict(unet.config)), list(unet.state_dict())
    theirs = [renamed(name, pairs) for name in names]
    assert len(set(theirs)) == len(names)
    assert [renamed(str(name), pairs, back=True) for name in theirs] == names


def test_every_weight_of_the_embedded_unet_has_a_compvis_name_of_its_own(base: Base):
    """Its levels have layers of their own number."""
    pairs = unet_prefixes(base.unet_config)
    theirs = [renamed(name, pairs) for name in base.names]
    assert None not in theirs
    assert len(set(theirs)) == len(base.names)
    assert {renamed(str(name), pairs, back=True) for name in theirs} == set(base.names)
    assert renamed("up_blocks.2.attentions.2.", pairs) == "output_blocks.6.1."


# webui


def test_a_whole_model_is_what_diffusers_converter_takes_it_for(chain, trained: Delta, base: Base, tmp_path: Path):
    """Every weight of UNet and VAE under CompVis' names, turned back by diffusers' own single-file code."""
    with pytest.raises(DeltaError, match="found a text encoder that is not Stable Diffusion 1's"):
        write(tmp_path / "model.safetensors", trained, base, "webui")
    base = _with_layers_of_one_number(_with_webuis_encoder(base, tmp_path / "model"))
    trained = dataclasses.replace(
        trained, weights={name: one for name, one in trained.weights.items() if name in base.names}
    )
    written = write(tmp_path / "model.safetensors", trained, base, "webui")
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "model.safetensors",
        "embeddings/<teal-cat>.pt",
    ]
    state = load_file(tmp_path / "model.safetensors")
    unet = load_components(base.source).unet
    wanted = unet.state_dict() | dict(trained.weights)
    found = convert_ldm_unet_checkpoint(dict(state), dict(unet.config))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name].float(), tensor.float()) for name, tensor in wanted.items())
    vae = load_vae(chain.profile.model)
    back = convert_ldm_vae_checkpoint(dict(state), dict(vae.config))
    assert back.keys() == vae.state_dict().keys()
    assert all(torch.equal(back[name].float(), tensor.float()) for name, tensor in vae.state_dict().items())
    again = parts_of(tmp_path / "model.safetensors", base)
    assert_same(again, trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_all_that_a_whole_model_trained_is_read(
    chain, trained: Delta, base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: torch.dtype
):
    """Beyond cross-attention, and without what is the base model's in another type."""
    base = _with_webuis_encoder(base, tmp_path / "model")
    names = ("conv_in.weight", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight", "conv_out.bias")
    more = {name: 1.25 * one for name, one in base.weights(names).items()}
    write(tmp_path / "x.safetensors", dataclasses.replace(trained, weights={**trained.weights, **more}), base, "webui")
    state = {name: tensor.to(dtype) for name, tensor in load_file(tmp_path / "x.safetensors").items()}
    save_file(state, tmp_path / "x.safetensors")
    profile = chain.profile.model_copy(update={"model": base.source})
    found = inspect(tmp_path / "x.safetensors", profile)
    assert not found.problem
    assert set(found.delta.weights) == {*trained.weights, *more}
    assert all(found.changes[name] == pytest.approx(0.25, abs=1e-3) for name in more)
    assert not caplog.messages
    name = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    save_file({**state, name: state[name] + 1}, tmp_path / "x.safetensors")
    assert not inspect(tmp_path / "x.safetensors", profile).problem
    assert caplog.messages == [
        f"left out: {tmp_path}/x.safetensors: found a text encoder with 1 weights of its own, such as "
        "text_model.final_layer_norm.weight, need the base model's; pictures will differ from those of the whole model"
    ]


def test_a_whole_model_of_another_structure_is_said(chain, tmp_path: Path):
    layer = "model.diffusion_model.input_blocks.99.0.weight"
    save_file({f"{UNET}input_blocks.0.0.weight": torch.zeros(3, 3), layer: torch.zeros(3)}, tmp_path / "x.safetensors")
    problem = inspect(tmp_path / "x.safetensors", chain.profile).problem
    assert "found input_blocks.99.0.weight, which the base model's UNet has not" in problem


def test_a_vae_with_attention_has_webuis_names_too(tmp_path: Path):
    from diffusers import AutoencoderKL

    from customdiff_core.interop.ldm_names import VAE, vae_prefixes

    config = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(**config, **blocks)
    pairs = vae_prefixes(vae.config)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in vae.state_dict().items():
        theirs = renamed(name, pairs) or name
        attention = any(f".attn_1.{part}.weight" in theirs for part in ("q", "k", "v", "proj_out"))
        state[VAE + theirs] = tensor[..., None, None] if attention else tensor
    back = convert_ldm_vae_checkpoint(state, dict(vae.config))
    assert back.keys() == vae.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in vae.state_dict().items())
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name in vae.state_dict():
        before = next((name.replace(new, old) for new, old in older.items() if f".{new}." in name), name)
        assert renamed(before, pairs) == renamed(name, pairs)


def test_webuis_embedding_is_read_back(trained: Delta, base: Base, tmp_path: Path):
    vector = torch.randn(1, 192)
    torch.save({"string_to_param": {"*": vector}, "name": "mine", "step": 5}, tmp_path / "file.pt")
    found = parts_of(tmp_path / "file.pt", base)
    assert identify(tmp_path / "file.pt").format == "embedding"
    assert torch.equal(found.tokens["mine"]["text_encoder"], vector[0])


# Tokens alone


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_textual_inversion_file_is_read_and_written(trained: Delta, base: Base, tmp_path: Path, suffix: str):
    row = torch.randn(192)
    path = tmp_path / f"learned_embeds{suffix}"
    torch.save({"<mine>": row}, path) if suffix == ".bin" else save_file({"<mine>": row}, path)
    found = parts_of(path, base)
    assert torch.equal(found.tokens["<mine>"]["text_encoder"], row)
    write(tmp_path / "out", dataclasses.replace(trained, tokens=found.tokens), base, "embedding")
    assert torch.equal(load_file(tmp_path / "out" / "<mine>.safetensors")["<mine>"], row)


@pytest.mark.parametrize("token", ["../evil", "a/b", ".hidden", ""])
def test_a_token_that_is_no_file_name_is_not_written(trained: Delta, base: Base, tmp_path: Path, token: str):
    evil = dataclasses.replace(trained, tokens={token: {"text_encoder": torch.zeros(192)}})
    with pytest.raises(DeltaError, match="which is no file name, need one such as <new1>; rename it"):
        write(tmp_path / "out", evil, base, "embedding")
    assert not list(tmp_path.glob("*evil*"))


# LoRA


@pytest.mark.parametrize("kind", ["kohya", "peft"])
def test_diffusers_loads_a_lora_of_full_rank_as_the_delta_itself(
    chain, trained: Delta, base: Base, tmp_path: Path, kind: str
):
    """Tolerance: 3 of 255 grey levels at full rank."""
    write(tmp_path / "lora.safetensors", trained, base, kind, rank=10_000)
    pipeline = _pipeline(chain)
    pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors", local_files_only=True)
    pipeline.load_textual_inversion(str(tmp_path), weight_name="<teal-cat>.safetensors", local_files_only=True)
    components = load_components(chain.profile.model)
    deltas.apply(components, trained)
    ours = np.asarray(draw_images(components, load_vae(chain.profile.model), [PROMPT], (0,), DDIM)[0]).astype(int)
    assert np.abs(ours - _drawn(pipeline)).max() <= 3


def test_kohyas_and_pefts_names():
    changes = {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (torch.ones(6, 2), torch.ones(2, 4))}
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    theirs = {name: tuple(tensor.shape) for name, tensor in lora.kohya(changes).items()}
    assert theirs == {f"{stem}.lora_down.weight": (2, 4), f"{stem}.lora_up.weight": (6, 2), f"{stem}.alpha": ()}
    assert lora.kohya(changes)[f"{stem}.alpha"] == 2
    stem = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    theirs = {name: tuple(tensor.shape) for name, tensor in lora.peft(changes).items()}
    assert theirs == {f"{stem}.lora_A.weight": (2, 4), f"{stem}.lora_B.weight": (6, 2)}


def test_a_token_alone_is_no_lora(trained: Delta, base: Base, tmp_path: Path):
    with pytest.raises(
        DeltaError, match="LoRA: found no changed matrix, need one; a token alone is written as an embedding"
    ):
        write(tmp_path / "lora.safetensors", dataclasses.replace(trained, weights={}), base, "kohya")


# Compressed, then written whole


def test_factors_are_multiplied_out_for_formats_of_whole_weights(chain, trained: Delta, base: Base, tmp_path: Path):
    from customdiff_core.compression import compressed

    originals = base.weights(trained.names)
    thin = compressed(trained, originals, CompressConfig(rank=10_000))[0]
    write(tmp_path / "delta.bin", thin, base, "authors")
    found = parts_of(tmp_path / "delta.bin", base)
    for name, tensor in trained.weights.items():
        torch.testing.assert_close(found.weights[name], tensor, atol=1e-5, rtol=1e-5)


# What must not be opened


class Evil:
    """What a hostile checkpoint carries: a program that runs when it is opened."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth"])
def test_a_hostile_pickle_is_refused_and_does_not_run(base: Base, tmp_path: Path, suffix: str):
    witness = tmp_path / "witness"
    path = tmp_path / f"delta{suffix}"
    torch.save({"unet": {}, "modifier_token": {}, "extra": Evil(witness)}, path)
    with pytest.raises(DeltaError) as error:
        identify(path)
    assert str(error.value) == (
        f"{path}: found a pickle with more than tensors in it, which could run any program, need tensors and plain values; "
        "it was not opened: ask for a safetensors file"
    )
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists()  # it would have


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no zip", b"\x80\x04.", b"junk"])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str, data: bytes):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    with pytest.raises(DeltaError, match=r"/x\.(bin|safetensors): found (no readable|a pickle with more)"):
        identify(path)


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(3)])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, value: Any):
    torch.save(value, tmp_path / "x.bin")
    with pytest.raises(DeltaError, match=r"/x.bin: found \w+, need a dict of tensors; export it again"):
        identify(tmp_path / "x.bin")


def test_what_is_in_a_file_is_said_when_nobody_knows_it(tmp_path: Path):
    save_file({"lstm.weight": torch.zeros(3, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(DeltaError) as caught:
        identify(tmp_path / "x.safetensors")
    assert str(caught.value) == (
        f"{tmp_path}/x.safetensors: found a file that holds lstm.weight, need one of customdiff, diffusers, authors, compvis, "
        "embedding, webui; export it again as one of them"
    )


def test_a_missing_file_and_an_empty_folder(tmp_path: Path):
    with pytest.raises(DeltaError, match=r"/none.bin: found no file, need trained weights; correct the path"):
        identify(tmp_path / "none.bin")
    with pytest.raises(DeltaError) as caught:
        identify(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: found no pytorch_custom_diffusion_weights.safetensors or .bin, nor a token's file, need a folder of "
        "diffusers' Custom Diffusion; name the folder that holds them, or the file itself"
    )


def test_an_unknown_format_is_refused(trained: Delta, base: Base, tmp_path: Path):
    known = "customdiff, diffusers, diffusers-bin, authors, compvis, embedding, webui, kohya, peft"
    for kind, remedy in (("zzzz", "choose one of them"), ("diffuser", "did you mean 'diffusers'?")):
        with pytest.raises(ConfigError) as caught:
            write(tmp_path / "x", trained, base, kind)
        assert str(caught.value) == f"format: found {kind!r}, need one of {known}; {remedy}"


def test_a_model_trained_as_a_whole_does_not_fit_cross_attention(trained: Delta, base: Base, tmp_path: Path):
    whole = dataclasses.replace(trained, weights={**trained.weights, "conv_in.weight": torch.zeros(1)})
    for kind, name in (("diffusers", "out"), ("authors", "delta.bin"), ("compvis", "delta.ckpt")):
        with pytest.raises(
            DeltaError, match=r"found conv_in.weight among \d+ weights, need cross-attention alone; write a whole"
        ):
            write(tmp_path / name, whole, base, kind)


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("webui", "model.ckpt", "found .ckpt for webui, need .safetensors; call the file so"),
        (
            "authors",
            "x.safetensors",
            "found .safetensors for authors, need .bin or .ckpt or .pt or .pth; call the file so",
        ),
        ("compvis", "delta", "found no suffix for compvis, need .bin or .ckpt or .pt or .pth; call the file so"),
        ("customdiff", "delta.bin", "found .bin for customdiff, need .safetensors; call the file so"),
        ("peft", "lora.bin", "found .bin for peft, need .safetensors; call the file so"),
        ("diffusers", "x.bin", "found .bin for diffusers, need a folder; leave the suffix out"),
        ("embedding", "x.safetensors", "found .safetensors for embedding, need a folder; leave the suffix out"),
    ],
)
def test_a_file_is_called_as_what_is_in_it(trained: Delta, base: Base, tmp_path: Path, kind: str, name: str, said: str):
    with pytest.raises(ConfigError) as caught:
        write(tmp_path / name, trained, base, kind)
    assert str(caught.value) == f"{tmp_path}/{name}: {said}"
    assert not list(tmp_path.iterdir())


# Import


def test_an_imported_file_is_a_delta_whose_base_is_stated(
    chain, store: Store, trained: Delta, base: Base, tmp_path: Path
):
    write(tmp_path / "delta.bin", trained, base, "authors")
    stated = Stated(tokens=("<my-cat>",), categories=("cat",))
    made = import_delta(tmp_path / "delta.bin", chain.profile, stated, store=store)
    delta = deltas.load(store.path(made) / deltas.FILE)
    assert delta.lineage.base_stated
    assert delta.lineage.base_digest == trained.lineage.base_digest
    assert delta.lineage.method == "imported (authors)"
    assert [(one.modifier_token, one.category) for one in delta.lineage.concepts] == [("<my-cat>", "cat")]
    assert set(delta.tokens) == {"<my-cat>"}
    components, _ = load_model(chain.profile, made, store, Runtime(device="cpu"))
    assert "<my-cat>" in components.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("diffusers", ""), ("diffusers", "pytorch_custom_diffusion_weights.safetensors"), ("webui", "model.safetensors")],
)
def test_another_token_beside_the_weights_is_another_delta(
    chain, store: Store, trained: Delta, base: Base, tmp_path: Path, kind: str, name: str
):
    if kind == "webui":
        base = _with_webuis_encoder(base, tmp_path / "model")
    profile = chain.profile.model_copy(update={"model": base.source})
    out, given = tmp_path / "out", tmp_path / "out" / name
    written = out if kind == "diffusers" else given
    write(written, trained, base, kind)
    before = import_delta(given, profile, Stated(), store=store)
    (out / "notes.txt").write_text("no part of it")
    assert import_delta(given, profile, Stated(), store=store) == before
    other = {"<teal-cat>": {"text_encoder": torch.randn(192)}}
    write(written, dataclasses.replace(trained, tokens=other), base, kind)
    after = import_delta(given, profile, Stated(), store=store)
    found = deltas.load(store.path(after) / deltas.FILE).tokens["<teal-cat>"]["text_encoder"]
    assert torch.equal(found, other["<teal-cat>"]["text_encoder"])


def test_inspect_says_what_is_in_it_and_that_it_fits(chain, trained: Delta, base: Base, tmp_path: Path):
    write(tmp_path / "delta.bin", trained, base, "authors")
    found = inspect(tmp_path / "delta.bin", chain.profile)
    assert (found.format, found.problem) == ("authors", "")
    assert set(found.changes) == set(trained.weights)
    assert all(0.01 < change < 0.5 for change in found.changes.values())
    own = inspect(chain.store.path(chain.delta) / deltas.FILE, chain.profile)
    assert (own.format, own.problem) == ("customdiff", "")
    assert not own.delta.lineage.base_stated


def test_a_large_change_of_ones_own_is_no_other_base_model(chain, trained: Delta, tmp_path: Path):
    """A merge of strongly trained concepts can move weights by more than a fine-tuning does; its base is known by digest."""
    far = {
        name: tensor + tensor.norm() * torch.nn.functional.normalize(torch.randn_like(tensor), dim=(0, 1))
        for name, tensor in trained.weights.items()
    }
    deltas.save(tmp_path / deltas.FILE, dataclasses.replace(trained, weights=far))
    found = inspect(tmp_path / deltas.FILE, chain.profile)
    assert max(found.changes.values()) > 0.5
    assert not found.problem


def test_a_weight_that_is_zero_in_the_base_model_has_no_relative_change(chain, tmp_path: Path, base: Base):
    shutil.copytree(chain.profile.model.path, tmp_path / "model")
    path = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    save_file({**state, "conv_out.bias": torch.zeros_like(state["conv_out.bias"])}, path)
    model = base.source.model_copy(update={"path": tmp_path / "model"})
    weights = {
        "conv_out.bias": torch.ones_like(state["conv_out.bias"]).float(),
        "conv_in.bias": state["conv_in.bias"].float(),
    }
    torch.save({"unet": weights, "modifier_token": {}}, tmp_path / "delta.bin")
    found = inspect(tmp_path / "delta.bin", chain.profile.model_copy(update={"model": model}))
    assert (found.changes, found.problem) == ({"conv_in.bias": 0.0}, "")


def test_weights_of_another_base_model_are_too_far(chain, trained: Delta, base: Base, tmp_path: Path):
    other = {name: torch.randn_like(tensor) * tensor.std() for name, tensor in trained.weights.items()}
    torch.save({"unet": other, "modifier_token": {}}, tmp_path / "delta.bin")
    problem = inspect(tmp_path / "delta.bin", chain.profile).problem
    assert "found weights that differ from the base model's by 14" in problem
    assert "need at most 50%, as a fine-tuning has; name the base model it was trained on" in problem
    with pytest.raises(DeltaError, match="differ from the base model's"):
        import_delta(tmp_path / "delta.bin", chain.profile, Stated(), store=chain.store)


def test_a_width_or_layer_that_does_not_fit_is_said(chain, trained: Delta, tmp_path: Path):
    name = next(iter(trained.weights))
    torch.save({"unet": {name: torch.zeros(320, 768)}, "modifier_token": {}}, tmp_path / "wide.bin")
    assert (
        "(320, 768), which does not fit the base model's UNet, need"
        in inspect(tmp_path / "wide.bin", chain.profile).problem
    )
    torch.save({"unet": {"x.attn2.to_k.weight": torch.zeros(2, 2)}, "modifier_token": {}}, tmp_path / "other.bin")
    problem = inspect(tmp_path / "other.bin", chain.profile).problem
    assert "x.attn2.to_k.weight" in problem


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (torch.randn(1024), "<x> with a row of (1024,) for text_encoder, need (192,)"),
        ([torch.randn(192), torch.randn(1280)], "<x> with a row of (1280,) for text_encoder_2, need none"),
    ],
)
def test_a_token_of_another_model_is_said_before_anything_is_stored(chain, store: Store, tmp_path: Path, rows, said):
    """Stable Diffusion 2's width, and XL's two rows, on a model of another width with one text encoder."""
    torch.save({"unet": {}, "modifier_token": {"<x>": rows}}, tmp_path / "delta.bin")
    problem = f"delta: found {said}; load it on its own base"
    assert inspect(tmp_path / "delta.bin", chain.profile).problem == problem
    with pytest.raises(DeltaError) as caught:
        import_delta(tmp_path / "delta.bin", chain.profile, Stated(), store=store)
    assert str(caught.value) == problem


@pytest.mark.parametrize("word", ["ktn", "Cat"])
def test_a_token_that_is_a_word_already_must_be_called_something_else(chain, tmp_path: Path, word: str):
    path = tmp_path / f"{word}.bin"
    torch.save({word: torch.randn(192)}, path)
    assert inspect(path, chain.profile).problem == (
        f"{path}: found token {word}, which the tokenizer knows as a word already, need a new one; state another with --token, "
        f"such as <{word.lower()}>"
    )
    assert not inspect(path, chain.profile, Stated(tokens=(f"<{word}>",))).problem
    assert inspect(path, chain.profile, Stated(tokens=("dog",))).problem


def test_missing_layers_are_said(chain, trained: Delta, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    kept = dict(sorted(trained.weights.items())[1:])
    torch.save({"unet": kept, "modifier_token": {}}, tmp_path / "delta.bin")
    assert not inspect(tmp_path / "delta.bin", chain.profile).problem
    missing = min(trained.weights)
    assert caplog.messages == [
        f"{tmp_path}/delta.bin: found 19 of 20 key and value layers ({missing} is missing), need all of them for a merge; export "
        "it again"
    ]


def test_nan_in_an_imported_file_is_named(chain, trained: Delta, tmp_path: Path):
    name = next(iter(trained.weights))
    torch.save({"unet": {name: torch.full((2, 2), float("nan"))}, "modifier_token": {}}, tmp_path / "x.bin")
    with pytest.raises(DeltaError, match=f"found NaN or infinity in {name}, need numbers"):
        inspect(tmp_path / "x.bin", chain.profile)


def test_as_many_tokens_must_be_stated_as_there_are(chain, trained: Delta, base: Base, tmp_path: Path):
    write(tmp_path / "delta.bin", trained, base, "authors")
    with pytest.raises(
        DeltaError, match=r"found 1 tokens \(<teal-cat>\), need as many as stated \(<a>, <b>\); state one for each"
    ):
        inspect(tmp_path / "delta.bin", chain.profile, Stated(tokens=("<a>", "<b>")))


def test_the_word_of_a_file_without_tokens_is_stated(chain, store: Store, trained: Delta, tmp_path: Path):
    torch.save({"unet": dict(trained.weights), "modifier_token": {}}, tmp_path / "delta.bin")
    made = import_delta(
        tmp_path / "delta.bin", chain.profile, Stated(tokens=("ktn",), categories=("cat",)), store=store
    )
    delta = deltas.load(store.path(made) / deltas.FILE)
    assert not delta.tokens
    (target,) = concept_targets(chain.profile.model, delta, 1.0, ("photo of a {}",))
    assert [token for _, token in target.places][-3:-1] == ["ktn", "cat"]
    with pytest.raises(DeltaError) as caught:
        inspect(tmp_path / "delta.bin", chain.profile, Stated(tokens=("<my-cat>",)))
    assert str(caught.value) == (
        f"{tmp_path}/delta.bin: found no tokens, need the row of <my-cat>; export it again with it, or state the rare word, "
        "such as sks, that it was trained with"
    )


def test_our_own_format_goes_through_unchanged(chain, base: Base, tmp_path: Path):
    source = chain.store.path(chain.delta) / deltas.FILE
    found = read(identify(source), base)
    assert isinstance(found, Delta)
    write(tmp_path / "copy.safetensors", found, base, "customdiff")
    assert (tmp_path / "copy.safetensors").read_bytes() == source.read_bytes()


def _pipeline(chain) -> Any:
    components, vae = load_components(chain.profile.model), load_vae(chain.profile.model)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=components.unet,
        scheduler=DDIMScheduler.from_pretrained(chain.profile.model.path, subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _with_webuis_encoder(base: Base, folder: Path) -> Base:
    """The same model, but for the activation that webui takes for granted."""
    assert base.source.path is not None
    shutil.copytree(base.source.path, folder)
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "quick_gelu"}))
    return Base(base.source.model_copy(update={"path": folder}))


def _with_layers_of_one_number(base: Base) -> Base:
    """The same, with a UNet as diffusers' converter knows them: as many layers in every level; its weights are random."""
    assert base.source.path is not None
    config = dict(base.unet_config) | {"layers_per_block": 1}
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(config).save_pretrained(base.source.path / "unet")
    return base


def _drawn(pipeline: Any, prompt: str = PROMPT) -> np.ndarray:
    unet: UNet2DConditionModel = pipeline.unet
    shape = unet.config.in_channels, unet.config.sample_size, unet.config.sample_size
    noise = torch.randn(shape, generator=torch_generator("sample", 0, 0))[None]
    made = pipeline(
        [prompt], latents=noise, num_inference_steps=DDIM.steps, guidance_scale=DDIM.guidance_scale, output_type="np"
    )
    return (made.images[0] * 255).round().astype(int)


def test_the_safetensors_flavour_keeps_the_placeholders(trained: Delta, base: Base, tmp_path: Path):
    write(tmp_path, trained, base, "diffusers")
    with safe_open(tmp_path / "pytorch_custom_diffusion_weights.safetensors", framework="pt") as file:
        empty = [name for name in file.keys() if not file.get_tensor(name).numel()]  # noqa: SIM118
    assert len(empty) == len(trained.weights) // 2
    assert all(name.endswith(".attn1.processor") for name in empty)
