"""Old nights: their scores stay, their trainings and images go."""

from datetime import timedelta

from customdiff_core.artifacts import Store
from customdiff_core.benchmark.keep import tidy

from .conftest import NIGHT, PROTOCOL, Night, read

KEEPING = PROTOCOL.model_copy(update={"keep_nights": 1})


def trainings(store: Store) -> set[str]:
    return {one.artifact.key for one in store.manifests("delta")}


def test_the_trainings_of_a_night_long_past_go_and_what_a_newer_one_uses_stays(store: Store, night: Night) -> None:
    first = night()
    assert tidy(first, KEEPING, store=store) == []
    old = trainings(store)
    second = night(NIGHT + timedelta(days=1))
    new = trainings(store) - old
    assert old
    assert new
    assert tidy(second, PROTOCOL, store=store) == []  # keeps three
    gone = tidy(second, KEEPING, store=store)
    assert {one.key for one in gone} == old  # and no image: here, both nights have the same
    assert trainings(store) == new
    assert not any(store.path(one).exists() for one in gone)
    cells = read(store, second, "benchmark")["cell"]
    assert all(not store.problems(store.root / "cell" / cell) for cell in cells)
    assert night(NIGHT + timedelta(days=1)) == second
    assert tidy(second, KEEPING, store=store) == []
