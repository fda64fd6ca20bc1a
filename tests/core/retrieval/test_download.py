"""One link: HTTP/2 where it is offered, and what headers say."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from customdiff_core.config import FetchConfig
from customdiff_core.errors import FetchError
from customdiff_core.retrieval.addresses import GuardedTransport
from customdiff_core.retrieval.download import download, is_picture, opted_out
from deployments.web import picture


@pytest.mark.parametrize(
    ("values", "out"),
    [
        (["noai"], True),
        (["nofollow, NoImageAI"], True),
        (["noarchive", "noindex"], True),
        (["none"], True),
        (["customdiff: noindex"], True),
        (["*: noimageindex"], True),
        (["googlebot: noindex, noai"], False),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], True),
        (["max-image-preview: large"], False),
        (["nofollow"], False),
        ([], False),
    ],
)
def test_opt_outs_are_read_as_their_owners_write_them(values: list[str], out: bool):
    assert opted_out(values) == out


@pytest.mark.parametrize("number", range(3))
def test_pictures_are_known_by_their_first_bytes(number: int):
    assert is_picture(picture(number)[:16])
    assert not is_picture(b"<svg xmlns='http'"[:16])
    assert is_picture(b"RIFF\x00\x00\x00\x00WEBPVP8 ")
    assert not is_picture(b"RIFF\x00\x00\x00\x00WAVEfmt ")
    assert not is_picture(b"")


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 for one day, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert, private = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return cert, private


async def serve_two(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request of one HTTP/2 connection with a picture."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_connection()
    writer.write(connection.data_to_send())
    while data := await reader.read(65536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                connection.send_headers(event.stream_id, [(":status", "200")])
                connection.send_data(event.stream_id, picture(1)[:16000], end_stream=True)
        writer.write(connection.data_to_send())
    writer.close()


def fetch_over_tls(folder: Path, *, trusted: bool) -> bytes:
    cert, key = certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["h2"])
    verify = ssl.create_default_context(cafile=str(cert)) if trusted else True

    async def run() -> bytes:
        server = await asyncio.start_server(serve_two, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        async with server, GuardedTransport(2, allow_loopback=True, verify=verify) as transport:
            return await download(transport, f"https://127.0.0.1:{port}/x.jpg", FetchConfig(deadline_s=30))

    return asyncio.run(run())


def test_http_2_is_spoken_where_it_is_offered(tmp_path: Path):
    """The server knows nothing else."""
    assert fetch_over_tls(tmp_path, trusted=True) == picture(1)[:16000]


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path):
    with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED") as error:
        fetch_over_tls(tmp_path, trusted=False)
    assert error.value.status == "unreachable"


def test_a_broken_http2_answer_is_a_dead_link() -> None:
    class Broken(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise h2.exceptions.InvalidBodyLengthError(10, 3)

    with pytest.raises(FetchError, match="found InvalidBodyLengthError") as error:
        asyncio.run(download(Broken(), "http://a.example/x.png", FetchConfig()))
    assert error.value.status == "unreachable"


@pytest.mark.parametrize("wait", ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "soon", "9" * 5000, "-1", "NaN"])
def test_a_senseless_wait_costs_one_try(wait: str):
    """And not the retrieval."""
    transport = httpx.MockTransport(lambda _: httpx.Response(503, headers={"Retry-After": wait}))
    with pytest.raises(FetchError) as error:
        asyncio.run(download(transport, "https://host.example/1.jpg", FetchConfig()))
    assert error.value.status == "dead"
    assert 0.5 <= (error.value.wait_s or 0) <= 5
