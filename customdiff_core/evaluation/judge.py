"""The encoders that evaluate, loaded when something new must be embedded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from customdiff_core import images, recipes, stages
from customdiff_core.artifacts import Store
from customdiff_core.config import Runtime
from customdiff_core.devices import needing_memory
from customdiff_core.errors import EvaluationError
from customdiff_core.evaluation.dino import Dino
from customdiff_core.evaluation.embeddings import embedded
from customdiff_core.evaluation.inception import Inception
from customdiff_core.evaluation.intervals import BY_COLOUR
from customdiff_core.profiles import Profile, VisionSource
from customdiff_core.recipes import Recipe
from customdiff_core.retrieval.encoder import Encoder, Vectors
from customdiff_core.weights import encoder_digest, inception_digest, vision_digest

LESS_MEMORY = "set model.device to cpu (customdiff: --device cpu)"


@dataclass
class Judge:
    """The evaluation CLIP, and DINO and Inception where the profile has them; what they have seen comes from the store."""

    profile: Profile
    store: Store
    runtime: Runtime

    @cached_property
    def encoder(self) -> Encoder:
        """The CLIP itself."""
        return Encoder(self.profile.judge, self.runtime.device)

    @cached_property
    def dino(self) -> Dino:
        """The ViT itself."""
        return Dino(self._dino_source, self.runtime.device)

    @cached_property
    def inception(self) -> Inception:
        """Inception itself; only where the profile has it."""
        assert self.profile.inception is not None
        return Inception(self.profile.inception, self.runtime.device)

    @property
    def _dino_source(self) -> VisionSource:
        if self.profile.dino is None:
            raise EvaluationError(
                f"profile {self.profile.name}: found no DINO encoder, need one; give it as model.dino"
            )
        return self.profile.dino

    def images(self, data: Sequence[bytes]) -> Vectors:
        """Embed encoded images with CLIP: (N, D)."""
        recipe = stages.embeddings(encoder_digest(self.profile.judge))
        return self._images(data, recipe, lambda: self.encoder)

    def dino_images(self, data: Sequence[bytes]) -> Vectors:
        """Embed encoded images with DINO: (N, D).

        Raises:
            EvaluationError: if the profile has none.
        """
        recipe = stages.vision_embeddings(vision_digest(self._dino_source))
        return self._images(data, recipe, lambda: self.dino)

    def kid_features(self, data: Sequence[bytes]) -> Vectors:
        """Embed encoded images as KID wants them, with `profile.kid_extractor`: (N, D)."""
        source = self.profile.inception
        if source is None:
            return self.images(data)
        recipe = stages.inception_embeddings(inception_digest(source))
        return self._images(data, recipe, lambda: self.inception)

    def extractor(self, metric: str) -> str:
        """Whose space a metric is measured in; colours are counted, and no encoder's."""
        if metric == BY_COLOUR:
            return "colours"
        if metric == "kid":
            return self.profile.kid_extractor
        return self._dino_source.name if metric.startswith("dino") else self.profile.judge.name

    @needing_memory("judging texts", LESS_MEMORY)
    def texts(self, texts: Sequence[str]) -> Vectors:
        """Embed texts with CLIP: (N, D)."""
        names = [recipes.digest_of(["text", text]) for text in texts]
        recipe = stages.embeddings(encoder_digest(self.profile.judge))
        return embedded(
            names, recipe, lambda places: self.encoder.texts([texts[place] for place in places]), store=self.store
        )

    @needing_memory("judging pictures", LESS_MEMORY)
    def _images(
        self, data: Sequence[bytes], recipe: Recipe, encoder: Callable[[], Encoder | Dino | Inception]
    ) -> Vectors:
        names = [images.digest(one) for one in data]
        return embedded(
            names,
            recipe,
            lambda places: encoder().images(images.decode(data[place], names[place]) for place in places),
            store=self.store,
        )
