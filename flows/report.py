"""Flow `report`: one self-contained page about a customization."""

from prefect import flow

import tasks.report
from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.profiles import Profile
from flows.inputs import chosen
from flows.options import ConceptName, ModelOptions
from tasks import publish
from tasks.stores import store


def reported(concept: Concept, chain: dict[str, Artifact], profile: Profile) -> Artifact:
    """The page, linked in the UI."""
    page = tasks.report.report(concept, chain, profile)
    publish.reported(concept, page)
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
    loaded = concepts.load(concept, recipe.config["prompts"])
    return reported(loaded, store().lineage(evaluation), profile)
