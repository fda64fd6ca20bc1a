"""Report: one page that tells a customization from its pictures to its figures, and needs nothing but itself.

The page embeds its images, asks no server for anything and reads on a phone, in light and dark. Equal inputs give equal
bytes: it holds no clock of its own, only what the artifacts' manifests say. Its words are in `report.html.jinja`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from customdiff_core import figures, stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.config import (
    AugmentConfig,
    EvaluateConfig,
    FinetuneConfig,
    Frozen,
    IndexConfig,
    RetrieveConfig,
    SampleConfig,
)
from customdiff_core.errors import StoreError
from customdiff_core.evaluation.results import (
    PromptRow,
    compare,
    number,
    picture,
    side_by_side,
    sources,
    template,
    views,
    when,
)
from customdiff_core.finetuning import methods
from customdiff_core.profiles import Profile

STAGES: dict[str, tuple[str, type[Frozen]]] = {
    "index": ("Index", IndexConfig),
    "regularization": ("Retrieve", RetrieveConfig),
    "training_set": ("Augment", AugmentConfig),
    "delta": ("Finetune", FinetuneConfig),
    "metrics": ("Evaluate", EvaluateConfig),
}
SAMPLE_SETS = {
    "base": "Images, base",
    "customized": "Images, customized",
    "kid_base": "KID images, base",
    "kid_customized": "KID images, customized",
    "validation": "KID images, real",
}
HERO = 6
Uri = str


@dataclass(frozen=True)
class Shown:
    """A picture on the page, and what is said of it."""

    uri: Uri
    text: str
    note: str = ""


def report(concept: Concept, chain: dict[str, Artifact], profile: Profile, *, store: Store) -> Artifact:
    """Write the page.

    Args:
        concept: its pictures, words and licence.
        chain: training_set, delta and metrics, and regularization and index where there are any.
        profile: the base model.
        store: where the artifacts are, and the result goes.

    Returns:
        A `report` artifact: report.html.

    Raises:
        StoreError: if an artifact that the metrics were made from is no longer in the store.
    """
    needed = set(STAGES) - {"index"} - (set[str]() if regularized(chain, store) else {"regularization"})
    if missing := [kind for kind in STAGES if kind in needed and kind not in chain]:
        raise StoreError(
            f"report of metrics {chain['metrics'].key}: found no {', '.join(missing)} that it was made from, need each "
            f"stage's artifact; run customize/{concept.name} again"
        )

    def produce(folder: Path) -> int:
        (folder / "report.html").write_text(render(concept, chain, profile, store), encoding="utf-8")
        return 1

    return store.make(stages.report(concept, chain, profile), produce)


def render(concept: Concept, chain: dict[str, Artifact], profile: Profile, store: Store) -> str:
    """Return the page's HTML; captions and names are escaped, since nobody vouches for them."""
    metrics = chain["metrics"]
    table = tables.read(store, metrics, "metrics")
    page = template(stages.REPORT_TEMPLATE)
    evaluation = store.manifest(metrics).recipe.config
    rows = side_by_side(metrics, store)
    return page.render(
        concept=concept,
        profile=profile,
        training=_pictures(concept, "images"),
        held_out=_pictures(concept, "held_out"),
        rows=[_shown_row(row) for row in rows],
        hero=[Shown(figures.thumbnail_uri(row.customized[0], 256), row.prompt) for row in rows[:HERO]],
        seeds=evaluation["seeds"],
        confidence=evaluation["confidence"],
        kid_images=evaluation["kid_images"],
        comparisons={one.metric: one for one in compare(table)},
        metrics_chart=figures.chart_uri(figures.metrics_chart(table)),
        copies=_copies(metrics, store),
        method=methods.get(store.manifest(chain["delta"]).recipe.config["method"]),
        retrieved=_retrieved(chain["regularization"], store) if regularized(chain, store) else None,
        views=_views(chain["training_set"], store),
        trained=_trained(chain["delta"], store),
        stages=[_stage(chain[kind], kind, store) for kind in STAGES if kind in chain],
        artifacts=[_record(name, one, store) for name, one in (chain | sources(metrics, store)).items()],
    )


def regularized(chain: dict[str, Artifact], store: Store) -> bool:
    """Whether the training saw regularization images."""
    return "training_set" not in chain or bool(
        store.manifest(chain["training_set"]).recipe.inputs.get("regularization", "?")
    )


def is_drawn(regularization: Artifact, store: Store) -> bool:
    """Whether the base model drew the regularization images, and no caption was searched."""
    return store.manifest(regularization).recipe.config.get("regularization") == "generated"


def _pictures(concept: Concept, folder: str) -> list[Shown]:
    group = concept.images if folder == "images" else concept.held_out
    return [Shown(figures.thumbnail_uri(picture(concept, one, folder), 160), one.name) for one in group]


def _shown_row(row: PromptRow) -> dict[str, Any]:
    def strip(data: Sequence[bytes]) -> list[Uri]:
        return [figures.thumbnail_uri(png, 128) for png in data]

    return {
        "base_prompt": row.base_prompt,
        "prompt": row.prompt,
        "base": strip(row.base),
        "customized": strip(row.customized),
    }


def _retrieved(regularization: Artifact, store: Store) -> dict[str, Any]:
    table = tables.read(store, regularization, "regularization", ["caption", "similarity", "image"])
    drawn = is_drawn(regularization, store)
    hits = [
        Shown(figures.thumbnail_uri(hit["image"], 72), str(hit["caption"]), "" if drawn else number(hit["similarity"]))
        for hit in table.to_dict("records")
    ]
    if drawn:
        return {"hits": hits, "drawn": True}
    limit = store.manifest(regularization).recipe.config.get("min_similarity")
    chart = figures.similarity_histogram(table["similarity"].tolist(), limit)
    return {
        "drawn": False,
        "hits": hits,
        "limit": limit,
        "chart": figures.chart_uri(chart),
        "least": float(table["similarity"].min()),
    }


def _views(training_set: Artifact, store: Store) -> list[Shown]:
    return [
        Shown(
            figures.image_uri(figures.masked_view(view["image"], view["mask"], 128)),
            view["prompt"],
            view["prefix"].strip(),
        )
        for view in views(training_set, store)
    ]


def _trained(delta: Artifact, store: Store) -> dict[str, Any]:
    history, previews = (tables.read(store, delta, name) for name in ("history", "previews"))
    return {
        "chart": figures.chart_uri(figures.loss_curve(history)),
        "previews": [
            Shown(figures.thumbnail_uri(tile, 128), f"step {row['step']}")
            for row in previews.to_dict("records")
            for tile in figures.tiles(row["image"])
        ],
        "config": store.manifest(delta).recipe.config,
        "steps": len(history),
        "seconds": float(history["seconds"].sum()),
    }


def _copies(metrics: Artifact, store: Store) -> dict[str, Any]:
    """The generated image most alike a training picture: where a copy would show first."""
    scores = tables.read(store, metrics, "scores")
    drawn = scores[scores["subject"] == "customized"].reset_index(drop=True)
    worst = drawn.iloc[int(np.argmax(drawn["nearest_training"]))]
    table = tables.read(
        store, sources(metrics, store)["customized"], "samples", ["prompt", "prompt_id", "seed", "image"]
    )
    found = table[(table["prompt_id"] == worst["prompt_id"]) & (table["seed"] == worst["seed"])].iloc[0]
    closest = Shown(figures.thumbnail_uri(found["image"], 160), str(found["prompt"]), f"seed {found['seed']}")
    return {"closest": closest, "value": float(worst["nearest_training"]), "of": len(drawn)}


def _stage(artifact: Artifact, kind: str, store: Store) -> dict[str, Any]:
    """A stage's settings, each with the description that its config gives."""
    title, config = STAGES[kind]
    manifest = store.manifest(artifact)
    rows: list[tuple[str, str, str]] = []
    for name, value in manifest.recipe.config.items():
        if isinstance(value, dict):  # how images are drawn: the one config inside others
            rows += [(f"{name}.{inner}", _setting(one), _meaning(SampleConfig, inner)) for inner, one in value.items()]
        else:
            rows.append((name, _setting(value), _meaning(config, name)))
    return {"title": title, "manifest": manifest, "settings": rows}


def _meaning(config: type[Frozen], name: str) -> str:
    field = config.model_fields.get(name)
    return (field.description or "") if field else ""


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return (", " if len(str(value)) < 80 else "\n").join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _record(name: str, artifact: Artifact, store: Store) -> dict[str, Any]:
    """An artifact's line of the provenance table; name is its kind, or what it is called among the sample sets."""
    manifest = store.manifest(artifact)
    title = STAGES[name][0] if name in STAGES else SAMPLE_SETS.get(name, name)
    return {"title": title, "manifest": manifest, "created": when(manifest.created)}
