"""Import: another program's file as a delta of the store, with what the user states of it and what was checked."""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from customdiff_core import delta as deltas
from customdiff_core import stages
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.config import Stated
from customdiff_core.delta import Delta
from customdiff_core.errors import DeltaError
from customdiff_core.finetuning.cross_attention import KEYS_AND_VALUES
from customdiff_core.finetuning.weight_change import relative_change
from customdiff_core.interop.content import Base, Parts
from customdiff_core.interop.formats import Opened, identify, read
from customdiff_core.lineage import Lineage, Taught
from customdiff_core.profiles import Profile
from customdiff_core.weights import file_digest, model_digest

logger = logging.getLogger(__name__)

LARGEST_CHANGE = (
    0.5  # of a base weight's norm; a fine-tuning moves a few hundredths, another base model's weights lie farther
)


@dataclass(frozen=True)
class Inspection:
    """What is in a file, and whether it fits a base model."""

    format: str
    delta: Delta
    changes: Mapping[str, float]  # relative change of each weight that is not zero in the base model
    problem: str  # why it does not fit; empty when it does


def import_delta(path: Path, profile: Profile, stated: Stated, *, store: Store) -> Artifact:
    """Take a file into the store.

    Args:
        path: a file or folder of any readable format.
        profile: the base model that the user says it belongs to.
        stated: its concepts, where it does not name them.
        store: where it goes.

    Returns:
        A `delta` artifact; its lineage says that the base model is stated.

    Raises:
        DeltaError: if it cannot be read or trusted, or does not fit the base model.
    """

    opened = identify(path)

    def produce(folder: Path) -> int:
        found = _inspected(opened, profile, stated)
        if found.problem:
            raise DeltaError(found.problem)
        deltas.save(folder / deltas.FILE, found.delta)
        return len(found.delta.names) + len(found.delta.tokens)

    return store.make(
        stages.import_delta(path.stem, _digest(opened.files), profile, stated.model_dump(mode="json")), produce
    )


def inspect(path: Path, profile: Profile, stated: Stated = Stated()) -> Inspection:
    """Say what is in a file and whether it fits a base model; the log says which keys and values it lacks.

    Raises:
        DeltaError: if it cannot be read or trusted.
    """
    return _inspected(identify(path), profile, stated)


def _inspected(opened: Opened, profile: Profile, stated: Stated) -> Inspection:
    path, base = opened.path, Base(profile.model)
    content = read(opened, base)
    delta = content if isinstance(content, Delta) else _with_lineage(content, opened, profile, stated)
    if not delta.names and not delta.tokens:
        raise DeltaError(f"{path}: found neither weights nor tokens in it, need what was trained; export it again")
    deltas.check_finite(((name, tensor) for name, tensor in delta.weights.items()), str(path))
    deltas.check_finite(((token, row) for token, rows in delta.tokens.items() for row in rows.values()), str(path))
    # A file of this project knows its base by digest and its tokens by concept.yaml; what a user states is told by the size
    # of the change and the tokenizer's words.
    foreign = not isinstance(content, Delta)
    try:
        deltas.check_base(delta, model_digest(profile.model))
        originals = base.weights(delta.names)
        deltas.check_shapes(delta, originals)
        deltas.check_tokens(delta, base.widths)
        if foreign:
            _check_new(delta.tokens, base, path)
    except DeltaError as error:
        return Inspection(opened.format, delta, {}, str(error))
    changes = {
        name: relative_change(delta.whole(name, originals[name]), originals[name])
        for name in sorted(originals)
        if originals[name].any()
    }
    _say_missing(delta.names, base, path)
    return Inspection(opened.format, delta, changes, _too_far(path, changes, originals) if foreign else "")


def _with_lineage(parts: Parts, opened: Opened, profile: Profile, stated: Stated) -> Delta:
    """Give bare parts a lineage: the base as the profile has it, the concepts as stated.

    Of a file without tokens the stated ones are the rare words that its prompts had.

    Raises:
        DeltaError: if the file lacks a token that is stated.
    """
    names = list(parts.tokens)
    absent = [word for word in stated.tokens if not names and word.startswith("<")]
    if absent:
        raise DeltaError(
            f"{opened.path}: found no tokens, need the row of {absent[0]}; export it again with it, or state the rare word, "
            "such as sks, that it was trained with"
        )
    if names and stated.tokens and len(stated.tokens) != len(names):
        raise DeltaError(
            f"{opened.path}: found {len(names)} tokens ({', '.join(names)}), need as many as stated "
            f"({', '.join(stated.tokens)}); state one for each"
        )
    words = stated.tokens or tuple(names)
    tokens = dict(zip(words if names else (), parts.tokens.values(), strict=True))
    concepts = tuple(
        Taught(name=_slug(token), category=_at(stated.categories, number), modifier_token=token)
        for number, token in enumerate(words)
    )
    lineage = Lineage(
        base_digest=model_digest(profile.model),
        base_stated=True,
        method=f"imported ({opened.format})",
        concepts=concepts,
        inputs={"file": _digest(opened.files)},
    )
    return Delta(parts.weights, tokens, lineage)


def _check_new(tokens: Iterable[str], base: Base, path: Path) -> None:
    """Check that no token is a word of the tokenizer, which would lose its meaning in every prompt.

    Raises:
        DeltaError: naming those that are.
    """
    known = base.known(tokens)
    if known:
        raise DeltaError(
            f"{path}: found token {', '.join(known)}, which the tokenizer knows as a word already, need a new one; state another "
            f"with --token, such as <{_slug(known[0])}>"
        )


def _say_missing(names: set[str], base: Base, path: Path) -> None:
    """Say in the log that a file has some of the keys and values and not all: it draws, and cannot be merged."""
    wanted = {name for name in base.names if name.endswith(KEYS_AND_VALUES)}
    missing = sorted(wanted - names)
    if names and missing:
        logger.warning(
            "%s: found %d of %d key and value layers (%s is missing), need all of them for a merge; export it again",
            path,
            len(wanted) - len(missing),
            len(wanted),
            missing[0],
        )


def _too_far(path: Path, changes: Mapping[str, float], originals: Mapping[str, Tensor]) -> str:
    """Why the weights cannot be a fine-tuning of this base; empty when they can."""
    if not changes:
        return ""
    sizes = {name: float(originals[name].double().norm()) ** 2 for name in changes}
    overall = (sum(changes[name] ** 2 * size for name, size in sizes.items()) / sum(sizes.values())) ** 0.5
    if overall <= LARGEST_CHANGE:
        return ""
    return (
        f"{path}: found weights that differ from the base model's by {overall:.0%} of their size, need at most "
        f"{LARGEST_CHANGE:.0%}, as a fine-tuning has; name the base model it was trained on"
    )


def _digest(files: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files."""
    total = hashlib.sha256()
    for one in files:
        total.update(f"{one.name}\n{file_digest(one)}\n".encode())
    return total.hexdigest()


def _slug(token: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", token.lower()).strip("-") or "concept"


def _at(values: Sequence[str], number: int) -> str:
    return values[number] if number < len(values) else ""
