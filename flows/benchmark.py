"""Flow `benchmark`: the paper's table, measured; every method on the same concepts, prompts and noise.

prefect deployment run benchmark/quick      # a look at whether all of it works
prefect deployment run benchmark/nightly    # on a schedule; each night trains anew, and is compared with the nights before
"""

from datetime import date
from typing import Any

from prefect import flow, unmapped
from prefect.task_runners import ThreadPoolTaskRunner

import tasks.benchmark
from customdiff_core.artifacts import Artifact
from customdiff_core.benchmark.cells import Cell, plan
from customdiff_core.benchmark.outcomes import Outcome
from customdiff_core.benchmark.protocol import Protocol
from customdiff_core.config import IndexConfig, Runtime
from customdiff_core.profiles import Profile
from customdiff_core.settings import Settings
from flows.build_index import indexed
from flows.options import BenchmarkOptions, ModelOptions
from tasks import publish

RUNNER: Any = ThreadPoolTaskRunner(max_workers=Settings().benchmark_workers)


@flow(name="benchmark", flow_run_name="benchmark-{protocol}", task_runner=RUNNER)
def benchmark(
    protocol: str = "openmoji-quick",
    night: date | None = None,
    change: BenchmarkOptions = BenchmarkOptions(),
    model: ModelOptions = ModelOptions(),
) -> Artifact:
    """Measure every row of the table for every concept, and say which of the paper's claims hold.

    Args:
        protocol: a file of data/protocols.
        night: whose training seeds; empty takes the date (UTC) at which the run was to start.
        change: what differs from the protocol.
        model: the base model.
    """
    profile, runtime = model.resolve(search=True, judge=True, measure=True), model.runtime
    chosen, when = change.resolve(protocol, profile), night or tasks.benchmark.scheduled_night()
    index = indexed(profile, IndexConfig(), runtime)

    outcomes = measured(plan(chosen, when), chosen, index, profile, runtime)
    tasks.benchmark.announce_incomplete(outcomes, chosen, when)
    before = tasks.benchmark.before(chosen, when, profile)
    table = tasks.benchmark.tabulate(outcomes, chosen, when, before, profile)
    tasks.benchmark.announce_outside(table, chosen, when)
    page = tasks.benchmark.report(table, chosen, profile)
    publish.benchmarked(table, page, chosen)
    tasks.benchmark.tidy(table, chosen)
    return table


def measured(
    cells: tuple[Cell, ...], protocol: Protocol, index: Artifact | None, profile: Profile, runtime: Runtime
) -> tuple[Outcome, ...]:
    """Every cell as a task behind the GPU slot; one that fails leaves the others standing."""
    futures = tasks.benchmark.measure.map(
        list(cells), unmapped(protocol), unmapped(index), unmapped(profile), unmapped(runtime)
    )
    return tuple(tasks.benchmark.outcome(cell, future) for cell, future in zip(cells, futures, strict=True))
