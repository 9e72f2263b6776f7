"""Batches over HTTP, with the official client: create, retrieve, list, cancel, and one key twice.

Each test holds whether or not an engine works on the batches meanwhile; where a status is
needed, the row is put there with a lease that keeps engines away.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import Any

import openai
import pytest
import trio

from tests.world import World, open_world

LIMIT = 120
LEAST = {
    "input_file_id": "file-nowhere",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}
METADATA = {"test": "true", "priority": "high"}
OPEN = ["validating", "in_progress", "finalizing"]
TIMES = [
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
]
FIXED = [*LEAST, "id", "object", "created_at", "expires_at", "metadata"]
PLACE = """
INSERT INTO gateway.batches (id, tenant_id, key_id, endpoint, input_file_id, completion_window,
    fingerprint, status, expires_at, lease_token, lease_until, total, cancelling_at)
SELECT $1 || n, $2, $3, '/v1/chat/completions', 'file-nowhere', '24h', '', $4,
    now() + interval '1 day', gen_random_uuid(), now() + interval '1 hour', 1,
    CASE WHEN $4 LIKE 'cancel%' THEN now() END
FROM generate_series(1, $5) n
"""
LEASED = """
INSERT INTO gateway.batch_lines (batch_id, line, custom_id, model, start, length, state,
    lease_token, lease_until)
SELECT id, 1, 'a', 'llama3.2:latest', 0, 1, 'leased', gen_random_uuid(), now() + interval '1 hour'
FROM gateway.batches WHERE status = 'in_progress'
"""


class Office:
    """Clients of a world, whose calls run in threads."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.opened: list[openai.OpenAI] = []

    def client(self, key: Any = None, **options: Any) -> openai.OpenAI:
        """Make a client; `attempts` counts what it sent."""
        attempts: list[Any] = []
        http = openai.DefaultHttpxClient(event_hooks={"request": [attempts.append]})
        options = {"base_url": f"{self.world.base_url}/v1"} | options
        client = openai.OpenAI(api_key=(key or self.world.key)["key"], http_client=http, **options)
        client.attempts = attempts  # type: ignore[attr-defined]
        self.opened.append(client)
        return client

    async def place(self, status: str, count: int = 1) -> str:
        """Put batches there that no engine touches; return the id of the first."""
        prefix = f"batch_{secrets.token_hex(6)}_"
        tenant, key = self.world.tenant["id"], self.world.key["id"]
        await self.world.rows(PLACE, prefix, tenant, key, status, count)
        await self.world.rows(LEASED + " AND id LIKE $1 || '%'", prefix)
        return f"{prefix}1"

    async def count(self) -> int:
        """How many batches there are."""
        return int((await self.world.rows("SELECT count(*) FROM gateway.batches"))[0]["count"])


@pytest.fixture
async def office(world):
    with trio.fail_after(LIMIT):
        made = Office(world)
        yield made
        for client in made.opened:
            client.close()


@pytest.fixture
def client(office):
    return office.client()


async def ask(act: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a call of the client in a thread."""
    return await trio.to_thread.run_sync(partial(act, *args, **kwargs))


async def create(client: openai.OpenAI, key: str | None = None, **changes: Any) -> Any:
    """Create a batch, with a key in the body if there is one."""
    extra = {} if key is None else {"extra_body": {"idempotency_key": key}}
    return await ask(client.batches.create, **(LEAST | extra | changes))


def fixed(batch: Any) -> dict[str, Any]:
    """What never changes of a batch."""
    return {name: getattr(batch, name) for name in FIXED}


# Create and retrieve


async def test_create_and_retrieve_batch_success(client):
    """What was asked for comes back, now and later."""
    batch = await create(client, metadata=METADATA)
    assert batch.id.startswith("batch_")
    assert len(batch.id) > 13
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", METADATA)
    assert {name: getattr(batch, name) for name in LEAST} == LEAST
    assert batch.expires_at == batch.created_at + 86_400
    assert fixed(await ask(client.batches.retrieve, batch.id)) == fixed(batch)


async def test_create_batch_without_metadata(client):
    """None in, None out; an empty one stays empty."""
    assert (await create(client)).metadata is None
    assert (await create(client, metadata={})).metadata == {}


@pytest.mark.parametrize("endpoint", ["/v1/embeddings", "/v1/completions"])
async def test_create_batch_embeddings_endpoint_and_completions_endpoint(client, endpoint):
    """Accepted and echoed."""
    assert (await create(client, endpoint=endpoint)).endpoint == endpoint


async def test_a_batch_has_every_field_in_its_type(world, client):
    """Times are integers or null, ids strings or null, counts integers."""
    batch = await create(client)
    raw = (await world.get(f"/v1/batches/{batch.id}")).json()
    assert all(type(raw[name]) is int for name in ("created_at", "expires_at"))
    assert all(raw[name] is None or type(raw[name]) is int for name in TIMES)
    for name in ("output_file_id", "error_file_id", "model", "paused"):
        assert raw[name] is None or type(raw[name]) is str
    assert set(raw["request_counts"]) == {"total", "completed", "failed"}
    assert all(type(number) is int for number in raw["request_counts"].values())
    assert raw["usage"]["total_tokens"] == 0
    assert raw["errors"] is None or raw["errors"]["object"] == "list"
    assert "idempotency_key" not in raw


async def test_results_may_be_kept_for_as_long_as_asked(world, client):
    """The client's own parameter for it."""
    after = {"anchor": "created_at", "seconds": 4545}
    batch = await create(client, output_expires_after=after)
    query = "SELECT output_expires_after FROM gateway.batches WHERE id = $1"
    assert await world.rows(query, batch.id) == [{"output_expires_after": 4545}]


async def test_kvstore_persistence(database, redis_url, office, client):
    """A batch is there after a restart: another worker shows the same."""
    batch = await create(client, metadata=METADATA)
    async with open_world(database, redis_url, beside=office.world) as second:
        again = await ask(
            office.client(base_url=f"{second.base_url}/v1").batches.retrieve, batch.id
        )
    assert fixed(again) == fixed(batch)


async def test_retrieve_batch_not_found(client):
    """The client raises what it raises for any 404."""
    with pytest.raises(openai.NotFoundError, match="Batch 'nonexistent_batch' not found") as caught:
        await ask(client.batches.retrieve, "nonexistent_batch")
    assert caught.value.param == "id"


# What is refused


@pytest.mark.parametrize("window", ["now", "1h", "48h", "invalid", ""])
async def test_invalid_completion_window(office, client, window):
    """400, and no batch is made."""
    with pytest.raises(openai.BadRequestError, match="completion_window") as caught:
        await create(client, completion_window=window)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "completion_window")
    assert await office.count() == 0


@pytest.mark.parametrize("endpoint", ["/v1/invalid/endpoint", ""])
async def test_invalid_endpoint(office, client, endpoint):
    """The text alone names the field, the value, the rule and the code."""
    with pytest.raises(openai.BadRequestError, match="Invalid endpoint") as caught:
        await create(client, endpoint=endpoint)
    text = str(caught.value)
    for words in ("invalid value", endpoint, "supported values", "endpoint", "invalid_value"):
        assert words in text
    assert (caught.value.code, caught.value.param) == ("invalid_value", "endpoint")
    assert await office.count() == 0


@pytest.mark.parametrize("value", [["tag1", "tag2"], 5])
async def test_invalid_metadata_types(office, client, value):
    """Only strings have a place in metadata."""
    with pytest.raises(openai.BadRequestError) as caught:
        await create(client, metadata={"name": "a", "tags": value})
    text = str(caught.value)
    assert "tags" in text
    assert "should be a valid string" in text
    assert (caught.value.code, caught.value.param) == ("invalid_type", "metadata.tags")
    assert await office.count() == 0


@pytest.mark.parametrize("name", LEAST)
async def test_a_missing_field_is_named(world, name):
    """As OpenAI words it."""
    answer = await world.post("/v1/batches", {k: v for k, v in LEAST.items() if k != name})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["code"], error["param"]) == ("missing_required_parameter", name)
    assert error["type"] == "invalid_request_error"


async def test_a_create_is_short(office, world):
    """A body of more than a megabyte is none, whether or not its length was said."""
    size = 2**20 + 1
    padded = LEAST | {"padding": "x" * size}
    answer = await world.post("/v1/batches", padded)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"

    async def pieces():
        yield b'{"padding":"'
        for _ in range(size // 2**16 + 1):
            yield b"x" * 2**16

    answer = await world.client.post("/v1/batches", content=pieces(), headers=world.auth())
    assert answer.status_code == 413
    assert await office.count() == 0


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/batches/batch_1/cancel"])
async def test_a_content_encoding_is_refused(world, path):
    """As on every route."""
    answer = await world.post(path, LEAST, headers={"content-encoding": "gzip"})
    assert answer.status_code == 415


async def test_a_thousand_open_batches_are_the_most(office):
    """Then 429, which is not worth a retry; what a key has made is still returned."""
    client = office.client()
    first = await create(client, key="first")
    await office.place("in_progress", 1000)
    client.attempts.clear()
    with pytest.raises(openai.RateLimitError, match="have not ended"):
        await create(client, key="second")
    assert len(client.attempts) == 1
    assert await office.count() == 1001
    assert (await create(client, key="first")).id == first.id


# List


async def test_list_batches_empty(world, client):
    """Null ids, and nothing more."""
    page = await ask(client.batches.list)
    assert (page.data, page.has_more) == ([], False)
    raw = (await world.get("/v1/batches")).json()
    assert raw == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


async def test_list_batches_single_batch(world, client):
    """It is the first and the last."""
    batch = await create(client)
    raw = (await world.get("/v1/batches")).json()
    assert (raw["first_id"], raw["last_id"], raw["has_more"]) == (batch.id, batch.id, False)
    assert [fixed(each) for each in (await ask(client.batches.list)).data] == [fixed(batch)]


async def test_list_batches_multiple_batches(world, client):
    """All are there, the newest first."""
    made = [(await create(client)).id for _ in range(3)]
    raw = (await world.get("/v1/batches")).json()
    assert [each["id"] for each in raw["data"]] == made[::-1]
    assert (raw["first_id"], raw["last_id"]) == (made[2], made[0])


async def test_list_batches_with_limit(world, client):
    """Two of three, and a word that there is more."""
    made = [(await create(client)).id for _ in range(3)]
    raw = (await world.get("/v1/batches?limit=2")).json()
    assert [each["id"] for each in raw["data"]] == [made[2], made[1]]
    assert (raw["first_id"], raw["last_id"], raw["has_more"]) == (made[2], made[1], True)


async def test_list_batches_with_pagination(client):
    """After the first comes the second; the client's own paging sees each once."""
    made = [(await create(client)).id for _ in range(5)]
    first = await ask(client.batches.list, limit=1)
    second = await ask(client.batches.list, limit=1, after=first.data[0].id)
    assert [second.data[0].id, second.has_more] == [made[3], True]
    paged = await ask(lambda: [batch.id for batch in client.batches.list(limit=2)])
    assert paged == made[::-1]


async def test_list_batches_invalid_after(client):
    """An unknown one begins at the start."""
    made = [(await create(client)).id for _ in range(2)]
    page = await ask(client.batches.list, after="batch_nowhere")
    assert [batch.id for batch in page.data] == made[::-1]


@pytest.mark.parametrize("limit", ["0", "101", "x", ""])
async def test_a_limit_out_of_range_is_refused(world, limit):
    """With its name."""
    answer = await world.get(f"/v1/batches?limit={limit}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


# Cancel


async def test_cancel_batch_not_found(client):
    """As for retrieve."""
    with pytest.raises(openai.NotFoundError, match="Batch 'nonexistent_batch' not found"):
        await ask(client.batches.cancel, "nonexistent_batch")


@pytest.mark.parametrize("status", OPEN)
async def test_cancel_batch_success(office, client, status):
    """At once, once, and a second time changes nothing."""
    batch_id = await office.place(status)
    batch = await ask(client.batches.cancel, batch_id)
    assert batch.status in {"cancelling", "cancelled"}
    assert batch.cancelling_at >= batch.created_at
    again = await ask(client.batches.cancel, batch_id)
    assert again.status in {"cancelling", "cancelled"}
    assert again.cancelling_at == batch.cancelling_at
    assert (await ask(client.batches.retrieve, batch_id)).cancelling_at == batch.cancelling_at


async def test_cancel_of_what_is_cancelled_returns_it(office, client):
    """200, as it is."""
    batch_id = await office.place("cancelled")
    assert (await ask(client.batches.cancel, batch_id)).status == "cancelled"


async def test_batch_immediate_cancellation(client):
    """A batch just made; if its missing file was noticed first, it is the conflict of that."""
    batch = await create(client)
    try:
        cancelled = await ask(client.batches.cancel, batch.id)
    except openai.ConflictError as error:
        assert "with status 'failed'" in str(error)
    else:
        assert cancelled.status in {"cancelling", "cancelled"}
        assert cancelled.cancelling_at >= batch.created_at


@pytest.mark.parametrize("status", ["failed", "expired", "completed"])
async def test_cancel_batch_invalid_statuses(office, client, status):
    """409 with the status in the text, and the client does not try again."""
    batch_id = await office.place(status)
    words = f"Cannot cancel batch '{batch_id}' with status '{status}'"
    with pytest.raises(openai.ConflictError, match=words) as caught:
        await ask(client.batches.cancel, batch_id)
    assert caught.value.status_code == 409
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(client.attempts) == 1
    assert (await ask(client.batches.retrieve, batch_id)).status == status


# Isolation


async def test_another_tenants_batch_is_as_a_random_id_everywhere(office, world, client):
    """The same answers but for the id, absent from lists, and untouched."""
    batch = await create(client)
    key = await world.tenant_with_key("rival")
    rival = office.client(key)
    own = await create(rival)
    for method, tail in (("GET", ""), ("POST", "/cancel")):
        texts = set()
        for batch_id in (batch.id, "batch_0123456789abcdef01234567"):
            path = f"/v1/batches/{batch_id}{tail}"
            answer = await world.client.request(method, path, headers=world.auth(key))
            assert answer.status_code == 404
            texts.add(answer.text.replace(batch_id, "ID"))
        assert len(texts) == 1
    assert [each.id for each in (await ask(rival.batches.list)).data] == [own.id]
    page = await ask(rival.batches.list, after=batch.id)
    assert [each.id for each in page.data] == [own.id]
    assert (await ask(client.batches.retrieve, batch.id)).cancelling_at is None


# One key twice


async def test_idempotent_batch_creation_same_params(office, world):
    """The same batch, however its metadata is ordered; the answer says that it is a replay."""
    client = office.client()
    first = await create(client, key="same", metadata=METADATA)
    reordered = dict(reversed(METADATA.items()))
    second = await create(client, key="same", metadata=reordered)
    assert fixed(second) == fixed(first)
    body = LEAST | {"idempotency_key": "same", "metadata": reordered}
    raw = await world.post("/v1/batches", body)
    assert (raw.status_code, raw.json()["id"]) == (200, first.id)
    assert raw.headers["idempotent-replayed"] == "true"
    assert await office.count() == 1


async def test_a_first_create_is_no_replay(world):
    """With a key and without."""
    for body in (LEAST, LEAST | {"idempotency_key": "fresh"}):
        answer = await world.post("/v1/batches", body)
        assert answer.status_code == 200
        assert "idempotent-replayed" not in answer.headers


async def test_different_idempotency_keys_create_different_batches(client):
    """All else being equal."""
    assert (await create(client, key="a")).id != (await create(client, key="b")).id


async def test_non_idempotent_behavior_without_key(client):
    """Always a new batch; a null key is none."""
    made = [await create(client), await create(client)]
    made += [await create(client, extra_body={"idempotency_key": None})]
    assert len({batch.id for batch in made}) == 3
    assert len({batch.input_file_id for batch in made}) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"input_file_id": "file-1"}, {"input_file_id": "file-2"}),
        ({"metadata": {"a": "1"}}, {"metadata": {"a": "2"}}),
        ({"metadata": None}, {"metadata": {}}),
        ({}, {"endpoint": "/v1/embeddings"}),
        ({}, {"output_expires_after": {"anchor": "created_at", "seconds": 3600}}),
    ],
)
async def test_idempotency_conflict_with_different_params(office, client, first, second):
    """409 that names the key, is sent once, and leaves the first batch as it was."""
    batch = await create(client, key="conflict-token", **first)
    client.attempts.clear()
    words = "Idempotency key.*was previously used with different parameters"
    with pytest.raises(openai.ConflictError, match=words) as caught:
        await create(client, key="conflict-token", **second)
    assert "conflict-token" in str(caught.value)
    assert (caught.value.status_code, caught.value.code) == (409, "idempotency_key_conflict")
    assert caught.value.param == "idempotency_key"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(client.attempts) == 1
    assert fixed(await ask(client.batches.retrieve, batch.id)) == fixed(batch)
    assert await office.count() == 1


@pytest.mark.parametrize("change", [{"endpoint": "/v1/no"}, {"completion_window": "1h"}])
async def test_what_is_wrong_in_itself_is_400_before_it_is_a_conflict(client, change):
    """A key that was used before changes nothing about that."""
    await create(client, key="used")
    with pytest.raises(openai.BadRequestError):
        await create(client, key="used", **change)


async def test_rejected_creates_use_up_no_key(client):
    """A mistake can be mended under the same key."""
    for change in ({"endpoint": "/v1/no"}, {"completion_window": "1h"}, {"metadata": {"a": 1}}):
        with pytest.raises(openai.BadRequestError):
            await create(client, key="mended", **change)
    batch = await create(client, key="mended")
    assert fixed(await create(client, key="mended")) == fixed(batch)


@pytest.mark.parametrize("value", ["header", '"header"'])
async def test_the_key_may_be_a_header(client, value):
    """Quoted or not, alone or with the body's, it is the same key."""
    first = await create(client, key="header")
    headers = {"Idempotency-Key": value}
    assert (await create(client, extra_headers=headers)).id == first.id
    assert (await create(client, key="header", extra_headers=headers)).id == first.id


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        ("one", {"Idempotency-Key": "two"}),
        ("", {}),
        ("k" * 256, {}),
        ("a\nb", {}),
        (None, {"Idempotency-Key": ""}),
        (None, {"Idempotency-Key": '""'}),
        (None, {"Idempotency-Key": '"a'}),
        (None, {"Idempotency-Key": "k" * 256}),
    ],
)
async def test_a_key_that_is_none_is_refused(office, client, key, headers):
    """Two that differ, an empty one, a long one, one that is not printable."""
    with pytest.raises(openai.BadRequestError) as caught:
        await create(client, key=key, extra_headers=headers)
    assert caught.value.param == "idempotency_key"
    assert await office.count() == 0


async def test_the_header_may_appear_once_only(office, world):
    """Two equal ones are refused too."""
    for values in (["a", "a"], ["a", "b"]):
        headers = [*world.auth().items(), *(("idempotency-key", value) for value in values)]
        answer = await world.client.post("/v1/batches", json=LEAST, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "idempotency_key"
    assert await office.count() == 0


async def test_25_creates_at_once_make_two_batches(office, world):
    """One for each tenant; all others get it as it is."""
    rival = await world.tenant_with_key("rival")
    clients = [office.client(max_retries=0), office.client(rival, max_retries=0)]
    made: tuple[list[Any], list[Any]] = ([], [])

    async def one(number: int) -> None:
        create_raw = clients[number % 2].batches.with_raw_response.create
        extra = {"extra_body": {"idempotency_key": "together"}}
        made[number % 2].append(await ask(create_raw, **LEAST, **extra))

    async with trio.open_nursery() as nursery:
        for number in range(25):
            nursery.start_soon(one, number)
    assert await office.count() == 2
    for answers in made:
        assert len({answer.parse().id for answer in answers}) == 1
        replays = [answer.headers.get("idempotent-replayed") for answer in answers]
        assert replays.count(None) == 1
        assert replays.count("true") == len(answers) - 1
    assert len({answers[0].parse().id for answers in made}) == 2
