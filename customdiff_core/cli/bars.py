"""Live progress in a terminal: a bar a stage, with what it says (the loss, for one) and the time left."""

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from customdiff_core.progress import Progress as Tell

console = Console(highlight=False, soft_wrap=True)  # answers
notes = Console(stderr=True, highlight=False)  # bars, warnings and errors, so that answers can be piped


class Bars:
    """Gives each stage a bar when it first says something: a stage that the store has already says nothing."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, stage: str) -> Tell:
        """Return whom this stage tells."""
        place: list[TaskID] = []

        def tell(done: int, total: int, note: str = "") -> None:
            if not place:
                place.append(self._progress.add_task(stage, total=total))
            self._progress.update(place[0], completed=done, total=total, note=note)

        return tell


@contextmanager
def bars() -> Generator[Bars]:
    """Show bars while something runs; in a log file, where nothing can move, their last state."""
    columns = (
        TextColumn("{task.description:14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with _Noted(*columns, console=notes, refresh_per_second=4) as progress:
        yield Bars(progress)


class _Noted(Progress):
    """A progress whose tasks always have a note."""

    def add_task(self, description: str, **options: object) -> TaskID:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().add_task(description, **({"note": ""} | options))  # pyright: ignore[reportArgumentType]
