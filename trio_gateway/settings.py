"""Settings from the environment: every bad value is reported at once, and stops the start."""

from __future__ import annotations

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trio_gateway.clients import sentinel_address
from trio_gateway.core.openid import trustworthy

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "TRIO_GATEWAY_"
UNPREFIXED = ("DATABASE_URL", "REDIS_URL", "OLLAMA_BASE_URL")

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1)]

_POSTGRES = re.compile(r"postgres(?:ql)?://.")
_REDIS = re.compile(r"(?:rediss?|unix)://.")
_FOLDER = re.compile(r"file:///[^?#]*")
_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[A-Za-z0-9._/-]*)?")
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_SECONDS = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?")
_DURATION = re.compile(r"-?(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ns|us|ms|s|m|h))+")  # as Go reads one


class BadSettings(Exception):
    """Raised by `load`; `problems` holds one sentence for every bad setting."""

    def __init__(self, problems: list[str]) -> None:
        """Join the problems into the message."""
        self.problems = problems
        super().__init__("; ".join(problems))


class Settings(BaseModel):
    """Everything an operator may set; names in the environment are upper case."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url: str = ""
    database_listen_url: str = ""
    redis_url: str = ""
    ollama_base_url: str = "http://127.0.0.1:11434"

    backend_slots: Count = 8
    queue_limit: Annotated[int, Field(ge=0)] = 256
    tenant_in_flight: Count = 256
    min_output_tokens: Count = 16
    default_max_output_tokens: Count = 2048
    max_body_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024 * 1024
    max_file_bytes: Count = 200 * 1024 * 1024
    tenant_file_bytes: Count = 10 * 1024 * 1024 * 1024
    batch_concurrency: Count = 4
    batch_attempts: Count = 6
    tenant_batches: Count = 20
    blob_url: str = ""
    trusted_proxies: str = ""
    cors_origins: str = ""
    admin_token: str = ""
    admin_allow_remote: bool = False
    admin_public_url: str = ""
    metrics_token: str = ""
    webhook_hosts: str = ""
    oidc_issuer: str = ""
    oidc_client_id: str = ""
    oidc_client_secret: str = ""
    oidc_claim: str = "groups"
    oidc_admins: str = ""
    oidc_viewers: str = ""
    log_level: str = "info"

    queue_timeout: Seconds = 60
    connect_timeout: Seconds = 5
    first_byte_timeout: Seconds = 300
    idle_timeout: Seconds = 60
    call_timeout: Seconds = 1800
    write_stall_timeout: Seconds = 30
    body_timeout: Seconds = 60
    drain_timeout: Annotated[float, Field(ge=0, le=86_400)] = 30
    hold_lease: Annotated[float, Field(ge=0.5, le=3600)] = 15
    batch_lease: Annotated[float, Field(ge=1, le=3600)] = 30
    sweep_interval: Seconds = 5
    discovery_interval: Seconds = 10
    discovery_ttl: Seconds = 60
    sse_keepalive: Annotated[float, Field(ge=0, le=3600)] = 0
    admin_session_timeout: Annotated[float, Field(ge=60, le=86_400)] = 1800
    keep_alive: str = "5m"
    ledger_retention_days: Annotated[int, Field(ge=0)] = 0

    @field_validator("database_url", "database_listen_url")
    @classmethod
    def _postgres(cls, value: str) -> str:
        if value and not _POSTGRES.match(value):
            raise ValueError("must be a PostgreSQL address, postgresql://...")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str) -> str:
        if sentinel_address.is_sentinel(value):
            sentinel_address.parse(value)
        elif value and not _REDIS.match(value):
            kinds = "redis://..., rediss://..., unix://... or redis+sentinel://..."
            raise ValueError(f"must be a Redis address: {kinds}")
        return value

    @field_validator("blob_url")
    @classmethod
    def _blobs(cls, value: str) -> str:
        if value and not (_FOLDER.fullmatch(value) or _BUCKET.fullmatch(value)):
            raise ValueError("must be file:///folder or s3://bucket[/prefix]")
        return value

    @field_validator("keep_alive")
    @classmethod
    def _keep_alive(cls, value: str) -> str:
        if not (_SECONDS.fullmatch(value) or _DURATION.fullmatch(value)):
            raise ValueError("must be a duration such as 5m or 1h30m, seconds, 0, or -1 for ever")
        return value

    @field_validator("ollama_base_url")
    @classmethod
    def _backends(cls, value: str) -> str:
        for url in value.split(","):
            parts = urlsplit(url.strip())
            if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
                raise ValueError("must be http(s)://host[:port], or several with commas between")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: str) -> str:
        for part in filter(None, map(str.strip, value.split(","))):
            try:
                ip_network(part, strict=False)
            except ValueError:
                raise ValueError("must be addresses or networks, with commas between") from None
        return value

    @field_validator("oidc_issuer")
    @classmethod
    def _issuer(cls, value: str) -> str:
        if value and (urlsplit(value).query or not trustworthy(value)):
            raise ValueError("must be https://host[/path], to the letter as the provider names it")
        return value

    @field_validator("admin_public_url")
    @classmethod
    def _page(cls, value: str) -> str:
        parts = urlsplit(value)
        plain = not (parts.query or parts.fragment or parts.username)
        if value and not (parts.scheme in {"http", "https"} and parts.hostname and plain):
            raise ValueError("must be https://host[:port]")
        return value.rstrip("/")

    @field_validator("webhook_hosts")
    @classmethod
    def _hosts(cls, value: str) -> str:
        for part in filter(None, map(str.strip, value.split(","))):
            if not _HOST.fullmatch(part):
                raise ValueError("must be host names or host:port, with commas between")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for part in filter(None, map(str.strip, value.split(","))):
            parts = urlsplit(part)
            if part != "*" and (not parts.scheme or not parts.netloc or parts.path):
                raise ValueError("must be scheme://host[:port] or *, with commas between")
        return value

    @field_validator("log_level")
    @classmethod
    def _level(cls, value: str) -> str:
        if value.lower() not in {"debug", "info", "warning", "error"}:
            raise ValueError("must be debug, info, warning or error")
        return value.lower()

    @model_validator(mode="after")
    def _ttl_outlives_interval(self) -> Settings:
        if self.discovery_ttl < self.discovery_interval:
            raise ValueError("DISCOVERY_TTL must not be less than DISCOVERY_INTERVAL")
        return self

    @model_validator(mode="after")
    def _tokens(self) -> Settings:
        if self.metrics_token and self.metrics_token == self.admin_token:
            raise ValueError("METRICS_TOKEN must be another than ADMIN_TOKEN")
        return self

    @model_validator(mode="after")
    def _oidc(self) -> Settings:
        wanted = {
            "OIDC_CLIENT_ID": self.oidc_client_id,
            "OIDC_CLIENT_SECRET": self.oidc_client_secret,
            "ADMIN_PUBLIC_URL": self.admin_public_url,
            "OIDC_ADMINS or OIDC_VIEWERS": self.oidc_admins or self.oidc_viewers,
        }
        missing = [name for name, value in wanted.items() if not value]
        if self.oidc_issuer and missing:
            raise ValueError(f"OIDC_ISSUER wants {', '.join(missing)} as well")
        return self

    @property
    def backends(self) -> tuple[str, ...]:
        """The Ollama hosts, without trailing slashes, in the order given."""
        return tuple(url.strip().rstrip("/") for url in self.ollama_base_url.split(","))

    @property
    def renewal(self) -> float:
        """Seconds between two renewals of a live hold."""
        return min(1.0, self.hold_lease / 3)


def variable(field: str) -> str:
    """Name the environment variable of a settings field."""
    upper = field.upper()
    return upper if upper in UNPREFIXED else PREFIX + upper


def load(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings, or raise BadSettings with every problem found.

    `NAME_FILE` reads the value of `NAME` from a file, for secrets. Overrides are field
    names and win over the environment.
    """
    environ = os.environ if environ is None else environ
    values, problems = _collect(environ)
    values |= overrides
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += [_sentence(item) for item in error.errors(include_url=False)]
    if problems:
        raise BadSettings(problems)
    return settings


def _collect(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    known = {variable(field): field for field in Settings.model_fields}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in sorted(environ.items()):
        base = name.removesuffix("_FILE")
        if name in known:
            values[known[name]] = value
        elif name != base and base in known:
            if base in environ:
                problems.append(f"{base} and {name} are both set; keep one")
                continue
            try:
                values[known[base]] = Path(value).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{name}: cannot read the file ({type(error).__name__})")
        elif name.startswith(PREFIX):
            problems.append(f"{name} is not a setting of trio-gateway")
    return values, problems


def _sentence(item: Any) -> str:
    where = variable(str(item["loc"][0])) + ": " if item["loc"] else ""
    return where + str(item["msg"]).removeprefix("Value error, ")
