"""Textual Inversion (Gal et al., arXiv:2208.01618) as the paper compares with it: the row of V* and nothing else.

No weight of the UNet moves, so that nothing can be forgotten and no regularization is needed.
"""

from customdiff_core.finetuning.methods.base import Method

METHOD = Method(
    name="textual-inversion",
    title="Textual Inversion",
    summary="Nothing of the network is trained, only the embedding of the new word.",
    trains=(),
    token="new",
    regularization="none",
    rate=5e-4,
    rate_is_per_image=True,
    steps=3000,
)
