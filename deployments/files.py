"""Serve the artifact store to the local browser, read-only, so that the UI can link reports and show pictures.

    python -m deployments.files --root data/store --port 4201

Whole files by GET and HEAD, on the loopback interface only: no listings, no dot or lock files, nothing outside the
root, and no other method.
"""

import mimetypes
import shutil
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import typer

LOOPBACK = ("127.0.0.1", "localhost")
# A page may hold what strangers wrote on the web; it loads nothing from there, whatever it says.
POLICY = "default-src 'self' data: 'unsafe-inline'"


class Handler(BaseHTTPRequestHandler):
    """Answers with files below `root`."""

    server_version = "customdiff"
    sys_version = ""

    def __init__(self, *args: Any, root: Path, **kwargs: Any) -> None:
        self.root = root.resolve()
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        """Send a file."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Send what is known of a file."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        # A page elsewhere whose name was made to point here must not read the store through this user's browser.
        if _host(self.headers.get("Host", "")) not in LOOPBACK:
            self.send_error(HTTPStatus.FORBIDDEN, "this machine only")
            return
        path = self._file()
        if path is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as file:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", _content_type(path))
            self.send_header("Content-Length", str(path.stat().st_size))
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-cache")
            self.end_headers()
            if body:
                shutil.copyfileobj(file, self.wfile)

    def _file(self) -> Path | None:
        """Return the file asked for; None unless it is an open one, below the root."""
        parts = PurePosixPath(unquote(urlsplit(self.path).path)).parts[1:]
        hidden = any(part.startswith(".") or part.endswith(".lock") or "\0" in part for part in parts)
        if hidden or not parts:
            return None
        path = self.root.joinpath(*parts).resolve()
        return path if path.is_relative_to(self.root) and path.is_file() else None


def make_server(root: Path, port: int, host: str = LOOPBACK[0]) -> ThreadingHTTPServer:
    """Return a server of the files below `root`, by default on the loopback interface; port 0 takes any free one."""
    return ThreadingHTTPServer((host, port), partial(Handler, root=root))


def _host(header: str) -> str | None:
    with suppress(ValueError):  # such as "[::1"
        return urlsplit(f"//{header}").hostname
    return None


def _content_type(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def main(
    root: Annotated[Path, typer.Option()],
    port: Annotated[int, typer.Option()],
    host: Annotated[
        str, typer.Option(help="The address to listen at; in a container 0.0.0.0, behind a published port.")
    ] = LOOPBACK[0],
) -> None:
    """Serve until stopped, to browsers that ask for this machine by its own name alone."""
    with make_server(root, port, host) as server:
        server.serve_forever()


if __name__ == "__main__":
    typer.run(main)
