"""Flow `generate`: one's own prompts with a customized model."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from pydantic import Field

import tasks.generate
from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from customdiff_core.lineage import lineage_of
from flows.inputs import as_taught, taken
from flows.options import ConceptName, GenerateOptions, ModelOptions
from tasks import publish
from tasks.stores import store

EXAMPLES = ["a crying {}", "a {} on a red background", "a {} and a rocket"]


@flow(name="generate", flow_run_name="generate-{concept}")
def generate(
    concept: ConceptName = "cat",
    prompts: list[str] = EXAMPLES,
    prompts_file: Path | None = None,
    images: Annotated[int, Field(ge=1)] = 4,
    seeds: list[int] | None = None,
    sample: GenerateOptions = GenerateOptions(),
    delta: str | None = None,
    model: ModelOptions = ModelOptions(),
) -> Artifact:
    """Draw prompts with what was trained.

    Args:
        concept: what {} in a prompt stands for.
        prompts: each with one {}, or with {0}, {1}, ... for what the delta knows: the page of a merge says which is which.
        prompts_file: a file of prompts, one a line, instead.
        images: how many a prompt, from seed 0 on.
        seeds: the seeds themselves instead.
        sample: sampler, steps, guidance, negative prompt, batch.
        delta: a delta's key; empty takes Custom Diffusion's longest training of the concept with the profile's settings.
        model: the profile.
    """
    profile = model.resolve()
    asked = concepts.load(concept)
    stated = concepts.read_prompts(prompts_file.parent, prompts_file.name) if prompts_file else tuple(prompts)
    wanted = stated or asked.prompts
    concepts.check_prompts(tuple(one for one in wanted if not concepts.PLACES.search(one)), "prompts")
    trained = taken(delta or concept, profile)
    known = lineage_of(trained, store())
    named = any(concepts.PLACEHOLDER in one for one in wanted)
    texts = concepts.texts(wanted, known, as_taught(asked, trained).noun if named else "")
    chosen_seeds = tuple(seeds) if seeds else tuple(range(images))
    samples = tasks.generate.generate(texts, chosen_seeds, trained, profile, sample.resolve(profile), model.runtime)
    publish.generated(samples, known)
    return samples
