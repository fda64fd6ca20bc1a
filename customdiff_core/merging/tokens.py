"""The tokens of a merged model: those of all its concepts, renamed where two are called alike."""

import logging
from collections.abc import Mapping, Sequence

import torch

from customdiff_core.lineage import Taught
from customdiff_core.merging.text_features import Targets

logger = logging.getLogger(__name__)

Rows = Mapping[str, torch.Tensor]


def union_of_tokens(targets: Sequence[Targets]) -> tuple[dict[str, Rows], tuple[Taught, ...]]:
    """Return every concept's token and the concepts with the tokens that they have now.

    Of two concepts with one token the second, in the order of the targets, gets another name, and the log says so.
    """
    tokens: dict[str, Rows] = {}
    concepts: list[Taught] = []
    for one in targets:
        token, rows = one.concept.modifier_token, one.delta.tokens.get(one.concept.modifier_token)
        if rows is not None:
            name = _free(token, tokens)
            if name != token:
                logger.warning(
                    "modifier token: found %s in two of the merged concepts, need one each; that of %s is %s now",
                    token,
                    one.concept.name,
                    name,
                )
            tokens[name] = rows
            token = name
        concepts.append(one.concept.model_copy(update={"modifier_token": token}))
    return tokens, tuple(concepts)


def _free(token: str, taken: Mapping[str, Rows]) -> str:
    """<new1>, then <new1-2>, <new1-3> ..."""
    number, name = 1, token
    while name in taken:
        number += 1
        name = f"{token.removesuffix('>')}-{number}{'>' if token.endswith('>') else ''}"
    return name
