import torch

from customdiff_core import text


def test_ids_are_padded_and_cut_to_the_encoders_length(components):
    ids = text.token_ids(components.encoders[0], ["a cat", "cat " * 100])
    assert ids.shape == (2, 28)
    tokenizer = components.tokenizer
    assert ids[0].tolist()[:1] == [tokenizer.bos_token_id]
    assert ids[0].tolist()[3:] == [tokenizer.eos_token_id] * 25
    assert ids[1, -1] == tokenizer.eos_token_id


def test_equal_prompts_are_encoded_once_and_all_come_back_in_order(components):
    sizes: list[int] = []
    components.text_encoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    prompts = ["a cat", "a dog", "a cat", "a cat", "a rocket"]
    with torch.no_grad():
        features = text.encode(components, prompts).features
        assert sizes == [3]
        assert features.shape == (5, 28, 192)
        assert torch.equal(features[0], features[2])
        assert torch.equal(features[0], features[3])
        single = torch.cat([text.encode(components, [prompt]).features for prompt in prompts])
    torch.testing.assert_close(features, single, atol=1e-5, rtol=1e-5)


def test_many_prompts_are_encoded_in_parts_to_the_same_bits(components):
    sizes: list[int] = []
    components.text_encoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    prompts = [f"a {thing} number {number}" for thing in ("cat", "dog") for number in range(20)]
    found = text.encode_many(components, prompts)
    assert sizes == [32, 8]
    assert not found.features.requires_grad
    assert torch.equal(found.features, text.encode(components, prompts).features)
