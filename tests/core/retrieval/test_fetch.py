"""Every bad thing that a link can be, against a real server on loopback."""

import asyncio
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from customdiff_core.config import FetchConfig, Runtime
from customdiff_core.progress import silent
from customdiff_core.retrieval.fetch import Link, Shelf, fetch
from deployments.web import picture, serving

QUICK = FetchConfig(deadline_s=120, silence_s=6, max_bytes=300_000, retries=1)


def links(base: str, *paths: str) -> list[Link]:
    return [Link(number, f"{base}{path}") for number, path in enumerate(paths)]


def run(
    base: str, folder: Path, *paths: str, config: FetchConfig = QUICK, **runtime: int
) -> tuple[Shelf, dict[int, str]]:
    shelf = Shelf(folder)
    return shelf, fetch(links(base, *paths), shelf, config, Runtime(**runtime), 0, 64, silent)


@pytest.mark.usefixtures("open_loopback")
def test_good_links_give_pictures_scaled_to_the_profile(tmp_path: Path):
    with serving() as (base, _):
        shelf, failed = run(base, tmp_path, "/ok/1.jpg", "/moved/2.jpg")
        found = [shelf.picture(link) for link in links(base, "/ok/1.jpg", "/moved/2.jpg")]
    assert failed == {}
    assert [(one.width, one.height) for one in found] == [(64, 64)] * 2
    assert Image.open(io.BytesIO(found[0].png)).format == "PNG"
    assert found[0].phash != found[1].phash


HOSTILE = {
    "/dead/0.jpg": ("dead", "answer: found status 404, need 200"),
    "/hang/0.jpg": ("timeout", "download: found silence for 6 s (ReadTimeout), need bytes"),
    "/endless/0.jpg": ("too_large", "answer: found more than 300,000 bytes, need at most that"),
    "/huge/0.jpg": ("too_large", "answer: found 1,000,000,000,000 bytes, need at most 300,000"),
    "/bomb/0.jpg": ("bomb", "picture: found a decompression bomb"),
    "/loop/0.jpg": ("redirects", "redirects: found more than 5, need fewer"),
    "/inside/0.jpg": ("refused", "address: found 169.254.169.254, need a public one"),
    "/file/0.jpg": ("refused", "link: found scheme 'file', need http or https"),
    "/html/0.jpg": ("not_image", "content: found b'<html><body>not ', need the beginning of a picture"),
    "/compressed/0.jpg": ("not_image", "answer: found it compressed, need it as it is"),
    "/noai/0.jpg": ("opted_out", "X-Robots-Tag: found that its owner opts out, need consent"),
    "/truncated/0.jpg": ("not_image", "picture: found a truncated or damaged picture"),
}


@pytest.mark.usefixtures("open_loopback")
def test_every_hostile_link_is_given_up_by_name_and_leaves_nothing(tmp_path: Path):
    with serving() as (base, _):
        shelf, failed = run(base, tmp_path, *HOSTILE, "/ok/7.jpg")
    tries = {one.url.removeprefix(base): one for one in shelf.attempts()}
    for path, (status, words) in HOSTILE.items():
        assert (tries[path].status, tries[path].error[: len(words)]) == (status, words), path
    assert failed == {number: status for number, (status, _) in enumerate(HOSTILE.values())}
    assert [note["round"] for note in shelf.notes.values()] == [0]
    left = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".png", ".json", ".jsonl"}
    assert len(list((tmp_path / "pictures").iterdir())) == 2


@pytest.mark.usefixtures("open_loopback")
def test_a_link_that_drips_is_given_up_at_the_deadline_though_it_is_never_silent(tmp_path: Path):
    with serving() as (base, _):
        shelf, failed = run(base, tmp_path, "/drip/0.jpg", config=QUICK.model_copy(update={"deadline_s": 2.0}))
    assert failed == {0: "timeout"}
    assert re.match(
        r"download: found it unfinished after ([2-9]|\d\d+)\.\d s, need 2 s at most", shelf.attempts()[0].error
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/x.jpg", "http://localhost/x.jpg", "http://[::1]/x.jpg", "http://[::ffff:127.0.0.1]/x.jpg",
        "http://10.0.0.1/x.jpg", "http://192.168.1.1/x.jpg", "http://169.254.169.254/x.jpg", "http://0.0.0.0/x.jpg",
        "http://100.64.0.1/x.jpg", "http://[fe80::1]/x.jpg", "http://[fd00:ec2::254]/x.jpg", "http://2130706433/x.jpg",
        "http://[64:ff9b::7f00:1]/x.jpg", "http://[2002:7f00:1::]/x.jpg", "http://224.0.0.1/x.jpg",
        "ftp://example.com/x.jpg", "file:///etc/passwd", "data:image/png;base64,AA", "http://example.com:22/x.jpg",
        "http://user:word@example.com/x.jpg", "http://", "no link", "http://[::1/x.jpg",
    ],
)  # fmt: skip
def test_what_is_no_public_web_address_is_refused_without_a_connection(url: str, tmp_path: Path):
    shelf = Shelf(tmp_path)
    assert fetch([Link(0, url)], shelf, QUICK, Runtime(), 0, 64, silent) == {0: "refused"}
    assert [one.status for one in shelf.attempts()] == ["refused"]


def test_a_name_that_resolves_to_this_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import socket

    def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("93.184.216.34", "127.0.0.1")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    shelf = Shelf(tmp_path)
    assert fetch([Link(0, "http://public.example/x.jpg")], shelf, QUICK, Runtime(), 0, 64, silent) == {0: "refused"}
    assert "found 127.0.0.1, need a public one" in shelf.attempts()[0].error


def test_a_connection_that_ends_elsewhere_than_it_should_is_refused(monkeypatch: pytest.MonkeyPatch):
    """The name is public when it is looked up, and the peer is not: refused at connect."""
    import httpcore

    from customdiff_core.errors import FetchError
    from customdiff_core.retrieval import addresses

    class Stream(httpcore.AsyncNetworkStream):
        closed = False

        def get_extra_info(self, info: str) -> object:
            return ("127.0.0.1", 80) if info == "server_addr" else None

        async def aclose(self) -> None:
            self.closed = True

    stream = Stream()

    class Network:
        async def connect_tcp(self, *_: object) -> Stream:
            return stream

    guarded = addresses.GuardedNetwork(allow_loopback=False)
    guarded._network = Network()
    monkeypatch.setattr(guarded, "_resolve", lambda host, port: asyncio.sleep(0, ["93.184.216.34"]))
    with pytest.raises(FetchError, match=r"found 127\.0\.0\.1, need a public one"):
        asyncio.run(guarded.connect_tcp("public.example", 80))
    assert stream.closed


@pytest.mark.usefixtures("open_loopback")
def test_what_may_pass_is_tried_again_and_both_tries_are_logged(tmp_path: Path):
    with serving() as (base, web):
        shelf, failed = run(base, tmp_path, "/busy/3.jpg")
    assert failed == {}
    assert [(one.status, one.attempt) for one in shelf.attempts()] == [("dead", 0), ("ok", 1)]
    assert web.asked == {"/busy/3.jpg": 2}


@pytest.mark.usefixtures("open_loopback")
def test_opting_out_can_be_ignored_where_one_has_the_right(tmp_path: Path):
    with serving() as (base, _):
        _, failed = run(base, tmp_path, "/noai/1.jpg", config=QUICK.model_copy(update={"opt_out": False}))
    assert failed == {}


@pytest.mark.usefixtures("open_loopback")
def test_a_host_is_asked_for_a_few_pictures_at_a_time(tmp_path: Path):
    with serving(latency=0.02) as (base, web):
        run(base, tmp_path, *(f"/ok/{number}.jpg" for number in range(24)), per_host=3)
    assert web.most_at_once == 3


@pytest.mark.usefixtures("open_loopback")
def test_hanging_links_do_not_hold_the_others_up(tmp_path: Path):
    config = QUICK.model_copy(update={"retries": 0})
    with serving() as (base, web):
        paths = [f"/{'hang' if number % 2 else 'ok'}/{number}.jpg" for number in range(16)]
        shelf, failed = run(base, tmp_path, *paths, config=config, per_host=32)
    assert (len(failed), len(shelf.notes)) == (8, 8)
    assert web.most_at_once >= 8  # they hang together


@pytest.mark.usefixtures("open_loopback")
def test_what_is_there_is_not_fetched_again_and_a_torn_log_is_no_obstacle(tmp_path: Path):
    paths = ["/ok/1.jpg", "/ok/2.jpg", "/dead/3.jpg"]
    with serving() as (base, web):
        run(base, tmp_path, *paths[:1])
        with (tmp_path / "attempts.jsonl").open("a") as file:
            file.write('{"item_id": 5, "url": "http://ha')
        (tmp_path / "pictures" / "half.tmp").write_bytes(b"half")
        shelf, _ = run(base, tmp_path, *paths)
    assert web.asked == {"/ok/1.jpg": 1, "/ok/2.jpg": 1, "/dead/3.jpg": 1}
    assert len(shelf.notes) == 2
    assert "kept" in [one.status for one in shelf.attempts()]


@pytest.mark.usefixtures("open_loopback")
def test_it_works_where_a_loop_runs_already(tmp_path: Path):
    async def notebook() -> dict[int, str]:
        with serving() as (base, _):
            return run(base, tmp_path, "/ok/1.jpg")[1]

    assert asyncio.run(notebook()) == {}


def test_no_thread_or_process_is_left(tmp_path: Path, open_loopback: None):
    import psutil

    before = {one.pid for one in psutil.Process().children(recursive=True)}
    with serving() as (base, _):
        run(base, tmp_path, "/ok/1.jpg", "/hang/1.jpg")
    assert {one.pid for one in psutil.Process().children(recursive=True)} <= before


def test_a_shelf_keeps_notes_beside_pictures(tmp_path: Path, open_loopback: None):
    with serving() as (base, _):
        shelf, _ = run(base, tmp_path, "/ok/1.jpg")
    (note,) = [json.loads(path.read_text()) for path in (tmp_path / "pictures").glob("*.json")]
    assert note["sha256"] == shelf.picture(Link(0, f"{base}/ok/1.jpg")).sha256
    assert len(picture(1)) > 1000
