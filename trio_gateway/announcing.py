"""What a started installation tells its operator: one JSON line, or a page to read."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """Where everything is; the token and the key are None when they were shown before."""

    base_url: str
    admin_url: str | None
    admin_token: str | None
    tenant: str | None
    api_key: str | None
    database_url: str
    redis_url: str
    ollama_url: str
    pid: int

    def show(self, *, as_json: bool) -> None:
        """Print it on stdout; a reader who has gone is no reason to stop."""
        text = json.dumps(asdict(self)) if as_json else self._page()
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except OSError:
            return

    def _page(self) -> str:
        lines = [
            "trio-gateway is ready.",
            "",
            f"  OpenAI SDKs   base_url  {self.base_url}/v1",
            f"  Ollama tools  host      {self.base_url}",
            f"  Ollama behind it        {self.ollama_url}",
        ]
        if self.admin_url is not None:
            lines.append(f"  Dashboard               {self.admin_url}/")
        if self.admin_token is not None:
            lines.append(f"  Admin token             {self.admin_token}")
        if self.api_key is not None:
            lines.append(f"  API key of `{self.tenant}`    {self.api_key}")
        if self.api_key is not None or self.admin_token is not None:
            lines += ["", "The secrets above are shown this once: keep them now."]
        key = self.api_key or "YOUR-KEY"
        lines += [
            "",
            "Try it:",
            f"  curl {self.base_url}/v1/models -H 'Authorization: Bearer {key}'",
            "",
            f"Stop it with Ctrl-C, or `kill {self.pid}`: calls in flight may end first.",
        ]
        return "\n".join(lines)
