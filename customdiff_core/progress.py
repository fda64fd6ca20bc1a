"""How a stage tells its caller how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Called now and then by a long stage; must return quickly."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` units are finished."""
        ...


def silent(done: int, total: int, note: str = "") -> None:
    """Ignore progress: the default of every stage."""
