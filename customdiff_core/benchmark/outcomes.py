"""What became of a night's cells."""

from customdiff_core.artifacts import Artifact
from customdiff_core.benchmark.cells import Cell
from customdiff_core.config import Frozen


class Outcome(Frozen):
    """A cell with its artifact, or the reason why there is none."""

    cell: Cell
    made: Artifact | None = None
    error: str = ""
