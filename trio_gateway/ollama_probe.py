"""Whether an Ollama answers at an address, asked before anything is started."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

PROBE_SECONDS = 2.0


class OllamaAbsent(Exception):
    """Raised when no Ollama answers; the text is one clear sentence."""


def answers(url: str, seconds: float = PROBE_SECONDS) -> bool:
    """Ask for the version. Blocks, and goes past any proxy that the environment names."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=seconds)
    try:
        connection.request("GET", parts.path.rstrip("/") + "/api/version")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def require(urls: tuple[str, ...]) -> None:
    """Return when one of them answers; raises OllamaAbsent."""
    if not any(answers(url) for url in urls):
        raise OllamaAbsent(
            f"no Ollama answers at {' or '.join(urls)}: start it, name another with "
            "--ollama-url, or try the gateway with a simulated one by --simulate"
        )
