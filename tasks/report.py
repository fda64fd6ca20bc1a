"""Task of the report stage."""

from prefect import task

from customdiff_core import stages
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.profiles import Profile
from tasks.caching import stage
from tasks.stores import store


@task(name="report", **stage(stages.report))
def report(concept: Concept, chain: dict[str, Artifact], profile: Profile) -> Artifact:
    """Write the page that tells the whole run."""
    from customdiff_core.evaluation.report import report as run

    return run(concept, chain, profile, store=store())


@task(name="report-together", **stage(stages.report_together))
def report_together(concepts: tuple[Concept, ...], chain: dict[str, Artifact], profile: Profile) -> Artifact:
    """Write the page about several concepts in one model."""
    from customdiff_core.evaluation.report_together import report_together as run

    return run(concepts, chain, profile, store=store())
