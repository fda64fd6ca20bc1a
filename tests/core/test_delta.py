import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from customdiff_core import delta as deltas
from customdiff_core import text
from customdiff_core.config import Runtime
from customdiff_core.delta import Delta
from customdiff_core.errors import WeightsError
from customdiff_core.finetuning.components import load_vae
from customdiff_core.finetuning.finetune import make_trainer
from customdiff_core.sampling import draw_images, load_model

TOKEN = "<teal-cat>"


@pytest.fixture
def trained(chain) -> Delta:
    return deltas.load(chain.store.path(chain.delta) / "delta.safetensors")


def replaced(delta: Delta, **update) -> Delta:
    return Delta(**({"weights": delta.weights, "tokens": delta.tokens, "metadata": delta.metadata} | update))


def test_a_delta_comes_back_as_it_was(tmp_path):
    delta = Delta(
        weights={"b.attn2.to_k.weight": torch.randn(4, 3), "a.attn2.to_v.weight": torch.randn(4, 3)},
        tokens={"<one>": torch.randn(3), "<two.dots>": torch.randn(3)},
        metadata={"base_digest": "abc", "concepts": json.dumps(['cät "x"'])},
    )
    deltas.save(tmp_path / "delta.safetensors", delta)
    back = deltas.load(tmp_path / "delta.safetensors")
    assert back.weights.keys() == delta.weights.keys()
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in delta.weights.items())
    assert all(torch.equal(back.tokens[token], row) for token, row in delta.tokens.items())
    assert back.metadata == {"format": "customdiff-delta-1", **delta.metadata}


def test_a_row_is_kept_alone_and_not_with_its_whole_table(tmp_path):
    table = torch.nn.Parameter(torch.randn(10_000, 3))
    deltas.save(tmp_path / "delta.safetensors", Delta({}, {"<one>": table[5]}, {}))
    assert (tmp_path / "delta.safetensors").stat().st_size < 1000
    assert torch.equal(deltas.load(tmp_path / "delta.safetensors").tokens["<one>"], table[5])


def test_equal_deltas_are_equal_files(trained: Delta, tmp_path):
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for file in files:
        deltas.save(file, trained)
    assert len({file.read_bytes() for file in files}) == 1


def test_the_names_in_the_file_are_the_documented_ones(chain):
    from safetensors import safe_open

    with safe_open(chain.store.path(chain.delta) / "delta.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert f"modifier_token.{TOKEN}.text_encoder" in names
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight" in names


@pytest.mark.parametrize(
    ("metadata", "found"), [(None, "no format"), ({"format": "customdiff-delta-9"}, "customdiff-delta-9")]
)
def test_another_format_is_refused(tmp_path, metadata, found: str):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(WeightsError) as error:
        deltas.load(tmp_path / "other.safetensors")
    assert str(error.value) == (
        f"{tmp_path}/other.safetensors: found {found}, need customdiff-delta-1; it was written by another program or a newer "
        "version"
    )


@pytest.mark.parametrize("data", [None, b"", b"not safetensors at all", b"\x80\x02cos\nsystem\n"])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path, data: bytes | None):
    if data is not None:
        (tmp_path / "x").write_bytes(data)
    with pytest.raises(WeightsError, match=r"/x: found no readable safetensors \(.+\), need a delta; copy it again"):
        deltas.load(tmp_path / "x")


def test_applied_it_changes_the_unet_and_adds_the_token(components, trained: Delta):
    before = {name: value.clone() for name, value in components.unet.state_dict().items()}
    size = len(components.tokenizer)
    deltas.apply(components, trained)
    after = components.unet.state_dict()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed == set(trained.weights)
    assert all(torch.equal(after[name], tensor) for name, tensor in trained.weights.items())
    assert text.token_ids(components, [f"{TOKEN} cat"])[0, 1] == size
    assert torch.equal(components.text_encoder.get_input_embeddings().rows[0], trained.tokens[TOKEN])
    networks = (components.unet, components.text_encoder)
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())


def test_on_another_base_model_it_is_refused_and_both_are_named(components, trained: Delta):
    other = replaced(trained, metadata={**trained.metadata, "base_digest": "0123456789abcdef"})
    with pytest.raises(WeightsError) as error:
        deltas.apply(components, other)
    assert str(error.value) == (
        f"delta: found one trained on base model 0123456789ab, need {components.digest[:12]}; load it on its own base"
    )
    assert TOKEN not in components.tokenizer.get_vocab()


@pytest.mark.parametrize(
    "name", ["none.attn2.to_k.weight", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
)
def test_tensors_that_do_not_fit_are_named(components, trained: Delta, name: str):
    with pytest.raises(WeightsError, match=rf"delta: found {name} \(2, 2\), which does not fit the base model's UNet"):
        deltas.apply(components, replaced(trained, weights={name: torch.zeros(2, 2)}))


def test_an_applied_delta_draws_what_the_trained_model_in_memory_draws(chain):
    trainer = make_trainer(
        chain.concept, chain.training_set, chain.profile, chain.finetune_config, chain.store, Runtime(device="cpu")
    )
    for _ in range(chain.finetune_config.steps):
        trainer.train_step()
        trainer.step += 1
    sample = chain.profile.evaluate.sample
    prompts = ["a crying <teal-cat> cat"]
    with trainer.averaged():
        memory = draw_images(trainer.components, load_vae(chain.profile.model), prompts, (0, 1), sample)
    components, vae = load_model(chain.profile, chain.delta, chain.store, Runtime(device="cpu"))
    applied = draw_images(components, vae, prompts, (0, 1), sample)
    base, base_vae = load_model(chain.profile, None, chain.store, Runtime(device="cpu"))
    plain = draw_images(base, base_vae, ["a crying ktn cat"], (0, 1), sample)
    for one, two, three in zip(memory, applied, plain, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(two))
        assert not np.array_equal(np.asarray(one), np.asarray(three))
