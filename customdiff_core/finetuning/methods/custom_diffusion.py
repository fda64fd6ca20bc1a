"""Custom Diffusion (arXiv:2212.04488, section 3.1): keys and values of cross-attention, and V*.

Text enters the UNet through keys and values alone, and they change most when all is trained (figure 3). 2.2 % of Stable
Diffusion 1.4's UNet: 19,169,280 numbers.
"""

from customdiff_core.finetuning.cross_attention import KEYS_AND_VALUES
from customdiff_core.finetuning.methods.base import Method

METHOD = Method(
    name="custom-diffusion",
    title="Custom Diffusion",
    summary="Of the whole network, only the cross-attention’s keys and values are trained, the two matrices in each layer that "
    "read the prompt, and the embedding of the new word.",
    trains=KEYS_AND_VALUES,
    token="new",
    regularization="retrieved",
    rate=1e-5,
    rate_is_per_image=True,
    steps=500,
)
