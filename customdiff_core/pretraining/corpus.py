"""Scenes: the pictures and captions that everything is trained on, in families that differ in one thing that captions say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from customdiff_core.artifacts import Artifact, Store
from customdiff_core.pretraining import stages
from customdiff_core.pretraining.config import WorldConfig
from customdiff_core.progress import Progress, silent
from customdiff_core.seeding import numpy_rng
from customdiff_core.settings import Settings
from customdiff_core.tables import Row
from customdiff_core.world.drawings import Drawing, load_drawings
from customdiff_core.world.odds import Odds
from customdiff_core.world.scenes import Deck, Scene, elsewhere, relatives, render_scene, sample_scenes

FAMILY = 8  # rows: a scene and seven relatives
CAPTIONS = ("caption", "short_caption", "uncoloured_caption", "shortest_caption")


@dataclass(frozen=True)
class Corpus:
    """Captioned scenes: `pictures` (N, size, size, 3) uint8, mapped from disk; each FAMILY rows are relatives.

    `short_captions` name the things and their colours alone; both are there without the things' colours too. `categories` and
    `colours` are what is in them, and `identities` what is the same where a thing is drawn again. A family has
    `family` rows: FAMILY, or twice as many where the pictures' twins follow in the same order.
    """

    pictures: NDArray[np.uint8]
    captions: list[str]
    short_captions: list[str]
    uncoloured_captions: list[str]
    shortest_captions: list[str]
    categories: list[tuple[str, ...]]
    colours: list[tuple[str, ...]]
    identities: list[tuple[str, ...]]
    family: int = FAMILY

    def __deepcopy__(self, memo: object) -> "Corpus":
        """Itself: the average of the weights looks at the same scenes."""
        return self


def scenes(config: WorldConfig, *, store: Store, progress: Progress = silent) -> Artifact:
    """Draw the scenes to train on, and those that are only ever measured on.

    Returns:
        A `scenes` artifact: training.npy and held_out.npy with training.parquet and held_out.parquet (columns
        caption, short_caption, uncoloured_caption, shortest_caption, categories, colours, identities, family).
    """

    def produce(folder: Path) -> int:
        drawings = load_drawings(Settings().data / "world" / "drawings.csv")
        training = families(drawings, config.scenes, config.seed, "training", config.boost, config.odds, config.twins)
        held_out = families(drawings, config.held_out, config.seed, "held_out")
        for split, drawn in (("training", training), ("held_out", held_out)):
            _write(folder, split, drawn, config.size, progress)
        return sum(map(len, training))

    return store.make(stages.scenes(config), produce)


def load(store: Store, artifact: Artifact, split: str) -> Corpus:
    """Open the "training" or the "held_out" scenes."""
    folder = store.path(artifact)
    said = pd.read_parquet(folder / f"{split}.parquet")
    pictures = np.load(folder / f"{split}.npy", mmap_mode="r")
    things = [[tuple(row) for row in said[name]] for name in ("categories", "colours", "identities")]
    family = int((said["family"] == 0).sum())
    return Corpus(pictures, *(said[name].tolist() for name in CAPTIONS), *things, family=family)


def families(
    drawings: Sequence[Drawing],
    count: int,
    seed: int,
    purpose: str,
    boost: Mapping[str, float] = MappingProxyType({}),
    odds: Odds = Odds(),
    twins: bool = False,
) -> list[list[Scene]]:
    """Sample `count` scenes, each FAMILY of them one and its relatives; with `twins` a family has as many twins behind them."""
    rng, deck = numpy_rng("relatives", purpose, seed), Deck(drawings, boost, odds=odds)
    firsts = sample_scenes(drawings, count // FAMILY, seed, purpose=purpose, boost=boost, odds=odds)
    made: list[list[Scene]] = []
    for first in firsts:
        family = [first, *relatives(first, deck, rng)]
        made.append(family + [elsewhere(one, deck, rng) for one in family if twins])
    return made


def _write(folder: Path, split: str, families: Sequence[Sequence[Scene]], size: int, progress: Progress) -> None:
    drawn = [scene for family in families for scene in family]
    shape = (len(drawn), size, size, 3)
    pictures = np.lib.format.open_memmap(folder / f"{split}.npy", "w+", dtype=np.uint8, shape=shape)
    for row, scene in enumerate(drawn):
        pictures[row] = np.asarray(render_scene(scene, size))
        if row % 1000 == 999:
            progress(row + 1, len(drawn), f"{split} scenes")
    pictures.flush()
    said = [{**_told(scene), "family": number} for number, family in enumerate(families) for scene in family]
    pd.DataFrame(said).to_parquet(folder / f"{split}.parquet", index=False)


def _told(scene: Scene) -> Row:
    """All that is known of a picture in words."""
    return {
        **{name: getattr(scene, name) for name in CAPTIONS},
        "categories": [thing.drawing.category for thing in scene.things],
        "colours": [] if scene.black_and_white else [colour for thing in scene.things for colour in thing.paint],
        "identities": list(scene.identities),
    }
