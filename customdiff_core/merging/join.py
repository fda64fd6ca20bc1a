"""Join: tokens that were trained apart, in one delta. Nothing is solved, since no weight was changed (Textual Inversion)."""

from pathlib import Path

import torch

from customdiff_core import delta as deltas
from customdiff_core import stages
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.delta import Delta
from customdiff_core.errors import MergeError
from customdiff_core.lineage import Lineage
from customdiff_core.profiles import Profile
from customdiff_core.weights import model_digest


def join(parts: tuple[Artifact, ...], profile: Profile, *, store: Store) -> Artifact:
    """Put the tokens of deltas that change no weight into one.

    Returns:
        A `delta` artifact: delta.safetensors.

    Raises:
        MergeError: if one changes weights, or two have a token of one name; DeltaError: if one is of another base model.
    """

    def produce(folder: Path) -> int:
        digest = model_digest(profile.model)
        tokens: dict[str, dict[str, torch.Tensor]] = {}
        loaded = [deltas.load(store.path(part) / deltas.FILE) for part in sorted(parts, key=lambda one: one.sha256)]
        for one in loaded:
            deltas.check_base(one, digest)
            if one.names or not tokens.keys().isdisjoint(one.tokens):
                found = f"{len(one.names)} changed weights" if one.names else f"{', '.join(one.tokens)} twice"
                raise MergeError(
                    f"join: found {found}, need tokens of different names alone; merge these deltas instead"
                )
            tokens |= {token: dict(rows) for token, rows in one.tokens.items()}
        concepts = tuple(concept for one in loaded for concept in one.lineage.concepts)
        inputs = {f"delta/{number}": sha256 for number, sha256 in enumerate(sorted(one.sha256 for one in parts), 1)}
        lineage = Lineage(base_digest=digest, method="textual-inversion", concepts=concepts, inputs=inputs)
        deltas.save(folder / deltas.FILE, Delta({}, tokens, lineage))
        return len(tokens)

    return store.make(stages.join(parts, profile, store), produce)
