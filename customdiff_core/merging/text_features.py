"""The rows of the merge's matrices: text features of captions and of each concept's own words.

The first position is left out, because it is the same for every prompt, and the padding; the end of the text stays.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customdiff_core.delta import Delta, add_tokens
from customdiff_core.errors import MergeError
from customdiff_core.finetuning.components import TextEncoder, load_encoders
from customdiff_core.lineage import Taught
from customdiff_core.profiles import ModelSource
from customdiff_core.text import end_positions, read, token_ids

BATCH = 32


@dataclass(frozen=True)
class Targets:
    """The target rows of one concept: `features` (n, D), float64, and which token of which prompt each is.

    `part` is the digest of the artifact that the delta is.
    """

    concept: Taught
    delta: Delta
    strength: float
    features: Tensor
    places: tuple[tuple[str, str], ...]
    part: str = ""

    @property
    def digest(self) -> str:
        """What the rows are, whatever they are called: the order in which concepts are taken."""
        return hashlib.sha256(self.features.numpy().tobytes()).hexdigest()


def regularization_features(encoders: Sequence[TextEncoder], captions: Sequence[str]) -> Tensor:
    """Features of all tokens of all captions: (R, D), float64.

    Raises:
        MergeError: if there are no words in the captions.
    """
    prompts = [caption.strip() for caption in captions if caption.strip()]
    if not prompts:
        raise MergeError(
            f"regularization captions: found {len(captions)}, none with a word in it, need about 1000; take another index"
        )
    parts = [token_features(encoders, prompts[at : at + BATCH])[0] for at in range(0, len(prompts), BATCH)]
    return torch.cat(parts)


def concept_targets(
    source: ModelSource, delta: Delta, strength: float, prompts: Sequence[str], part: str = ""
) -> list[Targets]:
    """Features of each concept's target prompts, read by the text encoder with the delta's own tokens.

    Every concept is read alone, so that its features are the same in whatever company it is merged.

    Raises:
        MergeError: if the delta names no concept.
    """
    if not delta.lineage.concepts:
        raise MergeError(
            "delta: found no concept named in it, need its token, or the rare word it was trained with, and its category; state "
            "both when importing (--token, --category)"
        )
    encoders = load_encoders(source)
    add_tokens(encoders, delta)
    found: list[Targets] = []
    for concept in delta.lineage.concepts:
        features, places = token_features(encoders, [prompt.replace("{}", concept.noun) for prompt in prompts])
        found.append(Targets(concept, delta, strength, features, places, part))
    return found


@torch.no_grad()
def token_features(
    encoders: Sequence[TextEncoder], prompts: Sequence[str]
) -> tuple[Tensor, tuple[tuple[str, str], ...]]:
    """Features of every token from the second to the end of the text: (n, D), float64, with (prompt, token) of each."""
    features = read(encoders, prompts).features.double().cpu()
    ids = token_ids(encoders[0], prompts)
    ends = end_positions(encoders[0], ids).tolist()
    rows = [features[number, 1 : end + 1] for number, end in enumerate(ends)]
    places = [
        (prompt, str(token).removesuffix("</w>"))
        for prompt, one, end in zip(prompts, ids.tolist(), ends, strict=True)
        for token in encoders[0].tokenizer.convert_ids_to_tokens(one[1 : end + 1])
    ]
    return torch.cat(rows), tuple(places)
