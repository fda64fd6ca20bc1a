"""Model folders are untrusted and may be incomplete: checked, and named by content, before a library opens them."""

import hashlib
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from customdiff_core.errors import WeightsError
from customdiff_core.profiles import EncoderSource, InceptionSource, ModelSource, Profile, VisionSource
from customdiff_core.recipes import digest_of
from customdiff_core.settings import Settings

COMPONENTS = ("unet", "vae", "text_encoder")
NEEDED = ("scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt")
SECOND = ("text_encoder_2", "tokenizer_2/vocab.json", "tokenizer_2/merges.txt")  # where the UNet reads two encoders
CLIP_WEIGHTS = "open_clip_model.safetensors"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
PATTERNS = [
    *(f"{part}/{name}" for part in (*COMPONENTS, SECOND[0]) for name in ("config.json", "*model.safetensors")),
    "scheduler/*",
    "tokenizer/*",
    "tokenizer_2/*",
    "model_index.json",
]


def model_folder(source: ModelSource) -> Path:
    """Return the local folder of a model's weights, complete and free of pickles.

    Raises:
        WeightsError: saying which folder or hub id, how large, how much memory and how long, when they are not here.
    """
    folder = source.path or _hub_folder(source)
    if folder.is_file() and folder.suffix == ".safetensors":
        raise WeightsError(
            f"model weights: found the single file {folder}, need a diffusers pipeline folder; write one with diffusers: "
            f'StableDiffusionPipeline.from_single_file("{folder}").save_pretrained(FOLDER), of XL with StableDiffusionXLPipeline'
        )
    if not folder.is_dir():
        raise WeightsError(
            f"model weights: found no folder {folder}, need a diffusers pipeline folder; correct the path"
        )
    for name in NEEDED:
        if not (folder / name).is_file():
            raise WeightsError(f"{folder}: found no {name}, need a whole diffusers pipeline folder; copy it again")
    for component in COMPONENTS:
        _check_component(folder / component)
    if len(encoder_names(folder)) == 2:
        _check_component(folder / SECOND[0])
        for name in SECOND[1:]:
            if not (folder / name).is_file():
                raise WeightsError(f"{folder}: found no {name}, need a whole diffusers pipeline folder; copy it again")
    return folder


def encoder_names(folder: Path) -> tuple[tuple[str, str], ...]:
    """Return the folders of a pipeline's text encoders and their tokenizers.

    The UNet says how many it reads: one that takes sizes and a pooled text embedding ("text_time", SDXL) reads two.
    """
    config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    first = ("text_encoder", "tokenizer")
    return (first, ("text_encoder_2", "tokenizer_2")) if config.get("addition_embed_type") == "text_time" else (first,)


def pipeline_part(source: ModelSource, name: str) -> dict[str, Any]:
    """Read one of a pipeline's configs, such as "unet/config.json"."""
    return json.loads((model_folder(source) / name).read_text(encoding="utf-8"))


def pipeline_config(folder: Path) -> dict[str, Any]:
    """Read a pipeline's model_index.json; empty where there is none."""
    path = folder / "model_index.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def zero_when_empty(folder: Path) -> bool:
    """Whether a pipeline reads the empty prompt as zeros: SDXL does, unless it says otherwise."""
    two = len(encoder_names(folder)) == 2
    return two and bool(pipeline_config(folder).get("force_zeros_for_empty_prompt", True))


def model_digest(source: ModelSource) -> str:
    """SHA-256 over the component files of a model: which base model this is, wherever it lies."""
    folder = model_folder(source)
    second = SECOND if len(encoder_names(folder)) == 2 else ()
    files = [folder / NEEDED[0], *_tokenizer_files(folder / "tokenizer")]
    files += _tokenizer_files(folder / "tokenizer_2") if second else []
    files += [path for part in (*COMPONENTS, *second[:1]) for path in component_files(folder / part)]
    wanted = [path for path in files if path.suffix in (".json", ".txt", ".safetensors")]
    content = [[path.relative_to(folder).as_posix(), file_digest(path)] for path in wanted]
    return digest_of([content, zero_when_empty(folder)])


def component_files(folder: Path) -> list[Path]:
    """What is loaded of a component: its configs and weights, but no variants of them, such as .fp16.safetensors."""
    found = sorted(path for path in folder.glob("*.*") if path.suffix in (".json", ".txt", ".safetensors"))
    return [path for path in found if path.suffixes in ([path.suffix], [".safetensors", ".index", ".json"])]


def weights_files(folder: Path) -> list[Path]:
    """A component's weights, as far as they are loaded."""
    return [path for path in component_files(folder) if path.suffix == ".safetensors"]


def encoder_digest(source: EncoderSource) -> str:
    """What identifies an encoder: the content of its folder, or its open_clip tag."""
    if source.path is None:
        return digest_of([source.model, source.tag])
    config, weights = encoder_files(source)
    # The tokenizer's folder is named in the config, relative to it; what it holds belongs to the model.
    tokenizer = (source.path / json.loads(config.read_text())["text_cfg"]["hf_tokenizer_name"]).resolve()
    return digest_of([file_digest(path) for path in (config, weights, *_tokenizer_files(tokenizer))])


def _tokenizer_files(folder: Path) -> list[Path]:
    """What says how a text is read: words and merges, and the length, padding and added tokens beside them."""
    return sorted(path for path in folder.glob("*") if path.suffix in (".json", ".txt"))


def encoder_files(source: EncoderSource) -> tuple[Path, Path]:
    """Return a local open_clip model's config and weights.

    Raises:
        WeightsError: if one is missing.
    """
    folder = source.path or Path()
    files = folder / f"{source.model}.json", folder / CLIP_WEIGHTS
    for path in files:
        if not path.is_file():
            raise WeightsError(f"{folder}: found no {path.name}, need an open_clip model folder; copy it again")
    return files


def vision_files(source: VisionSource) -> tuple[Path, ...]:
    """Return a ViT folder's config, preprocessor and weights.

    Raises:
        WeightsError: if one is missing.
    """
    files = tuple(source.path / name for name in ("config.json", "preprocessor_config.json", "model.safetensors"))
    for path in files:
        if not path.is_file():
            raise WeightsError(
                f"{source.path}: found no {path.name}, need a folder of a transformers ViT with its preprocessor and "
                "safetensors; copy it again"
            )
    return files


def vision_digest(source: VisionSource) -> str:
    """What identifies a ViT: the content of its folder."""
    return digest_of([file_digest(path) for path in vision_files(source)])


def inception_digest(source: InceptionSource) -> str:
    """What identifies Inception's weights: the file's content.

    Raises:
        WeightsError: if there is no such file.
    """
    if not source.path.is_file():
        raise WeightsError(
            f"{source.path}: found no file, need torch-fidelity's weights-inception-2015-12-05-6726825d.pth; correct "
            "model.inception, or leave it out: KID is then of the judge's features"
        )
    return file_digest(source.path)


def require(profile: Profile, *, search: bool = True, judge: bool = True, measure: bool = True) -> None:
    """Check, before any work, that what a run will need of a profile is on this machine.

    Args:
        profile: what is to be used.
        search: whether captions are searched: needs an index or backend, and its CLIP.
        judge: whether pictures are judged: needs the judge.
        measure: whether one concept is measured in full: needs held-out images, and what else the profile measures by.

    Raises:
        WeightsError: one message with all that is missing.
    """
    searching, judging = (profile.retrieval_encoder,) if search else (), (profile.judge,) if judge else ()
    checks: list[Callable[[], object]] = [
        partial(model_folder, profile.model),
        *(partial(require_encoder, one) for one in dict.fromkeys(searching + judging)),
    ]
    if measure and profile.dino:
        checks.append(partial(vision_files, profile.dino))
    if measure and profile.inception:
        checks.append(partial(inception_digest, profile.inception))
    if search:
        checks.append(partial(_require_index, profile))
    if measure:
        checks.append(partial(_require_validation, profile))
    lacking: list[str] = []
    for check in checks:
        try:
            check()
        except WeightsError as error:
            lacking.append(str(error))
    if lacking:
        raise WeightsError(f"profile {profile.name} cannot run on this machine. " + " | ".join(lacking))


def _require_index(profile: Profile) -> None:
    corpus = profile.corpus
    if corpus.kind == "folder" and corpus.index is None and corpus.backend is None:
        raise WeightsError(
            f"retrieval index: found none, need a clip-retrieval folder of captioned images embedded with "
            f"{profile.retrieval_encoder.name}, or a clip-retrieval back; give its path as model.index or its address as "
            "model.backend (docs/bring-your-own-laion.md)"
        )


def _require_validation(profile: Profile) -> None:
    source = profile.corpus.validation
    if profile.corpus.kind == "folder" and (source is None or not source.exists()):
        raise WeightsError(
            f"validation images: found {f'nothing at {source}' if source else 'none'}, need a Parquet of "
            f"{profile.evaluate.kid_images} held-out images of the category (caption, image); give its path as model.validation"
        )


def require_encoder(source: EncoderSource) -> None:
    """Check that a CLIP is here, or may be fetched.

    Raises:
        WeightsError: if its folder is not complete, or it is not here and the user has not said that it may be fetched.
    """
    if source.path is not None:
        encoder_files(source)
    elif not Settings().allow_download:
        tagged_weights(source)


def tag_config(source: EncoderSource) -> dict[str, Any]:
    """What open_clip knows of a tag: where its weights are, and how they were trained; empty for an unknown one."""
    from open_clip import get_pretrained_cfg

    return dict(get_pretrained_cfg(source.model, source.tag or ""))


def tagged_weights(source: EncoderSource) -> Path:
    """Return the safetensors of an open_clip tag from the hub's local cache; fetched only where the user has said so.

    Raises:
        WeightsError: if open_clip knows no such tag, or the file is not here and may not, or cannot, be fetched.
    """
    from huggingface_hub import hf_hub_download

    allowed = Settings().allow_download
    repository = str(tag_config(source).get("hf_hub", "")).rstrip("/")
    try:
        return Path(hf_hub_download(repository, CLIP_WEIGHTS, local_files_only=not allowed))
    except (OSError, ValueError) as error:
        cure = (
            f"see that the hub can be reached ({type(error).__name__})"
            if allowed
            else "set CUSTOMDIFF_ALLOW_DOWNLOAD=true where the worker starts"
        )
        raise WeightsError(
            f"CLIP weights: found no {source.name} on this machine (hub {repository or 'unknown'}, {CLIP_WEIGHTS}; about 600 MB, "
            f"once), need it to search captions and to judge; {cure}"
        ) from error


def _check_component(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder}: found no config.json, need a whole diffusers pipeline folder; copy it again")
    if weights_files(folder):
        return
    pickles = [path.name for path in folder.glob("*") if path.suffix in PICKLES]
    if pickles:
        raise WeightsError(
            f"{folder}: found pickled weights {pickles[0]} (a pickle can run any program), need .safetensors; "
            "convert it on a machine that may be lost, or take the model's safetensors files"
        )
    raise WeightsError(f"{folder}: found no weights, need a .safetensors file; copy the model again")


def _hub_folder(source: ModelSource) -> Path:
    """Find pinned weights in the hub's local cache; download them only where the user has said so."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    costs = f"{source.download_size} of safetensors, {source.memory}, and {source.duration}"
    if source.hub_id is None:
        raise WeightsError(
            f"model weights: found no folder, need {source.wanted} as a diffusers pipeline: {costs}; give a local diffusers "
            "folder as `model.weights`"
        )
    allowed = Settings().allow_download
    try:
        return Path(
            snapshot_download(
                source.hub_id, revision=source.revision, allow_patterns=PATTERNS, local_files_only=not allowed
            )
        )
    except (LocalEntryNotFoundError, OSError) as error:
        cure = (
            _why_not_fetched(error)
            if allowed
            else "set CUSTOMDIFF_ALLOW_DOWNLOAD=true to fetch exactly that revision from the hub"
        )
        raise WeightsError(
            f"model weights: found no {source.hub_id} (revision {source.revision}) on this machine, need {costs}; "
            f"give a local diffusers folder as `model.weights`, or {cure}"
        ) from error


def _why_not_fetched(error: Exception) -> str:
    """What stood against a download from the hub, and what to do about it."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    reason = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    match reason:
        case GatedRepoError():
            return "accept its terms on its page of the hub, and set HF_TOKEN where the worker starts: it is gated"
        case RepositoryNotFoundError():
            return "set HF_TOKEN if you may see it: the hub has no such repository for everyone, or no longer"
        case RevisionNotFoundError():
            return "look for a copy: the hub's repository no longer has that revision"
        case OfflineModeIsEnabled():
            return "unset HF_HUB_OFFLINE, which forbids to fetch it"
        case _:
            said = " ".join(str(reason).split())[:200]
            return f"see that the hub can be reached and the disk has room ({type(reason).__name__}: {said})"


def file_digest(path: Path) -> str:
    """SHA-256 of a file; hashed once a process, as long as it does not change."""
    stat = path.stat()
    return _digest_of_state(path.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _digest_of_state(path: Path, size: int, mtime: int) -> str:
    del size, mtime
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
