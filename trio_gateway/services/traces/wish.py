"""Whether traces are wanted: OpenTelemetry's own variables, and what they must not say."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


@dataclass(frozen=True, slots=True)
class Wish:
    """`wanted` by the environment; `obstacle` is one sentence where it cannot be had."""

    wanted: bool
    obstacle: str = ""


def read_wish(environ: Mapping[str, str]) -> Wish:
    """Read the variables; nothing of OpenTelemetry is imported for it."""
    endpoint = next((name for name in ENDPOINTS if environ.get(name, "").strip()), None)
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if endpoint is None or disabled or exporter == "none":
        return Wish(wanted=False)
    return Wish(wanted=True, obstacle=_obstacle(environ, endpoint, exporter))


def _obstacle(environ: Mapping[str, str], endpoint: str, exporter: str) -> str:
    if exporter not in {"", "otlp"}:
        return "OTEL_TRACES_EXPORTER: only otlp and none are known here"
    parts = urlsplit(environ[endpoint].strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return f"{endpoint}: must be http(s)://host[:port]"
    protocol = next((name for name in PROTOCOLS if environ.get(name, "").strip()), None)
    if protocol is not None and environ[protocol].strip().lower() != PROTOCOL:
        return f"{protocol}: only {PROTOCOL} is spoken here"
    if not _installed():
        return f"{endpoint} is set, and OpenTelemetry is not installed: install trio-gateway[otel]"
    return ""


def _installed() -> bool:
    try:
        return all(find_spec(name) is not None for name in NEEDED)
    except ModuleNotFoundError:
        return False
