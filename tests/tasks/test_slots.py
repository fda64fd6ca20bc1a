from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest

from tasks import slots


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
