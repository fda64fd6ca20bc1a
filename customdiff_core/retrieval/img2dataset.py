"""img2dataset as a subprocess: the other fetcher, for sets so large that it may shard, resume and take hours.

It needs a main module and a process group of its own (it starts processes, and installs signal handlers), so that it can be
stopped whole. It guards nothing: no private address, no size; so what is no public-looking web link is taken out before,
and a machine that runs it on links of strangers should reach the internet and nothing else.
"""

import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from anyio.from_thread import start_blocking_portal

from customdiff_core import tables
from customdiff_core.config import FetchConfig, Runtime
from customdiff_core.errors import FetchError, ImageError, RetrievalError
from customdiff_core.progress import Progress
from customdiff_core.recipes import PACKAGE
from customdiff_core.retrieval.addresses import check_address, check_link
from customdiff_core.retrieval.decoder import Decoders
from customdiff_core.retrieval.download import AGENT
from customdiff_core.retrieval.fetch import Attempt, Link, Shelf, url_digest
from customdiff_core.settings import Settings

PROCESS = "customdiff_core.retrieval.img2dataset_process"
POLL_SECONDS = 0.5
STOP_SECONDS = 10.0
SHARD = 1000  # links: what a crash costs
FOLDER, LINKS = "img2dataset", "links.parquet"  # of a shelf


def fetch(
    links: Sequence[Link],
    shelf: Shelf,
    config: FetchConfig,
    runtime: Runtime,
    round_: int,
    side: int,
    progress: Progress,
) -> dict[int, str]:
    """Fetch links by img2dataset; arguments and result are those of `fetch.fetch`."""
    failed: dict[int, str] = {}
    todo: list[Link] = []
    for link in [one for one in links if one not in shelf]:
        try:
            if link.read is not None:
                raise FetchError("img2dataset: found an image beside the index, need a link; use the pool", "refused")
            allowed(link.url)
            todo.append(link)
        except FetchError as error:
            failed[link.item_id] = error.status
            shelf.log(Attempt(link.item_id, link.url, "", error.status, str(error), 0.0, round_, 0))
    if not todo:
        return failed
    # By what is in it, so that a run that was killed goes on after its last whole shard.
    folder = shelf.folder / FOLDER / url_digest("\n".join(link.url for link in todo))
    folder.mkdir(parents=True, exist_ok=True)
    tables.write(folder / LINKS, [{"url": link.url, "item_id": link.item_id} for link in todo])
    started = time.monotonic()
    download(
        folder / LINKS, folder / "shards", config, runtime, len(todo), progress,
        image_size=None, columns=["item_id"],
    )  # fmt: skip
    seconds = round((time.monotonic() - started) / len(todo), 3)
    answers = {int(row["item_id"]): row for row in _answers(folder / "shards")}
    with start_blocking_portal() as portal:
        failed |= portal.call(_keep, todo, answers, shelf, config, round_, side, seconds)
    shutil.rmtree(folder)
    return failed


async def _keep(
    links: Sequence[Link],
    answers: dict[int, dict[str, Any]],
    shelf: Shelf,
    config: FetchConfig,
    round_: int,
    side: int,
    seconds: float,
) -> dict[int, str]:
    """Decode what came, as carefully as what the pool fetches."""
    failed: dict[int, str] = {}
    async with Decoders(1, config.max_pixels, side) as decoders:
        for link in links:
            row = answers.get(link.item_id, {})
            status, error = "ok", ""
            try:
                if row.get("status") != "success":
                    raise FetchError(str(row.get("error_message") or "img2dataset: found no answer"), "dead")
                shelf.put(link, await decoders.decode(row["jpg"]), round_)
            except (FetchError, ImageError) as problem:
                status, error = getattr(problem, "status", "not_image"), str(problem)
                failed[link.item_id] = status
            shelf.log(Attempt(link.item_id, link.url, check_link(link.url), status, error, seconds, round_, 0))
    return failed


def download(
    links: Path,
    folder: Path,
    config: FetchConfig,
    runtime: Runtime,
    total: int,
    progress: Progress,
    *,
    image_size: int | None,
    columns: Sequence[str] = (),
    caption: bool = False,
    shard: int = SHARD,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run img2dataset to its end; run again after a crash, it goes on after the last whole shard.

    Args:
        links: a Parquet with the columns url and, if `caption`, caption.
        folder: gets NNNNN.parquet (jpg, url, caption, status ...) and NNNNN_stats.json.
        config: deadline, tries and opt-outs.
        runtime: threads.
        total: how many links, for progress.
        progress: told after every shard.
        image_size: shorter side to scale down to; None keeps the bytes.
        columns: further columns of `links` to keep.
        caption: whether there are captions.
        shard: links of one shard.
        between: called now and then while it works, and at its end; may take long.

    Returns:
        Its report, summed: count, successes, failed_to_download, failed_to_resize and the status_dict of its errors.

    Raises:
        RetrievalError: if it fails, with its last words.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scale = {"image_size": image_size, "resize_mode": "keep_ratio", "resize_only_if_bigger": True}
    options: dict[str, Any] = {
        "url_list": str(links),
        "output_folder": str(folder),
        "input_format": "parquet",
        "output_format": "parquet",
        "url_col": "url",
        "caption_col": "caption" if caption else None,
        "save_additional_columns": list(columns) or None,
        "thread_count": runtime.connections,
        "processes_count": 1,
        "timeout": max(1, round(config.deadline_s)),
        "retries": config.retries,
        "number_sample_per_shard": shard,
        "max_image_area": config.max_pixels,
        "user_agent_token": AGENT,
        "disallowed_header_directives": ["noai", "noimageai", "noindex", "noimageindex"] if config.opt_out else [],
        "extract_exif": False,
        **({"disable_all_reencoding": True} if image_size is None else scale),
    }
    log = folder.parent / "img2dataset.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", PROCESS, json.dumps(options)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONPATH": str(PACKAGE.parent)},
        )
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
                progress(_done(folder), total, "links tried by img2dataset")
                between()
        finally:
            _stop(process)
    if process.returncode != 0:
        words = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing"]
        raise RetrievalError(
            f"img2dataset: found exit status {process.returncode} ({words[0][:200]}), need 0; read {log}"
        )
    between()
    return report(folder)


def report(folder: Path) -> dict[str, Any]:
    """Sum the reports of all shards."""
    found = [one for _, one in _reports(folder)]
    errors: dict[str, int] = {}
    for one in found:
        for message, number in one["status_dict"].items():
            errors[message] = errors.get(message, 0) + number
    counts = ("count", "successes", "failed_to_download", "failed_to_resize")
    return {name: sum(one[name] for one in found) for name in counts} | {"status_dict": errors}


def allowed(url: str) -> None:
    """Check a link as far as it can be without resolving its host.

    Raises:
        FetchError: if it is no web link, or names a private address.
    """
    host = check_link(url).rstrip(".")
    loopback = Settings().allow_loopback
    if (host == "localhost" or host.endswith(".localhost")) and not loopback:
        raise FetchError("link: found localhost, need a public host", "refused")
    with suppress(OSError):  # 127.1, 2130706433 and 0x7f.1 are addresses, too
        host = socket.inet_ntoa(socket.inet_aton(host))
    with suppress(ValueError):  # a name: img2dataset will look it up
        check_address(str(ipaddress.ip_address(host)), allow_loopback=loopback)


def _answers(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pd.read_parquet(path).to_dict("records")]


def finished(folder: Path) -> list[Path]:
    """The shards that are whole: img2dataset writes their report last."""
    return [folder / f"{path.name.removesuffix('_stats.json')}.parquet" for path, _ in _reports(folder)]


def _reports(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.glob("*_stats.json")):
        with suppress(ValueError):  # it is being written
            yield path, json.loads(path.read_text())


def _done(folder: Path) -> int:
    return sum(one["count"] for _, one in _reports(folder))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole group, whatever of it is left."""
    for number, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return
