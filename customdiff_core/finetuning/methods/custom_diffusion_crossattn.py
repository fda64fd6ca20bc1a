"""Custom Diffusion on all of cross-attention: queries and outputs too. The released code's recipe for faces.

A face is more detail than a word carries, so that what the picture asks (queries) and makes of the answer (outputs) may
move too: 43,962,560 numbers in Stable Diffusion 1.4, at half the rate, for longer, on the pictures as they are.
"""

from customdiff_core.finetuning.cross_attention import CROSS_ATTENTION
from customdiff_core.finetuning.methods.base import Method

METHOD = Method(
    name="custom-diffusion-crossattn",
    title="Custom Diffusion, cross-attention",
    summary="All of cross-attention is trained: keys and values, which read the prompt, queries, which ask for it, and outputs, "
    "which use it; and the embedding of the new word.",
    trains=CROSS_ATTENTION,
    token="new",
    regularization="retrieved",
    rate=5e-6,
    rate_is_per_image=True,
    steps=750,
    random_resize=False,
)
