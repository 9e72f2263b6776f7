"""Model names and who may use them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_gateway.core.domain import ApiKey, CatalogModel, Tenant
from trio_gateway.core.models import (
    MAX_NAME,
    InvalidModelName,
    allowed,
    canonical,
    effective,
    is_cloud,
)

SPELLINGS = [
    "llama3",
    "LLAMA3",
    "llama3:LATEST",
    "LLaMA3:latest",
    "library/llama3",
    "Library/llama3:latest",
    "registry.ollama.ai/library/llama3:latest",
    "REGISTRY.ollama.ai/library/llama3",
    "https://registry.ollama.ai/library/llama3",
    "http://registry.ollama.ai/library/llama3",
    " llama3 ",
    "\t\nllama3\r\v\f",
    "\u00a0llama3\u3000\u0085",
    "\u1680\u2000llama3\u2028\u202f\u205f",
    "llama3:local",
    "llama3: LOCAL ",
    "llama3:latest:local",
]

OTHERS = {
    "http://evil:80/library/llama3": "evil:80/library/llama3:latest",
    "evil.com/library/llama3": "evil.com/library/llama3:latest",
    "ns/m:t": "ns/m:t",
    "host/library/m:t": "host/library/m:t",
    "m": "m:latest",
    "my-cloud-model": "my-cloud-model:latest",
    "ns/my-cloud:8b": "ns/my-cloud:8b",
    "localhost:5000/a/b:c": "localhost:5000/a/b:c",
    "https+insecure://h:1/a/b": "h:1/a/b:latest",
    "hf.co/bartowski/Llama-3.2-1B-GGUF:Q4_K_M": "hf.co/bartowski/llama-3.2-1b-gguf:q4_k_m",
}

CLOUDS = {
    "llama3:cloud": "llama3:cloud",
    "llama3:CLOUD": "llama3:cloud",
    "llama3: cloud": "llama3:cloud",
    "llama3:8b-Cloud": "llama3:8b-cloud",
    "llama3:8b-cloud": "llama3:8b-cloud",
    "llama3:8b:cloud": "llama3:8b-cloud",
    "library/llama3:cloud": "llama3:cloud",
    "ns/m:cloud": "ns/m:cloud",
}

MALFORMED = [
    "",
    " ",
    ":",
    "llama3:",
    ":latest",
    ":cloud",
    "llama3:-cloud",
    "llama3@sha256:abcdef",
    "llama3:latest@sha256:abcdef",
    "../llama3",
    "..",
    "/x",
    "x/",
    "a//b",
    "a/b/c/d",
    "mm:",
    "llama3%00",
    "llama3\x00",
    "lla ma3",
    "llama3\x1c",
    "ll\u0430ma3",
    "llama\uff13",
    "llama3\uff1alatest",
    "\u212aimi",
    "foo:cloud:local",
    "foo:local:cloud",
    "foo:8b-cloud:local",
    "foo:cloud:cloud",
    "foo:bar-cloud/baz",
    "foo:80/bar",
    "-llama3",
    ".llama3",
    "llama3:-x",
    "na.me/llama3",
    "file://host/ns/model",
    "http://registry.ollama.ai/llama3",
    "http:///ns/m",
    "a" * 81,
    "m:" + "t" * 81,
    "n" * 81 + "/m",
    "h" * 351 + "/n/m",
    "llama3?model=x",
    "llama3#x",
    "llama3\\x",
]


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_one_model_has_one_canonical_name(name):
    """What Ollama would take for llama3:latest is llama3:latest, and nothing cloudy."""
    assert canonical(name).full == "llama3:latest"
    assert not canonical(name).cloud


@pytest.mark.parametrize(("name", "full"), OTHERS.items())
def test_names_are_displayed_as_tags_shows_them(name, full):
    """The default host and namespace are left out, the tag never is."""
    assert canonical(name).full == full
    assert not canonical(name).cloud


@pytest.mark.parametrize(("name", "full"), CLOUDS.items())
def test_cloud_names_keep_their_suffix(name, full):
    """A source suffix in any spelling is cloud and stays in the canonical name."""
    assert canonical(name).full == full
    assert canonical(name).cloud
    assert is_cloud(name)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_names_are_refused_without_being_repeated(name):
    """A name that Ollama refuses raises, and the text does not hold it."""
    with pytest.raises(InvalidModelName) as caught:
        canonical(name)
    assert len(name) < 3 or name not in str(caught.value)
    assert is_cloud(name)


def test_a_huge_name_is_refused_by_its_length():
    """Ten kilobytes of name cost one comparison."""
    with pytest.raises(InvalidModelName):
        canonical("a" * 10_000)
    with pytest.raises(InvalidModelName):
        canonical(" " * MAX_NAME + "a")


@given(st.text(max_size=60) | st.from_regex(r"[a-zA-Z0-9:/._ -]{1,40}", fullmatch=True))
def test_a_canonical_name_is_its_own_canonical_name(name):
    """canonical is idempotent, in lower-case ASCII, and keeps the cloud mark."""
    try:
        first = canonical(name)
    except InvalidModelName:
        return
    again = canonical(first.full)
    assert (again.full, again.cloud) == (first.full, first.cloud)
    assert first.full == first.full.lower()
    assert first.full.isascii()


def tenant(**changes):
    return Tenant(id="t", name="t", **changes)


def key(**changes):
    return ApiKey(id="k", public_id="p", tenant_id="t", **changes)


ONLY = frozenset({"llama3:latest"})

GRANTS = [
    (tenant(), key(), False),
    (tenant(models=ONLY), key(), True),
    (tenant(models=ONLY), key(models=ONLY), True),
    (tenant(models=ONLY), key(models=frozenset()), False),
    (tenant(all_models=True), key(), True),
    (tenant(all_models=True), key(models=ONLY), True),
    (tenant(all_models=True), key(models=frozenset({"other:latest"})), False),
    (tenant(), key(models=ONLY), False),
]


@pytest.mark.parametrize(("owner", "held", "expected"), GRANTS)
def test_the_tenant_grants_and_the_key_narrows(owner, held, expected):
    """A key never widens what its tenant may use."""
    assert allowed(owner, held, "llama3:latest", cloud=False, blocked=False) is expected


@pytest.mark.parametrize(("owner", "held", "expected"), GRANTS)
def test_a_block_beats_every_grant(owner, held, expected):
    """Blocked is denied, whoever asks."""
    assert not allowed(owner, held, "llama3:latest", cloud=False, blocked=True)


def test_cloud_needs_the_tenants_consent():
    """A remote model is denied without allow_cloud, even to allow-all tenants."""
    open_tenant = tenant(all_models=True)
    assert not allowed(open_tenant, key(), "m:cloud", cloud=True, blocked=False)
    opted = tenant(all_models=True, allow_cloud=True)
    assert allowed(opted, key(), "m:cloud", cloud=True, blocked=False)


def test_a_grant_holds_for_every_spelling_and_for_a_local_model_alone():
    """What is compared is the canonical name; a granted name that runs elsewhere is denied."""
    owner = tenant(models=ONLY)
    for name in SPELLINGS:
        assert allowed(owner, key(), canonical(name).full, cloud=False, blocked=False)
    assert not allowed(owner, key(), canonical("other").full, cloud=False, blocked=False)
    assert not allowed(owner, key(), "llama3:latest", cloud=True, blocked=False)
    cloud = is_cloud("llama3:8b-Cloud")
    assert not allowed(
        tenant(all_models=True), key(), "llama3:8b-cloud", cloud=cloud, blocked=False
    )


def test_effective_keeps_order_and_drops_what_is_not_allowed():
    """Blocked, remote and cloud-named models are missing from a caller's list."""
    found = [
        CatalogModel("b:latest", "", remote=False, raw={}),
        CatalogModel("stub:latest", "", remote=True, raw={}),
        CatalogModel("c:cloud", "", remote=False, raw={}),
        CatalogModel("bad:latest", "", remote=False, raw={}),
        CatalogModel("a:latest", "", remote=False, raw={}),
    ]
    owner = tenant(all_models=True)
    names = [model.name for model in effective(owner, key(), found, {"bad:latest"})]
    assert names == ["b:latest", "a:latest"]
    opted = tenant(all_models=True, allow_cloud=True)
    assert len(effective(opted, key(), found, frozenset())) == 5
