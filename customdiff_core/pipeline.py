"""The stages in a row without a server: what the flows do with tasks, for the command line and notebooks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from customdiff_core import concepts as concept_files
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.augmentation import augment
from customdiff_core.concepts import Concept
from customdiff_core.config import (
    AugmentConfig,
    FinetuneConfig,
    IndexConfig,
    MergeConfig,
    RetrieveConfig,
    Runtime,
    Stated,
)
from customdiff_core.finetuning import methods
from customdiff_core.finetuning.finetune import finetune
from customdiff_core.interop.importing import import_delta
from customdiff_core.merging.merge import merge
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, silent
from customdiff_core.retrieval.retrieve import build_index, retrieve


def quiet(stage: str) -> Progress:
    """Tell nobody."""
    del stage
    return silent


@dataclass
class Pipeline:
    """The stages of one base model on one store; `tell` gives each stage somebody to tell how far it is."""

    profile: Profile
    store: Store
    runtime: Runtime = field(default_factory=Runtime)
    tell: Callable[[str], Progress] = quiet

    def index(self) -> Artifact | None:
        """The embedded world's retrieval index; None where the profile has a source of its own."""
        if self.profile.corpus.source != "embedded":
            return None
        return build_index(self.profile, IndexConfig(), **self._told("index"))

    def training_set(self, concept: Concept, retrieval: RetrieveConfig, views: AugmentConfig) -> Artifact:
        """A concept's views with regularization images, or without any."""
        regularization: Artifact | None = None
        if retrieval.regularization != "none":
            index = self.index() if retrieval.regularization == "retrieved" else None
            regularization = retrieve(concept, index, self.profile, retrieval, **self._told("retrieve"))
        return augment(concept, regularization, self.profile, views, **self._told("augment"))

    def train(
        self,
        names: Sequence[str],
        config: FinetuneConfig,
        *,
        sequential: bool = False,
        regularized: bool = True,
        retrieval: RetrieveConfig | None = None,
        views: AugmentConfig | None = None,
    ) -> Artifact:
        """Teach concepts of data/concepts: one, several jointly, or one after the other.

        Args:
            names: of the concepts.
            config: the method and its settings.
            sequential: one after the other.
            regularized: with regularization images; without is an ablation.
            retrieval: which ones; None: as the profile has it for the method.
            views: of the concepts' pictures; None: likewise.
        """
        method = methods.get(config.method)
        wanted = tuple(method.words(concept_files.load(name)) for name in names)
        retrieval, views = retrieval or self.profile.retrieval(method.name), views or self.profile.views(method.name)
        if not regularized:
            retrieval = retrieval.model_copy(update={"regularization": "none"})
        sets = tuple(self.training_set(concept, retrieval, views) for concept in wanted)
        groups = (
            [((one,), (examples,)) for one, examples in zip(wanted, sets, strict=True)]
            if sequential
            else [(wanted, sets)]
        )
        delta: Artifact | None = None
        for taught, examples in groups:
            delta = finetune(taught, examples, self.profile, config, parent=delta, **self._told("finetune"))
        assert delta is not None  # of at least one concept
        return delta

    def delta(self, name: str, config: FinetuneConfig, stated: Stated = Stated()) -> Artifact:
        """A delta by a concept's name (trained if it is not there), by key, or from a file."""
        if name in concept_files.names():
            return self.train([name], config)
        if concept_files.is_file(name):
            return import_delta(Path(name), self.profile, stated, store=self.store)
        return self.store.get("delta", name)

    def _told(self, stage: str) -> dict[str, Any]:
        """What every stage is given beside its inputs."""
        return {"store": self.store, "runtime": self.runtime, "progress": self.tell(stage)}

    def compose(
        self,
        names: Sequence[str],
        strengths: Sequence[float],
        training: FinetuneConfig,
        config: MergeConfig,
        stated: Stated = Stated(),
    ) -> Artifact:
        """Train or import what is missing, and merge."""
        files = [name for name in names if concept_files.is_file(name)]
        of_file = dict(zip(files, stated.shared_by(len(files)), strict=True)) if files else {}
        parts = tuple(self.delta(name, training, of_file.get(name, Stated())) for name in names)
        return merge(
            parts, tuple(strengths), self.index(), self.profile, config, store=self.store, progress=self.tell("merge")
        )
