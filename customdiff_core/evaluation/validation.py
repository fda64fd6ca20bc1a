"""Held-out images of the concept's category, with captions: what KID compares the customized model's pictures with."""

from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from customdiff_core import images, stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.errors import EvaluationError
from customdiff_core.profiles import Profile
from customdiff_core.settings import Settings
from customdiff_core.world.drawings import load_drawings
from customdiff_core.world.scenes import render_scene, sample_category_scenes

BATCH = 64
COLUMNS = {
    "caption": ("text", (pa.types.is_string, pa.types.is_large_string)),
    "image": ("the bytes of a picture's file", (pa.types.is_binary, pa.types.is_large_binary)),
}


def validation(concept: Concept, profile: Profile, count: int, *, store: Store) -> Artifact:
    """Collect `count` held-out captioned images of the category.

    The embedded world draws scenes from a random stream of its own, which neither pretraining nor the index uses. Pictures of
    a file are brought to the side that generated ones have, their middle square: KID compares like with like, and a photograph
    of 12 megapixels would bring a sharpness that no generated picture has, and 36 MB.

    Returns:
        A `validation` artifact: validation.parquet with caption and image.

    Raises:
        EvaluationError: if the profile has none, or too few.
    """

    def produce(folder: Path) -> int:
        source = profile.corpus.held_out(concept.category)
        rows = (
            _read(source, count, profile.augment.resolution)
            if source or profile.corpus.kind == "folder"
            else _draw(concept, profile, count)
        )
        return tables.write(folder / "validation.parquet", rows)

    return store.make(stages.validation(concept, profile, count), produce)


def _draw(concept: Concept, profile: Profile, count: int) -> list[tables.Row]:
    drawings = load_drawings(Settings().data / "world" / "drawings.csv")
    scenes = sample_category_scenes(drawings, concept.category, count, 0, purpose="validation")
    side = profile.augment.resolution
    return [{"caption": scene.caption, "image": images.encode(render_scene(scene, side))} for scene in scenes]


def _read(source: Path | None, count: int, side: int) -> list[tables.Row]:
    if source is None or not source.is_file():
        raise EvaluationError(
            f"validation images: found {source or 'none'}, need a Parquet of {count} held-out images of the category with the "
            "columns caption and image (bytes); give its path as model.validation"
        )
    try:
        with pq.ParquetFile(source) as file:
            _check(file, source, count)
            batches = file.iter_batches(batch_size=BATCH, columns=list(COLUMNS))
            rows = islice((row for batch in batches for row in batch.to_pylist()), count)
            return [_row(row, f"{source} row {number}", side) for number, row in enumerate(rows)]
    except (pa.ArrowException, OSError) as error:
        raise EvaluationError(
            f"{source}: found no readable Parquet ({error}), need one with the columns caption and image; write it again"
        ) from error


def _row(row: dict[str, Any], name: str, side: int) -> tables.Row:
    if empty := [column for column in COLUMNS if not row[column]]:
        raise EvaluationError(f"{name}: found no {empty[0]}, need a caption and an image in each; leave the row out")
    picture = images.center_crop(images.decode(row["image"], name))
    return {
        "caption": row["caption"],
        "image": images.encode(picture.resize((side, side), Image.Resampling.LANCZOS)),
    }


def _check(file: pq.ParquetFile, source: Path, count: int) -> None:
    for name, (what, fits) in COLUMNS.items():
        if name not in file.schema_arrow.names:
            raise EvaluationError(f"{source}: found no column {name}, need caption and image; add it")
        kind = file.schema_arrow.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(fit(kind) for fit in fits):
            raise EvaluationError(
                f"{source}: found the column {name} of {kind}, need {what}; of a struct, write its field alone"
            )
    if file.metadata.num_rows < count:
        raise EvaluationError(
            f"{source}: found {file.metadata.num_rows} images, need {count}; add some or lower kid_images"
        )
