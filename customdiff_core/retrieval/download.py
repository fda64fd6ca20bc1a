"""One link: followed within bounds, read within bounds, and given up in time."""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin

import httpx
from h2.exceptions import H2Error

from customdiff_core.config import FetchConfig
from customdiff_core.errors import FetchError
from customdiff_core.retrieval.addresses import check_link

AGENT = "customdiff"
HEADERS = {
    "User-Agent": f"Mozilla/5.0 (compatible; {AGENT}; regularization images by caption)",
    "Accept": "image/*",
    "Accept-Encoding": "identity",  # a compressed answer may be a thousand times what was sent
}
OK = 200
REDIRECTS = frozenset({301, 302, 303, 307, 308})
PASSING = frozenset({408, 429, 500, 502, 503, 504})
OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
HEAD = 16  # bytes by which a picture is known
LONGEST_WAIT = 5.0  # seconds that a busy host may ask for


async def download(transport: httpx.AsyncBaseTransport, url: str, config: FetchConfig) -> bytes:
    """Return what a link leads to, if it begins like a picture.

    Raises:
        FetchError: with the short status of what happened instead.
    """
    started = time.monotonic()
    try:
        async with asyncio.timeout(config.deadline_s):
            return await _follow(transport, url, config)
    except TimeoutError as error:
        seconds = time.monotonic() - started
        raise FetchError(
            f"download: found it unfinished after {seconds:.1f} s, need {config.deadline_s:g} s at most", "timeout"
        ) from error
    except httpx.TimeoutException as error:
        raise FetchError(
            f"download: found silence for {config.silence_s:g} s ({type(error).__name__}), need bytes", "timeout"
        ) from error
    except (httpx.HTTPError, httpx.StreamError, H2Error, OSError, ValueError) as error:
        raise FetchError(
            f"download: found {type(error).__name__} ({error}), need an answer", "unreachable", 0.5
        ) from error


async def _follow(transport: httpx.AsyncBaseTransport, url: str, config: FetchConfig) -> bytes:
    for _ in range(config.redirects + 1):
        check_link(url)
        patience = dict.fromkeys(("connect", "read", "write", "pool"), config.silence_s)
        request = httpx.Request("GET", url, headers=HEADERS, extensions={"timeout": patience})
        response = await transport.handle_async_request(request)  # no client: no cookies, no passwords, no proxies
        try:
            if config.opt_out and opted_out(response.headers.get_list("X-Robots-Tag")):
                raise FetchError("X-Robots-Tag: found that its owner opts out, need consent", "opted_out")
            if response.status_code not in REDIRECTS or "Location" not in response.headers:
                return await _read(response, config)
            url = urljoin(url, response.headers["Location"])
        finally:
            await response.aclose()
    raise FetchError(f"redirects: found more than {config.redirects}, need fewer", "redirects")


async def _read(response: httpx.Response, config: FetchConfig) -> bytes:
    if (status := response.status_code) != OK:
        wait = _wait(response.headers) if status in PASSING else None
        raise FetchError(f"answer: found status {status}, need 200", "dead", wait)
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise FetchError("answer: found it compressed, need it as it is", "not_image")
    if (declared := _length(response.headers)) > config.max_bytes:
        raise FetchError(f"answer: found {declared:,} bytes, need at most {config.max_bytes:,}", "too_large")
    data = bytearray()
    async for chunk in response.aiter_raw():
        known = len(data) >= HEAD
        data += chunk
        if not known and len(data) >= HEAD and not is_picture(bytes(data[:HEAD])):
            break
        if len(data) > config.max_bytes:
            raise FetchError(f"answer: found more than {config.max_bytes:,} bytes, need at most that", "too_large")
    if not is_picture(bytes(data[:HEAD])):
        raise FetchError(f"content: found {bytes(data[:HEAD])!r}, need the beginning of a picture", "not_image")
    return bytes(data)


def is_picture(head: bytes) -> bool:
    """Whether bytes begin like PNG, JPEG, GIF, WebP, BMP or TIFF; what a server calls them does not count."""
    starts = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
    return head.startswith(starts) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def opted_out(values: Sequence[str]) -> bool:
    """Whether X-Robots-Tag headers forbid this use, to all or to this project's agent.

    "noai", "customdiff: noindex, nofollow" and "unavailable_after: <date>, noai" do; "googlebot: noindex" does not.
    """
    for value in values:
        agent, found, rest = value.partition(":")
        name = agent.strip().lower()
        named = bool(found) and re.fullmatch(r"[\w.*-]+", name) is not None and name not in WITH_VALUE
        if named and name not in (AGENT, "*"):
            continue
        directives = (rest if named else value).split(",")
        if any(one.strip().lower() in OPT_OUT for one in directives):
            return True
    return False


def _length(headers: Mapping[str, str]) -> int:
    text = headers.get("Content-Length", "0")
    return int(text) if text.isdecimal() and len(text) < 20 else 0


def _wait(headers: Mapping[str, str]) -> float:
    """Seconds after which the host may be asked again."""
    text = headers.get("Retry-After", "")
    try:
        seconds = float(text) if text.isdecimal() else (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        seconds = 0.5
    return min(max(seconds, 0.5), LONGEST_WAIT)
