"""Custom Diffusion, fine-tune all: the paper's ablation, and the run that its figure 3 measures weight changes in.

The paper gives no rate for it; this is DreamBooth's, which trains the same weights.
"""

from customdiff_core.finetuning.cross_attention import EVERYTHING
from customdiff_core.finetuning.methods.base import Method

METHOD = Method(
    name="custom-diffusion-all",
    title="Custom Diffusion, fine-tune all",
    summary="The whole UNet is trained, and the embedding of the new word.",
    trains=EVERYTHING,
    token="new",
    regularization="retrieved",
    rate=5e-6,
    rate_is_per_image=False,
    steps=500,
)
