"""Read what an index is built from: Parquets of links, shards of img2dataset, folders of images and captions."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from customdiff_core import images
from customdiff_core.errors import FetchError, ImageError, RetrievalError
from customdiff_core.retrieval.img2dataset import allowed
from customdiff_core.retrieval.metadata import columns_of, plain

ROW_GROUP = 1024  # rows that are read for one of them
KEPT = ("caption", "url", "nsfw", "watermark")

Row = dict[str, Any]


def prepare_links(source: Path, folder: Path) -> tuple[int, int]:
    """Write url, caption and scores under their own names, without what is no web link; return how many, and how many not."""
    folder.mkdir(exist_ok=True)
    parts = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if not parts:
        raise RetrievalError(f"{source}: found no *.parquet, need links and captions; correct the path")
    first = _columns(parts[0])
    for part in parts[1:]:
        if odd := sorted(set(_columns(part)) ^ set(first)):
            raise RetrievalError(
                f"{part}: found {'no' if odd[0] in first else 'a'} column for {odd[0]}, unlike in {parts[0].name}, need the "
                "same in all parts; add it, empty where it is not known, or leave it out of all"
            )
    counts = [0, 0]
    for number, part in enumerate(parts):
        path = folder / f"{number:05d}.parquet"
        if not path.exists():
            _write_links(part, path)
        metadata = pq.read_metadata(path)
        counts[0] += metadata.num_rows
        counts[1] += int(metadata.metadata[b"refused"])
    if not counts[0]:
        raise RetrievalError(
            f"{source}: found no link of the web among {counts[1]}, need http or https; correct the column url"
        )
    return counts[0], counts[1]


def _columns(part: Path) -> dict[str, str]:
    """The columns that are kept, by their own names."""
    try:
        names = pq.read_schema(part).names
    except (pa.ArrowException, OSError) as error:
        raise RetrievalError(f"{part}: found no Parquet file ({error}), need a whole one; copy it again") from error
    return {name: theirs for name, theirs in columns_of(names).items() if name in KEPT}


def _write_links(part: Path, path: Path) -> None:
    columns = _columns(part)
    if missing := {"caption", "url"} - set(columns):
        raise RetrievalError(f"{part}: found no column {missing.pop()}, need url and caption; rename its columns")
    kept = list(columns)
    tables: list[Any] = []
    refused = 0
    with pq.ParquetFile(part, memory_map=True) as file:
        for batch in file.iter_batches(65_536, columns=[columns[name] for name in kept]):
            rows = plain(batch.to_pandas(), columns)[kept]
            good = rows[[bool(row[0]) and _allowed(row[1]) for row in zip(rows["caption"], rows["url"], strict=True)]]
            refused += len(rows) - len(good)
            tables.append(pa.Table.from_pandas(good, preserve_index=False))
    table = pa.concat_tables(tables, promote_options="permissive").replace_schema_metadata({"refused": str(refused)})
    pq.write_table(table, path.with_suffix(".tmp"), compression="zstd", row_group_size=ROW_GROUP)
    path.with_suffix(".tmp").rename(path)


def _allowed(url: str) -> bool:
    try:
        allowed(url)
    except FetchError:
        return False
    return True


def rows_of(part: Path) -> Iterator[Row]:
    """Yield the rows of a prepared Parquet, never all at once."""
    with pq.ParquetFile(part) as file:
        for batch in file.iter_batches(ROW_GROUP):
            yield from batch.to_pylist()


def downloaded(shard: Path) -> tuple[list[Row], list[bytes]]:
    """The rows of a shard that have a picture which decodes, and the pictures."""
    table = pd.read_parquet(shard)
    good: list[Row] = []
    pictures: list[bytes] = []
    for row in table.query("status == 'success'").to_dict("records"):
        try:
            images.decode(row["jpg"], "downloaded")
        except ImageError:
            continue
        good.append({name: row[name] for name in KEPT if name in row})
        pictures.append(row["jpg"])
    return good, pictures


def read_pairs(paths: Sequence[Path], source: Path, work: Path, damaged: list[str]) -> tuple[list[Row], list[bytes]]:
    """Read images and their captions and give the images a second name beside the index; damaged ones are named."""
    rows: list[Row] = []
    pictures: list[bytes] = []
    for path in paths:
        try:
            data = images.read_picture(path, source)
            images.decode(data, path.name)
        except ImageError as error:
            damaged.append(str(error))
            continue
        name = Path("images") / path.relative_to(source)
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        link(path, work / name)
        caption = " ".join(path.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").split())
        rows.append({"caption": caption, "url": "", "image_path": name.as_posix()})
        pictures.append(data)
    return rows, pictures


def link(path: Path, to: Path) -> None:
    """Give a file a second name, or copy it where disks differ."""
    if to.exists():
        return
    try:
        os.link(path.resolve(), to)
    except OSError:
        temporary = to.with_name(f".{to.name}.tmp")  # a copy that a crash cut off must not be taken for whole
        shutil.copy(path, temporary)
        temporary.rename(to)
