"""What tells one method from another: what is trained, how V* starts, which regularization, the learning-rate rule."""

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field

from customdiff_core.concepts import Concept
from customdiff_core.config import FinetuneConfig, Frozen, Regularization
from customdiff_core.errors import ModifierTokenError
from customdiff_core.finetuning.cross_attention import CROSS_ATTENTION
from customdiff_core.lineage import Taught


class Method(Frozen):
    """One way to teach a model a concept. The loop, the loss and the data are the same for all."""

    name: str
    title: str
    summary: str = Field(description="what is trained, for the person who reads a report")
    trains: tuple[str, ...] = Field(
        description="endings of the UNet's parameter names that are trained; an empty ending is everything, none nothing"
    )
    token: Literal["new", "existing"] = Field(
        description="V*: a new token whose row starts as a copy of a rare word's and is trained, or that rare word itself"
    )
    regularization: Regularization
    rate: float = Field(gt=0, description="learning rate")
    rate_is_per_image: bool = Field(
        description="the rate grows with the batch, with accumulation, and twofold with regularization images"
    )
    steps: int = Field(ge=1, description="optimizer steps at Stable Diffusion's size")
    random_resize: bool = Field(default=True, description="train on the paper's augmented views")

    @property
    def merges(self) -> bool:
        """Whether the closed-form merge takes what it trains: of the UNet, cross-attention alone."""
        return all(ending.endswith(CROSS_ATTENTION) for ending in self.trains)

    def learning_rate(self, config: FinetuneConfig, *, regularized: bool = True) -> float:
        """The rate by this method's rule, where neither profile nor user states one.

        Args:
            config: batch size, accumulation, and the weight of the regularization images.
            regularized: whether there are any.
        """
        if not self.rate_is_per_image:
            return self.rate
        images = config.batch_size * config.gradient_accumulation
        return self.rate * images * (2 if config.prior_weight and regularized else 1)

    def rates(self, config: FinetuneConfig, *, regularized: bool = True) -> tuple[float, float]:
        """Learning rates of the UNet's weights and of V*; see `learning_rate`."""
        weights = config.learning_rate or self.learning_rate(config, regularized=regularized)
        return weights, config.modifier_learning_rate or weights

    def words(self, concept: Concept) -> Concept:
        """Return the concept as this method's prompts say it: with its new token, or with the rare word itself."""
        if self.token == "new":
            return concept
        return concept.model_copy(update={"modifier_token": concept.initializer_token})

    def words_of(self, concepts: Iterable[Concept]) -> tuple[Concept, ...]:
        """Return concepts of one model likewise.

        Raises:
            ModifierTokenError: if two of them are the same rare word.
        """
        found = tuple(map(self.words, concepts))
        check_words(found)
        return found


def check_words(concepts: Sequence[Concept | Taught]) -> None:
    """Check that each of a model's concepts has a word of its own: one row of the embedding means one thing.

    Raises:
        ModifierTokenError: naming two that share one.
    """
    first: dict[str, str] = {}
    for one in concepts:
        if one.modifier_token in first:
            raise ModifierTokenError(
                f"rare word: found {one.modifier_token} in concepts {first[one.modifier_token]!r} and {one.name!r}, need one a "
                "concept; change initializer_token in the concept.yaml of one to another rare word, such as ktn, pll, ucd or sks"
            )
        first[one.modifier_token] = one.name
