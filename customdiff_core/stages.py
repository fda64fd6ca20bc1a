"""The recipe of each stage: which inputs, settings, code and libraries decide its result. Imports no tensor library."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from customdiff_core import concepts as concept_files
from customdiff_core.artifacts import Artifact, Manifest, Store
from customdiff_core.benchmark.cells import Cell
from customdiff_core.benchmark.outcomes import Outcome
from customdiff_core.benchmark.protocol import Protocol
from customdiff_core.benchmark.search import Search
from customdiff_core.concepts import Concept, prompts_together
from customdiff_core.concepts import load as load_concept
from customdiff_core.config import (
    AugmentConfig,
    CompressConfig,
    EvaluateConfig,
    FinetuneConfig,
    IndexConfig,
    MergeConfig,
    RetrieveConfig,
    SampleConfig,
)
from customdiff_core.errors import ConfigError, EvaluationError, MissingError, RetrievalError, did_you_mean
from customdiff_core.profiles import Profile
from customdiff_core.recipes import (
    CLIP_LIBRARIES,
    DRAWING_LIBRARIES,
    PACKAGE,
    TENSOR_LIBRARIES,
    Recipe,
    digest_of,
    fingerprint,
    is_key,
    settings,
    versions,
    world_digest,
)
from customdiff_core.settings import Settings
from customdiff_core.weights import encoder_digest, inception_digest, model_digest, vision_digest
from customdiff_core.world.drawings import load_drawings

REPORT_TEMPLATE = PACKAGE / "evaluation" / "report.html.jinja"
BENCHMARK_TEMPLATE = PACKAGE / "benchmark" / "report.html.jinja"
TOGETHER_TEMPLATE = PACKAGE / "evaluation" / "report_together.html.jinja"
MEASURING = ("benchmark-", "search-")  # how the names of runs begin whose trainings are nobody's own
# In which trainings with a profile's settings may differ.
FREE = ("steps", "seed", "preview_prompts", "preview_every", "precision", "optimizer", "compiled")


def build_index(profile: Profile, config: IndexConfig) -> Recipe:
    """The embedded corpus: the drawings, how many scenes of them, and the encoder."""
    return Recipe(
        kind="index",
        inputs={"drawings": world_digest(), "encoder": encoder_digest(profile.retrieval_encoder)},
        config=settings(config) | {"size": profile.augment.resolution},
        code=fingerprint("customdiff_core.retrieval.index"),
        versions=versions("faiss-cpu", *DRAWING_LIBRARIES, *CLIP_LIBRARIES),
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


def require_captions(profile: Profile, store: Store) -> None:
    """Check, before anything is trained, that there are captions to hold a merge's weights with.

    Raises:
        RetrievalError: if the profile has no index, or only a backend, whose captions cannot be read.
    """
    if profile.corpus.source != "embedded":
        index_folder(None, profile, store)


def retrieve(
    concept: Concept, index: Artifact | None, profile: Profile, config: RetrieveConfig, store: Store | None = None
) -> Recipe:
    """The class prompt, the source and the encoder, not the concept's pictures; or the base model that draws instead."""
    labels = {"concept": concept.name, "profile": profile.name}
    if config.regularization == "generated":
        return Recipe(
            kind="regularization",
            inputs={"class_prompt": concept.class_prompt, "model": model_digest(profile.model)},
            config={"regularization": "generated", "count": config.count, "sample": settings(profile.evaluate.sample)},
            code=fingerprint("customdiff_core.retrieval.alternatives"),
            versions=versions(*TENSOR_LIBRARIES),
            labels=labels,
        )
    return Recipe(
        kind="regularization",
        inputs={
            "index": _index_digest(index, profile, store),
            "encoder": encoder_digest(profile.retrieval_encoder),
            "class_prompt": concept.class_prompt,
        },
        config=settings(config) | {"side": profile.augment.resolution, "source": profile.corpus.source},
        code=fingerprint("customdiff_core.retrieval.retrieve"),
        versions=versions("faiss-cpu", *CLIP_LIBRARIES),
        labels=labels,
    )


def augment(concept: Concept, regularization: Artifact | None, profile: Profile, config: AugmentConfig) -> Recipe:
    """The concept's pictures and words, the regularization images, and the VAE that encodes both."""
    return Recipe(
        kind="training_set",
        inputs={
            "concept": concept.digest,
            "name": concept.name,  # which its rows say
            "regularization": regularization.sha256 if regularization else "",
            "model": model_digest(profile.model),
        },
        config=settings(config),
        code=fingerprint("customdiff_core.augmentation"),
        versions=versions("pillow", *TENSOR_LIBRARIES),
        labels={"concept": concept.name, "profile": profile.name},
    )


def finetune(
    concepts: tuple[Concept, ...],
    training_sets: tuple[Artifact, ...],
    profile: Profile,
    config: FinetuneConfig,
    parent: Artifact | None = None,
    purpose: str = "",
) -> Recipe:
    """The training sets, the concepts' names, the base model, the parent and every setting of the method; more steps go on
    from fewer.

    Not where the rates follow a cosine, which ends at the last step. What it is for is said in its label alone.
    """
    way = "sequential" if parent else "joint" if len(concepts) > 1 else "single"
    inputs = {"model": model_digest(profile.model)} | ({"parent": parent.sha256} if parent else {})
    for number, (concept, training_set) in enumerate(zip(concepts, training_sets, strict=True), 1):
        place = f"/{number}" if number > 1 else ""
        inputs |= {f"concept{place}": concept.digest, f"training_set{place}": training_set.sha256}
        inputs[f"name{place}"] = concept.name  # which the delta says of itself
    return Recipe(
        kind="delta",
        inputs=inputs,
        config=settings(config) | {"sample": settings(profile.evaluate.sample)},
        code=fingerprint("customdiff_core.finetuning.finetune"),
        versions=versions(*TENSOR_LIBRARIES),
        labels={
            # "The newest of dog" is one that knows the dog alone, and no benchmark's.
            "concept": "+".join(concept.name for concept in concepts)
            + (" (sequential)" if parent else "")
            + (f" ({purpose})" if purpose else ""),
            "profile": profile.name,
            "method": config.method,
            "way": way,
        },
        extendable=("steps",) if config.schedule == "constant" else (),
    )


def standing(name: str, profile: Profile, store: Store) -> Artifact:
    """Return the delta that a concept's name alone stands for.

    Of Custom Diffusion's trainings of it on this base model, with regularization, the longest, and of those the newest: none of
    a benchmark or search, however long, no ablation, nor what was trained on a base model that is no longer there. Those with
    the profile's settings come before others.

    Raises:
        MissingError: if there is none.
    """
    model = model_digest(profile.model)

    def fits(one: Manifest) -> bool:
        recipe, wanted = one.recipe, {"concept": name, "method": "custom-diffusion", "way": "single"}
        if one.producer.startswith(MEASURING) or not wanted.items() <= recipe.labels.items():
            return False
        return recipe.inputs["model"] == model and recipe.config["prior_weight"] > 0

    own = {name: value for name, value in settings(profile.training("custom-diffusion")).items() if name not in FREE}

    def rank(one: Manifest) -> tuple[bool, int, datetime]:
        config = one.recipe.config
        return all(config.get(name) == value for name, value in own.items()), config["steps"], one.created

    fitting = [one for one in store.manifests("delta") if fits(one)]
    found = store.first_whole(sorted(fitting, key=rank, reverse=True))
    if found:
        return found
    raise MissingError(
        f"delta: found none of {name} by custom-diffusion on this base model in {store.root}, need one; run customize/cat with "
        f"concept={name}, or `customdiff train {name}`, with profile {profile.name}, or give another delta's key"
    )


def check_names(names: Sequence[str]) -> None:
    """Check that names can be deltas, before anything is trained.

    Raises:
        ConfigError: for what is neither a concept, a key nor a file.
    """
    known = concept_files.names()
    for name in names:
        if name not in known and not is_key(name) and not concept_files.is_file(name):
            raise ConfigError(
                f"delta: found {name!r}, need a concept ({', '.join(known)}), a delta's key or a file{did_you_mean(name, known)}"
            )


def factorize(index: Artifact | None, profile: Profile, count: int, store: Store | None = None) -> Recipe:
    """The captions of an index, read by a base model's text encoder."""
    return Recipe(
        kind="factorization",
        inputs={"index": _captions_digest(index, profile, store), "model": model_digest(profile.model)},
        config={"captions": count},
        code=fingerprint("customdiff_core.merging.captions"),
        versions=versions("scipy", *TENSOR_LIBRARIES),
        labels={"profile": profile.name},
    )


def merge(
    parts: tuple[Artifact, ...],
    strengths: tuple[float, ...],
    index: Artifact | None,
    profile: Profile,
    config: MergeConfig,
    store: Store | None = None,
) -> Recipe:
    """The deltas with their strengths, in whatever order, the captions and the base model."""
    store = store or Store()
    pairs = sorted((part.sha256, strength) for part, strength in zip(parts, strengths, strict=True))
    names = sorted({name for part in parts for name in _concepts(part, store)})
    return Recipe(
        kind="delta",
        inputs={f"delta/{number}": sha256 for number, (sha256, _) in enumerate(pairs, 1)}
        | {"index": _captions_digest(index, profile, store), "model": model_digest(profile.model)},
        config=settings(config) | {"method": "merge", "strengths": [strength for _, strength in pairs]},
        code=fingerprint("customdiff_core.merging.merge"),
        versions=versions("scipy", *TENSOR_LIBRARIES),
        labels={"concept": "+".join(names), "profile": profile.name, "method": "merge", "way": "merge"},
    )


def join(parts: tuple[Artifact, ...], profile: Profile, store: Store | None = None) -> Recipe:
    """The deltas, in whatever order, and the base model."""
    names = sorted({name for part in parts for name in _concepts(part, store or Store())})
    return Recipe(
        kind="delta",
        inputs={f"delta/{number}": sha256 for number, sha256 in enumerate(sorted(part.sha256 for part in parts), 1)}
        | {"model": model_digest(profile.model)},
        config={"method": "textual-inversion"},
        code=fingerprint("customdiff_core.merging.join"),
        versions=versions(*TENSOR_LIBRARIES),
        labels={"concept": "+".join(names), "profile": profile.name, "method": "textual-inversion", "way": "apart"},
    )


def compress(delta: Artifact, profile: Profile, config: CompressConfig, store: Store | None = None) -> Recipe:
    """The delta, its base model and how much is kept."""
    trained = (store or Store()).manifest(delta).recipe
    return Recipe(
        kind="delta",
        inputs={"delta/1": delta.sha256, "model": model_digest(profile.model)},
        config=settings(config) | {name: trained.config[name] for name in ("method", "seed") if name in trained.config},
        code=fingerprint("customdiff_core.compression"),
        versions=versions(*TENSOR_LIBRARIES),
        labels=trained.labels | {"way": "compressed", "concept": f"{trained.labels.get('concept', '')} (compressed)"},
    )


def import_delta(name: str, digest: str, profile: Profile, stated: dict[str, Any]) -> Recipe:
    """A file, by its content, with the base model and the words that the user states."""
    return Recipe(
        kind="delta",
        inputs={"file": digest, "model": model_digest(profile.model)},
        config={"method": "imported"} | stated,
        code=fingerprint("customdiff_core.interop.importing"),
        versions=versions("safetensors", *TENSOR_LIBRARIES),
        labels={"concept": name, "profile": profile.name, "method": "imported", "way": "imported"},
    )


def _concepts(delta: Artifact, store: Store) -> list[str]:
    """The names of what a delta was taught, as its label says them."""
    return store.manifest(delta).recipe.labels.get("concept", "").split("+")


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
    """Held-out images of the category with captions, for KID.

    Raises:
        EvaluationError: if there can be none.
    """
    return Recipe(
        kind="validation",
        inputs={"category": concept.category, "source": _held_out_digest(concept, profile)},
        config={"count": count, "size": profile.augment.resolution},
        code=fingerprint("customdiff_core.evaluation.validation"),
        versions=versions("numpy", *DRAWING_LIBRARIES),
        labels={"concept": concept.name, "profile": profile.name},
    )


def evaluate(concept: Concept, delta: Artifact, profile: Profile, config: EvaluateConfig) -> Recipe:
    """The customized model, the prompts, the pictures compared with, and the judge."""
    return Recipe(
        kind="metrics",
        inputs={
            "delta": delta.sha256,
            "model": model_digest(profile.model),
            "pictures": digest_of(_pictures(concept)),
            "corpus": _held_out_digest(concept, profile),
        }
        | _judges(profile),
        config=settings(config)
        | {
            "prompts": list(concept.prompts),
            "noun": concept.noun,
            "category": concept.category,
            "resolution": profile.augment.resolution,  # of the held-out scenes
        },
        code=fingerprint("customdiff_core.evaluation.evaluate"),
        versions=versions("torch-fidelity", "scipy", "pandas", *CLIP_LIBRARIES, *TENSOR_LIBRARIES, *DRAWING_LIBRARIES),
        labels={"concept": concept.name, "profile": profile.name},
    )


def evaluate_together(
    concepts: tuple[Concept, ...],
    subjects: dict[str, Artifact],
    prompts: tuple[str, ...],
    profile: Profile,
    config: EvaluateConfig,
    words: Mapping[str, Sequence[str]],
) -> Recipe:
    """The models compared, the prompts, the concepts' words, by model where it has others, their pictures, and the judge."""
    return Recipe(
        kind="together",
        inputs={f"delta/{name}": delta.sha256 for name, delta in subjects.items()}
        | {
            "model": model_digest(profile.model),
            "judge": encoder_digest(profile.judge),
            "pictures": digest_of([_pictures(one) for one in concepts]),
        },
        config=settings(config)
        | {
            "prompts": list(prompts),
            "names": [one.name for one in concepts],
            "resolution": profile.augment.resolution,
            "nouns": [one.noun for one in concepts],
            "words": {name: list(some) for name, some in words.items()},
            "categories": [one.category for one in concepts],
        },
        code=fingerprint("customdiff_core.evaluation.together"),
        versions=versions("scipy", "pandas", *CLIP_LIBRARIES, *TENSOR_LIBRARIES),
        labels={"concept": "+".join(one.name for one in concepts), "profile": profile.name},
    )


def report_together(concepts: tuple[Concept, ...], chain: dict[str, Artifact], profile: Profile) -> Recipe:
    """The figures, the merge, the concepts' words and pictures, and the page's template."""
    return Recipe(
        kind="report",
        inputs={name: artifact.sha256 for name, artifact in chain.items()},
        config={
            "concepts": [settings(one) for one in concepts],
            "profile": profile.name,
            "keys": {name: artifact.key for name, artifact in chain.items()},
        },
        code=digest_of(
            [fingerprint("customdiff_core.evaluation.report_together"), TOGETHER_TEMPLATE.read_text("utf-8")]
        ),
        versions=versions("jinja2", "pillow", "pandas"),
        labels={"concept": "+".join(one.name for one in concepts), "profile": profile.name},
    )


def cell(
    cell: Cell, protocol: Protocol, index: Artifact | None, profile: Profile, store: Store | None = None
) -> Recipe:
    """One cell of a benchmark, known before its trainings are: what they are made from, and all settings on the way.

    Raises:
        ConceptError, ConfigError: for a concept that cannot be used.
    """
    row, kept = cell.what, {"seed", "steps", "preview_prompts", "preview_every"}
    taught = [load_concept(name) for name in cell.concepts]
    evaluation = protocol.evaluation(profile, on_curve=cell.share < 1)
    trained, training = row.way != "base", cell.training(profile)
    return Recipe(
        kind="cell",
        inputs={f"concept/{number}": concept.digest for number, concept in enumerate(taught, 1)}
        | {
            "pictures": digest_of([_pictures(one) for one in taught]),
            "model": model_digest(profile.model),
            "index": _index_digest(index, profile, store) if trained else "",
            "corpus": _held_out_digest(taught[0], profile) if len(taught) == 1 and cell.share == 1 else "",  # for KID
        }
        | _judges(profile),
        config={
            "row": row.model_dump(include={"way", "method", "regularized"}),
            "prompts": [list(one.prompts[: protocol.prompts]) for one in taught]
            if not row.together
            else list(prompts_together(len(taught), file=cell.prompts)[: protocol.prompts_together]),
            "class_prompts": [one.class_prompt for one in taught],
            "training": training.model_dump(mode="json", exclude=kept) if trained else {},
            "names": list(cell.concepts) if trained else [],  # from which seeds of trainings follow
            "share": cell.share * protocol.share if trained else 1.0,
            "on_curve": cell.share < 1,  # where KID is not measured
            "drawn": settings(profile.evaluate.sample) if trained else {},  # generated regularization images
            "steps": training.steps if trained else 0,
            "retrieve": settings(profile.retrieve) if trained else {},
            "augment": settings(profile.augment),
            "merge": settings(profile.merge) if row.way == "merge" else {},
            "evaluate": settings(evaluation),
            "seed": cell.seed if trained else 0,
        },
        code=fingerprint("customdiff_core.benchmark.measure"),
        versions=versions(
            "torch-fidelity", "faiss-cpu", "scipy", "pandas", *TENSOR_LIBRARIES, *CLIP_LIBRARIES, *DRAWING_LIBRARIES
        ),
        labels={
            "concept": "+".join(cell.concepts),
            "profile": profile.name,
            "row": cell.row,
            "protocol": protocol.name,
        },
    )


def benchmark(
    outcomes: tuple[Outcome, ...], protocol: Protocol, night: date, before: Sequence[Artifact], profile: Profile
) -> Recipe:
    """The night's cells, those that failed with their reasons, and the nights before."""
    cells = {f"cell/{number}": one.made.sha256 if one.made else "" for number, one in enumerate(outcomes, 1)}
    return Recipe(
        kind="benchmark",
        inputs=cells | {f"before/{number}": one.sha256 for number, one in enumerate(before, 1)},
        config={
            "night": night.isoformat(),
            "protocol": settings(protocol),
            "cells": [
                settings(one.cell) | {"key": one.made.key if one.made else "", "error": one.error} for one in outcomes
            ],
        },
        code=fingerprint("customdiff_core.benchmark.tabulate"),
        versions=versions("scipy", "pandas", "numpy"),
        labels={
            "protocol": protocol.name,
            "stated": protocol.stated,
            "night": night.isoformat(),
            "profile": profile.name,
        },
    )


def search(tried: tuple[Outcome, ...], tested: tuple[Outcome, ...], search: Search, profile: Profile) -> Recipe:
    """The cells of every trial, and of the chosen settings on other concepts."""
    outcomes = (*tried, *tested)
    return Recipe(
        kind="search",
        inputs={f"cell/{number}": one.made.sha256 if one.made else "" for number, one in enumerate(outcomes, 1)},
        config={
            "search": settings(search),
            "cells": [
                settings(one.cell) | {"key": one.made.key if one.made else "", "error": one.error} for one in outcomes
            ],
        },
        code=fingerprint("customdiff_core.benchmark.conclude"),
        versions=versions("pandas", "numpy"),
        labels={"search": search.name, "stated": search.stated, "profile": profile.name},
    )


def report_benchmark(benchmark: Artifact, protocol: Protocol, profile: Profile) -> Recipe:
    """The night's table and the page's template."""
    return Recipe(
        kind="report",
        inputs={"benchmark": benchmark.sha256},
        config={"profile": profile.name, "protocol": settings(protocol), "key": benchmark.key},
        code=digest_of([fingerprint("customdiff_core.benchmark.report"), BENCHMARK_TEMPLATE.read_text("utf-8")]),
        versions=versions("jinja2", "matplotlib", "pillow", "pandas"),
        labels={"protocol": protocol.name, "profile": profile.name},
    )


def embeddings(encoder: str) -> Recipe:
    """An open_clip model's vectors, of whatever is embedded; the encoder is given by digest."""
    return _embeddings(encoder, fingerprint("customdiff_core.retrieval.encoder"), *CLIP_LIBRARIES)


def vision_embeddings(encoder: str) -> Recipe:
    """A ViT's vectors, likewise."""
    return _embeddings(encoder, fingerprint("customdiff_core.evaluation.dino"), "pillow", *TENSOR_LIBRARIES)


def inception_embeddings(weights: str) -> Recipe:
    """Inception's features, likewise."""
    libraries = ("torch-fidelity", "pillow", *TENSOR_LIBRARIES)
    return _embeddings(weights, fingerprint("customdiff_core.evaluation.inception"), *libraries)


def _embeddings(encoder: str, code: str, *libraries: str) -> Recipe:
    """Pictures come decoded by `customdiff_core.images`, whatever the encoder."""
    code = digest_of([code, fingerprint("customdiff_core.images")])
    return Recipe(kind="embeddings", inputs={"encoder": encoder}, config={}, code=code, versions=versions(*libraries))


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


def _index_digest(index: Artifact | None, profile: Profile, store: Store | None) -> str:
    """What is searched: an artifact or folder by content; a backend, whose content nobody can see, by its address."""
    if profile.corpus.backend is not None:
        return digest_of(["backend", profile.corpus.backend])
    return _captions_digest(index, profile, store)


def _captions_digest(index: Artifact | None, profile: Profile, store: Store | None) -> str:
    """Whose captions are read: an artifact or folder by content, beside a backend too."""
    return index.sha256 if index else _folder_digest(index_folder(None, profile, store or Store()))


def _folder_digest(folder: Path) -> str:
    """What identifies an index folder too large to hash: its files' names, sizes and times."""
    if not folder.is_dir():
        raise RetrievalError(f"index: found no folder {folder}, need a clip-retrieval folder; correct model.index")
    parts = [path for path in sorted(folder.rglob("*")) if path.suffix in (".index", ".parquet", ".npy", ".ivfdata")]
    return digest_of([[str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns] for p in parts])


def _judges(profile: Profile) -> dict[str, str]:
    """The judge among a recipe's inputs, and the ViT and Inception where the profile has them."""
    dino = {"dino": vision_digest(profile.dino)} if profile.dino else {}
    inception = {"inception": inception_digest(profile.inception)} if profile.inception else {}
    return {"judge": encoder_digest(profile.judge)} | dino | inception


def _pictures(concept: Concept) -> list[list[str]]:
    """What identifies a concept's pictures: those to learn from, the held-out ones and the look-alikes, each group apart."""
    return [[picture.sha256 for picture in group] for group in (concept.images, concept.held_out, concept.others)]


def _held_out_digest(concept: Concept, profile: Profile) -> str:
    """What identifies the held-out images of a concept's category: a file, or the drawings of the embedded world."""
    source = profile.corpus.held_out(concept.category)
    if source or profile.corpus.kind != "openmoji":
        return _file_digest(source) if source else ""
    known = sorted({one.category for one in load_drawings(Settings().data / "world" / "drawings.csv")})
    if concept.category not in known:
        hint = did_you_mean(concept.category, known)
        raise EvaluationError(
            f"validation images: found the category {concept.category!r}, which the embedded world does not draw, need one of "
            f"data/world/drawings.csv; correct category, or give a Parquet as model.validation{hint}"
        )
    return world_digest()


def _file_digest(path: Path) -> str:
    """What identifies a Parquet file of validation images: its name, size and time."""
    if not path.is_file():
        raise EvaluationError(
            f"validation images: found no file {path}, need a Parquet of them; correct model.validation"
        )
    stat = path.stat()
    return digest_of([path.name, stat.st_size, stat.st_mtime_ns])
