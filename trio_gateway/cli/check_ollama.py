"""The doctor's look at each Ollama: whether it answers, and what its release is known for."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trio_gateway.cli.check_defects import FROM_SOURCE, defects_of, parse, spelled
from trio_gateway.cli.check_http import get
from trio_gateway.cli.finding import Finding, fail, ok, warn

if TYPE_CHECKING:
    from trio_gateway.cli.check_http import Answer

PATH = "/api/version"


async def ask(url: str) -> Answer | None:
    """Return what the backend says of its version; None where nothing answers."""
    return await get(url + PATH)


def version_in(answer: Answer | None) -> str | None:
    """Return the version that an Ollama told, short; None where this was none."""
    told = answer.fields.get("version") if answer is not None and answer.status == 200 else None
    return told[:40] if isinstance(told, str) and told.isprintable() else None


def judge(url: str, answer: Answer | None, *, sees_models: bool) -> Finding:
    """Say one thing about a backend; `sees_models` is whether the running gateway sees some."""
    check = f"ollama {place_of(url)}"
    told = version_in(answer)
    if told is not None:
        return _release(check, told)
    if answer is not None and answer.status in {401, 403}:
        advice = "Point OLLAMA_BASE_URL at Ollama itself, not at the gateway or another proxy."
        return fail(check, "wants a key: this is no Ollama", advice)
    if sees_models:
        detail = "does not answer from here, but the running gateway sees models"
        return warn(check, detail, "Set OLLAMA_BASE_URL here to what the gateway was given.")
    advice = "Start Ollama, or correct OLLAMA_BASE_URL."
    return fail(check, f"does not answer {PATH}", advice)


def place_of(url: str) -> str:
    """Name a backend without what may be secret in its address."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _release(check: str, told: str) -> Finding:
    version = parse(told)
    if version is None or version == FROM_SOURCE:
        return ok(check, f"version {told}: built from source, its defects are not known")
    known = defects_of(version)
    if not known:
        return ok(check, f"version {told}")
    listed = "; ".join(f"{each.what} (mended in {spelled(each.mended)})" for each in known)
    last = max(each.mended for each in known)
    return warn(check, f"version {told}: {listed}", f"Upgrade to {spelled(last)} or later.")
