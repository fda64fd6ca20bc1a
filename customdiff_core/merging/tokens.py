"""The tokens of a merged model: those of all its concepts, renamed where two are called alike."""

import logging
from collections.abc import Collection, Mapping, Sequence

import torch

from customdiff_core.lineage import Taught
from customdiff_core.merging.text_features import Targets

logger = logging.getLogger(__name__)

Rows = Mapping[str, torch.Tensor]


def union_of_tokens(targets: Sequence[Targets]) -> tuple[dict[str, Rows], tuple[Taught, ...]]:
    """Return every concept's token and the concepts with the tokens that they have now, in the order of the targets.

    Of two concepts with one token, one that was trained here keeps it before one of another program's file, and the first of
    the targets before the second; the other gets another name, and the log says so. The order in which somebody names the
    concepts is no reason: it makes no other artifact.
    """
    own = [one.concept.modifier_token for one in targets]
    now = dict[int, str]()
    for place in sorted(range(len(targets)), key=lambda place: not targets[place].concept.initializer_token):
        one, token = targets[place], own[place]
        if token not in one.delta.tokens:  # a word that the model knows already
            continue
        now[place] = token if token not in now.values() else _free(token, {*now.values(), *own})
        if now[place] != token:
            logger.warning(
                "modifier token: found %s in two of the merged concepts, need one each; that of %s is %s now",
                token,
                one.concept.name,
                now[place],
            )
    tokens = {name: targets[place].delta.tokens[own[place]] for place, name in sorted(now.items())}
    concepts = (
        one.concept.model_copy(update={"modifier_token": now.get(place, own[place])})
        for place, one in enumerate(targets)
    )
    return tokens, tuple(concepts)


def _free(token: str, taken: Collection[str]) -> str:
    """<new1-2>, then <new1-3> ..."""
    number, name = 1, token
    while name in taken:
        number += 1
        name = f"{token.removesuffix('>')}-{number}{'>' if token.endswith('>') else ''}"
    return name
