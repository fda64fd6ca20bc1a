"""The GPU slot: one heavy computation at a time, however many runs there are."""

from collections.abc import Generator
from contextlib import contextmanager

from prefect.concurrency.sync import concurrency

GPU = "gpu"
LEASE_SECONDS = 60  # after which the slot of a killed holder is free again


@contextmanager
def gpu_slot() -> Generator[None]:
    """Hold the machine's GPU (or, without one, its cores); `make up` creates the limit."""
    with concurrency(
        GPU,
        occupy=1,
        lease_duration=LEASE_SECONDS,
        strict=True,
        # A computer that slept, or a server that was silent, ends no training of hours; until it ends, where a worker takes
        # several runs, another may then begin beside it.
        raise_on_lease_renewal_failure=False,
    ):
        yield
