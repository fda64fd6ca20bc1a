"""The modifier token V*: one new row of the text encoder's embedding table, and nothing else of it, is trained.

The rows live beside the frozen table instead of in it. Then no gradient, weight decay or optimizer state can reach any
other row, and the optimizer holds (n, D) numbers instead of the whole table.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from transformers import CLIPTokenizer

from customdiff_core.errors import ModifierTokenError
from customdiff_core.finetuning.components import TextEncoder


class ModifierEmbedding(nn.Module):
    """A frozen embedding table with trainable rows behind it.

    Args:
        table: (V, D) the pretrained embedding.
        rows: (n, D) the modifier tokens' first values; their ids are V .. V + n - 1.
    """

    def __init__(self, table: "nn.Embedding | ModifierEmbedding", rows: torch.Tensor) -> None:
        super().__init__()
        self.table = table
        self.rows = nn.Parameter(rows.detach().clone())

    @property
    def num_embeddings(self) -> int:
        """Known tokens, the modifier tokens included: on an extended table, another extension lies behind it."""
        return self.table.num_embeddings + len(self.rows)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embed ids (B, L) to (B, L, D)."""
        known = self.table.num_embeddings
        frozen = self.table(ids.clamp(max=known - 1))
        # Not self.rows[...]: the gradient of indexing adds in whatever order the threads come.
        modified = nn.functional.embedding((ids - known).clamp(min=0), self.rows)
        return torch.where((ids >= known).unsqueeze(-1), modified, frozen)


def add_modifier_tokens(encoder: TextEncoder, tokens: Sequence[str], initializers: Sequence[str]) -> ModifierEmbedding:
    """Teach a text encoder and its tokenizer new tokens, each starting as a copy of a rare one.

    Raises:
        ModifierTokenError: if a token is known already, alone or as a word, or an initializer is not one token.
    """
    tokenizer, table = encoder.tokenizer, embedding_table(encoder)
    for token in tokens:
        if is_known(tokenizer, token):
            raise ModifierTokenError(
                f"modifier token: found {token!r} in the tokenizer already, need a new one; "
                "choose another modifier_token in concept.yaml"
            )
    ids = [_single_id(tokenizer, word) for word in initializers]
    tokenizer.add_tokens(list(tokens))
    device = encoder.network.device
    modified = ModifierEmbedding(table, table(torch.tensor(ids, device=device))).to(device)
    encoder.network.text_model.embeddings.token_embedding = modified
    return modified


def is_known(tokenizer: CLIPTokenizer, token: str) -> bool:
    """Whether a tokenizer has a token already, or reads it as one word of its own."""
    known = cast(dict[str, int], tokenizer.get_vocab())
    return token in known or len(tokenizer.encode(token, add_special_tokens=False)) == 1


def embedding_table(encoder: TextEncoder) -> "nn.Embedding | ModifierEmbedding":
    """Return the encoder's token embedding as it is now."""
    return encoder.network.text_model.embeddings.token_embedding


def _single_id(tokenizer, word: str) -> int:  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]
    ids = tokenizer.encode(word, add_special_tokens=False)
    if len(ids) != 1:
        raise ModifierTokenError(
            f"initializer token: found {word!r} split into {len(ids)} tokens, need a word that is one; "
            "for example ktn, pll, ucd or sks"
        )
    return int(ids[0])
