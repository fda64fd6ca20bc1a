"""What a run shows in the UI: one markdown artifact a stage with its pictures, and progress while a stage works.

Flows call these after a stage, never a task within itself: a cached task does not run, but its result is still shown.
What they show is built in `pages.py`.
"""

import logging
import math
import re
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from customdiff_core.artifacts import Artifact
from customdiff_core.benchmark.protocol import Protocol
from customdiff_core.benchmark.search import Search
from customdiff_core.concepts import Concept
from customdiff_core.errors import TooFewImagesError
from customdiff_core.lineage import Lineage
from customdiff_core.progress import Progress
from customdiff_core.recipes import digest_of
from tasks import pages
from tasks.stores import store

UPDATE_SECONDS = 2.0
LOG_SECONDS = 5.0
PACE_SECONDS = 4.0  # after which a rate means something
PATIENCE_SECONDS = 60.0  # until the next try, when the server did not answer: its client itself tries for long


def indexed(index: Artifact) -> None:
    """Show what the retrieval index holds."""
    here = store()
    _send(f"{here.manifest(index).recipe.labels['profile']}-index", lambda: pages.indexed(index, here))


def built(folder: Path) -> None:
    """Show what an index folder of one's own holds, and how to use it."""
    _send("build-own-index", lambda: pages.built(folder))


def retrieved(concept: Concept, regularization: Artifact) -> None:
    """Show the regularization images."""
    _send(f"{named(concept)}-retrieve", lambda: pages.retrieved(concept, regularization, store()))


def too_few(concept: Concept, error: TooFewImagesError) -> None:
    """Show how far a retrieval came."""
    _send(f"{named(concept)}-retrieve", lambda: pages.too_few(concept, error))


def augmented(concept: Concept, training_set: Artifact) -> None:
    """Show augmented views."""
    _send(f"{named(concept)}-augment", lambda: pages.augmented(concept, training_set, store()))


def finetuned(concepts: tuple[Concept, ...], delta: Artifact) -> None:
    """Show the losses, the previews and how far the weights moved."""
    _send(f"{named(*concepts)}-finetune", lambda: pages.finetuned(concepts, delta, store()))


def merged(delta: Artifact, left_out: Sequence[str] = ()) -> None:
    """Show a merge's errors, the words that are no constraints, and what nothing after it will show; the log says that too."""
    for line in left_out:
        _logger().warning("%s", line)
    _send("merge", lambda: pages.merged(delta, left_out, store()))


def evaluated_together(concepts: tuple[Concept, ...], together: Artifact) -> None:
    """Show several concepts in one picture, by every model."""
    _send(
        f"{named(*concepts)}-evaluate",
        lambda: pages.evaluated_together(concepts, together, store()),
    )


def evaluated(concept: Concept, metrics: Artifact) -> None:
    """Show both models side by side, and the figures."""
    _send(f"{named(concept)}-evaluate", lambda: pages.evaluated(concept, metrics, store()))


def reported(concepts: tuple[Concept, ...], report: Artifact) -> None:
    """Link the report."""
    _send(f"{named(*concepts)}-report", lambda: pages.reported(concepts, report, store()))


def benchmarked(benchmark: Artifact, report: Artifact, protocol: Protocol) -> None:
    """Show a night's claims and table, and link its page."""
    _send(f"benchmark-{protocol.name}", lambda: pages.benchmarked(benchmark, report, store()))


def searched(search: Artifact, wanted: Search) -> None:
    """Show a search's trials, the chosen one and its test."""
    _send(f"search-{wanted.name}", lambda: pages.searched(search, wanted, store()))


def generated(samples: Artifact, known: Lineage) -> None:
    """Show drawn prompts, and what their places stand for."""
    _send("generate", lambda: pages.generated(samples, known, store()))


def pretrained(model: Artifact, figures: Artifact) -> None:
    """Show a base model's figures and what it draws."""
    _send("pretrain-openmoji", lambda: pages.pretrained(model, figures, store()))


@contextmanager
def progress(key: str, description: str) -> Generator[Progress]:
    """Yield a Progress that moves a bar in the UI and writes to the run's log; a silent server fails no stage."""
    bar = _Bar(_key(f"{key}-progress"), description)
    yield bar
    bar.finish()


class _Bar:
    """A progress artifact, updated at most every UPDATE_SECONDS, and log lines at most every LOG_SECONDS."""

    def __init__(self, key: str, description: str) -> None:
        self._description = description
        self._artifact: UUID | None = None
        self._update_at = self._log_at = -math.inf
        self._first: tuple[float, int] | None = None
        with _tolerated(description):
            made = create_progress_artifact(0.0, key=key, description=description)
            self._artifact = made if isinstance(made, UUID) else None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if time.monotonic() >= self._log_at:
            pace = self._pace(done, total)
            said = f", {note}" if note and note.lower() != self._description.lower() else ""
            _logger().info("%s: %d of %d%s%s", self._description, done, total, said, pace)
            self._log_at = time.monotonic() + LOG_SECONDS
        if time.monotonic() >= self._update_at:
            self._update(
                100 * done / max(total, 1), f"{self._description}: {done:,} of {total:,}{self._pace(done, total)}"
            )

    def finish(self) -> None:
        """Fill the bar."""
        self._update(100.0, self._description)

    def _pace(self, done: int, total: int) -> str:
        """Rate and time left, once there is something to judge them by; what was done before the start does not count."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        seconds, count = now - self._first[0], done - self._first[1]
        if seconds < PACE_SECONDS or count <= 0:
            return ""
        left = timedelta(seconds=round((total - done) * seconds / count))
        return f", {count / seconds:,.3g} a second, {left} left"

    def _update(self, percent: float, description: str | None = None) -> None:
        wait = PATIENCE_SECONDS
        with _tolerated(self._description):
            if self._artifact is not None:
                update_progress_artifact(self._artifact, percent, description)
            wait = UPDATE_SECONDS
        self._update_at = time.monotonic() + wait


def _send(key: str, page: Callable[[], str]) -> None:
    with _tolerated(key):
        create_markdown_artifact(page(), key=_key(key))


@contextmanager
def _tolerated(what: str) -> Generator[None]:
    """Log what could not be built, or the server would not take, and go on: the UI is a view of the work and not the work."""
    try:
        yield
    except Exception as error:
        _logger().warning("%s: not shown in the UI (%s: %s)", what, type(error).__name__, error)


def _logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(__name__)


def named(*concepts: Concept) -> str:
    """What keys of the UI call concepts: "cat", "cat-dog" of two; whose name has more than letters and digits gets a digest too."""
    names = [one.name for one in concepts]
    plain = all(name.isalnum() for name in names)
    return "-".join(names) if plain else f"{_key('-'.join(names))}-{digest_of(names)[:8]}"


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
