"""Every error this project raises on purpose.

    CustomDiffusionError
    ├── ConfigError          an unknown profile, prompt or setting
    ├── ConceptError         a concept folder that cannot be used
    │   └── ModifierTokenError   a V* that is taken, split or shared
    ├── ImageError           a picture that cannot be trusted or decoded
    ├── StoreError           the artifact store cannot be read or written
    │   ├── MissingError         it has none of what is asked for
    │   ├── DamagedError         an artifact that is not whole
    │   └── DiskFullError
    ├── DeviceMemoryError    a GPU without room for what is computed
    ├── WeightsError         model weights missing, incomplete or pickled
    ├── DeltaError           a delta, of this program or another, that cannot be read or does not fit
    ├── MergeError           concepts that have no common solution
    ├── RetrievalError       the index cannot give the images asked for
    │   ├── FetchError           one link that gave no picture
    │   └── TooFewImagesError    all were tried and they are not enough
    ├── TrainingError        a training that must not go on
    ├── EvaluationError      a figure that cannot be computed honestly
    ├── WorldError           the embedded openmoji world
    └── ServiceError         the local Prefect server, pool or worker

Texts follow one form: `<what>: found <value>, need <value>; <remedy>`.
"""

import difflib
from collections.abc import Iterable


class CustomDiffusionError(Exception):
    """Base of all errors raised on purpose; its text is written for the person who reads it."""


class ConfigError(CustomDiffusionError):
    """An unknown profile, prompt or setting."""


class ConceptError(CustomDiffusionError):
    """A concept folder that cannot be used as it is."""


class ModifierTokenError(ConceptError):
    """A modifier token that the tokenizer knows already, splits, or that two concepts share."""


class ImageError(CustomDiffusionError):
    """A picture that cannot be trusted or decoded."""


class StoreError(CustomDiffusionError):
    """The artifact store cannot be read or written."""


class MissingError(StoreError):
    """The artifact store has none of what is asked for."""


class DamagedError(StoreError):
    """An artifact without a manifest that can be read."""


class DiskFullError(StoreError):
    """No space was left while an artifact was being written."""


class DeviceMemoryError(CustomDiffusionError):
    """A GPU whose memory does not hold what is computed; a second try would end the same way."""


class WeightsError(CustomDiffusionError):
    """Model weights that are missing, incomplete or pickled."""


class DeltaError(CustomDiffusionError):
    """A file of trained weights that cannot be read, cannot be trusted, or does not fit the base model."""


class MergeError(CustomDiffusionError):
    """Concepts, or regularization captions, for which the closed-form merge has no solution."""


class RetrievalError(CustomDiffusionError):
    """The index cannot give the images that were asked for."""


class FetchError(RetrievalError):
    """One link that gave no picture; `status` is the short word for it in the attempts table."""

    def __init__(self, message: str, status: str = "dead", wait_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.wait_s = wait_s  # seconds after which another try may succeed; None: never


class TooFewImagesError(RetrievalError):
    """Every candidate was tried, and those that can be used are not enough; `page` holds what is known, for the UI."""

    def __init__(self, message: str, page: object = None) -> None:
        super().__init__(message)
        self.page = page


class TrainingError(CustomDiffusionError):
    """A training that must not go on, such as one whose loss is NaN."""


class EvaluationError(CustomDiffusionError):
    """A figure that cannot be computed honestly from what is there."""


class WorldError(CustomDiffusionError):
    """The embedded openmoji world: an unknown drawing, a missing package file."""


class ServiceError(CustomDiffusionError):
    """The local Prefect server, work pool or worker cannot do its work."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error's text, "; did you mean 'cat'?", or nothing when no known name is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.3)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
