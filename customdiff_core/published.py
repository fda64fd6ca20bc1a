"""Concepts that others have published, laid out as this project's own folders.

Two shapes of JSON, read as they are:

* `concepts_list.json` of the authors' code and of diffusers' example: a list of concepts, each with `instance_prompt`,
  `class_prompt` and `instance_data_dir`, and perhaps `class_data_dir`;
* CustomConcept101's `dataset.json`, which adds `prompt_filename`, and `dataset_multiconcept.json`, a list of lists of
  concepts, each ending in a `prompt_filename_compose` for all of them together.

Paths in them are relative to the JSON file. Everything in them is somebody else's: paths may not leave the folder.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from customdiff_core import images, profiles
from customdiff_core.concept_folders import BESIDE, write
from customdiff_core.concepts import PLACEHOLDER, read_picture
from customdiff_core.config import Frozen
from customdiff_core.errors import ConceptError

logger = logging.getLogger(__name__)

TOKEN = re.compile(r"<[A-Za-z0-9_-]+>")
PLACES = re.compile(r"\{\d?\}")  # {} for one concept; {0} and {1} for two


class _Outside(BaseModel):
    """One entry of a published list; what this project has no use for is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Concept(_Outside):
    instance_prompt: str
    class_prompt: str
    instance_data_dir: str
    prompt_filename: str | None = None


class _Together(_Outside):
    prompt_filename_compose: str


_Entry = _Concept | list[_Concept | _Together]
_ENTRIES: TypeAdapter[list[_Entry]] = TypeAdapter(list[_Entry])


class Published(Frozen):
    """One concept of a list: its name, its words and where its pictures are."""

    name: str
    category: str
    instance_prompt: str = Field(description="with {} for V* and its category")
    pictures: Path
    prompts: tuple[str, ...] = ()


class PublishedPair(Frozen):
    """Concepts that are drawn together, and the prompts for it, with {0} and {1}."""

    concepts: tuple[Published, ...]
    prompts: tuple[str, ...]


def read(path: Path) -> list[Published | PublishedPair]:
    """Read a published list.

    Args:
        path: the JSON file; what it names is looked for beside it.

    Raises:
        ConceptError: if it is no such list, or what it names is not there.
    """
    try:
        entries = _ENTRIES.validate_json(path.read_bytes())
    except OSError as error:
        raise ConceptError(f"list of concepts {path}: found no file, need a JSON list; correct the path") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("list", "_", "function")))
        raise ConceptError(
            f"list of concepts {path}: found entry {where or 'of another kind'} wrong ({first['msg']}), need "
            "instance_prompt, class_prompt and instance_data_dir of each concept; correct it"
        ) from error
    root = path.resolve().parent
    return [_pair(entry, root) if isinstance(entry, list) else _single(entry, root) for entry in entries]


def lay_out(concept: Published, folder: Path, modifier_token: str, initializer_token: str) -> Path:
    """Write a published concept as a folder with concept.yaml, images and prompts, or find it written; return it.

    Args:
        concept: from `read`.
        folder: where concepts lie, such as data/concepts.
        modifier_token: V*, one that no other concept there has.
        initializer_token: the rare token that V* starts from.

    Raises:
        ConceptError: if a folder of other content is there, or there is no picture.
    """
    pictures = [one for one in sorted(concept.pictures.iterdir()) if one.suffix.lower() in images.SUFFIXES]
    if not pictures:
        allowed = ", ".join(sorted(images.SUFFIXES))
        raise ConceptError(f"{concept.pictures}: found no pictures, need some of the concept ({allowed}); add them")
    data = [(one.name, read_picture(one, concept.pictures)) for one in pictures]
    spec = {
        "name": concept.name,
        "title": concept.name.replace("_", " "),
        "category": concept.category,
        "modifier_token": modifier_token,
        "initializer_token": initializer_token,
        "instance_prompt": concept.instance_prompt,
        "class_prompt": concept.category,
        "prompts": BESIDE,
    }
    return write(folder, spec, data, concept.prompts or (concept.instance_prompt,))


def lay_out_protocol(sources: Sequence[Path], data: Path, name: str, initializer_tokens: Sequence[str]) -> list[Path]:
    """Lay out all that published lists name, and write the protocol that compares methods on it as was published.

    Args:
        sources: JSON lists of concepts and of pairs.
        data: with concepts/, prompts/ and protocols/.
        name: of the protocol.
        initializer_tokens: the rare tokens that V*s start from. DreamBooth draws concepts by these words themselves, so that
            concepts of a pair get different ones, as far as there are enough.

    Returns:
        The folders and files of it; a concept that several entries name is written once, and what a run that was broken off
        has written is kept.

    Raises:
        ConceptError: as `read` and `lay_out`; if the protocol is there already.
    """
    protocol = data / "protocols" / f"{name}.yaml"
    if protocol.exists():
        raise ConceptError(
            f"protocol {name}: found {protocol} already, need a new one; choose another name or remove it"
        )
    entries = [entry for source in sources for entry in read(source)]
    pairs = [entry for entry in entries if isinstance(entry, PublishedPair)]
    singles = [entry for entry in entries if isinstance(entry, Published)]
    every = _named([*(one for pair in pairs for one in pair.concepts), *singles])
    chosen = _initializers(list(every), [[one.name for one in pair.concepts] for pair in pairs], initializer_tokens)
    written = [lay_out(one, data / "concepts", f"<{_token(one.name)}>", chosen[one.name]) for one in every.values()]
    together: list[dict[str, Any]] = []
    for pair in pairs:
        names = [one.name for one in pair.concepts]
        file = data / "prompts" / f"{name}-{'-'.join(names)}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(pair.prompts) + "\n", encoding="utf-8")
        together.append({"concepts": names, "prompts": file.name})
        written.append(file)
    content = _as_published() | {"concepts": [one.name for one in singles], "together": together}
    content["prompts"] = min((len(one.prompts) for one in singles if one.prompts), default=1)
    content["prompts_together"] = min((len(pair.prompts) for pair in pairs), default=1)
    protocol.parent.mkdir(parents=True, exist_ok=True)
    protocol.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return [*written, protocol]


def _named(found: Sequence[Published]) -> dict[str, Published]:
    """Each concept once, by its name; of several entries the last.

    Raises:
        ConceptError: where the pictures of two folders would have one name, and so one folder.
    """
    every: dict[str, Published] = {}
    for one in found:
        other = every.get(one.name, one)
        if other.pictures.resolve() != one.pictures.resolve():
            raise ConceptError(
                f"list of concepts: found the name {one.name} for {other.pictures} and for {one.pictures}, need one for each; "
                "rename one of the folders"
            )
        if other.category != one.category:  # CustomConcept101's own lists have one such slip
            logger.warning("%s: found it called %s and %s; taking the last", one.name, other.category, one.category)
        every[one.name] = one
    return every


def _initializers(names: Sequence[str], pairs: Sequence[Sequence[str]], words: Sequence[str]) -> dict[str, str]:
    """A word for each concept, in turn one that the fewest of the concepts it is paired with have."""
    chosen: dict[str, str] = {}
    for name in names:
        taken = [chosen.get(other) for pair in pairs if name in pair for other in pair]
        chosen[name] = min(words, key=taken.count)
    return chosen


def _as_published() -> dict[str, Any]:
    """How CustomConcept101's figures were measured: as the paper's, which is how Stable Diffusion 1.4 is evaluated here."""
    usual = profiles.get("sd14").evaluate
    measured = usual.model_dump(mode="json", include={"sample", "kid_images", "kid_subset_size"})
    return measured | {"seeds": len(usual.seeds), "beside": "CustomConcept101"}


def _token(name: str) -> str:
    """A modifier token's name of a concept's: "pet_cat1" as "pet-cat1"."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", name)


def _single(entry: _Concept, root: Path) -> Published:
    pictures = _inside(entry.instance_data_dir, root)
    if not pictures.is_dir():
        raise ConceptError(
            f"instance_data_dir: found no folder {pictures}, need the concept's pictures there; download them beside the list"
        )
    name = re.sub(r"[^a-z0-9_-]+", "-", pictures.name.lower()).strip("-_") or "concept"
    category = entry.class_prompt.strip()
    return Published(
        name=name,
        category=category,
        instance_prompt=_with_placeholder(entry.instance_prompt, category),
        pictures=pictures,
        prompts=_prompts(entry.prompt_filename, root, 1) if entry.prompt_filename else (),
    )


def _pair(entries: Sequence[_Concept | _Together], root: Path) -> PublishedPair:
    concepts = tuple(_single(one, root) for one in entries if isinstance(one, _Concept))
    together = [one for one in entries if isinstance(one, _Together)]
    if len(concepts) < 2 or len(together) != 1:
        raise ConceptError(
            f"concepts together: found {len(concepts)} concepts and {len(together)} prompt_filename_compose, "
            "need at least 2 and exactly 1; correct the list"
        )
    return PublishedPair(concepts=concepts, prompts=_prompts(together[0].prompt_filename_compose, root, len(concepts)))


def _with_placeholder(prompt: str, category: str) -> str:
    """ "photo of a <new1> cat" as "photo of a {}"."""
    found = TOKEN.search(prompt)
    if found is None or not prompt[found.end() :].lstrip().lower().startswith(category.lower()):
        raise ConceptError(
            f"instance_prompt: found {prompt!r}, need a modifier token before the category {category!r}, such as "
            f"'photo of a <new1> {category}'; correct the list"
        )
    end = found.end() + prompt[found.end() :].lower().index(category.lower()) + len(category)
    return prompt[: found.start()] + PLACEHOLDER + prompt[end:]


def _prompts(name: str, root: Path, concepts: int) -> tuple[str, ...]:
    path = _inside(name, root)
    if not path.is_file():
        raise ConceptError(f"prompts: found no file {path}, need one prompt a line; download it beside the list")
    lines: list[Any] = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = tuple(line for line in lines if line)
    wanted = {PLACEHOLDER} if concepts == 1 else {f"{{{number}}}" for number in range(concepts)}
    for prompt in prompts:
        if set(PLACES.findall(prompt)) != wanted:
            raise ConceptError(
                f"{path}: found {prompt!r}, need {' and '.join(sorted(wanted))} in every prompt; correct the file"
            )
    return prompts


def _inside(name: str, root: Path) -> Path:
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ConceptError(f"list of concepts: found the path {name!r}, need one inside {root}; move the files there")
    return path
