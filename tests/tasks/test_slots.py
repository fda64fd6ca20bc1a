import importlib
import inspect
import pkgutil
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import MagicMock

import pytest
from prefect import Task

import tasks
from customdiff_core.config import RetrieveConfig
from tasks import slots

# By task: what of the core it runs, and whether that computes for so long that two at a time would be in each other's way.
RUNS: dict[str, tuple[str, bool]] = {
    "augment.augment": ("augmentation.augment", True),
    "benchmark.conclude": ("benchmark.conclude.conclude", False),
    "benchmark.measure": ("benchmark.measure.measure", True),
    "benchmark.report": ("benchmark.report.report", False),
    "benchmark.tabulate": ("benchmark.tabulate.tabulate", False),
    "evaluate.evaluate": ("evaluation.evaluate.evaluate", True),
    "evaluate.evaluate_together": ("evaluation.together.evaluate_together", True),
    "finetune.finetune": ("finetuning.finetune.finetune", True),
    "generate.generate": ("sampling.generate", True),
    "merge.import_delta": ("interop.importing.import_delta", False),
    "merge.merge": ("merging.merge.merge", False),
    "pretrain.adopt": ("pretraining.assemble.adopt", False),
    "pretrain.assemble": ("pretraining.assemble.assemble", False),
    "pretrain.clip": ("pretraining.clip.clip", True),
    "pretrain.dino": ("pretraining.dino.dino", True),
    "pretrain.features": ("pretraining.encoded.features", True),
    "pretrain.latents": ("pretraining.encoded.latents", True),
    "pretrain.scenes": ("pretraining.corpus.scenes", False),
    "pretrain.tokenizer": ("pretraining.tokenizer.tokenizer", False),
    "pretrain.unet": ("pretraining.unet.unet", True),
    "pretrain.vae": ("pretraining.vae.vae", True),
    "pretrain.validate": ("pretraining.validation.validate", True),
    "report.report": ("evaluation.report.report", False),
    "report.report_together": ("evaluation.report_together.report_together", False),
    "retrieve.build_folder": ("retrieval.building.build_folder", True),
    "retrieve.build_index": ("retrieval.retrieve.build_index", True),
    "retrieve.retrieve": ("retrieval.retrieve.retrieve", False),
}


def run(monkeypatch: pytest.MonkeyPatch, task: str, **stated: Any) -> list[bool]:
    """Run a task's function with nothing behind it; return whether the slot was held, at each call of the core."""
    module, _, name = task.partition(".")
    here = importlib.import_module(f"tasks.{module}")
    where, _, function = f"customdiff_core.{RUNS[task][0]}".rpartition(".")
    held, found = [False], list[bool]()

    @contextmanager
    def slot() -> Generator[None]:
        held[0] = True
        yield
        held[0] = False

    nothing = {"progress": lambda *_: nullcontext(), "store": MagicMock(), "named": lambda *_: "concept"}
    for what, instead in {"gpu_slot": slot, **nothing}.items():
        monkeypatch.setattr(here, what, instead, raising=False)
    monkeypatch.setattr(importlib.import_module(where), function, lambda *_, **__: found.append(held[0]))
    asked = getattr(here, name).fn
    asked(**{parameter: MagicMock() for parameter in inspect.signature(asked).parameters} | stated)
    return found


@pytest.mark.parametrize("task", RUNS)
def test_what_computes_for_long_holds_the_slot_and_nothing_else_waits_for_it(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, task) == [RUNS[task][1]]


def test_retrieving_holds_the_slot_where_the_base_model_draws_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for regularization in ("retrieved", "generated"):
        config = RetrieveConfig(regularization=regularization)
        assert run(monkeypatch, "retrieve.retrieve", config=config) == [regularization == "generated"]


def test_of_every_task_it_is_said_whether_it_holds_the_slot() -> None:
    modules = [importlib.import_module(f"tasks.{one.name}") for one in pkgutil.iter_modules(tasks.__path__)]
    found = {
        f"{module.__name__.removeprefix('tasks.')}.{name}"
        for module in modules
        for name, one in inspect.getmembers(module)
        if isinstance(one, Task) and one.fn.__module__ == module.__name__
    }
    assert found == RUNS.keys()


def test_the_slot_must_exist_but_a_lost_lease_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = []

    @contextmanager
    def concurrency(name: str, **stated: Any) -> Generator[None]:
        asked.append((name, stated))
        yield

    monkeypatch.setattr(slots, "concurrency", concurrency)
    with slots.gpu_slot():
        assert len(asked) == 1
    name, stated = asked[0]
    assert (name, stated["occupy"], stated["strict"]) == ("gpu", 1, True)
    assert stated["raise_on_lease_renewal_failure"] is False
