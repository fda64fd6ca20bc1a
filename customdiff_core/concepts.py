"""A concept: a folder with a `concept.yaml`, a few pictures in `images/` and, if there are any, others in `held_out/`
that training never sees and evaluation compares with; `others/` holds look-alikes that it must not be taken for."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from customdiff_core import images
from customdiff_core.config import Frozen
from customdiff_core.errors import ConceptError, ConfigError, ImageError, ModifierTokenError, did_you_mean
from customdiff_core.lineage import Lineage, Taught
from customdiff_core.recipes import digest_of
from customdiff_core.settings import Settings

PLACEHOLDER = "{}"
PLACES = re.compile(r"\{(\d+)\}")  # of several concepts
COLOURS = ("red", "blue", "green", "white")
WITH_BACKGROUND = 4  # concepts in a usual prompt, at most
NOTES = frozenset({".md", ".txt"})  # may lie beside pictures


class Picture(Frozen):
    """A picture of the concept, known by its content; `captions` tell it in other words, with {} for the concept."""

    name: str
    sha256: str
    captions: tuple[str, ...] = ()


class Concept(Frozen):
    """What somebody wants to teach the model. Tasks hash its content, never its path."""

    name: str
    title: str
    category: str
    modifier_token: str
    initializer_token: str
    instance_prompt: str
    class_prompt: str
    prompts: tuple[str, ...]
    images: tuple[Picture, ...]
    held_out: tuple[Picture, ...] = ()
    others: tuple[Picture, ...] = ()
    licence: str = ""
    attribution: str = ""
    folder: Path = Field(exclude=True)

    @property
    def noun(self) -> str:
        """V* and its category, as prompts say it: "<teal-cat> cat"."""
        return f"{self.modifier_token} {self.category}".strip()

    @property
    def digest(self) -> str:
        """What training depends on: the pictures in order, the words around them and the token."""
        read = {"category", "modifier_token", "initializer_token", "instance_prompt", "images"}
        return digest_of(self.model_dump(include=read, exclude_defaults=True))

    def with_concept(self, prompt: str) -> str:
        """Fill a prompt's placeholder with V* and the category."""
        return prompt.replace(PLACEHOLDER, self.noun)

    def with_category(self, prompt: str) -> str:
        """Fill a prompt's placeholder with the category alone: what the base model draws, and what text alignment reads."""
        return prompt.replace(PLACEHOLDER, self.category)

    def read(self, picture: Picture, folder: str = "images") -> bytes:
        """Return a picture's bytes.

        Raises:
            ImageError: if the file changed since the concept was loaded.
        """
        path = self.folder / folder / picture.name
        data = images.read_picture(path, self.folder)
        if images.digest(data) != picture.sha256:
            raise ImageError(
                f"{path}: found other content than when the run began, need it unchanged; start the run again"
            )
        return data

    def true_pictures(self) -> list[bytes]:
        """What drawn pictures are held against: the held-out pictures, or those to learn from where there are no others.

        Raises:
            ImageError: if a file changed since the concept was loaded.
        """
        folder, group = ("held_out", self.held_out) if self.held_out else ("images", self.images)
        return [self.read(picture, folder) for picture in group]


def _alone_or_several(captions: object) -> object:
    return [captions] if isinstance(captions, str) else captions


class ConceptFile(Frozen):
    """The fields of `concept.yaml`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str = ""
    category: str = Field(min_length=1)
    modifier_token: str = Field(pattern=r"^<[A-Za-z0-9_-]+>$")
    initializer_token: str = "ktn"
    instance_prompt: str = "photo of a {}"
    class_prompt: str
    captions: dict[str, Annotated[tuple[str, ...], BeforeValidator(_alone_or_several)]] = Field(
        default_factory=dict, description="one or several of a picture in images/, by its file name"
    )
    prompts: str = Field(description="file of evaluation prompts, relative to concept.yaml")
    licence: str = ""
    attribution: str = ""


def names(data: Path | None = None) -> list[str]:
    """Return the names of the concepts in data/concepts."""
    return sorted(path.parent.name for path in _root(data).glob("*/concept.yaml"))


def is_file(name: str) -> bool:
    """Whether somebody means a file of another program and not a concept, nor the key of a delta."""
    return name not in names() and ("/" in name or bool(Path(name).suffix) or Path(name).exists())


def load(name: str, prompts: Sequence[str] | None = None, data: Path | None = None) -> Concept:
    """Load the concept `data/concepts/<name>`; check its pictures and that no other concept there has its token.

    Args:
        name: the folder's name.
        prompts: evaluation prompts instead of the concept's own.
        data: the folder with `concepts/`; by default the settings'.

    Raises:
        ConceptError, ModifierTokenError, ImageError, ConfigError: with what was found and what to do.
    """
    known = names(data)
    if name not in known:
        raise ConceptError(
            f"concept: found {name!r}, need one of {', '.join(known) or 'none yet'}; a new one is made by "
            f"`customdiff new {name} CATEGORY PICTURES`, in {_root(data) / name}{did_you_mean(name, known)}"
        )
    concept = load_folder(_root(data) / name, prompts)
    if concept.name != name:
        raise ConceptError(
            f"{concept.folder}/concept.yaml: found the name {concept.name!r} in the folder {name!r}, need them alike; "
            f"correct name, or rename the folder"
        )
    _check_unshared(concept, known, data)
    return concept


def of_taught(one: Taught) -> Concept:
    """Return what a delta was taught as a concept: that of data/concepts which it was trained on, or else its words alone.

    What came in a file of another program has no pictures here, and no category unless somebody stated it.
    """
    words = one.model_dump(include={"category", "modifier_token"})
    if one.initializer_token and one.name in names():
        return load(one.name).model_copy(update=words)
    return Concept(
        name=one.name,
        title=one.noun,
        initializer_token=one.initializer_token,
        instance_prompt=f"photo of a {PLACEHOLDER}",
        class_prompt=f"photo of a {one.category}",
        prompts=(),
        images=(),
        folder=_root(None) / one.name,
        **words,
    )


def as_taught(concept: Concept, lineage: Lineage) -> Concept:
    """Return a concept as a delta that was taught it calls it: its method's rare word, or the token that a merge gave it.

    Where it knows several trainings of the concept, that is the one which kept its token.

    Raises:
        ConceptError: if it was taught others alone.
    """
    tokens = [one.modifier_token for one in lineage.concepts if one.initializer_token and one.name == concept.name]
    known = [one.modifier_token for one in lineage.concepts]
    if concept.modifier_token in (tokens or known) or not known:
        return concept
    if not tokens:
        raise ConceptError(
            f"concept {concept.name}: found a delta that was taught {lineage.places}, need one that was taught {concept.noun}; "
            "give another delta, or the concept that this one knows"
        )
    return concept.model_copy(update={"modifier_token": tokens[0]})


def load_folder(folder: Path, prompts: Sequence[str] | None = None) -> Concept:
    """Load a concept from any folder; see `load`."""
    spec = _read_spec(folder)
    if not _has_word(spec.class_prompt, spec.category):
        raise ConceptError(
            f"{folder}/concept.yaml: found class_prompt {spec.class_prompt!r}, need the category {spec.category!r} in it; "
            f'for example "photo of a {spec.category}"'
        )
    check_prompts((spec.instance_prompt,), "instance_prompt")
    evaluation = tuple(prompts) if prompts else read_prompts(folder, spec.prompts)
    check_prompts(evaluation, "prompts")
    pictures = _captioned(_pictures(folder / "images", folder), spec.captions, folder)
    if not pictures:
        raise ConceptError(
            f"{folder}/images: found no pictures, need 4 to 6 of the concept ({', '.join(sorted(images.SUFFIXES))})"
        )
    fields = spec.model_dump(exclude={"prompts", "captions"}) | {"title": spec.title or spec.name}
    held_out, others = (_pictures(folder / name, folder) for name in ("held_out", "others"))
    return Concept(**fields, prompts=evaluation, images=pictures, held_out=held_out, others=others, folder=folder)


def read_prompts(folder: Path, file: str) -> tuple[str, ...]:
    """Read a file of prompts, one a line; blank lines and `#` comments are skipped.

    Raises:
        ConfigError: if it is missing or empty.
    """
    path = folder / file
    if not path.is_file():
        raise ConfigError(f"prompts: found no file {path}, need one prompt a line with {PLACEHOLDER} for the concept")
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise ConfigError(f"prompts: found {path} empty, need one prompt a line with {PLACEHOLDER} for the concept")
    return prompts


def check_prompts(prompts: tuple[str, ...], what: str) -> None:
    """Check that every prompt names the concept exactly once.

    Raises:
        ConfigError: naming the first that does not.
    """
    for prompt in prompts:
        found = prompt.count(PLACEHOLDER)
        if found != 1:
            raise ConfigError(
                f"{what}: found {found} placeholders in {prompt!r}, need exactly one {PLACEHOLDER} where the concept goes; "
                'for example "a {} on the beach"'
            )


def prompts_together(
    count: int, prompts: Sequence[str] | None = None, data: Path | None = None, file: str = ""
) -> tuple[str, ...]:
    """Return prompts for several concepts, with {0}, {1}, ... where they go.

    Args:
        count: how many concepts.
        prompts: as stated; by default those of data/prompts/together-<count>.txt, or else `usual_prompts`.
        data: the folder with `prompts/`; by default the settings'.
        file: another file of it.

    Raises:
        ConfigError: if the stated file is not there, or a prompt misses a concept.
    """
    folder, usual = (data or Settings().data) / "prompts", f"together-{count}.txt"
    if prompts:
        found = tuple(prompts)
    elif file or (folder / usual).is_file():
        found = read_prompts(folder, file or usual)
    else:
        found = usual_prompts(count)
    check_prompts_together(found, count)
    return found


def usual_prompts(count: int) -> tuple[str, ...]:
    """Return eight prompts for several concepts of which no file has any: in each, another one comes first.

    Where they are many, no background: text encoders read 77 tokens, the embedded one 28.
    """
    words = [f"a {{{number}}}" for number in range(count)]
    plain = ("", "photo of ", "picture of ", "")
    forms = [(start, "") for start in plain]
    forms += [(start, f" on a {colour} background") for start, colour in zip(plain, COLOURS, strict=True)]
    if count > WITH_BACKGROUND:
        forms = [(start, "") for start in plain * 2]
    turned = [words[place % count :] + words[: place % count] for place in range(len(forms))]
    return tuple(
        f"{start}{', '.join(some[:-1])} and {some[-1]}{end}" for (start, end), some in zip(forms, turned, strict=True)
    )


def fill(prompt: str, words: Sequence[str]) -> str:
    """Put each concept's words in its place."""
    for number, one in enumerate(words):
        prompt = prompt.replace(f"{{{number}}}", one)
    return prompt


def texts(prompts: Sequence[str], lineage: Lineage, noun: str) -> tuple[str, ...]:
    """Fill {} with a noun, and {0}, {1}, ... with what a delta was taught, in its own order.

    Raises:
        ConfigError: for a number that it has none for, saying what the others stand for.
    """
    for prompt in prompts:
        if beyond := [number for number in PLACES.findall(prompt) if int(number) >= len(lineage.concepts)]:
            raise ConfigError(
                f"prompts: found {{{beyond[0]}}} in {prompt!r}, need {PLACEHOLDER} or what the delta knows: "
                f"{lineage.places or 'nothing'}; correct it"
            )
    nouns = [one.noun for one in lineage.concepts]
    return tuple(fill(prompt.replace(PLACEHOLDER, noun), nouns) for prompt in prompts)


def check_prompts_together(prompts: Sequence[str], count: int) -> None:
    """Check that every prompt names every concept once, and no other.

    Raises:
        ConfigError: naming the first that does not.
    """
    for prompt in prompts:
        if beyond := [number for number in PLACES.findall(prompt) if int(number) >= count]:
            raise ConfigError(
                f"prompts: found {{{beyond[0]}}} in {prompt!r}, need {{0}} to {{{count - 1}}} alone for {count} concepts; "
                "leave it out"
            )
        for place in (f"{{{number}}}" for number in range(count)):
            if prompt.count(place) != 1:
                raise ConfigError(
                    f"prompts: found {prompt.count(place)} of {place} in {prompt!r}, need each of {count} concepts once; "
                    'for example "a {0} and a {1}"'
                )


def _check_unshared(concept: Concept, known: list[str], data: Path | None) -> None:
    for other in known:
        if other != concept.name and _read_spec(_root(data) / other).modifier_token == concept.modifier_token:
            raise ModifierTokenError(
                f"modifier token: found {concept.modifier_token} in concepts {concept.name!r} and {other!r}, need one "
                f"token a concept; change modifier_token in {concept.folder}/concept.yaml"
            )


def _read_spec(folder: Path) -> ConceptFile:
    path = folder / "concept.yaml"
    try:
        return ConceptFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConceptError(
            f"{folder}: found no concept.yaml, need one; `customdiff new` writes one, or copy that of data/concepts/cat"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConceptError(f"{path}: found text that is not YAML ({error}), need `key: value` lines") from error
    except ValidationError as error:
        places = [(".".join(str(part) for part in one["loc"]) or "the file", one["msg"]) for one in error.errors()]
        wrong = ", ".join(f"{where} wrong ({why})" for where, why in places)
        allowed = ", ".join(ConceptFile.model_fields)
        raise ConceptError(f"{path}: found {wrong}, need the fields {allowed}") from error


def _pictures(folder: Path, root: Path) -> tuple[Picture, ...]:
    """Every picture of a folder in name order, each decoded once so that a bad one is named now and not in an hour."""
    found: list[Picture] = []
    for path in sorted(folder.glob("*")):
        if path.name.startswith(".") or path.suffix.lower() in NOTES:
            continue
        found.append(Picture(name=path.name, sha256=images.digest(read_picture(path, root))))
    return tuple(found)


def read_picture(path: Path, root: Path) -> bytes:
    """Return a picture file's bytes, once they have been decoded.

    Raises:
        ImageError: for a file of another kind, outside the folder `root`, or that is no picture.
    """
    if path.suffix.lower() not in images.SUFFIXES:
        allowed = ", ".join(sorted(images.SUFFIXES))
        raise ImageError(
            f"{path}: found a {path.suffix or 'nameless'} file, need one of {allowed}; convert or remove it"
        )
    data = images.read_picture(path, root)
    images.decode(data, str(path))
    return data


def _captioned(
    pictures: tuple[Picture, ...], captions: Mapping[str, tuple[str, ...]], folder: Path
) -> tuple[Picture, ...]:
    """Give pictures their captions."""
    names = [picture.name for picture in pictures]
    for name, some in captions.items():
        if name not in names:
            raise ConceptError(
                f"{folder}/concept.yaml: found captions of {name!r}, need one of the pictures in images/ "
                f"({', '.join(names) or 'none yet'}){did_you_mean(name, names)}"
            )
        check_prompts(some, f"captions of {name}")
    return tuple(one.model_copy(update={"captions": captions.get(one.name, ())}) for one in pictures)


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags=re.IGNORECASE) is not None


def _root(data: Path | None) -> Path:
    return (data or Settings().data) / "concepts"
