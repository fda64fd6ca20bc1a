import pytest
import torch

from customdiff_core import text
from customdiff_core.errors import ModifierTokenError
from customdiff_core.finetuning.modifier_token import ModifierEmbedding, add_modifier_tokens


def token_id(components, word: str) -> int:
    (found,) = components.tokenizer.encode(word, add_special_tokens=False)
    return found


def test_a_token_starts_as_its_initializers_row(components):
    table = components.text_encoder.get_input_embeddings()
    rows = {word: table.weight[token_id(components, word)].clone() for word in ("ktn", "cat")}
    modified = add_modifier_tokens(components.encoders[0], ["<one>", "<two>"], ["ktn", "cat"])
    assert torch.equal(modified.rows[0], rows["ktn"])
    assert torch.equal(modified.rows[1], rows["cat"])
    # So that a prompt with V* reads at first as with its initializer.
    with torch.no_grad():
        features = text.encode(
            components, ["photo of a <two> dog", "photo of a cat dog", "photo of a <one> dog"]
        ).features
    torch.testing.assert_close(features[0], features[1], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(features[0], features[2], atol=1e-2)


@pytest.mark.parametrize("token", ["<teal-cat>", "<Teal-Cat>", "<a>", "<cat>", "<new_1>"])
def test_a_token_is_one_id_wherever_it_stands(components, token: str):
    size = len(components.tokenizer)
    add_modifier_tokens(components.encoders[0], [token], ["ktn"])
    for prompt in (f"photo of a {token} cat", f"{token}", f"a crying {token} cat, {token}"):
        ids = text.token_ids(components.encoders[0], [prompt])[0].tolist()
        assert ids.count(size) == prompt.count(token)
    assert size not in text.token_ids(components.encoders[0], ["photo of a teal cat"])[0].tolist()


@pytest.mark.parametrize("token", ["cat</w>", "ktn"])  # by its spelling in the vocabulary, and as prompts have it
def test_a_token_that_the_tokenizer_knows_is_refused(components, token: str):
    with pytest.raises(ModifierTokenError) as error:
        add_modifier_tokens(components.encoders[0], [token], ["ktn"])
    assert str(error.value) == (
        f"modifier token: found {token!r} in the tokenizer already, need a new one; "
        "choose another modifier_token in concept.yaml"
    )


def test_a_token_added_before_is_refused(components):
    components.tokenizer.add_tokens(["<mine>"])
    with pytest.raises(
        ModifierTokenError, match="modifier token: found '<mine>' in the tokenizer already, need a new one"
    ):
        add_modifier_tokens(components.encoders[0], ["<mine>"], ["ktn"])


@pytest.mark.parametrize("word", ["extraordinarily unusual", ""])
def test_an_initializer_that_is_not_one_token_is_refused(components, word: str):
    with pytest.raises(ModifierTokenError) as error:
        add_modifier_tokens(components.encoders[0], ["<mine>"], [word])
    count = len(components.tokenizer.encode(word, add_special_tokens=False))
    assert str(error.value) == (
        f"initializer token: found {word!r} split into {count} tokens, need a word that is one; "
        "for example ktn, pll, ucd or sks"
    )
    assert "<mine>" not in components.tokenizer.get_vocab()


@pytest.mark.parametrize("word", ["ktn", "pll", "ucd", "sks"])
def test_the_words_that_the_message_offers_are_one_token(components, word: str):
    add_modifier_tokens(components.encoders[0], ["<mine>"], [word])


def test_gradient_reaches_the_rows_and_nothing_else_of_the_encoder(components):
    modified = add_modifier_tokens(components.encoders[0], ["<mine>"], ["ktn"])
    having = [name for name, one in components.text_encoder.named_parameters() if one.requires_grad]
    assert having == ["text_model.embeddings.token_embedding.rows"]
    text.encode(components, ["photo of a <mine> cat"]).features.square().sum().backward()
    assert modified.rows.grad is not None
    assert modified.rows.grad.abs().sum() > 0
    assert modified.table.weight.grad is None


def test_a_prompt_without_the_token_gives_no_gradient(components):
    modified = add_modifier_tokens(components.encoders[0], ["<one>", "<two>"], ["ktn", "pll"])
    text.encode(components, ["photo of a <two> cat"]).features.square().sum().backward()
    assert modified.rows.grad is not None
    assert (modified.rows.grad[0] == 0).all()
    assert (modified.rows.grad[1] != 0).any()


def test_the_embedding_alone():
    table = torch.nn.Embedding(5, 3)
    embedding = ModifierEmbedding(table, torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    found = embedding(torch.tensor([[0, 5, 4, 6]]))
    assert found.shape == (1, 4, 3)
    assert torch.equal(found[0, 0], table.weight[0])
    assert found[0, 1].tolist() == [1, 2, 3]
    assert torch.equal(found[0, 2], table.weight[4])
    assert found[0, 3].tolist() == [4, 5, 6]


def test_tokens_can_be_added_behind_those_of_an_earlier_training(components):
    encoder = components.encoders[0]
    first = add_modifier_tokens(encoder, ["<one>"], ["ktn"])
    first.requires_grad_(False)
    second = add_modifier_tokens(encoder, ["<two>"], ["<one>"])
    assert torch.equal(second.rows[0], first.rows[0])
    text.encode(components, ["photo of a <two> and a <one>"]).features.square().sum().backward()
    assert second.rows.grad is not None
    assert first.rows.grad is None
