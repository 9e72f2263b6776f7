"""Where the installation's stores are: a folder that was named, the environment, the default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from trio_gateway import datadir, settings
from trio_gateway.cli.door import Failure


@dataclass(frozen=True)
class Addresses:
    """Settings, with the stores' addresses filled in where a running installation has them."""

    settings: settings.Settings

    def required_database_url(self) -> str:
        """Return where PostgreSQL is; raises Failure."""
        if not self.settings.database_url:
            raise Failure("REDIS_URL is set and DATABASE_URL is not: set both, or use --data-dir")
        return self.settings.database_url

    @property
    def blob_url(self) -> str:
        """Where files are, as `serve` decides it."""
        return self.settings.blob_url or datadir.blobs_of(datadir.default_path())

    @property
    def blob_folder(self) -> Path | None:
        """The folder of a local blob store, be it there or not; None for a bucket."""
        parts = urlsplit(self.blob_url)
        return Path(unquote(parts.path)) if parts.scheme == "file" else None

    def required_redis_url(self) -> str:
        """Return where Redis is; raises Failure."""
        if not self.settings.redis_url:
            raise Failure("DATABASE_URL is set and REDIS_URL is not: set both, or use --data-dir")
        return self.settings.redis_url


def find(data_dir: Path | None) -> Addresses:
    """Read the settings and find the stores; raises Failure.

    A folder that was named beats the environment, which beats the default folder.
    """
    try:
        given = settings.load()
    except settings.BadSettings as error:
        raise Failure(str(error)) from error
    if data_dir is None and (given.database_url or given.redis_url):
        return Addresses(given)
    try:
        state = datadir.state_of(data_dir or datadir.default_path())
    except datadir.DataDirError as error:
        hint = "" if data_dir else ", or set DATABASE_URL and REDIS_URL"
        raise Failure(f"{error}{hint}") from error
    found = {"database_url": state.database_url, "redis_url": state.redis_url}
    found["blob_url"] = given.blob_url or state.blob_url
    return Addresses(given.model_copy(update=found))
