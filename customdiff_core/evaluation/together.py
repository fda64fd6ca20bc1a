"""Evaluate several concepts in one picture: base model, merged, jointly trained, on the same prompts and noise (section 4.2)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from customdiff_core import concepts as concept_files
from customdiff_core import images, stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept, fill
from customdiff_core.config import EvaluateConfig, Runtime
from customdiff_core.evaluation.alignment import image_alignment, text_alignment
from customdiff_core.evaluation.evaluate import grids_of
from customdiff_core.evaluation.intervals import crossed_interval, of_share
from customdiff_core.evaluation.judge import Judge
from customdiff_core.evaluation.presence import (
    captions_of,
    combinations_of,
    ensemble,
    in_every_colour,
    shows_all,
    side_by_side,
)
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, silent
from customdiff_core.sampling import generate

BASE = "base"
PRESENCE = "all_present"


def evaluate_together(
    concepts: tuple[Concept, ...],
    subjects: dict[str, Artifact],
    prompts: tuple[str, ...],
    profile: Profile,
    config: EvaluateConfig,
    words: Mapping[str, Sequence[str]] | None = None,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> Artifact:
    """Draw the prompts with the base model and every subject, and measure.

    Args:
        concepts: what {0}, {1}, ... stand for; one without pictures has no image alignment.
        subjects: deltas by what to call them, such as "merged" and "joint".
        prompts: each with {0}, {1}, ... once.
        profile: the base model and the judge.
        config: seeds, sampler, intervals.
        words: by subject, what {0}, {1}, ... are in its prompts where it calls the concepts otherwise, as a merge may.
        store: where samples and figures go.
        runtime: device.
        progress: told while images are drawn.

    Returns:
        A `together` artifact: metrics.parquet (subject, metric, value, ci_low, ci_high, n), scores.parquet (a row an image)
        and sources.parquet (the sample sets). Subject "judge" says how often the judge of presence is right, as far as there
        are pictures to ask it about.

    Raises:
        ConfigError: for prompts that miss a concept.
    """
    concept_files.check_prompts_together(prompts, len(concepts))
    plain = [concept.category for concept in concepts]
    spoken = {name: [concept.noun for concept in concepts] for name in subjects} | dict(words or {})

    def produce(folder: Path) -> int:
        judge = Judge(profile, store, runtime)
        samples = {
            name: generate(
                tuple(fill(prompt, spoken.get(name, plain)) for prompt in prompts),
                config.seeds,
                delta,
                profile,
                config.sample,
                store=store,
                runtime=runtime,
                progress=progress,
            )
            for name, delta in ({BASE: None} | subjects).items()
        }
        scores = pd.concat([_scores(concepts, prompts, name, one, judge, store) for name, one in samples.items()])
        tables.write(folder / "scores.parquet", scores)
        tables.write(folder / "sources.parquet", [{"name": name, **one.model_dump()} for name, one in samples.items()])
        return tables.write(
            folder / "metrics.parquet", [*_metrics(scores, config), *_judge_rows(concepts, judge, profile)]
        )

    return store.make(stages.evaluate_together(concepts, subjects, prompts, profile, config, words or {}), produce)


def _scores(
    concepts: Sequence[Concept], prompts: Sequence[str], subject: str, samples: Artifact, judge: Judge, store: Store
) -> pd.DataFrame:
    """One row an image: alignment with its prompt (V* removed) and with each concept's pictures, and who is in it."""
    table = tables.read(store, samples, "samples", ["prompt_id", "seed", "image"])
    drawn = judge.images(table["image"].tolist())
    categories = [concept.category for concept in concepts]
    words = judge.texts([fill(prompt, categories) for prompt in prompts])[table["prompt_id"]]
    scores: dict[str, object] = {"text_alignment": text_alignment(drawn, words)}
    for name, concept in zip(_names(concepts), concepts, strict=True):
        if targets := concept.true_pictures():
            scores[f"image_alignment_{name}"] = image_alignment(drawn, judge.images(targets))
    scores[PRESENCE] = _present(judge, categories, drawn).astype(float)
    return table[["prompt_id", "seed"]].assign(subject=subject, **scores)


def _names(concepts: Sequence[Concept]) -> list[str]:
    """Each concept's name, with its place where another is called alike."""
    names = [one.name for one in concepts]
    return [one if names.count(one) == 1 else f"{one} {place}" for place, one in enumerate(names, 1)]


def _present(judge: Judge, categories: Sequence[str], drawn: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    captions = captions_of(categories)
    read = judge.texts([one for text, _ in captions for one in in_every_colour(text)])
    return shows_all(drawn, ensemble(read, len(captions)), [names_all for _, names_all in captions])


def _metrics(scores: pd.DataFrame, config: EvaluateConfig) -> list[tables.Row]:
    """Each metric of each subject, and its difference from the base model's, paired by prompt and seed."""
    rows: list[tables.Row] = []
    for metric, grids in grids_of(scores):
        grids |= {f"{name} - {BASE}": grid - grids[BASE] for name, grid in grids.items() if name != BASE}
        for subject, grid in grids.items():
            value, ends = float(grid.mean()), crossed_interval(grid[None], config.confidence)
            size = grid.size, len(grid)
            low, high = of_share(metric, value, ends, size, config.confidence, difference=" - " in subject)
            rows.append(_row(subject, metric, value, low, high, grid.size))
    return rows


def _judge_rows(concepts: Sequence[Concept], judge: Judge, profile: Profile) -> list[tables.Row]:
    """How often the judge of presence is right: on each concept's true pictures alone, and on them side by side."""
    alone = [one.true_pictures() for one in concepts]
    pictures = [[images.decode(data, one.name) for data in group] for one, group in zip(concepts, alone, strict=True)]
    known = combinations_of(pictures) if all(pictures) else []
    together = [side_by_side(one, profile.augment.resolution) for one in known]
    categories = [concept.category for concept in concepts]
    answers = {
        metric: _present(judge, categories, judge.images(shown))
        for metric, shown in (
            ("said to show all, of pictures that do", together),
            ("said to show all, of pictures that do not", [data for group in alone for data in group]),
        )
        if shown
    }
    return [_row("judge", metric, float(said.mean()), np.nan, np.nan, len(said)) for metric, said in answers.items()]


def _row(subject: str, metric: str, value: float, low: float, high: float, n: int) -> tables.Row:
    return {"subject": subject, "metric": metric, "value": value, "ci_low": low, "ci_high": high, "n": n}
