"""Concepts as folders of data/concepts, written whole or not at all."""

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from customdiff_core import concepts
from customdiff_core.concepts import Concept
from customdiff_core.errors import ConceptError
from customdiff_core.world.scenes import with_article

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
USUAL_PROMPTS = "photographs.txt"
BESIDE = "prompts.txt"  # in the folder


def begin(
    name: str, category: str, pictures: Sequence[Path], data: Path, *, token: str = "", prompts: Path | None = None
) -> Concept:
    """Make a concept of somebody's own pictures, in the words that are usual for one.

    Args:
        name: the new folder's, and so the concept's.
        category: its class word, such as "cat".
        pictures: 4 to 6 of it; copied as they are.
        data: with concepts/ and prompts/.
        token: V*; by default the name in angle brackets.
        prompts: a file of evaluation prompts, one a line; by default `USUAL_PROMPTS`.

    Raises:
        ConceptError, ModifierTokenError, ImageError, ConfigError: for what cannot be a concept; nothing is written then.
    """
    if not NAME.fullmatch(name):
        raise ConceptError(
            f"concept: found the name {name!r}, need small letters, digits, - and _, such as my-cat; choose another"
        )
    folder = data / "concepts"
    if (folder / name).exists():
        raise ConceptError(
            f"concept {name}: found {folder / name} already, need a new name; choose another or remove it"
        )
    names = [one.name for one in pictures]
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise ConceptError(f"pictures: found several named {', '.join(twice)}, need a name for each; rename them")
    told = prompts or data / "prompts" / USUAL_PROMPTS
    spec = {
        "name": name,
        "category": category,
        "modifier_token": token or f"<{name}>",
        "class_prompt": f"photo of {with_article(category)}",
        "prompts": BESIDE,
    }
    write(folder, spec, [(one.name, _content_of(one)) for one in pictures], _lines(told))
    try:
        return concepts.load(name, data=data)
    except Exception:
        shutil.rmtree(folder / name)
        raise


def write(folder: Path, spec: Mapping[str, str], pictures: Sequence[tuple[str, bytes]], prompts: Sequence[str]) -> Path:
    """Write a concept's folder with concept.yaml, images/ and prompts.txt, or find it written; return it.

    Args:
        folder: where concepts lie, such as data/concepts.
        spec: the fields of concept.yaml, whose prompts are `BESIDE`.
        pictures: file names and contents.
        prompts: of the evaluation.

    Raises:
        ConceptError: if a folder of other content is there.
    """
    target = folder / spec["name"]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{spec['name']}-", dir=folder) as scratch:
        made = Path(scratch) / spec["name"]
        (made / "images").mkdir(parents=True)
        for name, content in pictures:
            (made / "images" / name).write_bytes(content)
        (made / BESIDE).write_text("\n".join(prompts) + "\n", encoding="utf-8")
        (made / "concept.yaml").write_text(yaml.safe_dump(dict(spec), sort_keys=False), encoding="utf-8")
        if not target.exists():
            made.rename(target)
        elif _content(target) != _content(made):
            raise ConceptError(
                f"concept {spec['name']}: found {target} with other content, need it as published or none; rename or remove it"
            )
    return target


def _content_of(picture: Path) -> bytes:
    """Also of one that is a link: somebody named this file, and no folder of strangers."""
    place = picture.resolve()
    return concepts.read_picture(place, place.parent)


def _content(folder: Path) -> dict[str, bytes]:
    """What lies in a folder."""
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def _lines(file: Path) -> tuple[str, ...]:
    return concepts.read_prompts(file.parent, file.name)
