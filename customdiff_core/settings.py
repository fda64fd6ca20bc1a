"""Where things are on this machine. Environment variables `CUSTOMDIFF_*` override; nothing here changes a result."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

REPOSITORY = Path(__file__).resolve().parents[1]


class Settings(BaseSettings):
    """Folders and permissions of this machine."""

    model_config = SettingsConfigDict(env_prefix="CUSTOMDIFF_", frozen=True)

    data: Path = Field(REPOSITORY / "data", description="concepts/, prompts/ and models/")
    store: Path = Field(REPOSITORY / "data" / "store", description="the artifact store")
    allow_download: bool = Field(False, description="let a real profile download its pinned weights from the hub")
