import itertools
from pathlib import Path

import torch

from customdiff_core import delta as deltas
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.delta import Delta
from customdiff_core.lineage import Lineage, Taught
from customdiff_core.merging.join import join
from customdiff_core.profiles import Profile
from customdiff_core.recipes import Recipe
from customdiff_core.weights import model_digest

NAMES = ("ant", "bee", "cow")


def inversion(store: Store, base: str, number: int) -> Artifact:
    """A delta of one token, whose row is its number all along."""
    name = NAMES[number]
    lineage = Lineage(base_digest=base, concepts=(Taught(name=name, modifier_token=f"<{name}>"),))
    delta = Delta({}, {f"<{name}>": {"text_encoder": torch.full((192,), float(number))}}, lineage)

    def produce(folder: Path) -> int:
        deltas.save(folder / deltas.FILE, delta)
        return 1

    recipe = Recipe(kind="delta", inputs={}, config={"n": number}, code="0", versions={}, labels={"concept": name})
    return store.make(recipe, produce)


def test_joined_tokens_keep_their_rows_and_make_one_file_in_whatever_order_they_are_named(
    openmoji: Profile, tmp_path: Path
):
    """In a store each, so that none takes what another order made."""
    base, made = model_digest(openmoji.model), set[str]()
    for order in itertools.permutations(range(3)):
        store = Store(tmp_path / "".join(map(str, order)))
        parts = [inversion(store, base, number) for number in order]
        joined = join(tuple(parts), openmoji, store=store)
        made.add(joined.sha256)
    assert len(made) == 1
    delta = deltas.load(store.path(joined) / deltas.FILE)
    assert {token: set(rows["text_encoder"].tolist()) for token, rows in delta.tokens.items()} == {
        "<ant>": {0.0},
        "<bee>": {1.0},
        "<cow>": {2.0},
    }
    assert {(one.name, one.modifier_token) for one in delta.lineage.concepts} == {(name, f"<{name}>") for name in NAMES}
    assert delta.lineage.inputs == {
        f"delta/{number}": sha256 for number, sha256 in enumerate(sorted(part.sha256 for part in parts), 1)
    }
