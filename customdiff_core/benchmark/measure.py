"""Measure one cell: get its customized model, draw its prompts, and score every image. Whatever another cell made is shared.

The same prompts and noise are drawn by every row, so that rows can be compared image by image.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd

from customdiff_core import concepts as concept_files
from customdiff_core import stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.benchmark.cells import Cell, training_seed
from customdiff_core.benchmark.costs import costs
from customdiff_core.benchmark.history import COSTS
from customdiff_core.benchmark.protocol import Protocol
from customdiff_core.concepts import Concept, fill
from customdiff_core.config import EvaluateConfig, FinetuneConfig, Runtime
from customdiff_core.errors import ConfigError
from customdiff_core.evaluation.alignment import Scores, image_alignment, nearest_similarity, text_alignment
from customdiff_core.evaluation.identity import identity
from customdiff_core.evaluation.intervals import crossed_interval, grid_of, of_share
from customdiff_core.evaluation.judge import Judge
from customdiff_core.evaluation.kid import jackknife, kid, kid_interval
from customdiff_core.evaluation.validation import validation
from customdiff_core.finetuning import methods
from customdiff_core.merging.join import join
from customdiff_core.merging.merge import merge
from customdiff_core.pipeline import Pipeline, quiet
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress
from customdiff_core.retrieval.metadata import Vectors
from customdiff_core.sampling import generate

KID_GROUPS = 50  # of captions, for its jackknife


def measure(
    cell: Cell,
    protocol: Protocol,
    index: Artifact | None,
    profile: Profile,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    tell: Callable[[str], Progress] = quiet,
) -> Artifact:
    """Measure a cell.

    Args:
        cell: which row, concepts and training seed.
        protocol: how it is measured.
        index: the embedded world's retrieval index, from `build_index`; None where the profile has its own source.
        profile: the base model and its judges.
        store: where everything goes.
        runtime: device.
        tell: gives each stage somebody to tell how far it is.

    Returns:
        A `cell` artifact: measures.parquet (metric, extractor, value, ci_low, ci_high, n: of this cell alone, its training
        given), scores.parquet (metric, prompt_id, seed, value: an image's; of KID a caption group's), costs.parquet (one row)
        and sources.parquet (name, and the handle of what was measured).

    Raises:
        CustomDiffusionError: of any stage.
    """
    # A night's seeds never come again: nothing goes on from a whole training. Those of the curve come before it.
    kept = runtime.model_copy(update={"keep_checkpoints": cell.share < 1, "purpose": "benchmark"})
    work = Work(cell, protocol, profile, Pipeline(profile, store, kept, tell))

    def produce(folder: Path) -> int:
        delta = work.delta()
        spent: tables.Row = costs(delta, profile, store, len(cell.concepts)) if delta else dict.fromkeys(COSTS, 0.0)
        tables.write(folder / "costs.parquet", [spent])
        samples = work.draw(delta)
        scores = pd.concat([work.alignment(samples["samples"]), work.kid(samples)])
        tables.write(folder / "scores.parquet", scores)
        handles = samples | ({"delta": delta} if delta else {})
        tables.write(folder / "sources.parquet", [{"name": name, **one.model_dump()} for name, one in handles.items()])
        return tables.write(folder / "measures.parquet", work.measures(scores, samples))

    # Seconds and memory differ from process to process; the figures do not.
    return store.make(stages.cell(cell, protocol, index, profile, store), produce, volatile=("costs.parquet",))


def training(cell: Cell, protocol: Protocol, profile: Profile, first: str) -> FinetuneConfig:
    """The settings of that of a cell's trainings which begins with this concept, with its seed and share of the steps."""
    config = cell.training(profile)
    steps = max(1, round(config.steps * cell.share * protocol.share))
    changed: dict[str, object] = {"steps": steps, "seed": training_seed(cell.seed, first)}
    if not cell.what.regularized:  # an ablation changes nothing else: the rates stay as with regularization
        rates = methods.get(config.method).rates(config)
        changed |= {"prior_weight": 0.0, "learning_rate": rates[0], "modifier_learning_rate": rates[1]}
    return config.model_copy(update=changed)


@dataclass
class Work:
    """A cell with all that is needed to measure it."""

    cell: Cell
    protocol: Protocol
    profile: Profile
    pipeline: Pipeline

    def __post_init__(self) -> None:
        self.store = self.pipeline.store
        self.judge = Judge(self.profile, self.store, self.pipeline.runtime)

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        """As the row's method says them."""
        method = methods.get(self.cell.what.method)
        return method.words_of(map(concept_files.load, self.cell.concepts))

    @property
    def config(self) -> EvaluateConfig:
        """How it is measured."""
        return self.protocol.evaluation(self.profile, on_curve=self.cell.share < 1)

    def delta(self) -> Artifact | None:
        """The customized model; None for the base model's row."""
        names, way, row = self.cell.concepts, self.cell.what.way, self.cell.what
        config = partial(training, self.cell, self.protocol, self.profile)
        if way == "base":
            return None
        if way in ("alone", "joint", "sequential"):
            return self.pipeline.train(
                names, config(names[0]), sequential=way == "sequential", regularized=row.regularized
            )
        parts = tuple(self.pipeline.train([name], config(name)) for name in names)
        if way == "apart":
            return join(parts, self.profile, store=self.store)
        strengths, index = (1.0,) * len(parts), self.pipeline.index()
        return merge(parts, strengths, index, self.profile, self.profile.merge, store=self.store)

    def draw(self, delta: Artifact | None) -> dict[str, Artifact]:
        """The prompts' images, and of one concept those of held-out captions of its category, which have no V*."""
        words = [one.noun if delta else one.category for one in self.concepts]
        prompts = tuple(fill(prompt, words) for prompt in templates(self.cell, self.protocol, self.concepts))
        sets = {"samples": self._generate(prompts, self.config.seeds, delta)}
        if not self.measures_kid:
            return sets
        real = validation(self.concepts[0], self.profile, self.config.kid_images, store=self.store)
        captions = tuple(tables.read(self.store, real, "validation", ["caption"])["caption"])
        # A method that trains no weights draws captions without V* as the base model does: those pictures are there.
        weights = delta if methods.get(self.cell.what.method).trains else None
        return sets | {"kid_samples": self._generate(captions, (0,), weights), "validation": real}

    @property
    def measures_kid(self) -> bool:
        """Of one concept and a whole training, as in the paper's table."""
        return len(self.concepts) == 1 and self.cell.share == 1

    def alignment(self, samples: Artifact) -> pd.DataFrame:
        """Every image's scores, one row a metric and image."""
        table = tables.read(self.store, samples, "samples", ["prompt_id", "seed", "image"])
        data = table["image"].tolist()
        drawn, plain = self.judge.images(data), [one.category for one in self.concepts]
        texts = self.judge.texts([fill(one, plain) for one in templates(self.cell, self.protocol, self.concepts)])
        found = {"text_alignment": text_alignment(drawn, texts[table["prompt_id"]])}
        training = [self.judge.images(data_of(one, "images")) for one in self.concepts]
        found["image_alignment_training"] = _mean(image_alignment(drawn, group) for group in training)
        found["nearest_training"] = _mean(nearest_similarity(drawn, group) for group in training)
        if all(one.held_out for one in self.concepts):
            held_out = [self.judge.images(data_of(one, "held_out")) for one in self.concepts]
            found["image_alignment_held_out"] = _mean(image_alignment(drawn, group) for group in held_out)
        if len(self.concepts) == 1 and self.concepts[0].others:
            found |= identity(self.concepts[0], data, self.judge)
        if len(self.concepts) > 1:  # each concept's own, in the order in which a sequential training sees them
            found |= {f"image_alignment_{place}": image_alignment(drawn, one) for place, one in enumerate(training, 1)}
        if self.profile.dino:
            groups = [self.judge.dino_images(data_of(one, "images")) for one in self.concepts]
            seen = self.judge.dino_images(data)
            found["dino_alignment_training"] = _mean(image_alignment(seen, group) for group in groups)
        keys = table[["prompt_id", "seed"]]
        return pd.concat([keys.assign(metric=metric, value=values) for metric, values in found.items()])

    def kid(self, samples: dict[str, Artifact]) -> pd.DataFrame:
        """KID's pseudo-values, one row a group of captions."""
        if not self.measures_kid:
            return pd.DataFrame({"prompt_id": [], "seed": [], "metric": [], "value": []})
        values = jackknife(*self._kid_features(samples), KID_GROUPS)
        return pd.DataFrame({"prompt_id": range(len(values)), "seed": 0, "metric": "kid", "value": values})

    def measures(self, scores: pd.DataFrame, samples: dict[str, Artifact]) -> list[tables.Row]:
        """One row a metric, its value and interval over prompts and seeds; KID's value is torch-fidelity's."""
        rows: list[tables.Row] = []
        for metric, part in scores.groupby("metric", sort=False):
            grid = grid_of(part)
            config = self.config
            if metric == "kid":
                features = self._kid_features(samples)
                value, count = kid(*features, config.kid_subset_size, config.kid_subsets), len(features[0])
                low, high = kid_interval(value, grid.ravel(), config.confidence)
            else:
                value, count = float(grid.mean()), grid.size
                ends = crossed_interval(grid[None], config.confidence)
                low, high = of_share(str(metric), value, ends, (count, len(grid)), config.confidence)
            ends = {"ci_low": low, "ci_high": high}
            extractor = self.judge.extractor(str(metric))
            rows.append({"metric": metric, "extractor": extractor, "value": value, **ends, "n": count})
        return rows

    def _kid_features(self, samples: dict[str, Artifact]) -> tuple[Vectors, Vectors]:
        drawn = tables.read(self.store, samples["kid_samples"], "samples", ["image"])["image"].tolist()
        real = tables.read(self.store, samples["validation"], "validation", ["image"])["image"].tolist()
        return self.judge.kid_features(drawn), self.judge.kid_features(real)

    def _generate(self, prompts: tuple[str, ...], seeds: tuple[int, ...], delta: Artifact | None) -> Artifact:
        return generate(
            prompts,
            seeds,
            delta,
            self.profile,
            self.config.sample,
            store=self.store,
            runtime=self.pipeline.runtime,
            progress=self.pipeline.tell("generate"),
        )


def templates(cell: Cell, protocol: Protocol, concepts: Sequence[Concept]) -> tuple[str, ...]:
    """The prompts that a cell draws, with {0}, {1}, ... for its concepts.

    Raises:
        ConfigError: if there are fewer than the protocol says: rows of the table must have as many for each concept.
    """
    if cell.what.together:
        wanted, found = protocol.prompts_together, concept_files.prompts_together(len(concepts), file=cell.prompts)
    else:
        wanted, found = protocol.prompts, tuple(one.replace("{}", "{0}") for one in concepts[0].prompts)
    if len(found) < wanted:
        raise ConfigError(
            f"prompts of {'+'.join(cell.concepts)}: found {len(found)}, need the {wanted} of protocol {protocol.name}; "
            "add some or lower its number"
        )
    return found[:wanted]


def data_of(concept: Concept, folder: str) -> list[bytes]:
    """A concept's pictures, of images/ or held_out/."""
    return [concept.read(one, folder) for one in (concept.images if folder == "images" else concept.held_out)]


def _mean(parts: Iterator[Scores]) -> Scores:
    return np.mean(list(parts), axis=0)
