"""Flow `generate`: one's own prompts with a customized model."""

from prefect import flow

import tasks.generate
from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from flows.inputs import chosen
from flows.options import ConceptName, ModelOptions
from tasks import publish

EXAMPLES = ["a crying {}", "a {} on a red background", "a {} and a rocket"]


@flow(name="generate", flow_run_name="generate-{concept}")
def generate(
    concept: ConceptName = "cat",
    prompts: list[str] = EXAMPLES,
    images: int = 4,
    guidance_scale: float | None = None,
    delta: str | None = None,
    model: ModelOptions = ModelOptions(),
) -> Artifact:
    """Draw prompts with what was trained.

    Args:
        concept: what {} in a prompt stands for.
        prompts: each with one {}.
        images: how many a prompt, from seed 0 on.
        guidance_scale: classifier-free guidance; empty takes the profile's.
        delta: a delta's key; empty takes the newest of the concept.
        model: the profile.
    """
    profile = model.resolve()
    loaded = concepts.load(concept, prompts)
    trained = chosen("delta", delta, concept, profile)
    config = profile.evaluate.sample.model_copy(update={"guidance_scale": guidance_scale} if guidance_scale else {})
    texts = tuple(loaded.with_concept(prompt) for prompt in loaded.prompts)
    samples = tasks.generate.generate(texts, tuple(range(images)), trained, profile, config, model.runtime)
    publish.generated(samples)
    return samples
