import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from customdiff_core import delta as deltas
from customdiff_core import text
from customdiff_core.config import Runtime
from customdiff_core.delta import Delta
from customdiff_core.errors import DeltaError
from customdiff_core.finetuning.components import load_vae
from customdiff_core.finetuning.finetune import make_trainer
from customdiff_core.lineage import Lineage, Taught, to_metadata
from customdiff_core.sampling import draw_images, load_model

TOKEN = "<teal-cat>"


@pytest.fixture
def trained(chain) -> Delta:
    return deltas.load(chain.store.path(chain.delta) / "delta.safetensors")


def replaced(delta: Delta, **update) -> Delta:
    return dataclasses.replace(delta, **update)


def test_a_delta_comes_back_as_it_was(tmp_path):
    delta = Delta(
        weights={"b.attn2.to_k.weight": torch.randn(4, 3), "a.attn2.to_v.weight": torch.randn(4, 3)},
        tokens={
            "<one>": {"text_encoder": torch.randn(3)},
            "<two.dots>": {"text_encoder": torch.randn(3), "text_encoder_2": torch.randn(5)},
        },
        lineage=Lineage(
            base_digest="abc", concepts=(Taught(name='cät "x"', modifier_token="<one>"),), inputs={"a": "b"}
        ),
        factors={"c.attn2.to_k.weight": (torch.randn(4, 2), torch.randn(2, 3))},
    )
    deltas.save(tmp_path / "delta.safetensors", delta)
    back = deltas.load(tmp_path / "delta.safetensors")
    assert back.weights.keys() == delta.weights.keys()
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in delta.weights.items())
    assert {token: set(rows) for token, rows in back.tokens.items()} == {
        "<one>": {"text_encoder"},
        "<two.dots>": {"text_encoder", "text_encoder_2"},
    }
    for token, rows in delta.tokens.items():
        assert all(torch.equal(back.tokens[token][encoder], row) for encoder, row in rows.items())
    assert all(
        torch.equal(*pair) for pair in zip(back.factors["c.attn2.to_k.weight"], *delta.factors.values(), strict=True)
    )
    assert back.names == {"a.attn2.to_v.weight", "b.attn2.to_k.weight", "c.attn2.to_k.weight"}
    assert back.lineage == delta.lineage


def test_a_row_is_kept_alone_and_not_with_its_whole_table(tmp_path):
    table = torch.nn.Parameter(torch.randn(10_000, 3))
    deltas.save(tmp_path / "delta.safetensors", Delta({}, {"<one>": {"text_encoder": table[5]}}, Lineage()))
    assert (tmp_path / "delta.safetensors").stat().st_size < 1000
    assert torch.equal(deltas.load(tmp_path / "delta.safetensors").tokens["<one>"]["text_encoder"], table[5])


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


def test_the_size_of_a_file_is_known_before_it_is_written(trained: Delta, tmp_path):
    deltas.save(tmp_path / "delta.safetensors", trained)
    size = (tmp_path / "delta.safetensors").stat().st_size
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in trained.weights.items()}
    assert size <= deltas.size(replaced(trained, weights=meta)) <= size + 12 * (len(meta) + 1)


@pytest.mark.parametrize(
    ("metadata", "found"), [(None, "no format"), ({"format": "customdiff-delta-9"}, "customdiff-delta-9")]
)
def test_another_format_is_refused(tmp_path, metadata, found: str):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(DeltaError) as error:
        deltas.load(tmp_path / "other.safetensors")
    assert str(error.value) == (
        f"{tmp_path}/other.safetensors: found {found}, need customdiff-delta-2; update this program if a newer version wrote it, "
        "or import it if another did"
    )


@pytest.mark.parametrize("data", [None, b"", b"not safetensors at all", b"\x80\x02cos\nsystem\n"])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path, data: bytes | None):
    if data is not None:
        (tmp_path / "x").write_bytes(data)
    with pytest.raises(DeltaError, match=r"/x: found no readable safetensors \(.+\), need a delta; copy it again"):
        deltas.load(tmp_path / "x")


def test_the_first_format_is_still_read(tmp_path):
    metadata = {"base_digest": "abc", "method": "custom-diffusion", "config": '{"steps": 7}', "training_set": "t"}
    metadata |= {"concepts": '["cat"]', "categories": '["cat"]', "initializer_tokens": '["ktn"]'}
    tensors = {"a.attn2.to_k.weight": torch.ones(2, 3), "modifier_token.<teal-cat>.text_encoder": torch.ones(3)}
    save_file(tensors, tmp_path / "old", metadata={"format": "customdiff-delta-1", **metadata})
    delta = deltas.load(tmp_path / "old")
    taught = Taught(name="cat", category="cat", modifier_token="<teal-cat>", initializer_token="ktn")
    assert delta.lineage == Lineage(
        base_digest="abc", method="custom-diffusion", concepts=(taught,), settings={"steps": 7}
    )
    assert set(delta.tokens) == {"<teal-cat>"}


def test_a_header_that_is_not_whole_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x", metadata={"format": "customdiff-delta-2", "lineage": "{"})
    with pytest.raises(DeltaError, match=r"/x: found a customdiff-delta-2 header that cannot be read"):
        deltas.load(tmp_path / "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused_and_named(tmp_path, value: float):
    deltas.save(tmp_path / "x", Delta({"a.attn2.to_k.weight": torch.tensor([1.0, value])}, {}, Lineage()))
    with pytest.raises(DeltaError) as error:
        deltas.load(tmp_path / "x")
    assert str(error.value) == (
        f"{tmp_path}/x: found NaN or infinity in a.attn2.to_k.weight, need numbers; train it again or copy it again"
    )


def test_half_of_a_factored_change_is_refused(tmp_path):
    save_file({"a.left": torch.ones(4, 2)}, tmp_path / "x", metadata=to_metadata(Lineage()))
    with pytest.raises(DeltaError, match=r"/x: found a.right nothing, need \(r, D_in\) beside \(4, 2\)"):
        deltas.load(tmp_path / "x")


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({"modifier_token.foo": (3,)}, r"found modifier_token\.foo, need modifier_token\.<token>\.<text encoder>"),
        ({"a.right": (2, 4)}, r"found a\.right alone, need both factors"),
        ({"a": (4, 4), "a.left": (4, 2), "a.right": (2, 4)}, "found a whole and in factors, need one of them"),
    ],
)
def test_what_says_too_little_or_two_things_is_refused(tmp_path, tensors: dict[str, tuple[int, ...]], found: str):
    made = {name: torch.ones(shape) for name, shape in tensors.items()}
    save_file(made, tmp_path / "x", metadata=to_metadata(Lineage()))
    with pytest.raises(DeltaError, match=found):
        deltas.load(tmp_path / "x")


def test_numbers_of_8_bits_are_looked_at_too(tmp_path):
    broken = torch.tensor([1.0, float("nan")]).to(torch.float8_e5m2)
    save_file({"a.attn2.to_k.weight": broken}, tmp_path / "x", metadata=to_metadata(Lineage()))
    with pytest.raises(DeltaError, match=r"found NaN or infinity in a\.attn2\.to_k\.weight"):
        deltas.load(tmp_path / "x")


def test_a_factored_change_is_that_of_its_product(components, trained: Delta):
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    base = components.unet.state_dict()[name].clone()
    left, right = torch.randn(base.shape[0], 3), torch.randn(3, base.shape[1])
    factored = replaced(trained, weights={}, factors={name: (left, right)})
    features = torch.randn(5, base.shape[1])
    whole = replaced(trained, weights={name: base + left @ right})
    rows = features.double()
    plain = rows @ base.double().T
    torch.testing.assert_close(
        factored.change(name, rows, plain), whole.change(name, rows, plain), atol=1e-4, rtol=1e-4
    )
    deltas.apply(components, factored)
    torch.testing.assert_close(components.unet.state_dict()[name], base + left @ right, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(factored.whole(name, base), base + left @ right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "found"),
    [({"text_encoder": torch.zeros(768)}, r"a row of \(768,\)"), ({"text_encoder_2": torch.zeros(192)}, "no row")],
)
def test_a_token_of_another_width_is_refused(components, trained: Delta, rows, found: str):
    with pytest.raises(DeltaError, match=rf"delta: found <x> with {found} for text_encoder, need \(192,\)"):
        deltas.apply(components, replaced(trained, tokens={"<x>": rows}))


def test_applied_it_changes_the_unet_and_adds_the_token(components, trained: Delta):
    before = {name: value.clone() for name, value in components.unet.state_dict().items()}
    size = len(components.tokenizer)
    deltas.apply(components, trained)
    after = components.unet.state_dict()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed == set(trained.weights)
    assert all(torch.equal(after[name], tensor) for name, tensor in trained.weights.items())
    assert text.token_ids(components.encoders[0], [f"{TOKEN} cat"])[0, 1] == size
    assert torch.equal(components.text_encoder.get_input_embeddings().rows[0], trained.tokens[TOKEN]["text_encoder"])
    networks = (components.unet, components.text_encoder)
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())


def test_on_another_base_model_it_is_refused_and_both_are_named(components, trained: Delta):
    other = replaced(trained, lineage=trained.lineage.model_copy(update={"base_digest": "0123456789abcdef"}))
    with pytest.raises(DeltaError) as error:
        deltas.apply(components, other)
    assert str(error.value) == (
        f"delta: found one trained on base model 0123456789ab, need {components.digest[:12]}; load it on its own base"
    )
    assert TOKEN not in components.tokenizer.get_vocab()


@pytest.mark.parametrize(
    "name", ["none.attn2.to_k.weight", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
)
def test_tensors_that_do_not_fit_are_named(components, trained: Delta, name: str):
    with pytest.raises(
        DeltaError, match=rf"delta: found {name} \(2, 2\), which does not fit the base model's UNet, need "
    ):
        deltas.apply(components, replaced(trained, weights={name: torch.zeros(2, 2)}))


def test_an_applied_delta_draws_what_the_trained_model_in_memory_draws(chain):
    trainer = make_trainer(
        (chain.concept,),
        (chain.training_set,),
        chain.profile,
        chain.finetune_config,
        chain.store,
        Runtime(device="cpu"),
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


def test_outputs_of_a_weight_are_whole_whatever_its_height():
    """The weight is walked through some rows at a time: none is left out where they do not divide it."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    for height in (1, deltas.ROWS - 1, deltas.ROWS, 2 * deltas.ROWS + 3):
        weight = torch.randn(height, 7, generator=generator)
        torch.testing.assert_close(deltas.outputs(features, weight), features @ weight.double().T)
