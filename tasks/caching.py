"""How Prefect asks the artifact store whether a stage is done. The store decides; Prefect keeps no second cache."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext

from customdiff_core.artifacts import Artifact
from customdiff_core.errors import CustomDiffusionError
from customdiff_core.recipes import Recipe
from tasks.stores import store


@dataclass
class StoreCache(CachePolicy):
    """A task is cached when the store holds its recipe's artifact, verified.

    Args:
        recipe: the stage's recipe, called with the task's inputs that it names.
    """

    recipe: Callable[..., Recipe] | None = None

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        """Return a key under which a result record lies exactly when the store has the artifact.

        A whole artifact is recorded under a key of its own making, which dies with it. Otherwise the key is new, so that
        the task runs, whatever older records say.
        """
        try:
            found = self._find(inputs)
        except CustomDiffusionError:
            return None  # the task itself will say what is wrong, once
        if found is None:
            return f"{task_ctx.task.name}-{task_ctx.task_run.id}"
        key = f"{found.kind}-{found.key}-{found.sha256[:16]}"
        if not task_ctx.result_store.exists(key):
            task_ctx.result_store.write(found, key=key)
        return key

    def _find(self, inputs: dict[str, Any]) -> Artifact | None:
        assert self.recipe is not None
        wanted = self.recipe.__code__.co_varnames[: self.recipe.__code__.co_argcount]
        return store().find(self.recipe(**{name: inputs[name] for name in wanted if name in inputs}))


def retry_unexpected(task: Any, run: Any, state: Any) -> bool:
    """Retry what may pass, such as a lost connection; bad input stays bad."""
    del task, run
    return not isinstance(state.result(raise_on_failure=False), CustomDiffusionError)


def stage(recipe: Callable[..., Recipe]) -> dict[str, Any]:
    """The options that every stage's task shares."""
    return {
        "cache_policy": StoreCache(recipe=recipe),
        "persist_result": True,
        "result_serializer": "json",
        "retries": 1,
        "retry_delay_seconds": 2,
        "retry_condition_fn": retry_unexpected,
    }
