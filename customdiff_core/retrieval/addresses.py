"""Where a link of a stranger may lead: the public internet, and nothing that only this machine can reach.

A host is resolved here, every address it has is looked at, and the connection goes to one of those and no other, so that
a name cannot point elsewhere a moment later. What the connection's other end says it is, is looked at once more.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx

from customdiff_core.errors import FetchError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
SCHEMES = ("http", "https")
WEB_PORTS = frozenset({80, 443})
FREE_PORTS = 1024  # below it, other services than the web listen
RESOLVERS = 32  # names looked up at a time, in threads of their own: the loop's few would all wait for one dead server
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def check_link(url: str) -> str:
    """Return a link's host, when the link is one of the web.

    Raises:
        FetchError: for another scheme, a port of another service, a user name, or no URL at all.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
        httpx.URL(url)  # its rules are those of the request
    except (ValueError, httpx.InvalidURL) as error:
        raise FetchError(f"link: found no URL ({error}), need http or https", "refused") from error
    if parts.scheme not in SCHEMES or not host:
        raise FetchError(f"link: found scheme {parts.scheme or 'none'!r}, need http or https", "refused")
    if parts.username is not None or parts.password is not None:
        raise FetchError("link: found a user name in it, need none", "refused")
    if port is not None and port not in WEB_PORTS and port < FREE_PORTS:
        raise FetchError(f"link: found port {port} of another service, need 80, 443 or above {FREE_PORTS}", "refused")
    return host


def check_address(text: str, *, allow_loopback: bool) -> None:
    """Check that an address is a public one.

    Raises:
        FetchError: for private, loopback, link-local (a cloud's metadata service), multicast and reserved ones, also when
            they are written inside an IPv6 address.
    """
    outer = ipaddress.ip_address(text.partition("%")[0])
    for address in (outer, *_inner(outer)):
        if allow_loopback and address.is_loopback:
            continue
        if not address.is_global or address.is_multicast:
            raise FetchError(
                f"address: found {text}, need a public one; the link leads into a network of its own", "refused"
            )


def _inner(address: Address) -> Iterable[Address]:
    """The IPv4 addresses that an IPv6 address leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if address in NAT64:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Opens connections to public addresses only."""

    def __init__(self, allow_loopback: bool) -> None:
        self._allow_loopback = allow_loopback
        self._network: Any = httpcore.AnyIOBackend()
        self._resolvers = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="resolve")

    def close(self) -> None:
        """Stop looking names up; nobody waits for one that still is."""
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, check all addresses, connect to the first that answers, and check where that led."""
        addresses = await self._resolve(host, port)
        failure: Exception | None = None
        for address in addresses:
            try:
                stream = await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            await self._check_peer(stream)
            return stream
        raise failure or httpcore.ConnectError(f"{host} has no address")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def _resolve(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        if host == "localhost" or host.endswith(".localhost"):  # by definition (RFC 6761), whatever a name server says
            host = "127.0.0.1"
        try:
            found = await loop.run_in_executor(
                self._resolvers, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            )
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host}: {error}") from error
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
        for address in addresses:
            check_address(address, allow_loopback=self._allow_loopback)
        return addresses

    async def _check_peer(self, stream: httpcore.AsyncNetworkStream) -> None:
        try:
            peer = stream.get_extra_info("server_addr")
            check_address(str(peer[0]), allow_loopback=self._allow_loopback)
        except FetchError:
            await stream.aclose()
            raise


class GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's pool, with HTTP/2 where a server offers it, over a guarded network; no proxy of the environment is used."""

    def __init__(self, connections: int, *, allow_loopback: bool, verify: Any = True) -> None:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=5)
        super().__init__(verify=verify, http2=True, limits=limits, trust_env=False)
        pool: Any = self._pool
        assert hasattr(pool, "_network_backend")  # httpx has no argument for it
        pool._network_backend = self._network = GuardedNetwork(allow_loopback)

    async def aclose(self) -> None:
        """Close the pool and its resolvers."""
        self._network.close()
        await super().aclose()

    async def __aexit__(self, *error: Any) -> None:
        """Close both at the end of a `with`."""
        self._network.close()
        await super().__aexit__(*error)
