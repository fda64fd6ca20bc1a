"""The methods that the paper compares, one short file each. A new one is a file here and its line in `METHODS`.

| method | trains in the UNet | V* | regularization | rate |
|---|---|---|---|---|
| custom-diffusion | keys, values | new row | retrieved | 1e-5 an image |
| custom-diffusion-crossattn | all of cross-attention | new row | retrieved | 5e-6 an image |
| custom-diffusion-all | everything | new row | retrieved | 5e-6 |
| dreambooth | everything | a rare word as it is | generated | 5e-6 |
| textual-inversion | nothing | new row | none | 5e-4 an image |
"""

from customdiff_core.errors import ConfigError, MergeError, did_you_mean
from customdiff_core.finetuning.methods import (
    custom_diffusion,
    custom_diffusion_all,
    custom_diffusion_crossattn,
    dreambooth,
    textual_inversion,
)
from customdiff_core.finetuning.methods.base import Method

METHODS: dict[str, Method] = {
    one.METHOD.name: one.METHOD
    for one in (
        custom_diffusion,
        custom_diffusion_crossattn,
        custom_diffusion_all,
        dreambooth,
        textual_inversion,
    )
}


def get(name: str) -> Method:
    """Return a method by its name.

    Raises:
        ConfigError: for an unknown name, naming the nearest.
    """
    if name not in METHODS:
        raise ConfigError(f"method: found {name!r}, need one of {', '.join(METHODS)}{did_you_mean(name, METHODS)}")
    return METHODS[name]


def check_merges(name: str) -> None:
    """Check that what a method trains can be merged, before it is trained.

    Raises:
        MergeError: naming those whose can; ConfigError for an unknown name.
    """
    if not get(name).merges:
        merging = ", ".join(one.name for one in METHODS.values() if one.merges)
        raise MergeError(
            f"method: found {name}, which trains the whole UNet, need one whose trainings can be merged ({merging}); take one of "
            "them, or train the concepts jointly"
        )
