from pathlib import Path

import pytest
from typer.testing import CliRunner

from customdiff_core.artifacts import Store
from deployments import forget as command

from ..core.retrieval.test_forget import URL, make


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
    assert "no run of the UI used it" in done.output
    assert not Store(tmp_path).path(artifact).exists()


def test_an_unknown_link_is_an_error(app):
    done = CliRunner().invoke(app, ["https://b.example/3.jpg", "--yes"])
    assert done.exit_code == 1
    assert "found nothing of https://b.example/3.jpg" in " ".join(done.output.split())


def test_pages_that_cannot_be_removed_are_said(app, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def away(**_: object):
        raise ConnectionError("away")

    monkeypatch.setattr("prefect.client.orchestration.get_client", away)
    make(Store(tmp_path, producer="customize-cat (6a3d2a52-5f0e-4a53-8a6c-4a3d2c1b0a99)"), "regularization", "x", URL)
    done = CliRunner().invoke(app, [URL, "--yes"])
    assert "found no server (ConnectionError), need it to remove them" in " ".join(done.output.split())
