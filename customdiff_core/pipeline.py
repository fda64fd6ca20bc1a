"""The stages in a row without a server: what the flows do with tasks, for the command line and notebooks."""

import logging
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
from customdiff_core.errors import MissingError
from customdiff_core.finetuning import methods
from customdiff_core.finetuning.finetune import finetune
from customdiff_core.interop.importing import import_delta
from customdiff_core.merging.merge import merge
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, silent
from customdiff_core.retrieval.retrieve import build_index, retrieve
from customdiff_core.stages import check_names, require_captions, standing

logger = logging.getLogger(__name__)


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
        wanted = method.words_of(map(concept_files.load, names))
        retrieval, views = retrieval or self.profile.retrieval(method.name), views or self.profile.views(method.name)
        if not regularized or config.prior_weight == 0:
            retrieval = retrieval.model_copy(update={"regularization": "none"})
        if retrieval.regularization == "none":
            config = config.model_copy(update={"prior_weight": 0.0})
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

    def delta(self, name: str, config: FinetuneConfig | None = None, stated: Stated = Stated()) -> Artifact:
        """A delta by a concept's name, by key, or from a file.

        A name is that of the training which it stands for (`stages.standing`). With settings, or where there is none yet, the
        concept is trained.
        """
        check_names([name])
        if name in concept_files.names():
            return (None if config else self._standing(name)) or self.train([name], config or self.profile.finetune)
        if concept_files.is_file(name):
            return import_delta(Path(name), self.profile, stated, store=self.store)
        return self.store.get("delta", name)

    def _standing(self, name: str) -> Artifact | None:
        try:
            return standing(name, self.profile, self.store)
        except MissingError:
            logger.warning("%s: not trained yet; training it now", name)
            return None

    def _told(self, stage: str) -> dict[str, Any]:
        """What every stage is given beside its inputs."""
        return {"store": self.store, "runtime": self.runtime, "progress": self.tell(stage)}

    def compose(
        self,
        names: Sequence[str],
        strengths: Sequence[float],
        training: FinetuneConfig | None,
        config: MergeConfig,
        stated: Stated = Stated(),
    ) -> Artifact:
        """Train or import what is missing, and merge; without settings, a concept's name is the training it stands for."""
        check_names(names)
        concept_files.check_prompts(config.prompts, "merge.prompts")
        require_captions(self.profile, self.store)
        files = [name for name in names if concept_files.is_file(name)]
        of_file = dict(zip(files, stated.shared_by(len(files)), strict=True)) if files else {}
        parts = tuple(self.delta(name, training, of_file.get(name, Stated())) for name in names)
        return merge(
            parts, tuple(strengths), self.index(), self.profile, config, store=self.store, progress=self.tell("merge")
        )
