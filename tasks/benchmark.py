"""Tasks of the benchmark and of searches: a cell each, the night's table, its page; and which night a run belongs to."""

from datetime import UTC, date, datetime
from typing import Any

from prefect import task
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run

from customdiff_core import stages
from customdiff_core.artifacts import Artifact
from customdiff_core.benchmark.cells import Cell
from customdiff_core.benchmark.outcomes import Outcome
from customdiff_core.benchmark.protocol import Protocol
from customdiff_core.benchmark.search import Search
from customdiff_core.config import Runtime
from customdiff_core.profiles import Profile
from tasks.caching import stage
from tasks.publish import progress
from tasks.slots import gpu_slot
from tasks.stores import store

OUTSIDE, INCOMPLETE = "customdiff.benchmark.outside", "customdiff.benchmark.incomplete"


@task(name="measure", task_run_name="{cell.name}", **stage(stages.cell))
def measure(cell: Cell, protocol: Protocol, index: Artifact | None, profile: Profile, runtime: Runtime) -> Artifact:
    """Train and measure one cell, while holding the GPU slot; what other cells or nights made is taken from the store."""
    from customdiff_core.benchmark.measure import measure as run

    with gpu_slot(), progress("benchmark-cell", cell.name) as tell:
        return run(cell, protocol, index, profile, store=store(), runtime=runtime, tell=lambda name: tell)


@task(name="tabulate", **stage(stages.benchmark))
def tabulate(
    outcomes: tuple[Outcome, ...], protocol: Protocol, night: date, before: tuple[Artifact, ...], profile: Profile
) -> Artifact:
    """Write the night's table, with all nights before."""
    from customdiff_core.benchmark.tabulate import tabulate as run

    return run(outcomes, protocol, night, before, profile, store=store())


@task(name="report-benchmark", **stage(stages.report_benchmark))
def report(benchmark: Artifact, protocol: Protocol, profile: Profile) -> Artifact:
    """Write the night's page."""
    from customdiff_core.benchmark.report import report as run

    return run(benchmark, protocol, profile, store=store())


def choose(tried: tuple[Outcome, ...], search: Search) -> dict[str, Any]:
    """The settings that did best."""
    from customdiff_core.benchmark.conclude import choose as run

    return run(tried, search, store())


@task(name="conclude", **stage(stages.search))
def conclude(tried: tuple[Outcome, ...], tested: tuple[Outcome, ...], search: Search, profile: Profile) -> Artifact:
    """Write down what the search found."""
    from customdiff_core.benchmark.conclude import conclude as run

    return run(tried, tested, search, profile, store=store())


def outcome(cell: Cell, future: PrefectFuture[Artifact]) -> Outcome:
    """Wait for a cell; one that failed says why, and leaves the others standing."""
    future.wait()
    if future.state.is_completed():
        return Outcome(cell=cell, made=future.result())
    error = future.state.result(raise_on_failure=False)
    said = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(future.state.message)
    return Outcome(cell=cell, error=said)


def scheduled_night() -> date:
    """The UTC date at which this run was first to start: the same when it is retried, however late it is."""
    if not flow_run.id:
        return datetime.now(UTC).date()
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(flow_run.id)
    moments = [state.state_details.scheduled_time or state.timestamp for state in states]
    return min(moments, default=datetime.now(UTC)).astimezone(UTC).date()


def before(protocol: Protocol, night: date, profile: Profile) -> tuple[Artifact, ...]:
    """The benchmarks of the nights before."""
    from customdiff_core.benchmark.history import earlier

    return earlier(protocol, night, profile, store())


def tidy(benchmark: Artifact, protocol: Protocol) -> None:
    """Remove the trainings and images of nights that are long past."""
    from customdiff_core.benchmark.keep import tidy as run

    run(benchmark, protocol, store=store())


def announce_incomplete(outcomes: tuple[Outcome, ...], protocol: Protocol, night: date) -> None:
    """Fire a Prefect event when cells failed, before the table: of a night without a single cell there is none."""
    lost = [one for one in outcomes if not one.made]
    said = [f"{one.cell.row}, {'+'.join(one.cell.concepts)}, seed {one.cell.seed}: {one.error}" for one in lost]
    _announce(INCOMPLETE, said, protocol, night)


def announce_outside(benchmark: Artifact, protocol: Protocol, night: date) -> None:
    """Fire a Prefect event when a figure of the night lies outside its limits."""
    from customdiff_core.benchmark.drift import outside

    _announce(OUTSIDE, outside(benchmark, night, store()), protocol, night)


def _announce(event: str, what: list[str], protocol: Protocol, night: date) -> None:
    resource = {
        "prefect.resource.id": f"customdiff.benchmark.{protocol.name}",
        "prefect.resource.name": f"benchmark {protocol.name}",
    }
    run = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.role": "flow-run"}
    if what:
        emit_event(event, resource=resource, related=[run], payload={"night": night.isoformat(), "what": what})
