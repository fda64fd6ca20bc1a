"""Evaluate: base and customized model on the same prompts and noise; alignment and KID, with intervals (section 4)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from customdiff_core import stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.config import EvaluateConfig, Runtime
from customdiff_core.evaluation.alignment import image_alignment, nearest_similarity, text_alignment
from customdiff_core.evaluation.identity import identity
from customdiff_core.evaluation.intervals import crossed_interval, grid_of, of_share
from customdiff_core.evaluation.judge import Judge
from customdiff_core.evaluation.kid import jackknife, kid, kid_interval
from customdiff_core.evaluation.validation import validation
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, part_of, silent
from customdiff_core.sampling import generate

SUBJECTS = ("base", "customized")


def evaluate(
    concept: Concept,
    delta: Artifact,
    profile: Profile,
    config: EvaluateConfig,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> Artifact:
    """Compare the customized model with its base.

    Text alignment, image alignment with training and held-out pictures and the likeness to the nearest training picture
    are measured on the concept's prompts; KID on captions of held-out images of the category, without V*.

    Returns:
        A `metrics` artifact: metrics.parquet, one row a number (subject "difference" is paired, customized - base);
        scores.parquet, one row an image; sources.parquet, the keys of the sample sets.

    Raises:
        EvaluationError: if a figure cannot be computed.
    """

    def produce(folder: Path) -> int:
        judge = Judge(profile, store, runtime)
        real = validation(concept, profile, config.kid_images, store=store)
        samples = _sample_sets(concept, delta, real, profile, config, store, runtime, progress)
        scores = pd.concat([_scores(concept, subject, samples[subject], judge, store) for subject in SUBJECTS])
        rows = _alignment_rows(scores, judge, config)
        rows += _kid_rows(real, samples, config, judge, store)
        tables.write(folder / "scores.parquet", scores)
        sources = {**samples, "validation": real}
        tables.write(folder / "sources.parquet", [{"name": name, **one.model_dump()} for name, one in sources.items()])
        trained = store.manifest(delta).recipe.config
        origin = {"method": trained["method"], "seed": trained.get("seed", 0)}
        return tables.write(folder / "metrics.parquet", [{**row, **origin} for row in rows])

    return store.make(stages.evaluate(concept, delta, profile, config), produce)


def _sample_sets(
    concept: Concept,
    delta: Artifact,
    real: Artifact,
    profile: Profile,
    config: EvaluateConfig,
    store: Store,
    runtime: Runtime,
    progress: Progress,
) -> dict[str, Artifact]:
    """Draw the concept's prompts and the KID captions with both models; each set is an artifact of its own."""
    captions = tuple(tables.read(store, real, "validation", ["caption"])["caption"])
    jobs = {
        "base": (tuple(concept.with_category(prompt) for prompt in concept.prompts), config.seeds, None),
        "customized": (tuple(concept.with_concept(prompt) for prompt in concept.prompts), config.seeds, delta),
        "kid_base": (captions, (0,), None),
        "kid_customized": (captions, (0,), delta),
    }
    total = sum(len(prompts) * len(seeds) for prompts, seeds, _ in jobs.values())
    sets: dict[str, Artifact] = {}
    done = 0
    for name, (prompts, seeds, model) in jobs.items():
        sets[name] = generate(
            prompts,
            seeds,
            model,
            profile,
            config.sample,
            store=store,
            runtime=runtime,
            progress=part_of(progress, done, total),
        )
        done += sets[name].rows
        progress(done, total, "images drawn")
    return sets


def _scores(concept: Concept, subject: str, samples: Artifact, judge: Judge, store: Store) -> pd.DataFrame:
    """One row an image: its alignment with its prompt (V* removed) and with the concept's pictures."""
    table = tables.read(store, samples, "samples", ["prompt_id", "seed", "image"])
    drawn = judge.images(table["image"].tolist())
    prompts = judge.texts([concept.with_category(prompt) for prompt in concept.prompts])[table["prompt_id"]]
    scores = {"text_alignment": text_alignment(drawn, prompts)}
    training = judge.images([concept.read(picture) for picture in concept.images])
    scores["image_alignment_training"] = image_alignment(drawn, training)
    scores["nearest_training"] = nearest_similarity(drawn, training)
    if concept.held_out:
        held_out = judge.images([concept.read(picture, "held_out") for picture in concept.held_out])
        scores["image_alignment_held_out"] = image_alignment(drawn, held_out)
    if concept.others:
        scores |= identity(concept, table["image"].tolist(), judge)
    if judge.profile.dino:
        targets = judge.dino_images([concept.read(picture) for picture in concept.images])
        scores["dino_alignment_training"] = image_alignment(judge.dino_images(table["image"].tolist()), targets)
    return table[["prompt_id", "seed"]].assign(subject=subject, **scores)


def _alignment_rows(scores: pd.DataFrame, judge: Judge, config: EvaluateConfig) -> list[tables.Row]:
    rows: list[tables.Row] = []
    for metric, grids in grids_of(scores):
        grids["difference"] = grids["customized"] - grids["base"]
        for subject, grid in grids.items():
            value, ends = float(grid.mean()), crossed_interval(grid[None], config.confidence)
            size = grid.size, len(grid)
            ends = of_share(metric, value, ends, size, config.confidence, difference=subject == "difference")
            rows.append(_row(subject, metric, judge, value, ends, grid.size))
    return rows


def grids_of(scores: pd.DataFrame) -> Iterator[tuple[str, dict[str, npt.NDArray[np.float64]]]]:
    """Yield each metric of a table of scores with a (prompts, seeds) array a subject."""
    for metric in scores.columns.difference(["prompt_id", "seed", "subject"], sort=False):
        yield (
            str(metric),
            {str(subject): grid_of(part, str(metric)) for subject, part in scores.groupby("subject", sort=False)},
        )


def _kid_rows(
    real: Artifact, samples: dict[str, Artifact], config: EvaluateConfig, judge: Judge, store: Store
) -> list[tables.Row]:
    """KID of both models on the category's held-out captions; the difference says what customization forgot."""
    true = judge.kid_features(tables.read(store, real, "validation", ["image"])["image"].tolist())
    values: dict[str, float] = {}
    scores: dict[str, npt.NDArray[np.float64]] = {}
    for subject in SUBJECTS:
        drawn = judge.kid_features(
            tables.read(store, samples[f"kid_{subject}"], "samples", ["image"])["image"].tolist()
        )
        values[subject] = kid(drawn, true, config.kid_subset_size, config.kid_subsets)
        scores[subject] = jackknife(drawn, true)
    # Paired: both drew the same captions from the same noise.
    values["difference"] = values["customized"] - values["base"]
    scores["difference"] = scores["customized"] - scores["base"]
    return [
        _row(subject, "kid", judge, value, kid_interval(value, scores[subject], config.confidence), len(true))
        for subject, value in values.items()
    ]


def _row(subject: str, metric: str, judge: Judge, value: float, ends: tuple[float, float], n: int) -> tables.Row:
    low, high = ends
    return {
        "subject": subject,
        "metric": metric,
        "extractor": judge.extractor(metric),
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": n,
    }
