"""Fixtures that every test may use: a store, the embedded profile and concept, and one tiny chain of stages a session."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from customdiff_core import concepts, profiles
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.config import AugmentConfig, FinetuneConfig, IndexConfig, RetrieveConfig, SampleConfig
from customdiff_core.profiles import Profile

# Some of Prefect's modules send the log to a server as soon as they are imported; a test that is no run has none.
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
# The same examples on every machine, so that a test that passed fails for a change alone.
settings.register_profile("equal", derandomize=True, deadline=None)
settings.load_profile("equal")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Sums are taken in one order, so that runs can be compared bit for bit: all tests', since a session's chain is shared."""
    torch.set_num_threads(1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", producer="test")


@pytest.fixture(scope="session")
def openmoji() -> Profile:
    return profiles.get("openmoji")


@pytest.fixture(scope="session")
def cat() -> Concept:
    return concepts.load("cat")


@dataclass(frozen=True)
class Chain:
    """Every artifact from the index to the delta, with the settings that made it."""

    store: Store
    profile: Profile
    concept: Concept
    index_config: IndexConfig
    retrieve_config: RetrieveConfig
    augment_config: AugmentConfig
    finetune_config: FinetuneConfig
    index: Artifact
    regularization: Artifact
    training_set: Artifact
    delta: Artifact


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory, openmoji: Profile, cat: Concept) -> Chain:
    """The real stages at the smallest useful size; tests may add to its store, and must not damage what is in it."""
    from customdiff_core.augmentation import augment
    from customdiff_core.finetuning.finetune import finetune
    from customdiff_core.retrieval.retrieve import build_index, retrieve

    store = Store(tmp_path_factory.mktemp("chain"), producer="chain")
    quick = openmoji.evaluate.model_copy(update={"sample": SampleConfig(steps=2, guidance_scale=4)})
    profile = openmoji.model_copy(update={"evaluate": quick})
    sizes, retrieval = IndexConfig(scenes=1200), RetrieveConfig(count=24, candidates=60)
    views = AugmentConfig(resolution=64, views=12)
    # Settings of its own: tuning the profile is no reason for a test to fail.
    training = FinetuneConfig(
        steps=6, learning_rate=5e-4, modifier_learning_rate=5e-3, batch_size=2, ema_decay=0.5, seed=3
    )
    index = build_index(profile, sizes, store=store)
    regularization = retrieve(cat, index, profile, retrieval, store=store)
    training_set = augment(cat, regularization, profile, views, store=store)
    delta = finetune((cat,), (training_set,), profile, training, store=store)
    return Chain(
        store,
        profile,
        cat,
        sizes,
        retrieval,
        views,
        training,
        index=index,
        regularization=regularization,
        training_set=training_set,
        delta=delta,
    )
