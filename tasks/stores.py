"""The artifact store as a run sees it: what it makes carries the run's name."""

from prefect.runtime import flow_run

from customdiff_core.artifacts import Store


def store() -> Store:
    """Return the store; its producer is "<flow run name> (<flow run id>)", or "library" outside a run."""
    return Store(producer=f"{flow_run.name} ({flow_run.id})") if flow_run.id else Store()
