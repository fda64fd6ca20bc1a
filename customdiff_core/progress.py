"""How a stage tells its caller how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Called now and then by a long stage; must return quickly."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` units are finished."""
        ...


def silent(done: int, total: int, note: str = "") -> None:
    """Ignore progress: the default of every stage."""


def part_of(progress: Progress, before: int, whole: int) -> Progress:
    """The progress of one part, told in the count of the whole, of which `before` is done."""

    def shifted(done: int, total: int, note: str = "") -> None:
        del total
        progress(before + done, whole, note)

    return shifted
