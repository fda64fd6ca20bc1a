"""Merge: several deltas into one, in closed form. What each concept's words drew alone, they draw together.

Rows that several concepts share, such as those of "photo of a", carry contradicting targets and leave the constraints; so do
rows that the others explain. What was left out, and what is left of each constraint, is in the result.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from customdiff_core import delta as deltas
from customdiff_core import stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import check_prompts
from customdiff_core.config import MergeConfig
from customdiff_core.delta import Delta, Factors
from customdiff_core.errors import MergeError
from customdiff_core.finetuning.components import load_unet_weights
from customdiff_core.finetuning.cross_attention import CROSS_ATTENTION, KEYS_AND_VALUES, QUERIES_AND_OUTPUTS
from customdiff_core.lineage import Lineage
from customdiff_core.merging.account import dropped
from customdiff_core.merging.captions import factorization
from customdiff_core.merging.closed_form import Factorization, independent_rows, solve
from customdiff_core.merging.layers import Problem, layer_report, saved_layer, solve_layer
from customdiff_core.merging.text_features import Targets, concept_targets
from customdiff_core.merging.tokens import union_of_tokens
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, silent
from customdiff_core.weights import model_digest

logger = logging.getLogger(__name__)

KEPT, SHARED, DEPENDENT = "constraint", "shared", "dependent"


def merge(
    parts: tuple[Artifact, ...],
    strengths: tuple[float, ...],
    index: Artifact | None,
    profile: Profile,
    config: MergeConfig,
    *,
    store: Store,
    progress: Progress = silent,
) -> Artifact:
    """Merge deltas of one base model.

    Args:
        parts: deltas, trained here, imported, or merged before.
        strengths: of each; 1 draws the concept as it was learnt, 0 as the base model reads its words.
        index: whose captions regularize; None takes the profile's own folder.
        profile: the base model.
        config: how many captions, which target prompts, when rows are the same.
        store: where the result goes.
        progress: told after every layer.

    Returns:
        A `delta` artifact: delta.safetensors, merge.parquet (a row a layer and concept: its errors), rows.parquet (a row a
        target token: whether it is a constraint, and if not why; and of its concept the part that it came in, by digest,
        its token there and its token now) and dropped.parquet (a row a change of a query or output that is not in it).

    Raises:
        MergeError, DeltaError: if the deltas do not fit each other or the model, with both digests; ConfigError for a target
            prompt without its {}.
    """

    check_prompts(config.prompts, "merge.prompts")

    def produce(folder: Path) -> int:
        digest = model_digest(profile.model)
        loaded = [deltas.load(store.path(part) / deltas.FILE) for part in parts]
        base = load_unet_weights(profile.model, CROSS_ATTENTION)
        for one in loaded:
            deltas.check_base(one, digest)
            check_mergeable(one, base)
        captions, factors = factorization(index, profile, config.captions, store=store)
        targets = [
            target
            for part, one, strength in zip(parts, loaded, strengths, strict=True)
            for target in concept_targets(profile.model, one, strength, config.prompts, part.sha256)
        ]
        made, report, rows = merge_targets(targets, base, factors, config, progress)
        lineage = made.lineage.model_copy(
            update={
                "base_digest": digest,
                "base_stated": any(one.lineage.base_stated for one in loaded),
                "settings": config.model_dump(mode="json"),
                "inputs": {"captions": captions.sha256}
                | {f"delta/{number}": part.sha256 for number, part in enumerate(sorted(parts, key=_sha), 1)},
            }
        )
        deltas.save(folder / deltas.FILE, Delta(made.weights, made.tokens, lineage, made.factors))
        tables.write(folder / "rows.parquet", rows)
        lost = dropped_changes(targets)
        for line in dropped(pd.DataFrame(lost)):
            logger.warning("merge: %s", line)
        tables.write(folder / "dropped.parquet", lost)
        return tables.write(folder / "merge.parquet", report)

    return store.make(stages.merge(parts, strengths, index, profile, config, store), produce)


def check_mergeable(delta: Delta, base: Mapping[str, Tensor]) -> None:
    """Check that a delta changes cross-attention and nothing else: every key and value, or no weight at all.

    Raises:
        MergeError: naming a layer that is missing or one too many; DeltaError for another shape.
    """
    name = "+".join(one.name for one in delta.lineage.concepts) or "delta"
    beyond = sorted(one for one in delta.names if not one.endswith(CROSS_ATTENTION))
    if beyond:
        raise MergeError(
            f"{name}: found a change of {beyond[0]} (method {delta.lineage.method}), need changes of cross-attention alone; "
            "train it with custom-diffusion"
        )
    deltas.check_shapes(delta, base)
    wanted = {one for one in base if one.endswith(KEYS_AND_VALUES)}
    missing = sorted(wanted - delta.names)
    if delta.names and missing:
        raise MergeError(
            f"{name}: found {len(wanted) - len(missing)} of {len(wanted)} key and value layers ({missing[0]} is missing), need "
            "all of them; export it again"
        )


def merge_targets(
    targets: Sequence[Targets],
    base: Mapping[str, Tensor],
    factors: Factorization,
    config: MergeConfig,
    progress: Progress = silent,
) -> tuple[Delta, list[tables.Row], list[tables.Row]]:
    """Solve for all layers; returns the merged delta, a report row a layer and concept, and a row a target token.

    Raises:
        MergeError: if fewer than two concepts are given, or nothing tells them apart.
    """
    problem, states = pose(targets, factors, config)
    conditions = {"condition_regularization": factors.condition, "condition_targets": problem.solution.condition}
    names = sorted(name for name in base if name.endswith(KEYS_AND_VALUES))
    weights: dict[str, Tensor] = {}
    thin: dict[str, Factors] = {}
    report: list[tables.Row] = []
    for number, name in enumerate(names, 1):
        layer = solve_layer(name, base[name], problem)
        saved = saved_layer(layer, problem, factored=config.factored)
        if isinstance(saved, Tensor):
            weights[name] = saved
        else:
            thin[name] = saved
        report += layer_report(layer, saved, problem, conditions)
        progress(number, len(names), "layers merged")
    weights |= mean_queries_and_outputs(problem.targets, base)
    tokens, concepts = union_of_tokens(problem.targets)
    rows: list[tables.Row] = [
        {
            "concept": one.concept.name,
            "part": one.part,
            "original_token": one.concept.modifier_token,
            "modifier_token": now.modifier_token,
            "prompt": prompt,
            "token": token,
            "state": state,
        }
        for one, now, part in zip(problem.targets, concepts, states, strict=True)
        for (prompt, token), state in zip(one.places, part, strict=True)
    ]
    return Delta(weights, tokens, Lineage(method="merge", concepts=concepts), thin), report, rows


def pose(targets: Sequence[Targets], factors: Factorization, config: MergeConfig) -> tuple[Problem, list[list[str]]]:
    """Choose the constraints and solve for what all layers share; the concepts' order changes nothing.

    Returns:
        The problem, its targets in an order of their own, and the state of each of their rows.

    Raises:
        MergeError: if fewer than two concepts are given, or nothing tells them apart.
    """
    if len(targets) < 2:
        raise MergeError(f"merge: found {len(targets)} concept, need at least 2; name another")
    held = factors.ridged(config.ridge)
    targets = sorted(targets, key=lambda one: (one.digest, one.strength))
    states = row_states(targets, held, config)
    kept = [torch.tensor([state == KEPT for state in part]) for part in states]
    for one, mask in zip(targets, kept, strict=True):
        if not mask.any():
            raise MergeError(
                f"{one.concept.modifier_token} {one.concept.category}: found no word that the other concepts do not read alike, "
                "need concepts that differ; merge each once"
            )
    c_target = torch.cat([one.features[mask] for one, mask in zip(targets, kept, strict=True)])
    return Problem(targets, kept, c_target, solve(c_target, held), factors), states


def row_states(targets: Sequence[Targets], factors: Factorization, config: MergeConfig) -> list[list[str]]:
    """Say of every target row whether it is a constraint, shared with another concept, or explained by other rows."""
    features = torch.cat([one.features for one in targets])
    owner = torch.cat([torch.full((len(one.features),), number) for number, one in enumerate(targets)])
    norms = features.norm(dim=1)
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    near = distances <= config.shared * torch.maximum(norms[:, None], norms[None])
    shared = (near & (owner[:, None] != owner[None])).any(dim=1)
    alone = [row for row in range(len(features)) if not shared[row]]
    kept = {alone[row] for row in independent_rows(features[alone], factors, config.independence)[0]}
    states = [SHARED if shared[row] else KEPT if row in kept else DEPENDENT for row in range(len(features))]
    return [[states[row] for row in torch.nonzero(owner == number)[:, 0].tolist()] for number in range(len(targets))]


def mean_queries_and_outputs(targets: Sequence[Targets], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries and outputs read pictures and no text, so there is no constraint to solve: the mean of the concepts' changes.

    Only of layers that every concept changed; the others' changes are `dropped_changes`.
    """
    merged: dict[str, Tensor] = {}
    for name in base:
        if name.endswith(QUERIES_AND_OUTPUTS) and all(name in one.delta.names for one in targets):
            changes = [
                one.strength * (one.delta.whole(name, base[name]).double() - base[name].double()) for one in targets
            ]
            merged[name] = (base[name].double() + torch.stack(changes).mean(dim=0)).float()
    return merged


def dropped_changes(targets: Sequence[Targets]) -> list[tables.Row]:
    """The changes of queries and outputs that not every concept has, a row each; the concepts' order changes nothing."""
    names = sorted({name for one in targets for name in one.delta.names if name.endswith(QUERIES_AND_OUTPUTS)})
    partial = [name for name in names if not all(name in one.delta.names for one in targets)]
    return [
        {"layer": name, "concept": concept, "part": part}
        for name in partial
        for concept, part in sorted((one.concept.name, one.part) for one in targets if name in one.delta.names)
    ]


def _sha(artifact: Artifact) -> str:
    return artifact.sha256
