"""Flow `search`: training settings tried on one concept, the best tested on others.

prefect deployment run search/custom-diffusion
"""

from prefect import flow

import tasks.benchmark
from customdiff_core.artifacts import Artifact
from customdiff_core.benchmark import search as searches
from customdiff_core.config import IndexConfig
from flows.benchmark import RUNNER, measured
from flows.build_index import indexed
from flows.options import ModelOptions, SearchOptions
from tasks import publish


@flow(name="search", flow_run_name="search-{search}", task_runner=RUNNER)
def search(
    search: str = "openmoji-custom-diffusion",
    change: SearchOptions = SearchOptions(),
    model: ModelOptions = ModelOptions(),
) -> Artifact:
    """Try training settings on one concept, choose, and test the chosen ones on others.

    Args:
        search: a file of data/searches.
        change: what differs from the file.
        model: the base model.
    """
    profile, runtime = model.resolve(search=True, judge=True, measure=True), model.runtime
    wanted = change.resolve(search, profile)
    index = indexed(profile, IndexConfig(), runtime)

    tried = measured(searches.trials(wanted), wanted.protocol, index, profile, runtime)
    chosen = tasks.benchmark.choose(tried, wanted)
    tested = measured(searches.tests(wanted, chosen), wanted.protocol, index, profile, runtime)
    found = tasks.benchmark.conclude(tried, tested, wanted, profile)
    publish.searched(found, wanted)
    return found
