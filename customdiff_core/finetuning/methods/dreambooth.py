"""DreamBooth (Ruiz et al., arXiv:2208.12242) as the paper compares with it: the whole UNet, the text encoder frozen.

The identifier is a rare word that the model knows already, such as "ktn"; its row stays as it is. The regularization images
are the base model's own, drawn for the class prompt.
"""

from customdiff_core.finetuning.cross_attention import EVERYTHING
from customdiff_core.finetuning.methods.base import Method

METHOD = Method(
    name="dreambooth",
    title="DreamBooth",
    summary="The whole UNet is trained; the text encoder is not.",
    trains=EVERYTHING,
    token="existing",
    regularization="generated",
    rate=5e-6,
    rate_is_per_image=False,
    steps=800,
)
