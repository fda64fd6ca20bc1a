"""Prompts to text features, as the UNet's cross-attention reads them."""

from collections.abc import Sequence

import torch

from customdiff_core.finetuning.components import Components


def token_ids(components: Components, prompts: Sequence[str]) -> torch.Tensor:
    """Tokenize to (B, L), padded or cut to the encoder's length."""
    length = components.tokenizer.model_max_length
    encoded = components.tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids.to(components.text_encoder.device)


def encode(components: Components, prompts: Sequence[str]) -> torch.Tensor:
    """Encode prompts to (B, L, D); equal prompts are encoded once. Carries a gradient where V* is trained."""
    unique = list(dict.fromkeys(prompts))
    features = components.text_encoder(token_ids(components, unique)).last_hidden_state
    rows = torch.tensor([unique.index(prompt) for prompt in prompts], device=features.device)
    # Not features[rows]: the gradient of indexing adds in whatever order the threads come, and equal runs would differ.
    return features.index_select(0, rows)
