"""Prompts to what the UNet's cross-attention reads of them.

One text encoder (Stable Diffusion 1 and 2): its last layer. Two (SDXL): the last layer but one of both, side by side, and
the second one's pooled embedding.
"""

from collections.abc import Sequence

import torch

from customdiff_core.finetuning.components import Components, Condition, TextEncoder

TOGETHER = 32  # prompts encoded together


def token_ids(encoder: TextEncoder, prompts: Sequence[str]) -> torch.Tensor:
    """Tokenize to (B, L), padded or cut to the encoder's length."""
    length = encoder.tokenizer.model_max_length
    encoded = encoder.tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids.to(encoder.network.device)


def end_positions(encoder: TextEncoder, ids: torch.Tensor) -> torch.Tensor:
    """Where each prompt of ids (B, L) ends: its first end-of-text token, (B,).

    Never argmax(ids), as the libraries have it: an added token has a larger id than the end of text, and would be taken
    for it.
    """
    end = encoder.tokenizer.convert_tokens_to_ids(str(encoder.tokenizer.eos_token))
    return torch.eq(ids, torch.tensor(end, device=ids.device)).int().argmax(dim=1)


def encode(components: Components, prompts: Sequence[str]) -> Condition:
    """Encode prompts; equal prompts are encoded once. Carries a gradient where V* is trained."""
    unique = list(dict.fromkeys(prompts))
    return read(components.encoders, unique).take(torch.tensor([unique.index(prompt) for prompt in prompts]))


@torch.no_grad()
def encode_many(components: Components, prompts: Sequence[str]) -> Condition:
    """Encode any number of prompts (B), a few at a time: SDXL's larger encoder keeps 13 MB of states for each."""
    return Condition.cat([encode(components, prompts[at : at + TOGETHER]) for at in range(0, len(prompts), TOGETHER)])


def unconditional(components: Components, negative_prompt: str) -> Condition:
    """What guidance leads away from: (1, L, D)."""
    found = encode(components, [negative_prompt])
    if negative_prompt or not components.zero_when_empty or found.pooled is None:
        return found
    return Condition(torch.zeros_like(found.features), torch.zeros_like(found.pooled))


def read(encoders: Sequence[TextEncoder], prompts: Sequence[str]) -> Condition:
    """Encode prompts (B) with all text encoders."""
    if len(encoders) == 1:
        return Condition(encoders[0].network(token_ids(encoders[0], prompts)).last_hidden_state)
    ids = [token_ids(encoder, prompts) for encoder in encoders]
    found = [encoder.network(one, output_hidden_states=True) for encoder, one in zip(encoders, ids, strict=True)]
    features = torch.cat([one.hidden_states[-2] for one in found], dim=-1)
    last = found[-1].last_hidden_state
    # gather, not indexing, for its repeatable gradient.
    ends = end_positions(encoders[-1], ids[-1])[:, None, None].expand(-1, 1, last.shape[-1])
    return Condition(features, encoders[-1].network.text_projection(last.gather(1, ends)[:, 0]))
