"""Retrieval as a person runs it: an index of one's own from links, and a backend that dies in the middle."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import faiss
import pandas as pd
import psutil
import pytest

from customdiff_core import profiles, tables
from customdiff_core.config import FetchConfig, Runtime
from customdiff_core.progress import silent
from customdiff_core.retrieval import img2dataset
from customdiff_core.retrieval.encoder import Encoder
from customdiff_core.retrieval.fetch import Link, Shelf
from deployments.backend import running
from deployments.web import Web, serving

from .conftest import PATIENCE, REPOSITORY, Stack, until

pytestmark = pytest.mark.e2e
LINKS = 1000
WORDS = (
    "a cat",
    "photo of a cat",
    "a smiling cat",
    "a dog",
    "a rocket",
    "a pizza",
    "a house",
    "a bear",
    "two cats",
    "a car",
)
QUICK = {"deadline_s": 20, "silence_s": 5, "retries": 0}


@pytest.fixture(scope="module")
def web() -> Iterator[tuple[str, Web]]:
    with serving() as (address, one):
        yield address, one


def write_links(path: Path, base: str, count: int) -> Path:
    """Captioned links of which every tenth is dead."""
    rows = range(count)
    urls = [f"{base}/{'dead' if number % 10 == 7 else 'ok'}/{number}.jpg" for number in rows]
    captions = [f"{WORDS[number % len(WORDS)]} number {number // len(WORDS)}" for number in rows]
    pd.DataFrame({"url": urls, "caption": captions}).to_parquet(path)
    return path


def test_a_thousand_links_become_two_hundred_images(stack: Stack, web: tuple[str, Web], tmp_path: Path) -> None:
    """The commands of docs/bring-your-own-laion.md."""
    links, out = write_links(tmp_path / "links.parquet", web[0], LINKS), tmp_path / "index"
    built = stack.command(
        "prefect", "deployment", "run", "build-own-index/folder", "--watch",
        f"--param=source={links}", f"--param=out={out}", '--param=build={"kind": "urls", "shard": 200}',
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    assert len(list((out / "metadata").iterdir())) == 5
    retrieved = stack.command(
        "prefect", "deployment", "run", "retrieve/stage", "--watch",
        f'--param=model={{"index": "{out}"}}',
    )  # fmt: skip
    assert retrieved.returncode == 0, retrieved.stdout + retrieved.stderr

    made = stack.store.newest("regularization", concept="cat")
    table = tables.read(stack.store, made, "regularization")
    assert len(table) == 200
    assert table["caption"].str.contains("cat").all()
    assert table["source_sha256"].is_unique
    assert not table["url"].str.contains("/dead/").any()
    newest = stack.newest_run()
    page = stack.artifacts(newest["id"])["cat-retrieve"]
    assert "| Hits | Unique | Tried | Alive | Valid | Kept |" in page
    assert "127\\.0\\.0\\.1" in page


def test_a_backend_killed_in_the_middle_is_a_clear_failure_and_a_retry_goes_on(
    stack: Stack, web: tuple[str, Web], tmp_path: Path
) -> None:
    """It dies after the first search; most links are dead, so that a second one is needed."""
    base, served = web
    index = _half_dead_index(tmp_path / "index", base)
    retrieval = {"count": 40, "fetch": QUICK | {"survival": 0.9}}
    with running(index, tmp_path / "back") as (url, process):
        served.latency = 1.5  # while the first round waits for its links
        run = stack.start("retrieve/stage", retrieve=retrieval | {"deepest": 800}, model={"backend": url})
        until(lambda: any(path.startswith("/half") for path in list(served.asked)), "the first link")
        os.killpg(process.pid, signal.SIGKILL)
        failed = stack.wait(run)
        served.latency = 0.0
    assert failed["state_type"] == "FAILED"
    stack.assert_said(run, f"backend {url}: found no answer")
    stack.assert_said(run, "what was fetched is kept")
    fetched = {path for path in served.asked if path.startswith("/half-ok")}
    assert fetched
    with running(index, tmp_path / "again", port=url.rsplit(":", 1)[1]):
        retried = stack.command("prefect", "flow-run", "retry", run)
        assert retried.returncode == 0, retried.stdout + retried.stderr
        stack.wait(run, {"RUNNING", "COMPLETED"})
        assert stack.wait(run)["state_type"] == "COMPLETED"
    assert {served.asked[path] for path in fetched} == {1}


def test_img2dataset_is_the_other_fetcher(
    web: tuple[str, Web], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUSTOMDIFF_ALLOW_LOOPBACK", "true")
    base, _ = web
    paths = ["/ok/1.jpg", "/dead/2.jpg", "/noai/3.jpg", "/html/4.jpg", "/bomb/5.jpg"]
    links = [Link(number, base + path) for number, path in enumerate(paths)]
    links.append(Link(5, "http://10.0.0.1/6.jpg"))
    shelf = Shelf(tmp_path)
    config = FetchConfig(fetcher="img2dataset", deadline_s=10, retries=0)
    failed = img2dataset.fetch(links, shelf, config, Runtime(), 0, 64, silent)
    assert failed == {1: "dead", 2: "dead", 3: "not_image", 4: "bomb", 5: "refused"}
    assert (shelf.picture(links[0]).width, len(shelf.notes)) == (64, 1)
    errors = {one.item_id: one.error for one in shelf.attempts()}
    assert errors[1] == "HTTP Error 404: Not Found"
    assert "X-Robots-Tag" in errors[2]
    assert "need a public one" in errors[5]
    assert not [command for command in _commands() if "img2dataset" in command]


def test_a_killed_build_goes_on_after_its_last_whole_shard(
    web: tuple[str, Web], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with no chance to clean up: its downloads end with it, and what it embedded is not made again."""
    monkeypatch.setenv("CUSTOMDIFF_ALLOW_LOOPBACK", "true")
    base, served = web
    links, out = write_links(tmp_path / "links.parquet", base, 300), tmp_path / "index"
    program = (
        "import sys; from pathlib import Path; from customdiff_core import profiles\n"
        "from customdiff_core.config import BuildConfig\n"
        "from customdiff_core.retrieval.building import build_folder\n"
        "if __name__ == '__main__': build_folder(Path(sys.argv[1]), Path(sys.argv[2]), BuildConfig(kind='urls', shard=50),"
        " profiles.get('openmoji').retrieval_encoder)"
    )
    served.latency = 0.8
    process = subprocess.Popen([sys.executable, "-c", program, str(links), str(out)], cwd=REPOSITORY)
    metadata = tmp_path / "index.building" / "metadata"
    until(lambda: metadata.exists() and len(list(metadata.glob("*.parquet"))) >= 2, "two whole shards")
    downloads = [one for one in psutil.Process(process.pid).children(recursive=True) if one.is_running()]
    process.kill()
    process.wait()
    served.latency = 0.0
    until(lambda: not any(_alive(one) for one in downloads), "the downloads' end")
    before = {path.name: path.stat().st_mtime_ns for path in metadata.glob("*.parquet")}
    assert 2 <= len(before) < 6
    subprocess.run([sys.executable, "-c", program, str(links), str(out)], cwd=REPOSITORY, check=True, timeout=PATIENCE)
    after = {path.name: path.stat().st_mtime_ns for path in (out / "metadata").glob("*.parquet")}
    assert before.items() <= after.items()
    assert len(after) == 6
    assert json.loads((out / "report.json").read_text())["rows"] == 270


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _half_dead_index(folder: Path, base: str) -> Path:
    folder.mkdir()
    words = [f"photo of a cat number {number}" for number in range(1500)]
    vectors = Encoder(profiles.get("openmoji").retrieval_encoder, "cpu").texts(words)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(folder / "text.index"))
    (folder / "metadata").mkdir()
    urls = [f"{base}/{'half-ok' if number % 10 == 0 else 'half-dead'}/{number}.jpg" for number in range(1500)]
    pd.DataFrame({"caption": words, "url": urls}).to_parquet(folder / "metadata" / "metadata_0000.parquet")
    return folder


def _commands() -> list[str]:
    """The command lines of the processes that this one started and that still run."""
    found: list[str] = []
    for process in psutil.Process().children(recursive=True):
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:  # ended, or ended and not yet waited for
            continue
    return found
