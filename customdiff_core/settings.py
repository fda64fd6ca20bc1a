"""Where things are on this machine. Environment variables `CUSTOMDIFF_*` override; nothing here changes a result."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

REPOSITORY = Path(__file__).resolve().parents[1]


class Settings(BaseSettings):
    """Folders and permissions of this machine."""

    model_config = SettingsConfigDict(env_prefix="CUSTOMDIFF_", frozen=True)

    data: Path = Field(default=REPOSITORY / "data", description="concepts/, prompts/ and models/")
    store: Path = Field(default=REPOSITORY / "data" / "store", description="the artifact store")
    files_url: str = Field(
        default="http://127.0.0.1:4201",
        description="where the small static server serves the store, for links to reports",
    )
    benchmark_workers: int = Field(
        default=1, ge=1, description="cells of a benchmark at a time; how many of them compute, the GPU slots decide"
    )
    allow_download: bool = Field(
        default=False, description="let a real profile download its pinned weights from the hub"
    )
    allow_loopback: bool = Field(
        default=False,
        description="let links lead to this machine: for tests and the bench, never for links of strangers",
    )
