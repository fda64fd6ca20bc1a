"""Flow `report`: one self-contained page about a customization."""

from prefect import flow

import tasks.report
from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.profiles import Profile
from flows.inputs import as_taught, chosen
from flows.options import ConceptName, ModelOptions
from tasks import publish
from tasks.stores import store


def reported(concept: Concept, chain: dict[str, Artifact], profile: Profile) -> Artifact:
    """The page, linked in the UI."""
    page = tasks.report.report(concept, chain, profile)
    publish.reported((concept,), page)
    return page


def reported_together(taught: tuple[Concept, ...], chain: dict[str, Artifact], profile: Profile) -> Artifact:
    """The page about several concepts, linked in the UI."""
    page = tasks.report.report_together(taught, chain, profile)
    publish.reported(taught, page)
    return page


@flow(name="report", flow_run_name="report-{concept}")
def report(concept: ConceptName = "cat", metrics: str | None = None, model: ModelOptions = ModelOptions()) -> Artifact:
    """Write the page for an evaluation.

    Args:
        concept: whose.
        metrics: a metrics artifact's key; empty takes the newest of the concept.
        model: the profile.
    """
    profile = model.resolve()
    evaluation = chosen("metrics", metrics, concept, profile)
    recipe = store().manifest(evaluation).recipe
    chain = store().lineage(evaluation)
    loaded = concepts.load(concept, recipe.config["prompts"])
    if "delta" in chain:  # the page says what is missing
        loaded = as_taught(loaded, chain["delta"])
    return reported(loaded, chain, profile)
