from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner

from customdiff_core.artifacts import Store
from deployments import forget as command

from ..core.retrieval.test_forget import URL, make


class Server:
    """What the command asks of Prefect's."""

    def __init__(self) -> None:
        self.pages: list[SimpleNamespace] = []
        self.away = False

    @contextmanager
    def client(self, **_: object) -> Generator["Server"]:
        if self.away:
            raise ConnectionError("away")
        yield self

    def read_artifacts(self, *, limit: int, offset: int) -> list[SimpleNamespace]:
        return self.pages[offset : offset + limit]

    def delete_artifact(self, page: UUID) -> None:
        self.pages = [one for one in self.pages if one.id != page]


def page(data: str, run: UUID | None = None) -> SimpleNamespace:
    return SimpleNamespace(id=uuid4(), data=data, flow_run_id=run)


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr("prefect.client.orchestration.get_client", made.client)
    return made


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import typer

    monkeypatch.setenv("CUSTOMDIFF_STORE", str(tmp_path))
    app = typer.Typer()
    app.command()(command.forget)
    return app


def test_it_says_what_would_go_and_removes_only_when_told(app, tmp_path: Path):
    artifact = make(Store(tmp_path), "regularization", "x", URL)
    said = CliRunner().invoke(app, [URL])
    assert f"would remove regularization {artifact.key}" in said.output.replace("\n", "")
    assert Store(tmp_path).path(artifact).exists()
    done = CliRunner().invoke(app, [URL, "--yes"])
    assert (said.exit_code, done.exit_code) == (0, 0)
    assert "removed regularization" in done.output
    assert "removed 0 pages of the UI" in done.output
    assert not Store(tmp_path).path(artifact).exists()


def test_every_page_that_shows_it_goes_whoever_made_what_it_shows(app, tmp_path: Path, server: Server):
    """The command line made the set, two runs of the UI showed it from the cache, and one another set."""
    artifact = make(Store(tmp_path, producer="customdiff"), "regularization", "x", URL)
    server.pages = [page(f"{one} Key of the regularization: `{artifact.key}`.") for one in range(120)]
    other = page("Key of the regularization: `0123`.")
    server.pages.insert(60, other)
    done = CliRunner().invoke(app, [URL, "--yes"])
    assert "removed 120 pages of the UI" in done.output
    assert server.pages == [other]


def test_pages_of_the_run_that_made_it_go_too(app, tmp_path: Path, server: Server):
    run = UUID("6a3d2a52-5f0e-4a53-8a6c-4a3d2c1b0a99")
    make(Store(tmp_path, producer=f"customize-cat ({run})"), "regularization", "x", URL)
    server.pages = [page("the report's link", run), page("of another run")]
    CliRunner().invoke(app, [URL, "--yes"])
    assert [one.data for one in server.pages] == ["of another run"]


def test_an_unknown_link_is_an_error(app):
    done = CliRunner().invoke(app, ["https://b.example/3.jpg", "--yes"])
    assert done.exit_code == 1
    assert "found nothing of https://b.example/3.jpg" in " ".join(done.output.split())


def test_pages_that_cannot_be_removed_are_said_and_removed_the_next_time(app, tmp_path: Path, server: Server):
    artifact = make(Store(tmp_path), "regularization", "x", URL)
    server.pages = [page(f"Key of the regularization: `{artifact.key}`.")]
    server.away = True
    done = CliRunner().invoke(app, [URL, "--yes"])
    assert "found no server (ConnectionError), need it to remove them" in " ".join(done.output.split())
    server.away = False
    again = CliRunner().invoke(app, [URL, "--yes"])
    assert "removed 1 pages of the UI" in again.output
    assert server.pages == []
    assert "no page of the UI showed it" in CliRunner().invoke(app, [URL, "--yes"]).output
