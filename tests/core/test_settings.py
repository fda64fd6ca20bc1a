from pathlib import Path

import pytest

from customdiff_core.settings import REPOSITORY, Settings


def test_the_defaults_lie_in_the_repository(monkeypatch: pytest.MonkeyPatch):
    for name in ("DATA", "STORE", "ALLOW_DOWNLOAD"):
        monkeypatch.delenv(f"CUSTOMDIFF_{name}", raising=False)
    assert (REPOSITORY / "pyproject.toml").is_file()
    assert Settings().data == REPOSITORY / "data"
    assert Settings().store == REPOSITORY / "data" / "store"
    assert Settings().allow_download is False


def test_the_environment_overrides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CUSTOMDIFF_STORE", str(tmp_path))
    monkeypatch.setenv("CUSTOMDIFF_ALLOW_DOWNLOAD", "true")
    assert Settings().store == tmp_path
    assert Settings().allow_download is True
