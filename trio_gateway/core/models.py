"""Model names as Ollama reads them, and the one rule for who may use which.

A name is `[scheme://][host/][namespace/]model[:tag][:local|:cloud]`. Many spellings mean
one model, so permission is asked of the canonical name alone, and upstream is sent it too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from trio_gateway.core.domain import ApiKey, CatalogModel, Tenant

Source = Literal["", "local", "cloud"]

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
MAX_NAME = 1024  # characters; bounds the cache as well as the work
SCHEMES = ("http", "https", "https+insecure")

# What Go's strings.TrimSpace removes; Python's own strip() removes four controls more.
_SPACES = (
    "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
    "\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")  # and a tag


class InvalidModelName(ValueError):
    """Raised for a name that Ollama would refuse; the text never holds the name."""


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model's name in lower case; `source` is the explicit suffix, or empty."""

    host: str
    namespace: str
    model: str
    tag: str
    source: Source = ""

    @property
    def full(self) -> str:
        """The canonical name, spelled as /api/tags shows it: `llama3:latest`, `ns/m:t`."""
        name = f"{self.model}:{self.tag}"
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{name}"
        return name if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/{name}"

    @property
    def cloud(self) -> bool:
        """Whether the name itself sends the call to the vendor's cloud."""
        return self.source == "cloud"


def canonical(name: str) -> ModelName:
    """Return the parts of a name in any of its spellings.

    A cloud name keeps its suffix in the tag (`m:cloud`, `m:8b-cloud`; `m:8b:cloud` is the
    latter), since that is how its entry in /api/tags is spelled. Raises InvalidModelName.
    """
    if len(name) > MAX_NAME:
        raise InvalidModelName("a model name is too long")
    return _canonical(name)


@lru_cache(maxsize=1024)
def _canonical(name: str) -> ModelName:
    base, source = _split_source(name.strip(_SPACES))
    if source and _split_source(base)[1]:
        raise InvalidModelName("a model name has two source suffixes")
    front, slash, last = base.rpartition("/")
    model, colon, tag = last.rpartition(":")
    if not colon:
        model, tag = last, DEFAULT_TAG
    host, namespace = _split_front(front) if slash else (DEFAULT_HOST, DEFAULT_NAMESPACE)
    rules = ((_HOST, host), (_NAMESPACE, namespace), (_MODEL, model), (_MODEL, tag))
    if not all(rule.fullmatch(part) for rule, part in rules):
        raise InvalidModelName("a model name is malformed")
    if source == "cloud":
        tag = f"{tag}-cloud" if colon else "cloud"
    return ModelName(host.lower(), namespace.lower(), model.lower(), tag.lower(), source)


def _split_source(name: str) -> tuple[str, Source]:
    head, colon, tail = name.rpartition(":")
    suffix = tail.strip(_SPACES).lower()
    if not colon:
        return name, ""
    if suffix == "cloud":
        return head, "cloud"
    if suffix == "local":
        return head, "local"
    if suffix.endswith("-cloud") and "/" not in suffix:
        return f"{head}:{tail.strip(_SPACES)[: -len('-cloud')]}", "cloud"
    return name, ""


def _split_front(front: str) -> tuple[str, str]:
    host, slash, namespace = front.rpartition("/")
    if not slash:
        return DEFAULT_HOST, front
    scheme, separator, rest = host.partition("://")
    if not separator:
        return host, namespace
    if scheme.lower() not in SCHEMES:
        raise InvalidModelName("a model name has an unknown scheme")
    return rest, namespace


def allowed(tenant: Tenant, key: ApiKey, name: str, *, cloud: bool, blocked: bool) -> bool:
    """Whether a key may use the model of that canonical name.

    A block beats every grant; the tenant grants; the key can only narrow. `cloud` says
    that the name or the catalog makes it a remote model.
    """
    if blocked or (cloud and not tenant.allow_cloud):
        return False
    if not tenant.all_models and name not in tenant.models:
        return False
    return key.models is None or name in key.models


def effective(
    tenant: Tenant, key: ApiKey, discovered: Iterable[CatalogModel], blocked: Container[str]
) -> list[CatalogModel]:
    """Return, in their order, the discovered models that a key may use."""
    return [
        model
        for model in discovered
        if allowed(
            tenant,
            key,
            model.name,
            cloud=model.remote or is_cloud(model.name),
            blocked=model.name in blocked,
        )
    ]


def is_cloud(name: str) -> bool:
    """Whether a name says cloud; a name that cannot be read counts as one."""
    try:
        return canonical(name).cloud
    except InvalidModelName:
        return True
